package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/volume"
)

// recordStore is the API server that keeps the volume's record. It answers late, is away for a while, loses answers, carries
// out writes when nobody waits for them any more, and answers from the past.
type recordStore struct {
	rng      *rand.Rand
	history  []volume.Record // what the record was and is
	down     time.Duration   // requests are lost until then
	unsure   time.Duration   // answers may be lost, late or old until then
	restores int
	back     time.Duration // it is an old copy until then
	lost     bool          // it went back for good
}

func (s *recordStore) is() volume.Record {
	if len(s.history) == 0 {
		return volume.Record{}
	}
	return s.history[len(s.history)-1]
}

// put carries out a write that was sent after so many restores, by compare-and-swap.
func (w *world) put(op volume.RecordOp, restores int) {
	s, want := &w.record, *op.Want
	if s.restores != restores || op.From != s.is().Version {
		w.logf("record: no write of version %d, is %d", want.Version, s.is().Version)
		return
	}
	w.logf("record: version %d epoch %d set %v", want.Version, want.Epoch, shorts(want.Set))
	s.history = append(s.history, want)
}

// recordOp reads or writes the record. The target may die at any point of it.
func (t *target) recordOp(op volume.RecordOp) {
	w := t.w
	w.with(w.record.rng, func() { w.after(w.between(0, 15*ms), nil, func() { t.serveRecord(op) }) })
}

func (t *target) serveRecord(op volume.RecordOp) {
	w, s := t.w, &t.w.record
	unsure, restores := w.now < s.unsure, s.restores
	answer := func(is volume.Record) {
		w.after(w.between(0, 15*ms), &t.process, func() { t.core.RecordIs(t.clock(w), op.ID, is, op.Want != nil); t.ready() })
	}
	fail := func(definite bool) {
		w.after(w.between(20*ms, 60*ms), &t.process, func() { t.core.RecordFailed(t.clock(w), op.ID, definite, "no answer"); t.ready() })
	}
	switch {
	case w.now < s.down || t.apart:
		fail(false)
	case op.Want == nil && unsure && len(s.history) > 0 && w.chance(0.3):
		answer(s.history[w.rng.IntN(len(s.history))])
	case op.Want == nil:
		answer(s.is())
	case unsure && w.chance(0.3):
		w.after(w.between(0, 400*ms), nil, func() { w.put(op, restores) })
		fail(false)
	case unsure && w.chance(0.3):
		w.put(op, restores)
		fail(false)
	case unsure && w.chance(0.2):
		fail(true)
	default:
		w.put(op, restores)
		answer(s.is())
	}
}

// restore makes the record what it was before and ends the targets, whose process would know. It is put right after a while,
// which is done only when every member knows better, so that nobody may write it meanwhile (history H22); or it stays so,
// whoever knows.
func (w *world) restore() {
	s := &w.record
	if len(s.history) < 2 || w.calm || s.back > w.now {
		return
	}
	keep := 1 + w.rng.IntN(len(s.history)-1)
	if l := s.history[keep-1].List; w.chance(0.3) && !w.two && w.operator.idle() && l != nil && l.Compare(*s.is().List) == 0 {
		w.loseRecord(keep)
		return
	}
	members := s.is().List.Members
	for _, r := range w.replicas {
		st := r.disk.report.State
		members = append(slices.Clip(members), st.Committed.Members...)
		if st.Pending != nil {
			members = append(members, st.Pending.Members...)
		}
	}
	for _, r := range w.replicas {
		st := r.disk.report.State
		accepted := slices.Contains(w.operator.want.AcceptRecord, volume.Noted{Version: st.RecordSeen, By: st.RecordBy})
		if slices.Contains(members, r.disk.report.GUID) && (st.RecordSeen <= s.history[keep-1].Version || accepted) {
			return
		}
	}
	for _, t := range []*target{w.target, w.other} {
		if t != nil {
			t.kill()
		}
	}
	right := s.history
	s.history = slices.Clip(right[:keep])
	s.restores++
	w.cover.Restores++
	w.logf("record: restored to version %d", s.is().Version)
	w.after(w.between(0, 60*ms), nil, w.startTarget)
	away := w.between(50*ms, 500*ms)
	s.back = w.now + away
	w.after(away, nil, func() {
		if len(s.history) != keep {
			w.fail("the record was written although it is an old copy")
		}
		s.history = right
		s.restores++
	})
}

// loseRecord makes the record what it was before, for good. What was completed may be lost from now on, until then: where nobody
// knows of it at once, and where somebody accepts it.
func (w *world) loseRecord(keep int) {
	s := &w.record
	if w.target != nil {
		w.target.kill()
	}
	for _, r := range w.replicas {
		if r.conn != nil {
			r.conn.lose()
		}
	}
	s.history = slices.Clip(s.history[:keep])
	s.restores++
	s.lost = true
	w.cover.LostRecords++
	w.logf("record: restored to version %d, for good", s.is().Version)
	w.giveUp()
	w.after(w.between(0, 60*ms), nil, w.startTarget)
}

// giveUp lets anything get lost that was completed so far.
func (w *world) giveUp() {
	w.epoch = 0 // another one may begin below
	w.app.cuts = w.app.tick()
	for _, x := range w.app.changes {
		x.durable, x.given = false, true
	}
}

// accept lets the targets go on with a record that went back, in spite of what the replicas have noted.
func (w *world) accept(noted []volume.Noted) {
	w.logf("operator accepts %v", noted)
	w.cover.Accepted++
	w.giveUp()
	w.operator.want.AcceptRecord = slices.Clone(noted)
	w.tell()
}
