package pool

import (
	"runtime"
	"testing"
)

// TestKeptIsBounded makes and deletes snapshots all through a drain, which keeps what they showed: no more of them than it
// can deal with.
func TestKeptIsBounded(t *testing.T) {
	for _, manual := range []bool{false, true} {
		p, _ := newMemPool(t, 256<<20, Options{SegmentBytes: 1 << 20, DeltaEntries: 4096, Manual: manual})
		r, err := p.CreateReplica("v", 1<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 1, 1)}))
		most := 0
		pairs := func() error {
			for n := uint64(2); n < 4*mostKept; n += 2 {
				if err := r.Apply([]Op{snap("s", n), unsnap("s", n+1)}); err != nil {
					return err
				}
				p.idx.mu.RLock()
				most = max(most, len(r.kept))
				p.idx.mu.RUnlock()
			}
			return nil
		}
		if manual {
			must(t, pairs())
		} else {
			p.drain.cycle.Lock()
			done := make(chan error, 1)
			go func() { done <- pairs() }()
			for kept := 0; kept < mostKept; runtime.Gosched() {
				p.idx.mu.RLock()
				kept = len(r.kept)
				p.idx.mu.RUnlock()
			}
			p.drain.cycle.Unlock()
			must(t, <-done)
		}
		if most > mostKept {
			t.Errorf("%d snapshots are kept", most)
		}
		must(t, p.cycle())
		must(t, p.Check())
		p.idx.mu.RLock()
		if len(r.kept) != 0 || r.purge.wanted {
			t.Error("something is kept", len(r.kept))
		}
		p.idx.mu.RUnlock()
	}
}
