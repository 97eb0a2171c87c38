package iscsi

import (
	"math/bits"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// task is a SCSI command from its arrival to its response. Tasks are recycled. The reader owns a task until it is
// submitted or waits for admission; from then on the session's lock guards it.
type task struct {
	prev, next *task // in session.tasks

	plan     scsi.Plan
	itt      uint32
	expected uint32 // expected data transfer length, by direction
	counted  bool   // in session.inFlight: the initiator has no response
	answered bool   // the response is sent, the work goes on (IMMED)
	cost     int64  // bytes counted in session.bytes

	req    block.Request
	more   []*block.Request // further requests of the same command
	left   int              // requests at the device
	err    error            // first error of them
	aborts []*abortion      // if any, there is no response, but these are told when the task ends

	collect // data on its way from the initiator
}

// collect is the state of the data-out of a task. All the data is in data; its memory is buf's.
type collect struct {
	want     int // bytes that the command takes
	data     []byte
	buf      *block.Buffer
	received int    // bytes of data that have come, in order; those beyond want are dropped
	admitted bool   // data is as long as want, R2Ts are sent
	open     bool   // unsolicited data is still coming
	tag      uint32 // target transfer tags are tag | R2TSN
	asked    int    // bytes asked for by R2Ts, or come unsolicited
	r2tSN    uint32 // R2Ts sent
	r2tDone  uint32 // R2Ts whose data has all come
	burst    int    // bytes that have come of the current sequence
	dataSN   uint32 // DataSN that comes next
}

// taskList is an intrusive list of the tasks of a session.
type taskList struct{ first *task }

func (l *taskList) add(t *task) {
	t.prev, t.next = nil, l.first
	if l.first != nil {
		l.first.prev = t
	}
	l.first = t
}

func (l *taskList) remove(t *task) {
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		l.first = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.prev, t.next = nil, nil
}

// newTask returns a task of the session, listed and counted, or nil when there are too many.
func (ss *session) newTask(h *pdu.Header) *task {
	ss.out.Lock()
	if ss.inFlight >= ss.srv.cfg.Depth+maxImmediate {
		ss.out.Unlock()
		return nil
	}
	var t *task
	if n := len(ss.free); n > 0 {
		t, ss.free = ss.free[n-1], ss.free[:n-1]
	} else {
		t = new(task)
	}
	ss.tasks.add(t)
	t.counted = true
	ss.inFlight++
	ss.expSN = ss.rxSN
	ss.out.Unlock()
	t.itt = h.ITT()
	if h.Has(pdu.ReadBit | pdu.WriteBit) {
		t.expected = h.Expected()
	}
	t.req.Client, t.req.Tag = ss, t
	return t
}

// uncount opens the command window again for a command that has its response, or gets none. The lock must be held.
func (ss *session) uncount(t *task) {
	if t.counted {
		t.counted = false
		ss.inFlight--
	}
}

// freeTask takes a task that has ended out of the books. The lock must be held.
func (ss *session) freeTask(t *task) {
	ss.tasks.remove(t)
	ss.uncount(t)
	ss.bytes -= t.cost
	for _, a := range t.aborts {
		a.left--
		ss.endAbortion(a)
	}
	t.buf.Release()
	*t = task{}
	ss.free = append(ss.free, t)
	if ss.tasks.first == nil {
		for _, c := range ss.idle {
			close(c)
		}
		ss.idle = nil
	}
	if len(ss.waiting) > 0 && !ss.admitting {
		ss.admitting = true
		go ss.admit()
	}
}

// dataPools hold the buffers in which data-out is assembled: powers of two from 4 KiB to the largest transfer.
var dataPools = func() (p [11]*block.BufferPool) {
	for i := range p {
		p[i] = block.NewBufferPool(4096 << i)
	}
	return p
}()

// dataBuffer returns a buffer of at least n bytes, n at most scsi.MaxTransfer.
func dataBuffer(n int) *block.Buffer {
	return dataPools[bits.Len(uint(max(n, 1)-1)>>12)].Get()
}
