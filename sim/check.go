package sim

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// checkDisks compares every two complete replicas that say that they hold the same operations.
func (w *world) checkDisks() {
	for i, r := range w.replicas {
		for _, o := range w.replicas[:i] {
			x, y := r.disk.report, o.disk.report
			if !x.State.Complete || !y.State.Complete || x.Last != y.Last || r.disk.pool == nil || o.disk.pool == nil {
				continue
			}
			if h, k := x.State.History, y.State.History; len(h) > 0 && len(k) > 0 && h[len(h)-1] != k[len(k)-1] {
				continue // of two targets, since the record went back
			}
			here, err := r.disk.list()
			r.must(err)
			there, err := o.disk.list()
			o.must(err)
			if b := here.difference(there); b >= 0 {
				w.fail("%s and %s are complete at %v and differ in block %d: %d of %v, %d of %v", r.name, o.name, x.Last, b,
					here.contents[b], here.versions[b], there.contents[b], there.versions[b])
			}
		}
	}
}

// settled reports whether the volume is what was wanted, and healthy, and nothing stands in its way.
func (w *world) settled() bool {
	t := w.target
	if t == nil || !w.operator.idle() {
		return false
	}
	for _, r := range w.replicas {
		if r.frozen > w.now || r.conn != nil && max(r.conn.silent[0], r.conn.silent[1]) > w.now {
			return false
		}
	}
	st := t.core.Status()
	if !st.Serving || st.Pending != nil || len(st.Committed.Members) != w.operator.want.Factor || st.Committed.Witness != w.operator.want.Witness {
		return false
	}
	for _, r := range st.Replicas {
		if r.Member && r.Mode != volume.Healthy {
			return false
		}
	}
	return st.Redundant || len(st.Committed.Members) == 1
}

// finalCheck is made when everything was answered.
func (w *world) finalCheck() {
	st := w.target.core.Status()
	if st.WentBack != "" && st.Redundant {
		w.fail("the record is what it ever was, and does not look so: %s", st.WentBack)
	}
	for _, g := range st.Committed.Members {
		r := w.replica(g)
		if !r.disk.report.State.Complete || r.disk.report.Last.N != st.Last {
			w.fail("%s is healthy at %v, the volume is at %d", r.name, r.disk.report.Last, st.Last)
		}
		if l := r.disk.report.State.Committed; l.Compare(st.Committed) != 0 {
			w.fail("%s has list %v, the volume %v", r.name, l, st.Committed)
		}
	}
	w.checkHistory()
}

// checkHistory checks what the replicas have and what the application saw.
func (w *world) checkHistory() {
	w.checkDisks()
	for b := range uint64(blocks) {
		era := loss{}
		for _, next := range append(w.losses, loss{at: never}) {
			w.checkBlock(b, era, next.at)
			era = next
		}
	}
}

// zone is what is known of one value of a block: by first it was there, for at last it was still, or had yet to be,
// there.
type zone struct {
	id          uint64
	first, last uint64
}

// checkBlock checks that the history of one block is linearizable, the way Gibbons and Korach do for registers whose
// values are unique (Testing shared memories, 1997). Discards leave no unique value: reads of nothing are checked
// only against what they exclude. The history begins with what a loss left, and ends before the next one; reads during
// which the volume went back may show either.
func (w *world) checkBlock(b uint64, from loss, end uint64) {
	var zones []zone
	index := map[uint64]int{}
	writes, reads := w.app.writes[b], w.app.reads[b]
	if len(w.losses) > 0 {
		writes, reads = nil, nil
		for _, r := range w.app.writes[b] {
			if r.begun < end && (r.ended > from.at || r.id == from.contents[b]) {
				writes = append(writes, r)
			}
		}
		for _, s := range w.app.reads[b] {
			if s.begun > from.at && s.ended < end {
				reads = append(reads, s)
			}
		}
		reads = append(reads, seen{from.contents[b], from.at, from.at})
	}
	for _, r := range writes {
		if r.refused {
			continue
		}
		index[r.id] = len(zones)
		zones = append(zones, zone{id: r.id, first: max(r.ended, from.at), last: max(r.begun, from.at)})
	}
	discard := map[uint64]bool{}
	for _, r := range writes {
		discard[r.id] = r.kind == block.Discard
	}
	for _, s := range reads {
		if s.content == 0 {
			continue
		}
		i, ok := index[s.content]
		if !ok || discard[s.content] {
			w.fail("block %d: read of %d, which was never written there", b, s.content)
			return
		}
		z := &zones[i]
		z.first, z.last = min(z.first, s.ended), max(z.last, s.begun)
	}
	for _, r := range writes {
		if i, ok := index[r.id]; ok && r.bound != 0 && zones[i].first != never {
			zones[i].first = min(zones[i].first, r.bound)
		}
		if i, ok := index[r.id]; ok && zones[i].first < r.begun {
			w.fail("block %d: %d was read before it was written", b, r.id)
		}
	}
	for i, x := range zones {
		if x.first >= x.last {
			continue // all of it may have happened in one instant
		}
		for j, y := range zones {
			if i == j {
				continue
			}
			if y.first < y.last && x.first < y.last && y.first < x.last || y.first >= y.last && x.first < y.last && y.first < x.last {
				w.fail("block %d: %d was there from %d to %d, and so was %d from %d to %d", b, x.id, x.first, x.last, y.id, y.first, y.last)
				return
			}
		}
		for _, s := range reads {
			if s.content == 0 && x.first < s.begun && s.ended < x.last {
				w.fail("block %d: %d was there from %d to %d, and nothing from %d to %d", b, x.id, x.first, x.last, s.begun, s.ended)
				return
			}
		}
	}
	for _, s := range reads {
		if s.content == 0 && !w.mayBeEmpty(b, s, zones, discard, writes) {
			w.fail("block %d: nothing was read from %d to %d, after it was written", b, s.begun, s.ended)
			return
		}
	}
}

// mayBeEmpty reports whether some discard, or the beginning, explains a read of nothing.
func (w *world) mayBeEmpty(b uint64, s seen, zones []zone, discard map[uint64]bool, writes []*request) bool {
	explains := func(begun, ended uint64) bool {
		if begun > s.ended {
			return false
		}
		for _, z := range zones {
			if !discard[z.id] && ended < z.last && z.first < s.begun {
				// written, or still there, after the discard ended, and there before the read began: only what begun
				// later than the discard ended can have replaced it
				if r := w.app.find(b, z.id); r.begun > ended {
					return false
				}
			}
		}
		return true
	}
	if explains(0, 0) {
		return true
	}
	for _, r := range writes {
		if discard[r.id] && !r.refused && explains(r.begun, r.ended) {
			return true
		}
	}
	return false
}

func (a *app) find(b, id uint64) *request {
	for _, r := range a.writes[b] {
		if r.id == id {
			return r
		}
	}
	return nil
}
