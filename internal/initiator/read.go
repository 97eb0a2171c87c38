package initiator

import (
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// read handles everything that comes over a connection until it ends. What one read of the socket brought is handled
// under one lock, then the requests that are complete are handed back, and what may now be sent is sent at once.
func (s *Session) read(l *link) error {
	var done []*block.Request
	l.in.Place = s.placeData
	for {
		var err error
		s.mu.Lock()
		for {
			var ok bool
			if ok, err = l.in.Next(); err != nil || !ok {
				break
			}
			var r *block.Request
			if r, err = s.handle(l, &l.in.Header, l.in.Data); err != nil {
				break
			}
			if r != nil {
				done = append(done, r)
			}
		}
		s.send()
		s.mu.Unlock()
		l.flush()
		complete(done)
		clear(done)
		done = done[:0]
		if err != nil {
			return err
		}
		if err := l.in.Fill(); err != nil {
			return err
		}
		l.lastRx.Store(time.Now().UnixNano())
	}
}

var errDropped = errors.New("target drops the session")

// handle handles one PDU; it returns the request that is complete with it. The lock is held.
func (s *Session) handle(l *link, h *pdu.Header, data []byte) (*block.Request, error) {
	op := h.Opcode()
	if max := h.MaxCmdSN(); pdu.Before(l.maxSN, max) {
		l.maxSN = max
	}
	status := op != pdu.R2T && h.ITT() != pdu.NoTag && (op != pdu.DataIn || h.Has(pdu.StatusBit))
	if status || op == pdu.Async || op == pdu.Reject {
		l.exp = h.StatSN() + 1
	}
	switch op {
	case pdu.NopIn:
		if h.TTT() != pdu.NoTag {
			s.answerPing(l, h)
		}
	case pdu.Async:
		switch h[36] {
		case pdu.AsyncRequestLogout, pdu.AsyncDropConnection, pdu.AsyncDropSession:
			return nil, errDropped
		}
		return nil, nil
	case pdu.Reject:
		return nil, fmt.Errorf("target rejects a PDU, reason %#x", h[2])
	}
	if h.ITT() == pdu.NoTag {
		return nil, nil
	}
	c := s.find(h.ITT())
	if c == nil {
		return nil, nil // was aborted
	}
	switch op {
	case pdu.DataIn:
		return s.dataIn(l, c, h, data)
	case pdu.Response:
		return s.response(c, h, data)
	case pdu.R2T:
		from, n := int(h.Offset()), int(h.Desired())
		if from+n > len(c.out) {
			return nil, fmt.Errorf("R2T for bytes %d+%d of %d", from, n, len(c.out))
		}
		l.out.Lock()
		s.sendData(l, c, h.TTT(), from, from+n)
		l.out.Unlock()
	case pdu.NopIn, pdu.TaskMgmtResp, pdu.LogoutResp:
		if op == pdu.TaskMgmtResp && h[2] == pdu.FunctionComplete {
			s.aborted(c)
		}
		s.end(c, Result{Response: h[2]}, nil)
	default:
		return nil, fmt.Errorf("unexpected opcode %#x", op)
	}
	return nil, nil
}

// find returns the command with a task tag.
func (s *Session) find(tag uint32) *command {
	if i := int(tag & 0xffff); i < len(s.slots) && s.slots[i] != nil && s.slots[i].tag == tag {
		return s.slots[i]
	}
	return nil
}

func (s *Session) answerPing(l *link, in *pdu.Header) {
	h := pdu.New(pdu.NopOut, pdu.Final)
	h.SetImmediate()
	h.SetLUN(in.LUN())
	h.SetITT(pdu.NoTag)
	h.SetTTT(in.TTT())
	h.SetCmdSN(l.cmdSN)
	h.SetExpStatSN(l.exp)
	l.out.Lock()
	l.out.Append(&h, nil, nil)
	l.out.Unlock()
}

// placeData gives the data of a large read its place. The lock is held, as Next is called.
func (s *Session) placeData(h *pdu.Header) []byte {
	if h.Opcode() != pdu.DataIn {
		return nil
	}
	c := s.find(h.ITT())
	at, n := int(h.Offset()), h.DataLen()
	if c == nil || at != c.got || at+n > c.inLen {
		return nil
	}
	c.memory()
	return c.in[at : at+n]
}

// memory gives a command that reads the memory to read into.
func (c *command) memory() {
	if c.in == nil {
		c.inBuf = readPool(c.inLen).Get()
		c.in = c.inBuf.B[:c.inLen]
	}
}

// readPools hold the buffers for reads that do not fit into one PDU: powers of two from 4 KiB to 4 MiB.
var readPools = func() (p [11]*block.BufferPool) {
	for i := range p {
		p[i] = block.NewBufferPool(4096 << i)
	}
	return p
}()

func readPool(n int) *block.BufferPool {
	if i := bits.Len(uint(max(n, 1)-1) >> 12); i < len(readPools) {
		return readPools[i]
	}
	return block.NewBufferPool(n)
}

// dataIn handles a Data-In PDU. A read that is answered by one PDU is handed out as it lies in the reader's chunk.
func (s *Session) dataIn(l *link, c *command, h *pdu.Header, data []byte) (*block.Request, error) {
	at := int(h.Offset())
	if at != c.got || at+len(data) > c.inLen {
		return nil, fmt.Errorf("Data-In of bytes %d+%d instead of %d of %d", at, len(data), c.got, c.inLen)
	}
	if !l.in.Placed {
		if c.in == nil && len(data) == c.inLen && c.req != nil {
			c.in, c.inBuf = data, l.in.Lend()
		} else {
			c.memory()
			copy(c.in[at:], data)
		}
	}
	c.got += len(data)
	if h.Has(pdu.StatusBit) {
		return s.finish(c, scsi.Status(h[3]), scsi.Sense{}, h)
	}
	return nil, nil
}

// response handles a SCSI Response PDU.
func (s *Session) response(c *command, h *pdu.Header, data []byte) (*block.Request, error) {
	if h[2] != 0 {
		return nil, fmt.Errorf("target failure %#x", h[2])
	}
	var sense scsi.Sense
	if len(data) >= 2 {
		n := min(int(be.Uint16(data)), len(data)-2)
		sense, _ = scsi.ParseSense(data[2 : 2+n])
	}
	return s.finish(c, scsi.Status(h[3]), sense, h)
}

// finish decides what the status of a command means: done, or to be sent again.
func (s *Session) finish(c *command, st scsi.Status, sense scsi.Sense, h *pdu.Header) (*block.Request, error) {
	if c.call != nil && c.call.raw {
		flags := h[1]
		res := Result{Status: st, Sense: sense, Residual: int(h.Residual())}
		res.Overflow, res.Underflow = flags&pdu.Overflow != 0, flags&pdu.Underflow != 0
		return s.end(c, res, nil), nil
	}
	switch {
	case mayRepeat(st, sense) && c.tries < 16:
		if sense.Is(scsi.CapacityDataChanged) || sense.Is(scsi.PowerOn) {
			s.refreshLater()
		}
		c.tries++
		s.again(c)
		return nil, nil
	case (st == scsi.Busy || st == scsi.TaskSetFull) && !s.exhausted(c):
		c.tries++
		s.retryLater(c)
		return nil, nil
	}
	var err error
	if st != scsi.Good {
		err = &CommandError{Op: c.cdb[0], Status: st, Sense: sense}
	} else if c.call == nil && c.got < c.inLen {
		err = fmt.Errorf("read of %d bytes brought %d", c.inLen, c.got)
	} else if c.req != nil && c.req.Op == block.WriteZeroes && c.req.FUA && c.cdb[0] != 0x91 {
		c.cdb = [16]byte{0x91} // WRITE SAME has no FUA bit: flush
		c.out = nil
		s.again(c)
		return nil, nil
	}
	return s.end(c, Result{Status: st, Sense: sense}, err), nil
}

// refreshLater reads the capacity after it may have changed.
func (s *Session) refreshLater() {
	if s.size.Load() == 0 {
		return // Dial reads it
	}
	go func() {
		if err := s.Refresh(s.ctx); err != nil {
			s.cfg.Log.Warn("initiator: capacity is not known", "err", err)
		}
	}()
}
