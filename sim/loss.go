package sim

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// What succeeded and was not flushed may get lost with the power, as a disk's cache does: then the volume goes back to
// what one of its members had, when the next epoch begins. Nothing gets lost that was flushed, or while nobody lost power; and an
// epoch that begins without something that had succeeded says so (replication rule 42).

// loss is a moment at which the volume went back.
type loss struct {
	at       uint64 // application's clock
	contents [blocks]uint64
}

// keep notes what succeeded.
func (a *app) keep(r *request) {
	switch r.kind {
	case block.Write, block.Discard:
		r.durable, r.opening = r.fua, a.w.opens[r.version.Epoch]
		if !retains(a.w.order, r.version.N, r.opening) {
			a.w.fail("%v succeeded after epoch %d had begun without it", r.version, a.w.epoch)
		}
		a.changes = append(a.changes, r)
	case block.Flush:
		for _, x := range a.changes {
			switch {
			case x.ended > r.begun:
			case !x.gone:
				x.durable = true
			case !x.told && !x.given:
				a.w.fail("flush %d succeeded, %v had succeeded before, is gone, and no flush has failed since", r.id, x.version)
			}
		}
	}
}

// failed takes the answer of a flush that something may be lost, unless that gets lost with the session. Some time later the
// target knows that it has come.
func (a *app) failed(r *request, lost volume.Promise) {
	w := a.w
	if r.state == reqLost {
		return
	}
	if e := w.opens[lost.Epoch]; e.Nonce != lost.Nonce || !e.Lossy {
		w.fail("flush %d fails for epoch %d, which began as %+v", r.id, lost.Epoch, e)
	}
	a.finish(r)
	if w.chance(0.2) {
		return
	}
	w.cover.FailedFlushes++
	for _, x := range a.changes {
		x.told = x.told || x.gone
	}
	w.after(w.between(0, 30*ms), &r.t.process, func() {
		r.t.core.Told(r.t.clock(w), lost)
		r.t.ready()
	})
}

// opened is called when a replica is about to take the operation that opens an epoch. The first one that does has all that
// the volume goes on with, unless a later epoch began before.
func (w *world) opened(r *replica, e volume.EpochStart) {
	if was, ok := w.opens[e.Epoch]; ok && was != e && !w.record.lost {
		w.fail("epoch %d is opened as %+v on %s, and was as %+v", e.Epoch, e, r.name, was)
	}
	w.opens[e.Epoch] = e
	if e.Epoch <= w.epoch {
		return
	}
	w.epoch = e.Epoch
	if e.Lossy && w.app.cuts == 0 {
		w.fail("epoch %d begins as if something was lost, and nobody has lost power", e.Epoch)
	}
	news := false
	h := r.member.Report().State.History
	w.order = h
	for _, x := range w.app.changes {
		gone := !retains(h, x.version.N, x.opening)
		if gone == x.gone {
			continue
		}
		x.gone, news = gone, true
		why := ""
		switch {
		case !gone: // on a member that was not there
		case x.given:
		case x.durable:
			why = "was flushed"
		case w.app.cuts < x.begun:
			why = "had succeeded, nobody has lost power since"
		case !e.Lossy && !slices.ContainsFunc(h, func(o volume.EpochStart) bool { return o.Lossy && o.Epoch > x.version.Epoch && o.First <= x.version.N }):
			why = "had succeeded, no epoch since is marked"
		}
		if why != "" {
			w.fail("%v %s, and it is gone: epoch %d begins on %s, which has %v; %s", x.version, why, e.Epoch, r.name, r.disk.report.Last, w.holders(x))
		}
	}
	if !news {
		return
	}
	l := loss{at: w.app.tick()}
	list, err := r.disk.list()
	r.must(err)
	l.contents = list.contents
	w.losses = append(w.losses, l)
	w.cover.Losses++
	w.logf("the volume goes back: epoch %d begins on %s", e.Epoch, r.name)
}

// holders names the replicas that have an operation.
func (w *world) holders(x *request) string {
	s := ""
	for _, r := range w.replicas {
		if p := r.disk.report; p.State.Complete && p.Last.N >= x.version.N && retains(p.State.History, x.version.N, x.opening) && !r.dark {
			s += fmt.Sprintf("%s at %v, alive %v; ", r.name, p.Last, r.alive)
		}
	}
	if s == "" {
		return "no complete replica has it"
	}
	return "these have it: " + s
}

// retains reports whether operations with history h have the n-th of that epoch among them, if they reach that far.
func retains(h volume.History, n uint64, epoch volume.EpochStart) bool {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].First <= n {
			return h[i] == epoch
		}
	}
	return true
}
