package iscsi

import (
	"bytes"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// command handles a SCSI Command PDU (RFC 7143 11.3).
func (ss *session) command(h *pdu.Header, data []byte) error {
	if why := ss.badCommand(h, data); why != "" {
		return ss.protocolError(h, pdu.RejectProtocolError, why)
	}
	t := ss.newTask(h)
	if t == nil {
		return ss.protocolError(h, pdu.RejectProtocolError, "too many immediate commands")
	}
	if s := ss.decode(h, t); !s.IsZero() {
		ss.answer(t, scsi.CheckCondition, s)
		return nil
	}
	p := &t.plan
	if p.InLen > 0 && !h.Has(pdu.ReadBit) {
		t.expected = 0
	}
	switch p.Kind {
	case scsi.Answer:
		ss.answer(t, scsi.Good, scsi.Sense{})
	case scsi.Read, scsi.Verify:
		t.req.Op, t.req.Offset, t.req.Length = block.Read, p.Offset, p.Length
		ss.fresh = append(ss.fresh, t)
	case scsi.Flush:
		t.req.Op = block.Flush
		if p.Immed {
			ss.answer(t, scsi.Good, scsi.Sense{})
		}
		ss.fresh = append(ss.fresh, t)
	default:
		ss.takeData(h, t, data)
	}
	return nil
}

// badCommand returns what the session's parameters forbid about a command.
func (ss *session) badCommand(h *pdu.Header, data []byte) string {
	switch {
	case len(data) > 0 && (!ss.par.ImmediateData || !h.Has(pdu.WriteBit)):
		return "immediate data was not agreed"
	case len(data) > ss.par.FirstBurst || uint32(len(data)) > h.Expected():
		return "more immediate data than agreed"
	case !h.Has(pdu.Final) && (ss.par.InitialR2T || !h.Has(pdu.WriteBit)):
		return "unsolicited data was not agreed"
	}
	return ""
}

// decode finds out what a command wants; it delivers pending unit attentions instead.
func (ss *session) decode(h *pdu.Header, t *task) scsi.Sense {
	unit, cdb := ss.srv.unit, h.CDB()
	if lun := h.LUN() >> 48; h.LUN()<<16 != 0 || lun != 0 && lun != 0x4000 { // peripheral or flat addressing of LUN 0
		return unit.StartNoUnit(cdb, &t.plan)
	}
	if scsi.IsRequestSense(cdb) {
		t.plan.RequestSense(ss.takeAttention(), cdb)
		return scsi.Sense{}
	}
	if !scsi.IgnoresUnitAttention(cdb[0]) {
		if s := ss.takeAttention(); !s.IsZero() {
			return s
		}
	}
	return unit.Start(cdb, &t.plan)
}

// ready submits a task whose data has all come.
func (ss *session) ready(t *task) {
	p, r := &t.plan, &t.req
	r.Offset, r.Length, r.FUA = p.Offset, p.Length, p.FUA
	switch p.Kind {
	case scsi.Write:
		r.Op, r.Length = block.Write, int64(t.want)
		r.Data, r.Buf, t.data, t.buf = t.data, t.buf, nil, nil
	case scsi.Compare:
		r.Op = block.Read
	case scsi.WriteSame:
		ss.writeSame(t)
	case scsi.Parameter:
		ranges, s := ss.srv.unit.Parameters(p, t.data)
		if !s.IsZero() || len(ranges) == 0 {
			status := scsi.Good
			if !s.IsZero() {
				status = scsi.CheckCondition
			}
			ss.answer(t, status, s)
			return
		}
		for i, d := range ranges {
			r := r
			if i > 0 {
				r = &block.Request{Client: ss, Tag: t}
				t.more = append(t.more, r)
			}
			r.Op, r.Offset, r.Length = block.Discard, d.Offset, d.Length
		}
	}
	ss.fresh = append(ss.fresh, t)
}

// writeSame makes the requests of a WRITE SAME: zeroes of any length are one request, other data is written in pieces
// that share one buffer.
func (ss *session) writeSame(t *task) {
	r := &t.req
	if len(bytes.TrimLeft(t.data, "\x00")) == 0 {
		r.Op = block.WriteZeroes
		return
	}
	piece := min(r.Length, scsi.OptimalTransfer)
	buf := dataBuffer(int(piece))
	for at := 0; at < int(piece); at += block.SectorSize {
		copy(buf.B[at:], t.data)
	}
	offset, end := r.Offset, r.Offset+r.Length
	for offset < end {
		n := min(end-offset, piece)
		r.Op, r.Offset, r.Length, r.Data, r.Buf = block.Write, offset, n, buf.B[:n], buf
		if offset += n; offset < end {
			buf.Retain()
			r = &block.Request{Client: ss, Tag: t}
			t.more = append(t.more, r)
		}
	}
}

// submit gives what was parsed to the device, in order, and sends what was answered on the way. Reads wait when too
// many bytes are in flight.
func (ss *session) submit() {
	ss.out.Lock()
	ss.expSN = ss.rxSN
	for i, t := range ss.fresh {
		if t.req.Op == block.Read && !ss.room(t.req.Length) {
			ss.waiting = append(ss.waiting, t)
		} else {
			ss.dispatch(t)
			ss.batch = t.requests(ss.batch)
		}
		ss.fresh[i] = nil
	}
	ss.fresh = ss.fresh[:0]
	ss.out.UnlockAndFlush()
	if len(ss.batch) > 0 {
		ss.srv.cfg.Device.Submit(ss.batch)
		clear(ss.batch)
		ss.batch = ss.batch[:0]
	}
}

// dispatch counts a task as being at the device. The lock must be held.
func (ss *session) dispatch(t *task) {
	t.left = 1 + len(t.more)
	ss.charge(t, t.req.Length)
}

// charge counts the memory of a task, once. The lock must be held.
func (ss *session) charge(t *task, n int64) {
	if t.cost == 0 && t.req.Op != block.Discard && t.req.Op != block.WriteZeroes {
		t.cost = n
		ss.bytes += n
	}
}

func (t *task) requests(batch []*block.Request) []*block.Request {
	return append(append(batch, &t.req), t.more...)
}

// room reports whether n more bytes may be in flight. The lock must be held.
func (ss *session) room(n int64) bool {
	return len(ss.waiting) == 0 && ss.fits(n)
}

func (ss *session) fits(n int64) bool {
	return ss.bytes == 0 || ss.bytes+n <= int64(ss.srv.cfg.MaxInFlight)
}

// admit lets the tasks that wait go on, in order, as far as there is room. One goroutine at a time runs it.
func (ss *session) admit() {
	var batch []*block.Request
	for {
		ss.out.Lock()
		for len(ss.waiting) > 0 && !ss.ended {
			t := ss.waiting[0]
			if !ss.fits(max(t.req.Length, int64(t.want))) {
				break
			}
			ss.waiting = ss.waiting[1:]
			if t.req.Op == block.Read {
				ss.dispatch(t)
				batch = t.requests(batch)
			} else {
				ss.startCollecting(t)
			}
		}
		if len(batch) == 0 {
			ss.admitting = false
			ss.out.UnlockAndFlush()
			return
		}
		ss.out.UnlockAndFlush()
		ss.srv.cfg.Device.Submit(batch)
		batch = batch[:0]
	}
}
