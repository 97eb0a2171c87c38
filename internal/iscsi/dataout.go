package iscsi

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// takeData begins to collect the data of a command that takes some; immediate data came with it. A write whose data is
// all there is submitted as it lies in the reader's chunk.
func (ss *session) takeData(h *pdu.Header, t *task, data []byte) {
	p := &t.plan
	t.want = int(p.OutLen)
	if !h.Has(pdu.WriteBit) {
		t.want = 0
	} else if e := h.Expected(); e < uint32(t.want) {
		t.want = int(e)
	}
	if p.Kind == scsi.Write {
		t.want -= t.want % block.SectorSize
	}
	if t.want == 0 && p.Kind == scsi.Write { // less than a block is sent: nothing is written, all is residual
		ss.answer(t, scsi.Good, scsi.Sense{})
		return
	}
	if t.want < int(p.OutLen) && (t.want == 0 || p.Kind == scsi.Compare || p.Kind == scsi.WriteSame) ||
		p.Kind == scsi.WriteSame && t.expected > uint32(p.OutLen) {
		ss.answer(t, scsi.CheckCondition, scsi.InvalidField(0, 7)) // the initiator does not send what the CDB speaks of
		return
	}
	t.received, t.asked, t.open = len(data), len(data), !h.Has(pdu.Final)
	t.data = data[:min(len(data), t.want)]
	if len(t.data) == t.want && !t.open {
		if len(data) > 0 {
			t.buf = ss.in.Lend()
		}
		ss.ready(t)
		return
	}
	if len(data) > 0 {
		t.buf = ss.in.Lend()
	}
	ss.transfers++
	t.tag = ss.transfers << 8 & 0x7fffffff
	ss.collecting = append(ss.collecting, t)
	ss.out.Lock()
	if t.open || ss.room(int64(t.want)) {
		ss.startCollecting(t)
	} else {
		ss.waiting = append(ss.waiting, t)
	}
	ss.out.Unlock()
}

// startCollecting gives a task the memory for its data and asks for it. The lock must be held.
func (ss *session) startCollecting(t *task) {
	ss.charge(t, int64(t.want))
	buf := dataBuffer(t.want)
	copy(buf.B, t.data)
	t.buf.Release()
	t.buf, t.data, t.admitted = buf, buf.B[:t.want:t.want], true
	if !t.open {
		ss.askForData(t)
	}
}

// askForData sends as many R2Ts as may be outstanding (RFC 7143 11.8). The lock must be held.
func (ss *session) askForData(t *task) {
	for t.asked < t.want && t.r2tSN-t.r2tDone < uint32(ss.par.MaxR2T) {
		n := min(t.want-t.asked, ss.par.MaxBurst)
		h := pdu.New(pdu.R2T, pdu.Final)
		h.SetITT(t.itt)
		h.SetTTT(t.tag | t.r2tSN&0xff)
		ss.number(&h, false)
		h.SetDataSN(t.r2tSN)
		h.SetOffset(uint32(t.asked))
		h.SetDesired(uint32(n))
		ss.out.Append(&h, nil, nil)
		t.r2tSN++
		t.asked += n
	}
}

// collector returns the task that waits for data and the task's place in the list.
func (ss *session) collector(itt uint32) (*task, int) {
	for i, t := range ss.collecting {
		if t.itt == itt {
			return t, i
		}
	}
	return nil, -1
}

// placeData has the data of a large Data-Out received straight into the task's memory.
func (ss *session) placeData(h *pdu.Header) []byte {
	if h.Opcode() != pdu.DataOut {
		return nil
	}
	t, _ := ss.collector(h.ITT())
	if t == nil {
		return nil
	}
	ss.out.Lock()
	defer ss.out.Unlock()
	at, n := int(h.Offset()), h.DataLen()
	if !t.admitted || at != t.received || at+n > t.want {
		return nil
	}
	return t.data[at : at+n]
}

// dataOut handles a Data-Out PDU (RFC 7143 11.7). Data for a task that is gone, because it was aborted or answered
// early, is dropped.
func (ss *session) dataOut(h *pdu.Header, data []byte) error {
	t, i := ss.collector(h.ITT())
	if t == nil {
		return nil
	}
	done, why := ss.gather(t, h, data)
	if why != "" {
		return ss.protocolError(h, pdu.RejectProtocolError, why)
	}
	if done {
		last := len(ss.collecting) - 1
		ss.collecting[i] = ss.collecting[last]
		ss.collecting[last] = nil
		ss.collecting = ss.collecting[:last]
		ss.ready(t)
	}
	return nil
}

// gather puts data where it belongs and asks for more; done means that all has come.
func (ss *session) gather(t *task, h *pdu.Header, data []byte) (done bool, why string) {
	ss.out.Lock()
	defer ss.out.Unlock()
	if why := ss.badData(t, h, len(data)); why != "" {
		return false, why
	}
	if !ss.in.Placed && t.received < t.want {
		copy(t.data[t.received:], data)
	}
	t.received += len(data)
	t.burst += len(data)
	t.dataSN++
	if h.Has(pdu.Final) {
		t.burst, t.dataSN = 0, 0
		if t.open {
			t.open, t.asked = false, t.received
		} else {
			t.r2tDone++
		}
		ss.askForData(t)
	}
	return t.received >= t.want && !t.open && t.r2tSN == t.r2tDone, ""
}

// badData returns what is wrong with a Data-Out: data comes in order (DataPDUInOrder and DataSequenceInOrder are Yes),
// in the sequence that was asked for, and not more than that.
func (ss *session) badData(t *task, h *pdu.Header, n int) string {
	switch {
	case !t.admitted:
		return "data before it was asked for"
	case int(h.Offset()) != t.received:
		return "data out of order"
	case h.DataSN() != t.dataSN:
		return "DataSN out of order"
	}
	if t.open {
		if h.TTT() != pdu.NoTag {
			return "solicited data before the unsolicited has ended"
		}
		if t.received+n > min(ss.par.FirstBurst, int(t.expected)) {
			return "more unsolicited data than agreed"
		}
		return ""
	}
	// The current burst is the oldest R2T that is not done.
	start := t.received - t.burst
	size := min(ss.par.MaxBurst, t.want-start)
	switch {
	case t.r2tSN == t.r2tDone || h.TTT() != t.tag|t.r2tDone&0xff:
		return "wrong target transfer tag"
	case t.burst+n > size || h.Has(pdu.Final) != (t.burst+n == size):
		return "a sequence of a length that was not asked for"
	}
	return ""
}
