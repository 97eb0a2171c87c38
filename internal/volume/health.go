package volume

import (
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Tick lets time pass; the shell calls it at least every Settings.PingEvery.
func (c *Core) Tick(now time.Duration) {
	if c.phase == over {
		return
	}
	if away := now - c.ticked; c.ticked != 0 && away > 2*c.settings.PingEvery {
		// It was this process that was away: nobody had a chance to be heard.
		for _, p := range c.peers {
			p.heard, p.moved, p.readMoved, p.pingedAt = p.heard+away, p.moved+away, p.readMoved+away, p.pingedAt+away
			p.flushed, p.owed = p.flushed+away, p.owed+away
		}
		c.company = now
	}
	c.now, c.ticked = now, now
	suspended := false
	for _, p := range c.peers {
		if p.state == gone {
			continue
		}
		if c.silent(p) {
			suspended = c.eject(p) || suspended
		}
		c.checkStaging(p)
		if p.state != gone {
			c.ping(p)
		}
	}
	if suspended != c.suspended {
		c.suspended, c.out.Status = suspended, true
	}
	c.releaseLonely()
	c.shed()
	c.answerHeld()
	c.poke()
	c.paceRebuilds()
	c.checkStuck()
}

// pingAnyway is after how many Settings.PingEvery a replica is pinged that has a ping to answer: it wants to hear of us, too.
const pingAnyway = 4

// ping asks p for a sign of life and for a lease, and shows it that we live.
func (c *Core) ping(p *peer) {
	every := c.settings.PingEvery
	if p.pinged {
		every *= pingAnyway
	}
	if c.now-p.pingSent >= every {
		c.sendPing(p)
	}
}

func (c *Core) sendPing(p *peer) {
	if !p.pinged {
		p.pinged, p.pingedAt = true, c.now
	}
	p.pingSent = c.now
	if p.state >= promised {
		c.send(p, Ping{At: c.now, Lease: c.settings.Lease})
	} else {
		c.send(p, Ping{})
	}
}

// silent reports whether p owes an answer for too long. What has to be stable first has a deadline of its own, and
// whatever else p answers meanwhile does not help: a device may take long for a flush, or hang in it while writes to memory
// go on.
func (c *Core) silent(p *peer) bool {
	d := c.settings.Deadline
	return c.expired(p) || p.waits() && c.now-p.moved > d || len(p.reads) > 0 && c.now-p.readMoved > d || p.pinged && c.now-p.pingedAt > d
}

// mostPatience is how many times Settings.FlushDeadline a replica may come to have.
const mostPatience = 6

// expired reports whether p takes too long to make something stable: what it was asked to flush, or the state that an answer
// relies on. A replica whose session ended for that has twice the time when it comes back, or one whose device is just slow
// would never get through a takeover; it loses that again as it is quick, and has none while it counts and can be spared.
func (c *Core) expired(p *peer) bool {
	d := c.settings.FlushDeadline
	if p.state != insync || c.needed(p) {
		d = max(d, p.patience)
	}
	return p.flushing() && c.now-p.flushed > d || p.owes > 0 && c.now-p.owed > d
}

// took notes how long p took to make something stable.
func (c *Core) took(p *peer, since time.Duration) {
	p.patience = min(max(p.patience-p.patience/8, 2*(c.now-since)), mostPatience*c.settings.FlushDeadline)
}

// needed reports whether the members in sync are no quorum without p.
func (c *Core) needed(p *peer) bool {
	return !c.ok(func(q *peer) bool { return q.state == insync && q != p })
}

// eject ends the session of a silent replica, unless the in-sync set would be too small without it: then everything is
// suspended, and goes on where it was when it answers (replication rules 20 and 21).
func (c *Core) eject(p *peer) (suspended bool) {
	if p.state == insync && c.needed(p) {
		return true
	}
	if c.expired(p) {
		p.patience = min(2*max(c.settings.FlushDeadline, p.patience), mostPatience*c.settings.FlushDeadline)
	}
	c.close(p, "silent for too long")
	return false
}

// shed drops replicas that catch up too slowly: a joiner must not make this process keep operations without bound.
func (c *Core) shed() {
	for _, p := range c.peers {
		if !p.retains() || p.required || p.acked >= c.finished() {
			continue
		}
		if c.last()-p.acked > uint64(c.settings.RetainOps) || c.ring.data > c.settings.RetainData && p.acked < c.ring.low {
			c.delay(p)
			c.close(p, "replica lags too far behind")
		}
	}
}

// answerHeld answers what was held for too long. Operations that were sequenced stay in the stream (replication rule
// 19): they are answered, not undone.
func (c *Core) answerHeld() {
	if c.serving && !c.suspended && c.leased {
		return
	}
	late := func(since time.Duration) bool { return c.now-since > c.settings.HoldLimit }
	if c.phase == open {
		for _, n := range c.fua {
			if op := c.ring.at(n); late(op.since) {
				c.finish(op, block.ErrRetry)
			}
		}
		for n := c.completed + 1; n <= c.last(); n++ {
			if op := c.ring.at(n); late(op.since) {
				c.finish(op, block.ErrRetry)
			}
		}
	}
	keep := c.held[:0]
	for _, op := range c.held {
		if late(op.since) {
			c.refuse(op, block.ErrRetry)
		} else {
			keep = append(keep, op)
		}
	}
	c.held = keep
	flushes := c.flushes[:0]
	for _, f := range c.flushes {
		if late(f.since) {
			c.out.FlushHeld = append(c.out.FlushHeld, FlushEnd{Tag: f.tag, Err: block.ErrRetry})
		} else {
			flushes = append(flushes, f)
		}
	}
	c.flushes = flushes
	for _, p := range c.peers {
		for i := len(p.reads) - 1; i >= 0; i-- {
			if r := p.reads[i]; late(r.since) {
				c.forget(p, r)
				c.reads = append(c.reads, r)
			}
		}
	}
	c.reads = c.giveUp(c.reads, late, block.ErrRetry)
	c.answered = c.giveUp(c.answered, late, block.ErrRetry)
}

// giveUp answers the late ones of reads with err and returns the others.
func (c *Core) giveUp(reads []*ReadOp, late func(time.Duration) bool, err error) []*ReadOp {
	keep := reads[:0]
	for _, r := range reads {
		if late(r.since) {
			r.Err = err
			c.out.ReadsDone = append(c.out.ReadsDone, r)
		} else {
			keep = append(keep, r)
		}
	}
	return keep
}

// checkStuck asks for a restart when everyone who was in sync is away and others could take over: that needs a new
// claim, because only a claim may choose an authority.
func (c *Core) checkStuck() {
	if c.phase != open {
		return
	}
	if c.next == nil || c.serving || !c.rec.read || c.rec.failed {
		c.uncommitted = 0
	} else if c.uncommitted == 0 {
		c.uncommitted = c.now
	} else if c.now-c.uncommitted > c.settings.Deadline {
		c.restart("the list that is being committed lacks members")
		return
	}
	c.bare = c.unclaimed()
	if c.withdraw() {
		return
	}
	for _, p := range c.peers {
		if p.state >= promoting {
			c.stuck = 0
			return
		}
	}
	if c.stuck == 0 {
		c.stuck = max(c.now, 1)
	}
	if c.now-c.stuck <= max(c.settings.ClaimGrace, c.settings.Deadline) || c.lacking(func(p *peer) bool { return p.state == promised }) != "" {
		return
	}
	if _, auth := c.furthest(); auth != nil {
		c.restart("nobody that was in sync is left, and the others can take over")
	}
}
