package volume

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// api is the API server that keeps the volume's record.
type api struct {
	history []Record // what the record was and is
	mode    string
	late    []RecordOp // writes that it may yet carry out
	queue   []func()   // while it is slow
}

func (a *api) is() Record {
	if len(a.history) == 0 {
		return Record{}
	}
	return a.history[len(a.history)-1]
}

// setAPI says how requests fare from now on.
//
//	up       they are answered at once
//	slow     they are answered after the next "api" command
//	down     they are not carried out, and not answered
//	lost     they are carried out, and not answered
//	late     writes are not answered, and carried out at "api land"; reads work
//	refused  writes are refused, and never carried out; reads work
//	restore  the record becomes what it was at version=1
func (e *stage) setAPI(mode string, version uint64) {
	a := &e.api
	queue := a.queue
	a.queue = nil
	switch mode {
	case "land":
		for _, r := range a.late {
			if !e.put(r) {
				e.printf("record: write of %s comes too late", recordText(*r.Want))
			}
		}
		a.late = nil
	case "restore":
		i := slices.IndexFunc(a.history, func(r Record) bool { return r.Version == version })
		a.history = a.history[:i+1]
		e.printf("record: %s", recordText(a.is()))
	default:
		a.mode = mode
	}
	for _, f := range queue {
		f()
	}
}

// put carries out a write if the record is what it was made from.
func (e *stage) put(op RecordOp) bool {
	r := *op.Want
	if op.From != e.api.is().Version {
		return false
	}
	e.api.history = append(e.api.history, r)
	if r.Epoch > 0 {
		e.printf("record: %s", recordText(r))
	}
	return true
}

// recordOp is a request of a target.
func (e *stage) recordOp(core *Core, op RecordOp) {
	a := &e.api
	do := func() {
		mode := a.mode
		if core == e.killed {
			core = nil
		}
		fail := func() { e.at(core, func() { e.core.RecordFailed(e.now, op.ID, false, "no answer") }) }
		if op.Want != nil && op.Want.Epoch > 0 && mode != "" && mode != "up" && mode != "slow" {
			e.printf("target writes to the record: %s", recordText(*op.Want))
		}
		switch {
		case mode == "down":
			fail()
		case op.Want == nil && mode == "lost":
			fail()
		case op.Want == nil:
			e.at(core, func() { e.core.RecordIs(e.now, op.ID, a.is(), false) })
		case mode == "refused":
			e.at(core, func() { e.core.RecordFailed(e.now, op.ID, true, "refused") })
		case mode == "late":
			a.late = append(a.late, op)
			fail()
		case mode == "lost":
			e.put(op)
			fail()
		default:
			if !e.put(op) {
				e.printf("record: conflict, is %s", recordText(a.is()))
			}
			e.at(core, func() { e.core.RecordIs(e.now, op.ID, a.is(), true) })
		}
	}
	if a.mode == "slow" {
		a.queue = append(a.queue, do)
	} else {
		do()
	}
}

func recordText(r Record) string {
	s := fmt.Sprintf("version %d epoch %d nonce %d %s", r.Version, r.Epoch, r.Nonce, setText(r.Set))
	if r.List != nil {
		s += " list " + listText(*r.List)
	}
	return s
}

func setText(set []block.GUID) string {
	s := "{"
	for _, g := range set {
		s += string(g[0])
	}
	return s + "}"
}
