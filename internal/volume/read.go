package volume

import (
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Read takes a read of the front end. It is given back through Ready.ReadsDone, once; a ReadOp is not used again, since
// a late reply of a replica may still name it.
func (c *Core) Read(now time.Duration, r *ReadOp) {
	c.now, c.asked = now, now
	r.since, r.session, r.after, r.Err, r.tried = now, 0, 0, nil, r.tried[:0]
	if c.past.late() {
		r.Err = block.ErrSuperseded
		c.out.ReadsDone = append(c.out.ReadsDone, r)
		return
	}
	if !c.serving || !c.dispatch(r) {
		c.reads = append(c.reads, r)
	}
}

// dispatch sends r to the in-sync member with the fewest reads under way. It reports false if that must wait.
func (c *Core) dispatch(r *ReadOp) bool {
	var best *peer
	for i := range c.peers {
		p := c.peers[(c.turn+i)%len(c.peers)]
		if p.state != insync || best != nil && len(p.reads) >= len(best.reads) {
			continue
		}
		if len(r.tried) > 0 && slices.Contains(r.tried, p.guid) {
			continue
		}
		best = p
	}
	if best == nil {
		if len(r.tried) == 0 {
			return false
		}
		r.Err = block.ErrMedium // every member in sync has failed to read it
		c.out.ReadsDone = append(c.out.ReadsDone, r)
		return true
	}
	c.turn++
	if len(best.reads) == 0 {
		best.readMoved = c.now
	}
	r.session, r.index = best.session, len(best.reads)
	best.reads = append(best.reads, r)
	c.out.Reads = append(c.out.Reads, ReadSend{Session: best.session, Read: r})
	return true
}

// dispatchReads sends the reads that had to wait.
func (c *Core) dispatchReads() {
	if len(c.reads) == 0 || !c.serving {
		return
	}
	reads := c.reads
	c.reads = nil
	for _, r := range reads {
		if !c.dispatch(r) {
			c.reads = append(c.reads, r)
		}
	}
}

// ReadReply tells that the member answered r, with data in the shell's hands or with an error. The data may hold
// operations that are not completed: then it is not shown before they are, for until then another target may undo
// them (replication rule 17). And it may be older than what another target wrote: see mayShow. Both are checked here, not
// at dispatch, since the member may have applied operations, and another target may have come, since.
func (c *Core) ReadReply(now time.Duration, id SessionID, r *ReadOp, err error) {
	c.now = now
	p := c.session(id)
	if p == nil || c.phase == over {
		return
	}
	p.heard, p.readMoved, p.pinged = now, now, false
	if r.session != id || r.index >= len(p.reads) || p.reads[r.index] != r {
		return // sent elsewhere since
	}
	c.forget(p, r)
	switch {
	case err != nil:
		c.counters.ReadRetries++
		r.tried = append(r.tried, p.guid)
		if !c.serving || !c.dispatch(r) {
			c.reads = append(c.reads, r)
		}
	case !c.serving:
		c.reads = append(c.reads, r)
	default:
		if r.after = c.overlap(r); r.after != 0 {
			c.counters.HeldReads++
		} else if c.mayShow(r) {
			c.show(r)
			return
		} else {
			c.counters.LeaseWaits++
		}
		c.answered = append(c.answered, r)
	}
}

// forget takes r out of p's reads.
func (c *Core) forget(p *peer, r *ReadOp) {
	end := len(p.reads) - 1
	p.reads[r.index] = p.reads[end]
	p.reads[r.index].index = r.index
	p.reads[end] = nil
	p.reads = p.reads[:end]
	r.session = 0
}

// overlap returns the highest operation not completed that touches the blocks of r, zero if there is none.
func (c *Core) overlap(r *ReadOp) uint64 {
	for n := c.last(); n > c.completed; n-- {
		if c.ring.at(n).touches(r) {
			return n
		}
	}
	for i := len(c.fua) - 1; i >= 0; i-- {
		if c.ring.at(c.fua[i]).touches(r) {
			return c.fua[i]
		}
	}
	return 0
}

func (op *Op) touches(r *ReadOp) bool {
	return op.Block < r.Block+uint64(r.Count) && r.Block < op.Block+uint64(op.Count)
}

// showAnswered reports the reads whose overlapping operations are completed, as far as leases allow.
func (c *Core) showAnswered() {
	done := c.finished()
	c.answered = slices.DeleteFunc(c.answered, func(r *ReadOp) bool {
		if r.after > done || !c.mayShow(r) {
			return false
		}
		c.show(r)
		return true
	})
}

// show reports a read to the front end.
func (c *Core) show(r *ReadOp) {
	c.pace.answered(r.kind(), r.since, c.now)
	c.out.ReadsDone = append(c.out.ReadsDone, r)
}
