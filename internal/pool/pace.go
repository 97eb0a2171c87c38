package pool

import (
	"sync"
	"sync/atomic"
	"time"
)

// pace lets writers use the space that is left, while a cycle makes more, in proportion to how far the cycle is. So
// each of them waits a little, when space is short, instead of all of them for the whole cycle at its end.
//
// How far a cycle is follows from what its stages say and how long each took the last times. Of a stage that cannot say
// how far it is, time decides: half of its share is given when it has taken as long as it usually does, and the rest
// ever more slowly.
type pace struct {
	off   bool          // there is no limit ever
	limit atomic.Uint64 // users may write while the log has fewer bytes than this (counted as Stats.LogBytes); 0: no limit
	mu    sync.Mutex
	cond  *sync.Cond
	base  uint64 // bytes of log when the cycle began
	room  uint64 // bytes that may be added until it ends
	stage paceStage
	since time.Time // the stage began
	turn  uint64    // number of the stage, counted over all cycles
	done  float64   // share of the cycle that is done
	took  [paceStages]time.Duration
}

// paceStage is a part of a cycle.
type paceStage int

const (
	paceHeld  paceStage = iota // the cycle is due
	paceClean                  // segments are cleaned
	paceDrain                  // what was moved is put into pages
	paceRest                   // the checkpoint is made, and committed
	paceStages
)

// startShare is the share of the room that may be used at once.
const startShare = 0.15

// paceTick is how often the limit is set while time decides.
const paceTick = 2 * time.Millisecond

// begin starts a cycle that frees space.
func (c *pace) begin(at, room uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		return
	}
	c.base, c.room, c.done = at, room, 0
	c.enter(paceClean)
	c.set()
}

// hold sets what users may write until the cycle begins that is due now. The background is woken afterwards, which
// begins the cycle or ends the wait.
func (c *pace) hold(at, room uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off || c.limit.Load() > 0 {
		return
	}
	c.base, c.room, c.done = at, room, 0
	c.enter(paceHeld)
	c.set()
	go c.tick(c.turn)
}

// advance notes that a share of a stage is done.
func (c *pace) advance(stage paceStage, share float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit.Load() == 0 || c.stage == paceHeld || stage < c.stage {
		return
	}
	if stage > c.stage {
		c.enter(stage)
	}
	c.reach(share)
}

// rested notes that the present stage was put off for so long.
func (c *pace) rested(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.since.IsZero() {
		c.since = c.since.Add(d)
	}
}

// rest notes that what remains is the last stage.
func (c *pace) rest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit.Load() > 0 && c.stage != paceHeld {
		c.enter(paceRest)
		go c.tick(c.turn)
	}
}

// tick lets time decide until the stage is over.
func (c *pace) tick(turn uint64) {
	t := time.NewTicker(paceTick)
	defer t.Stop()
	for range t.C {
		c.mu.Lock()
		over := c.turn != turn
		if !over {
			spent := time.Since(c.since).Seconds()
			c.reach(spent / (spent + c.usual(c.stage).Seconds()))
		}
		c.mu.Unlock()
		if over {
			return
		}
	}
}

// enter ends the present stage, if there is one, and begins another.
func (c *pace) enter(stage paceStage) {
	c.leave()
	c.stage, c.since = stage, time.Now()
}

// leave ends the present stage, if there is one.
func (c *pace) leave() {
	if !c.since.IsZero() {
		c.took[c.stage] = (c.usual(c.stage) + time.Since(c.since)) / 2
	}
	c.since = time.Time{}
	c.turn++
}

// usual returns how long a stage takes.
func (c *pace) usual(stage paceStage) time.Duration {
	if c.took[stage] == 0 {
		return 50 * time.Millisecond
	}
	return c.took[stage]
}

// reach notes that a share of the present stage is done.
func (c *pace) reach(share float64) {
	done := share
	if c.stage != paceHeld {
		var before, all time.Duration
		for s := paceClean; s < paceStages; s++ {
			if s < c.stage {
				before += c.usual(s)
			}
			all += c.usual(s)
		}
		done = (before.Seconds() + share*c.usual(c.stage).Seconds()) / all.Seconds()
	}
	if done > c.done {
		c.done = done
		c.set()
	}
}

func (c *pace) set() {
	share := min(startShare+c.done*(1-startShare), 1)
	c.limit.Store(c.base + uint64(float64(c.room)*share) + 1)
	c.cond.Broadcast()
}

// end lifts the limit.
func (c *pace) end() {
	if c.limit.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave()
	c.limit.Store(0)
	c.cond.Broadcast()
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
