package sim

import (
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// conn is a connection of a replica to a target: two ordered streams, which end after everything in them arrived.
type conn struct {
	w      *world
	id     volume.SessionID
	r      *replica
	t      *target
	silent [2]time.Duration // nothing gets through to that end before
	lost   bool             // what is under way is lost, the end of the connection alone still arrives
	last   [2]time.Duration
	open   [2]bool // as each end sees it: replica's, target's
}

const (
	atReplica = 0
	atTarget  = 1
)

// Frames besides volume.Message.
type (
	opFrame   struct{ ops []volume.Op }
	ackFrame  struct{ applied, stable uint64 }
	readFrame struct {
		r            *volume.ReadOp
		block, count uint64
	}
	readReply struct {
		r    *volume.ReadOp
		data []uint64
		err  error
	}
)

func (c *conn) proc(end int) *process {
	if end == atReplica {
		return &c.r.process
	}
	return &c.t.process
}

// transmit runs do at the other end, behind everything sent there before.
func (c *conn) transmit(to int, do func()) {
	w := c.w
	d := w.between(50*time.Microsecond, ms)
	if w.chance(0.01) {
		d += w.between(0, 20*ms)
	}
	at := max(w.now+d, c.last[to])
	c.last[to] = at
	p := c.proc(to)
	w.push(&event{at: at, proc: p, life: p.life, conn: c, end: to, do: func() {
		if c.open[to] && !c.lost {
			do()
		}
	}})
}

// lose breaks the connection for both, and what is under way with it.
func (c *conn) lose() {
	c.lost = true
	c.silent = [2]time.Duration{}
	c.cut()
}

// hush keeps the connection silent for d, in one direction or in both.
func (c *conn) hush(d time.Duration) {
	way := c.w.rng.IntN(3)
	for end := range c.silent {
		if way != end {
			c.silence(end, d)
		}
	}
}

// silence lets nothing through to one end for d.
func (c *conn) silence(end int, d time.Duration) { c.silent[end] = max(c.silent[end], c.w.now+d) }

// shut closes one end. The other learns of it behind what is under way to it; what is under way here is lost.
func (c *conn) shut(end int) {
	if c.open[end] {
		c.open[end] = false
		c.hangup(1 - end)
	}
}

func (c *conn) hangup(end int) {
	w := c.w
	c.last[end] = max(w.now+w.between(0, 2*ms), c.last[end])
	p := c.proc(end)
	w.push(&event{at: c.last[end], proc: p, life: p.life, conn: c, end: end, do: func() {
		if !c.open[end] {
			return
		}
		c.open[end] = false
		if end == atReplica {
			c.r.disconnected(c)
		} else {
			c.t.disconnected(c)
		}
	}})
}

// cut breaks the connection for both.
func (c *conn) cut() {
	c.hangup(atReplica)
	c.hangup(atTarget)
}

func guid(n int) block.GUID { return block.GUID{byte(n)} }
