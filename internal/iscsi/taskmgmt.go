package iscsi

import (
	"slices"

	"github.com/cstor-go/cstor/internal/iscsi/pdu"
	"github.com/cstor-go/cstor/internal/iscsi/scsi"
)

// abortion is a task management function that is answered when the last task that it aborts has ended. The device
// does not take requests back, and a function must not be answered before its tasks can have no more effect.
type abortion struct {
	itt      uint32
	left     int  // tasks that have not ended
	response byte // what is answered then
	reset    bool // tell later commands about it
	cold     bool // end the session after the answer
}

// taskManagement handles a Task Management Function Request (RFC 7143 11.5).
func (ss *session) taskManagement(h *pdu.Header) error {
	ss.submit() // everything before it is now at the device, or waits for data or room
	function := h[1] & 0x7f
	a := &abortion{itt: h.ITT(), response: pdu.FunctionComplete}
	var match func(t *task) bool
	switch function {
	case pdu.AbortTask:
		tag := h.RefTag()
		match = func(t *task) bool { return t.itt == tag }
	case pdu.AbortTaskSet, pdu.ClearTaskSet, pdu.LUNReset, pdu.TargetWarmReset, pdu.TargetColdReset:
		match = func(*task) bool { return true }
		a.reset, a.cold = function >= pdu.LUNReset, function == pdu.TargetColdReset
	case pdu.TaskReassign:
		a.response = pdu.NoReassign
	default:
		a.response = pdu.FunctionNotSupported
	}
	if function <= pdu.LUNReset && h.LUN() != 0 {
		a.response, match = pdu.NoSuchLUN, nil
	}
	ss.out.Lock()
	ss.expSN = ss.rxSN
	if match == nil || !ss.abort(a, match) {
		if match != nil && function == pdu.AbortTask {
			a.response = pdu.NoSuchTask // it has ended, or never came
		}
		ss.endAbortion(a)
	}
	ss.out.UnlockAndFlush()
	return nil
}

// abort marks the tasks that match and ends those that are not at the device. The lock must be held.
func (ss *session) abort(a *abortion, match func(*task) bool) (found bool) {
	var idle []*task
	for t := ss.tasks.first; t != nil; t = t.next {
		if t.answered || !match(t) {
			continue
		}
		a.left++
		t.aborts = append(t.aborts, a)
		if t.left == 0 {
			idle = append(idle, t)
		}
	}
	found = a.left > 0
	for _, t := range idle {
		ss.forget(t)
	}
	return found
}

// forget ends a task that waits for data or room. The lock must be held.
func (ss *session) forget(t *task) {
	same := func(o *task) bool { return o == t }
	ss.collecting = slices.DeleteFunc(ss.collecting, same)
	ss.waiting = slices.DeleteFunc(ss.waiting, same)
	ss.freeTask(t)
}

// endAbortion answers a task management function when no task of it is left (RFC 7143 11.6). The lock must be held.
func (ss *session) endAbortion(a *abortion) {
	if a.left > 0 || ss.ended {
		return
	}
	if a.reset {
		ss.attn = []scsi.Sense{scsi.DeviceReset}
	}
	h := pdu.New(pdu.TaskMgmtResp, pdu.Final)
	h[2] = a.response
	h.SetITT(a.itt)
	ss.number(&h, true)
	ss.out.Append(&h, nil, nil)
	if a.cold {
		go func() {
			ss.out.WaitBelow(1)
			ss.nc.Close()
		}()
	}
}

// teardown ends what the connection leaves behind. Requests at the device complete into nothing.
func (ss *session) teardown() {
	ss.out.Fail(pdu.ErrClosed)
	ss.out.Lock()
	ss.ended = true
	ss.waiting = nil
	for t := ss.tasks.first; t != nil; {
		next := t.next
		if t.left == 0 {
			ss.freeTask(t)
		}
		t = next
	}
	for _, c := range ss.idle {
		close(c)
	}
	ss.idle, ss.collecting = nil, nil
	ss.out.Unlock()
	ss.in.Close()
}
