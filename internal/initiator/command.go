package initiator

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

var be = binary.BigEndian

// command is one request to the target: a SCSI command, or a task management, NOP-Out or logout request. The session's
// lock guards it. Commands are recycled.
type command struct {
	kind  pdu.Opcode
	tag   uint32 // initiator task tag; its low 16 bits are the slot
	slot  uint16
	sn    uint32 // CmdSN
	sent  bool
	order uint64 // of submission, kept when the command is sent again
	tries int    // times that the target asked to try again

	cdb    [16]byte
	out    []byte        // data to send
	outBuf *block.Buffer // its memory, if counted
	in     []byte        // memory for the data that is read; nil: the reader's chunk will do
	inBuf  *block.Buffer
	inLen  int
	got    int // bytes read

	req   *block.Request // completed by this command, or a part of it
	whole *split         // set when the request takes several commands
	call  *Call          // set for a command of Begin
	fn    byte           // task management function
	ref   uint32         // task tag that it refers to
}

// split is a request that takes several commands.
type split struct {
	req  *block.Request
	left int
	err  error
}

// Submit implements block.Device.
func (s *Session) Submit(batch []*block.Request) {
	var failed []*block.Request
	s.mu.Lock()
	for _, r := range batch {
		if s.err != nil {
			failed = append(failed, r)
			continue
		}
		s.enqueue(r)
	}
	err := s.err
	l := s.link
	if l != nil {
		s.send()
	}
	s.mu.Unlock()
	if l != nil {
		l.flush()
	}
	for _, r := range failed {
		s.finishRequest(r, err)
	}
	complete(failed)
}

// enqueue makes the commands of a request; the lock is held.
func (s *Session) enqueue(r *block.Request) {
	limit := s.transfer
	switch r.Op {
	case block.Discard:
		limit = s.unmap
	case block.WriteZeroes:
		limit = s.same
	}
	if r.Op == block.Flush || r.Length <= limit {
		c := s.newCommand(pdu.Command)
		c.req = r
		c.encode(r.Op, r.Offset, r.Length, r.FUA)
		if r.Op == block.Write {
			c.out, c.outBuf = r.Data, r.Buf
		}
		s.queue = append(s.queue, c)
		return
	}
	w := &split{req: r}
	if r.Op == block.Read {
		r.Buf = block.WrapBuffer(make([]byte, r.Length))
		r.Data = r.Buf.B
	}
	for at := int64(0); at < r.Length; at += limit {
		n := min(limit, r.Length-at)
		c := s.newCommand(pdu.Command)
		c.whole = w
		c.encode(r.Op, r.Offset+at, n, r.FUA)
		switch r.Op {
		case block.Read:
			c.in = r.Data[at : at+n]
		case block.Write:
			c.out, c.outBuf = r.Data[at:at+n], r.Buf
		}
		w.left++
		s.queue = append(s.queue, c)
	}
}

// newCommand returns an empty command that comes after all others; the lock is held.
func (s *Session) newCommand(kind pdu.Opcode) *command {
	var c *command
	if n := len(s.free); n > 0 {
		c, s.free = s.free[n-1], s.free[:n-1]
	} else {
		c = new(command)
	}
	s.orders++
	c.kind, c.order = kind, s.orders
	return c
}

var zeroSector [block.SectorSize]byte

// encode fills in the CDB and the data lengths.
func (c *command) encode(op block.Op, offset, length int64, fua bool) {
	lba, n := uint64(offset/block.SectorSize), uint32(length/block.SectorSize)
	b := c.cdb[:]
	switch op {
	case block.Read:
		b[0] = 0x88
		c.inLen = int(length)
	case block.Write:
		b[0] = 0x8a
		if fua {
			b[1] = 0x08
		}
	case block.Flush:
		b[0], lba, n = 0x91, 0, 0
	case block.WriteZeroes:
		b[0] = 0x93
		c.out = zeroSector[:]
	case block.Discard: // UNMAP with one descriptor
		b[0], b[8] = 0x42, 24
		p := make([]byte, 24)
		be.PutUint16(p, 22)
		be.PutUint16(p[2:], 16)
		be.PutUint64(p[8:], lba)
		be.PutUint32(p[16:], n)
		c.out = p
		return
	}
	be.PutUint64(b[2:], lba)
	be.PutUint32(b[10:], n)
}

