package sim

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// What succeeded and was not flushed may get lost with the power, as a disk's cache does: then the volume goes back to
// what one of its members had, when the next epoch begins. The members do not know yet which of them lost something
// (replication rules 8, 25 and 42 are not implemented), so that this happens to more than has to be, and nobody is told. So
// far it is checked that nothing gets lost that was flushed, or while nobody lost power.

// loss is a moment at which the volume went back.
type loss struct {
	at       uint64 // application's clock
	contents [blocks]uint64
}

// keep notes what succeeded.
func (a *app) keep(r *request) {
	switch r.kind {
	case block.Write, block.Discard:
		r.durable = r.fua
		a.changes = append(a.changes, r)
	case block.Flush:
		for _, x := range a.changes {
			if x.ended < r.begun && !x.gone {
				x.durable = true
			}
		}
	}
}

// opened is called when a replica is about to take the operation that opens an epoch. The first one that does has all that
// the volume goes on with, unless a later epoch began before.
func (w *world) opened(r *replica, v block.Version) {
	if v.Epoch <= w.epoch {
		return
	}
	w.epoch = v.Epoch
	news := false
	h := r.member.Report().State.History
	for _, x := range w.app.changes {
		gone := !retains(h, x.version)
		if gone == x.gone {
			continue
		}
		x.gone, news = gone, true
		switch {
		case !gone: // on a member that was not there
		case x.durable:
			w.fail("%v was flushed, and is gone: %v begins on %s, which has %v", x.version, v, r.name, r.disk.report.Last)
		case w.app.cuts < x.begun:
			w.fail("%v had succeeded, nobody has lost power since, and it is gone: %v begins on %s, which has %v", x.version, v, r.name, r.disk.report.Last)
		case w.lossless:
			w.fail("%v had succeeded, and is gone: %v begins on %s, which has %v; %s", x.version, v, r.name, r.disk.report.Last, w.holders(x.version))
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
	w.logf("the volume goes back: %v begins on %s", v, r.name)
}

// holders names the replicas that have an operation.
func (w *world) holders(v block.Version) string {
	s := ""
	for _, r := range w.replicas {
		if p := r.disk.report; p.State.Complete && p.Last.N >= v.N && retains(p.State.History, v) && !r.dark {
			s += fmt.Sprintf("%s at %v, alive %v; ", r.name, p.Last, r.alive)
		}
	}
	if s == "" {
		return "no complete replica has it"
	}
	return "these have it: " + s
}

// retains reports whether operations with history h have v among them, if they reach that far.
func retains(h volume.History, v block.Version) bool {
	for i := len(h) - 1; i >= 0; i-- {
		if h[i].First <= v.N {
			return h[i].Epoch == v.Epoch
		}
	}
	return true
}
