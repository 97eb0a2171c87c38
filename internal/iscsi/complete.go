package iscsi

import (
	"bytes"
	"errors"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// Complete implements block.Client: it answers the commands whose last request is done, with one write if the socket
// takes it.
func (ss *session) Complete(batch []*block.Request) {
	ss.out.Lock()
	for _, r := range batch {
		t := r.Tag.(*task)
		if r.Err != nil && t.err == nil {
			t.err = r.Err
		}
		if t.left--; t.left == 0 {
			ss.complete(t)
		}
	}
	ss.out.UnlockAndFlush()
}

// complete ends a task that the device is done with. The lock must be held.
func (ss *session) complete(t *task) {
	var read []byte
	var buf *block.Buffer
	if t.req.Op == block.Read && t.req.Err == nil {
		read, buf = t.req.Data, t.req.Buf
	}
	superseded := errors.Is(t.err, block.ErrSuperseded)
	if superseded {
		ss.nc.Close() // only the initiator knows whether it still wants this
	}
	if t.answered || len(t.aborts) > 0 || ss.ended || superseded {
		buf.Release()
		ss.freeTask(t)
		return
	}
	if t.req.Told != nil && len(ss.telling) < maxTelling {
		ss.telling = append(ss.telling, telling{ss.statSN, t.req.Told})
		ss.tells.Store(true)
	}
	status, sense := scsi.FromError(t.err)
	switch t.plan.Kind {
	case scsi.Read:
		ss.respond(t, status, sense, read, buf)
		return
	case scsi.Compare:
		if status == scsi.Good && !bytes.Equal(read, t.data) {
			status, sense = scsi.CheckCondition, scsi.Miscompare
		}
	}
	buf.Release()
	ss.respond(t, status, sense, nil, nil)
}

// answer ends a task, or the part of it that the initiator sees, without the device. Only the reader calls it.
func (ss *session) answer(t *task, status scsi.Status, s scsi.Sense) {
	ss.out.Lock()
	ss.expSN = ss.rxSN
	ss.respond(t, status, s, t.plan.In, nil)
	ss.out.Unlock()
}

// respond sends data, if there is any, and the status: together when the status is GOOD (RFC 7143 11.7.3). buf is
// released when the data is sent. It frees the task unless work is going on. The lock must be held.
func (ss *session) respond(t *task, status scsi.Status, sense scsi.Sense, data []byte, buf *block.Buffer) {
	flags, residual := t.residual()
	ss.uncount(t)
	if t.plan.Immed && t.left == 0 && t.req.Op == block.Flush && !t.answered {
		t.answered = true
	} else {
		defer ss.freeTask(t)
	}
	if status == scsi.Good && len(data) > int(t.expected) {
		data = data[:t.expected]
	}
	if status == scsi.Good && len(data) > 0 {
		ss.dataIn(t, data, buf, flags, residual)
		return
	}
	buf.Release()
	h := pdu.New(pdu.Response, pdu.Final|flags)
	h[3] = byte(status)
	h.SetITT(t.itt)
	ss.number(&h, true)
	h.SetResidual(residual)
	if sense.IsZero() {
		ss.out.Append(&h, nil, nil)
		return
	}
	var b [20]byte
	b[1] = 18
	sense.AppendFixed(b[:2])
	ss.out.Append(&h, b[:], nil)
}

// dataIn sends data and, with the last of it, the status GOOD (RFC 7143 11.7).
func (ss *session) dataIn(t *task, data []byte, buf *block.Buffer, flags byte, residual uint32) {
	var sn uint32
	for at := 0; at < len(data); sn++ {
		n := min(len(data)-at, ss.par.MaxSend, ss.par.MaxBurst-at%ss.par.MaxBurst)
		end := at + n
		h := pdu.New(pdu.DataIn, 0)
		if end == len(data) || end%ss.par.MaxBurst == 0 {
			h[1] |= pdu.Final
		}
		h.SetITT(t.itt)
		h.SetTTT(pdu.NoTag)
		h.SetDataSN(sn)
		h.SetOffset(uint32(at))
		if end == len(data) {
			h[1] |= pdu.StatusBit | flags
			ss.number(&h, true)
			h.SetResidual(residual)
			ss.out.Append(&h, data[at:end], buf)
			return
		}
		ss.number(&h, false)
		ss.out.Append(&h, data[at:end], nil)
		at = end
	}
}

// residual compares what the command would transfer with what the initiator expects (RFC 7143 11.4.5).
func (t *task) residual() (flags byte, count uint32) {
	switch total, expected := t.plan.InLen+t.plan.OutLen, int64(t.expected); {
	case total > expected:
		return pdu.Overflow, uint32(total - expected)
	case total < expected:
		return pdu.Underflow, uint32(expected - total)
	}
	return 0, 0
}
