package pool

import (
	"sync"
	"sync/atomic"
)

// readers protects segments from reuse while somebody reads them without a lock: a reader enters before it looks
// anything up in the index and leaves when its I/O is done; what was free before a drain of the readers began is not
// referred to by anyone when the drain is over. (Sleepable read-copy-update with two generations.)
type readers struct {
	gen   atomic.Uint32
	count [2]struct {
		n atomic.Int64
		_ [56]byte
	}
	mu   sync.Mutex // one drain at a time
	gone chan struct{}
}

// enter returns the ticket to leave with.
func (r *readers) enter() uint32 {
	for {
		g := r.gen.Load() & 1
		r.count[g].n.Add(1)
		if r.gen.Load()&1 == g {
			return g
		}
		r.leave(g)
	}
}

func (r *readers) leave(g uint32) {
	if r.count[g].n.Add(-1) == 0 && r.gen.Load()&1 != g {
		select {
		case r.gone <- struct{}{}:
		default:
		}
	}
}

// drain returns when every reader that entered before the call has left, or false when quit or broken is closed.
func (r *readers) drain(quit, broken <-chan struct{}) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.gen.Load() & 1
	r.gen.Add(1)
	for r.count[old].n.Load() > 0 {
		select {
		case <-r.gone:
			continue
		case <-quit:
		case <-broken:
		}
		// Readers may be stuck in a device for ever. The generations must not be mixed up by a later drain.
		r.gen.Add(1)
		return false
	}
	return true
}
