package pool

import (
	"sync"
	"sync/atomic"
)

// pace lets writers use the space that is left, while a cycle makes more, in proportion to how far the cycle is. So
// each of them waits a little, when space is short, instead of all of them for the whole cycle at its end.
type pace struct {
	limit atomic.Uint64 // users may write while the log has fewer bytes than this (counted as Stats.LogBytes); 0: no limit
	mu    sync.Mutex
	cond  *sync.Cond
	base  uint64  // bytes of log when the cycle began
	room  uint64  // bytes that may be added until it ends
	done  float64 // share of the cycle that is done
}

// Shares of a cycle in its progress. What remains is for the checkpoint, which cannot be divided: room must be left.
const (
	startShare = 0.15
	copyShare  = 0.55
	drainShare = 0.75
)

// begin starts a cycle that frees space.
func (c *pace) begin(at, room uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.room, c.done = at, room, 0
	c.set()
}

// hold sets what users may write until the cycle begins that is due now. The background is woken afterwards, which
// begins the cycle or ends the wait.
func (c *pace) hold(at, room uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit.Load() == 0 {
		c.limit.Store(at + room + 1)
	}
}

// advance notes that a share of the cycle is done.
func (c *pace) advance(done float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit.Load() > 0 && done > c.done {
		c.done = done
		c.set()
	}
}

func (c *pace) set() {
	share := min(startShare+c.done*(1-startShare)/drainShare, 1)
	c.limit.Store(c.base + uint64(float64(c.room)*share) + 1)
	c.cond.Broadcast()
}

// end lifts the limit.
func (c *pace) end() {
	if c.limit.Load() == 0 {
		return
	}
	c.mu.Lock()
	c.limit.Store(0)
	c.cond.Broadcast()
	c.mu.Unlock()
}

// ahead reports whether the cycle is further than the writers.
func (c *pace) ahead(at uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return float64(at-c.base) < float64(c.room)*(c.done-0.1)
}

// wait returns when a user may write.
func (p *Pool) paceUser() {
	c := &p.pace
	if l := c.limit.Load(); l == 0 || p.count.logBytes.Load() < l {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		l := c.limit.Load()
		if l == 0 || p.count.logBytes.Load() < l || p.usable() != nil {
			return
		}
		p.count.paced.Add(1)
		c.cond.Wait()
	}
}