// send sends as much of the queue as the window and the slots allow; the lock is held and there is a link. The caller
// flushes.
func (s *Session) send() {
	l := s.link
	n := 0
	l.out.Lock()
	for _, c := range s.queue {
		if len(s.idle) == 0 || pdu.Before(l.maxSN, l.cmdSN) {
			break
		}
		s.take(l, c)
		s.sendCommand(l, c)
		n++
	}
	l.out.Unlock()
	if n > 0 {
		s.queue = slices.Delete(s.queue, 0, n)
	}
}

// take gives a command a slot, a task tag that was not used lately, and the CmdSN that is next.
func (s *Session) take(l *link, c *command) {
	last := len(s.idle) - 1
	c.slot = s.idle[last]
	s.idle = s.idle[:last]
	s.slots[c.slot] = c
	c.tag = uint32(c.slot) | (c.tag+1<<16)&0x7fff0000
	c.sent, c.sn = true, l.cmdSN
	if c.call != nil {
		c.call.tag = c.tag
	}
}

// sendCommand appends a command's PDU with its immediate and unsolicited data; both locks are held.
func (s *Session) sendCommand(l *link, c *command) {
	h := pdu.New(c.kind, pdu.Final)
	h.SetITT(c.tag)
	h.SetCmdSN(l.cmdSN)
	h.SetExpStatSN(l.exp)
	l.cmdSN++
	copy(h.CDB(), c.cdb[:])
	if len(c.out) == 0 {
		if c.inLen > 0 {
			h[1] |= pdu.ReadBit
			h.SetExpected(uint32(c.inLen))
		}
		l.out.Append(&h, nil, nil)
		return
	}
	h[1] |= pdu.WriteBit
	h.SetExpected(uint32(len(c.out)))
	first := min(len(c.out), l.par.FirstBurst)
	immediate := 0
	if l.par.ImmediateData {
		immediate = min(first, l.par.MaxSend)
	}
	unsolicited := !l.par.InitialR2T && immediate < first
	if unsolicited {
		h[1] &^= pdu.Final
	}
	c.outBuf.Retain()
	l.out.Append(&h, c.out[:immediate], c.outBuf)
	if unsolicited {
		s.sendData(l, c, pdu.NoTag, immediate, first)
	}
}

// sendData appends the Data-Out PDUs of one sequence; both locks are held.
func (s *Session) sendData(l *link, c *command, ttt uint32, from, to int) {
	for sn := uint32(0); from < to; sn++ {
		n := min(to-from, l.par.MaxSend)
		h := pdu.New(pdu.DataOut, 0)
		if from+n == to {
			h[1] = pdu.Final
		}
		h.SetITT(c.tag)
		h.SetTTT(ttt)
		h.SetExpStatSN(l.exp)
		h.SetDataSN(sn)
		h.SetOffset(uint32(from))
		c.outBuf.Retain()
		l.out.Append(&h, c.out[from:from+n], c.outBuf)
		from += n
	}
}

// sendNow sends a request for immediate delivery, outside of the window; the lock is held.
func (s *Session) sendNow(l *link, c *command) {
	s.take(l, c)
	h := pdu.New(c.kind, pdu.Final)
	h.SetImmediate()
	h.SetITT(c.tag)
	h.SetCmdSN(l.cmdSN)
	h.SetExpStatSN(l.exp)
	switch c.kind {
	case pdu.TaskMgmt:
		h[1] |= c.fn
		h.SetRefTag(c.ref)
	case pdu.NopOut:
		h.SetTTT(pdu.NoTag)
	}
	l.out.Lock()
	l.out.Append(&h, nil, nil)
	l.out.Unlock()
}

// ping sends a NOP-Out that the target answers; the lock is held.
func (s *Session) ping(l *link) {
	if len(s.idle) > 0 && s.link == l {
		s.sendNow(l, s.newCommand(pdu.NopOut))
	}
}

// release takes a command out of its slot; the lock is held.
func (s *Session) release(c *command) {
	if c.sent {
		s.slots[c.slot] = nil
		s.idle = append(s.idle, c.slot)
		c.sent = false
	}
}

