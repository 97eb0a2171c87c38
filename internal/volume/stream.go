package volume

import (
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// streaming reports whether operations go to p.
func (p *peer) streaming() bool { return p.state >= pulling }

// retains reports whether the ring keeps for p what is behind p.acked.
func (p *peer) retains() bool { return p.streaming() || p.state == staging }

// answer notes that a message was answered.
func (c *Core) answer(p *peer) {
	if p.owes > 0 {
		c.took(p, p.owed)
		p.owes, p.owed = p.owes-1, c.now
	}
}

// waits reports whether p owes that something is applied.
func (p *peer) waits() bool { return p.streaming() && p.acked < p.sent }

// flushing reports whether p owes that something is stable. What it has to flush for itself while it rebuilds keeps
// nobody waiting.
func (p *peer) flushing() bool {
	return p.streaming() && (p.stable < p.mark || p.required && p.stable < p.fua)
}

// begin is called before something is sent that p has to apply.
func (c *Core) begin(p *peer) {
	if !p.waits() {
		p.moved = c.now
	}
}

// beginFlush is called before something is sent that p has to make stable.
func (c *Core) beginFlush(p *peer) {
	if !p.flushing() {
		p.flushed = c.now
	}
}

// send queues a message behind everything that p was given so far.
func (c *Core) send(p *peer, m Message) {
	c.emit(p)
	switch m.(type) {
	case Claim, Found, Join, Promote, SetList:
		if p.owes == 0 {
			p.owed = c.now
		}
		p.owes++
	}
	c.out.Sends = append(c.out.Sends, Send{Session: p.session, Message: m})
}

// emit queues the operations that p has not been sent.
func (c *Core) emit(p *peer) {
	if !p.streaming() || p.sent+1 >= c.ring.next {
		return
	}
	c.begin(p)
	a, b := c.ring.span(p.sent + 1)
	for _, ops := range [2][]*Op{a, b} {
		for _, op := range ops {
			if op.FUA {
				c.beginFlush(p)
				p.fua = op.Version.N
			}
		}
	}
	c.out.Sends = append(c.out.Sends, Send{Session: p.session, Ops: a})
	if len(b) > 0 {
		c.out.Sends = append(c.out.Sends, Send{Session: p.session, Ops: b})
	}
	p.sent = c.last()
}

// flushMark asks p to make everything up to n stable. n is at most last.
func (c *Core) flushMark(p *peer, n uint64) {
	c.emit(p)
	c.beginFlush(p)
	p.mark = max(p.mark, n)
	c.out.Sends = append(c.out.Sends, Send{Session: p.session, Flush: n})
}

// Propose takes an operation of the front end. It is sequenced at once, or held in order while the volume cannot
// serve; either way it is given back through Ready.Completed and then, when nobody needs it any more, Ready.Released.
func (c *Core) Propose(now time.Duration, op *Op) {
	c.now, c.asked = now, now
	op.since, op.completed, op.Err = now, false, nil
	if c.past.late() {
		c.refuse(op, block.ErrSuperseded)
		return
	}
	if !c.serving {
		c.held = append(c.held, op)
		return
	}
	if c.ring.next-c.ring.low > uint64(c.settings.RetainOps) || c.ring.data > c.settings.RetainData {
		c.shed()
	}
	c.sequence(op)
}

// sequence gives an operation its place in the volume's order. Writes are refused while a replica that counts, or is about
// to, has no room: redundancy is not given up for space, and such a replica must stay to get the discards that make room.
func (c *Core) sequence(op *Op) {
	if op.Kind == OpWrite {
		for _, p := range c.peers {
			if p.full && p.state >= catching {
				c.refuse(op, block.ErrNoSpace)
				return
			}
		}
	}
	op.Version = block.Version{Epoch: c.promise.Epoch, N: c.ring.next}
	c.ring.push(op)
	c.dirty = true
}

// refuse gives back an operation that was never sequenced.
func (c *Core) refuse(op *Op, err error) {
	c.finish(op, err)
	c.out.Released = append(c.out.Released, op)
}

// finish reports an operation to the front end, once.
func (c *Core) finish(op *Op, err error) {
	if !op.completed && op.Kind != OpOpen {
		op.completed, op.Err = true, err
		if kind, ok := op.kind(); ok && err == nil {
			c.pace.answered(kind, op.since, c.now)
		}
		c.out.Completed = append(c.out.Completed, op)
	}
}

// Ack takes a cumulative acknowledgement: the operations up to applied are applied, those up to stable are stable.
func (c *Core) Ack(now time.Duration, id SessionID, applied, stable uint64) {
	c.now = now
	p := c.session(id)
	if p == nil || c.phase == over {
		return
	}
	p.heard, p.pinged = now, false
	if !p.streaming() {
		return // of the stream before a Join
	}
	if applied > p.sent || stable > p.sent {
		c.close(p, "replica acknowledged what it was not sent")
		c.poke()
		return
	}
	if applied > p.acked {
		p.moved = now
	}
	more := stable > p.stable
	if more {
		if p.flushing() {
			c.took(p, p.flushed)
		}
		p.flushed = now
	}
	p.acked, p.stable = max(p.acked, applied), max(p.stable, stable)
	switch p.state {
	case insync:
		c.advance()
		if more && slices.ContainsFunc(c.peers, func(q *peer) bool { return q.state == promised }) {
			c.poke() // one that waits for that: see keeps
		}
	case catching:
		c.count(p)
	}
}

// count makes a replica that catches up count as soon as it holds everything that was completed, and holds stable
// everything that was reported stable (replication rules 13, 24 and 34). Once what it was sent first is stable,
// completions wait for it, so that what it lacks cannot grow any more.
func (c *Core) count(p *peer) {
	if !p.required && p.acked >= p.admit && p.stable >= p.admit {
		p.required = true
	}
	if !p.required {
		return
	}
	if p.acked < c.completed || p.stable < c.flushed || c.listMember(p.guid) && !p.listed {
		c.advance()
		return
	}
	c.become(p, insync)
	p.backoff, p.retryAt, p.error, p.progress = 0, 0, "", Progress{}
	p.avoid, p.tooMuch, p.unstaged = nil, false, 0
	c.trust(p)
	if c.phase == opening {
		c.phase = open
		c.opened()
	}
	c.poke()
	c.advance()
}

// advance completes what the in-sync set has acknowledged (replication rules 15 and 16), as far as leases allow, and releases
// what nobody needs any more. An acknowledgement that was on its way for long may be of a member that has lost since what it
// had not flushed, and of another target's epoch that began without it; while the leases last there is no such epoch.
func (c *Core) advance() {
	applied, stable, seen := c.last(), c.last(), c.last()
	for _, p := range c.peers {
		if p.required {
			applied, stable = min(applied, p.acked), min(stable, p.stable)
		}
		if p.retains() {
			seen = min(seen, p.acked)
		}
	}
	if c.serving && c.holdsLease() {
		for c.completed < applied {
			c.completed++
			if op := c.ring.at(c.completed); op.FUA && op.Kind != OpOpen {
				c.fua = append(c.fua, c.completed)
			} else {
				c.finish(op, nil)
			}
		}
		c.past.completed = c.completed
		c.completeStable(stable)
	}
	if c.serving && len(c.answered) > 0 {
		c.showAnswered()
	}
	for done := min(seen, c.finished()); c.ring.low <= done; {
		if op := c.ring.pop(); op.Kind != OpOpen {
			c.out.Released = append(c.out.Released, op)
		}
	}
}

// completeStable completes what waits for everything up to stable to be on stable storage.
func (c *Core) completeStable(stable uint64) {
	done, told := 0, uint64(0)
	for _, n := range c.fua {
		if n > stable {
			break
		}
		c.finish(c.ring.at(n), nil)
		told = n
		done++
	}
	c.fua = c.fua[:copy(c.fua, c.fua[done:])]
	done = 0
	for _, f := range c.flushes {
		if !f.set || f.n > stable {
			break
		}
		c.out.Flushed = append(c.out.Flushed, f.tag)
		c.pace.answered(paceSync, f.since, c.now)
		told = max(told, f.n)
		done++
	}
	c.flushed = max(c.flushed, told)
	if done > 0 {
		c.flushes = c.flushes[:copy(c.flushes, c.flushes[done:])]
	}
	c.past.stable = max(c.past.stable, told)
}

// finished returns the number up to which every operation is completed, those that must be stable included.
func (c *Core) finished() uint64 {
	if len(c.fua) > 0 {
		return c.fua[0] - 1
	}
	return c.completed
}

// Flush makes everything that was completed before stable; its tag comes back in Ready.Flushed, or in
// Ready.FlushHeld when there was no quorum for too long, or another target has served the volume, or something may be lost.
func (c *Core) Flush(now time.Duration, tag any) {
	c.now, c.asked = now, now
	if c.past.late() {
		c.out.FlushHeld = append(c.out.FlushHeld, FlushEnd{Tag: tag, Err: block.ErrSuperseded})
		return
	}
	c.flushes = append(c.flushes, flush{tag: tag, since: now})
	if c.serving {
		c.setFlushes()
		c.advance()
	}
}

// setFlushes gives the flushes that came while nothing could be served their place, and sends marks for it to those
// whose acknowledgement counts. A mark for something that is marked already is not repeated.
func (c *Core) setFlushes() {
	if len(c.flushes) > 0 {
		c.failFlushes()
	}
	for i := range c.flushes {
		f := &c.flushes[i]
		if f.set {
			continue
		}
		f.n, f.set = c.completed, true
		for _, p := range c.peers {
			if p.state >= catching && p.mark < f.n && p.stable < f.n {
				c.flushMark(p, f.n)
			}
		}
	}
}

// drain goes on with what was held as soon as the volume can serve.
func (c *Core) drain() {
	if !c.serving {
		return
	}
	c.setFlushes()
	if len(c.held) > 0 {
		held := c.held
		c.held = nil
		for _, op := range held {
			c.sequence(op)
		}
	}
	c.advance()
	c.dispatchReads()
}

// refreshServing recomputes whether the in-sync set satisfies the lists, and what its leases allow.
func (c *Core) refreshServing() {
	was := c.serving
	c.serving = c.phase == open && c.ok(counts)
	if was != c.serving {
		c.out.Status = true
	}
	c.renew()
}

// Ready returns what is to be done, nil if nothing. It is valid until the next call of Ready, but Sends refer to the
// operations that are retained, and have to be dealt with before any other method is called.
func (c *Core) Ready() *Ready {
	if c.dirty && c.phase != over {
		c.dirty = false
		for _, p := range c.peers {
			c.emit(p)
		}
	}
	r := c.out
	if len(r.Sends)+len(r.Closes)+len(r.Completed)+len(r.Released)+len(r.Reads)+len(r.ReadsDone)+
		len(r.Flushed)+len(r.FlushHeld) == 0 && r.Record == nil && !r.Status && r.Restart == "" && !r.Superseded {
		return nil
	}
	c.out = &c.outs[0]
	if r == c.out {
		c.out = &c.outs[1]
	}
	n := c.out
	*n = Ready{
		Sends: n.Sends[:0], Closes: n.Closes[:0], Completed: n.Completed[:0], Released: n.Released[:0],
		Reads: n.Reads[:0], ReadsDone: n.ReadsDone[:0], Flushed: n.Flushed[:0], FlushHeld: n.FlushHeld[:0],
	}
	return r
}