// recycle makes a command that has ended available again; the lock is held.
func (s *Session) recycle(c *command) {
	s.release(c)
	*c = command{tag: c.tag}
	s.free = append(s.free, c)
}

// again puts a command that has a slot back into the queue, at its place; the lock is held.
func (s *Session) again(c *command) {
	s.release(c)
	if c.whole == nil && c.inBuf != nil {
		c.inBuf.Release()
		c.in, c.inBuf = nil, nil
	}
	c.got = 0
	i, _ := slices.BinarySearchFunc(s.queue, c, func(a, b *command) int { return cmp.Compare(a.order, b.order) })
	s.queue = slices.Insert(s.queue, i, c)
}

// takeBack puts all commands that were sent back into the queue, after the loss of the connection; what only concerned
// that connection ends. The lock is held.
func (s *Session) takeBack() {
	for _, c := range s.slots {
		switch {
		case c == nil:
		case c.kind == pdu.Command && !(c.call != nil && c.call.once):
			s.again(c)
		default:
			if c.call != nil {
				c.call.end(Result{}, ErrDisconnected)
			}
			s.recycle(c)
		}
	}
}

// fail ends the session: every command ends with err.
func (s *Session) fail(err error) {
	var done []*block.Request
	s.mu.Lock()
	s.err = err
	for _, c := range s.queue {
		if r := s.end(c, Result{}, err); r != nil {
			done = append(done, r)
		}
	}
	s.queue = nil
	s.mu.Unlock()
	complete(done)
}

// end finishes a command; it returns the request that is complete with it, if any. The lock is held.
func (s *Session) end(c *command, res Result, err error) (r *block.Request) {
	switch {
	case c.call != nil:
		res.Data = c.in[:min(c.got, len(c.in))]
		c.call.end(res, err)
	case c.whole != nil:
		w := c.whole
		if err != nil && w.err == nil {
			w.err = err
		}
		if w.left--; w.left == 0 {
			r = w.req
			s.finishRequest(r, w.err)
		}
	case c.req != nil:
		r = c.req
		if r.Op == block.Read && err == nil {
			r.Data, r.Buf = c.in, c.inBuf
		} else if r.Op == block.Read {
			c.inBuf.Release()
		}
		s.finishRequest(r, err)
	}
	s.recycle(c)
	return r
}

// finishRequest settles who owns what in a request that is done.
func (s *Session) finishRequest(r *block.Request, err error) {
	r.Err = err
	if r.Op == block.Write {
		r.Buf.Release()
		r.Data, r.Buf = nil, nil
	} else if r.Op == block.Read && err != nil {
		r.Data, r.Buf = nil, nil
	}
}

// complete hands requests back, those of one client that follow each other together.
func complete(batch []*block.Request) {
	for len(batch) > 0 {
		c, n := batch[0].Client, 1
		for n < len(batch) && batch[n].Client == c {
			n++
		}
		c.Complete(batch[:n])
		batch = batch[n:]
	}
}

// retryLater sends a command again after the target was busy; the lock is held.
func (s *Session) retryLater(c *command) {
	s.release(c)
	c.got = 0
	time.AfterFunc(busyPause, func() {
		s.mu.Lock()
		if s.err != nil {
			r := s.end(c, Result{}, s.err)
			s.mu.Unlock()
			if r != nil {
				complete([]*block.Request{r})
			}
			return
		}
		s.again(c)
		l := s.link
		if l != nil {
			s.send()
		}
		s.mu.Unlock()
		if l != nil {
			l.flush()
		}
	})
}

const busyPause = 50 * time.Millisecond

// exhausted reports whether a command was busy for longer than the session bears.
func (s *Session) exhausted(c *command) bool {
	return !s.cfg.Reconnect || time.Duration(c.tries)*busyPause > s.cfg.ReplacementTimeout
}

// mayRepeat reports whether the target's answer to a command means "send it again": unit attentions tell about the
// past, and an aborted command had no fault of its own.
func mayRepeat(st scsi.Status, sense scsi.Sense) bool {
	return st == scsi.CheckCondition && (sense.UnitAttention() || sense.Aborted())
}
