package volume

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// admit takes the next step with a replica that is connected but not on its way to be in sync: the promise, without
// which none of its frames mean anything; then whatever it lacks, by resending if the operations are still here, or at
// once if it is little (replication rule 24), else by a rebuild from a member in sync (rules 26 and 27).
func (c *Core) admit(p *peer) {
	if c.phase != open {
		return
	}
	switch p.state {
	case connected:
		if by := p.report.State.Promised; by != c.promise && by.Epoch >= c.promise.Epoch {
			c.refused(p, by)
		} else if !p.claimed {
			p.claimed = true
			c.send(p, Claim{Promise: c.promise})
		}
	case promised:
		if c.now < p.retryAt {
			return
		}
		if c.heldBack(p) {
			p.error = "it shows that the volume's record went back, and is not rebuilt before that is accepted"
		} else if c.resendable(p) {
			c.counters.Resends++
			c.resend(p)
		} else if source := c.pickSource(p); source == nil {
			return
		} else if c.mayStage(p, source) {
			c.stage(p, source)
		} else if !c.keepForRoom(p) && c.mayJoin(p) && c.keeps(source, p) {
			c.join(p, source)
		}
	}
}

// keeps reports whether source keeps, whatever happens to its power, everything that p is about to give up; if not, it asks for
// that. Else nobody that is complete might be as far as p was, once it is known where that was. What p has of an earlier
// epoch is no further than the operation that opened this one, which is stable on whoever has it.
func (c *Core) keeps(source, p *peer) bool {
	key := p.report.Key()
	if !p.report.State.Complete || key.Epoch != c.promise.Epoch || key.N <= source.stable {
		return true
	}
	if source.mark < key.N {
		c.flushMark(source, key.N)
	}
	return false
}

// keepForRoom reports whether p, which is complete, stays so because it could not become it again: its pool has no room for a
// rebuild, and the volume serves without it.
func (c *Core) keepForRoom(p *peer) bool { return p.full && c.serving && p.report.State.Complete }

// mayJoin reports whether p may become incomplete now. The furthest of the complete members is what is left of the
// volume when the others are lost, so a member that is complete, though it lags, is worth keeping until others are
// (replication rule 26, history H21). It may become incomplete
//   - when the members in sync are a quorum without it; or
//   - when the complete members are a quorum without it, and none of these is behind it: then any quorum has a complete
//     member, and the furthest one of these is as far as any that became incomplete here, so that it can be the
//     authority; or
//   - when the volume cannot serve otherwise: the one that is furthest behind, after the one before it has counted, or has
//     had its time for that: see riskedGoesOn.
//
// The last case makes that there is always progress: as long as nothing is served and a source is there, one more
// member begins its rebuild after each such time, whatever became of the others, until none is left that could. An
// incomplete replica has nothing to lose and never waits, nor does anybody wait for one; one that is complete and no member
// waits until the volume serves without it.
func (c *Core) mayJoin(p *peer) bool {
	switch {
	case !p.report.State.Complete:
		return true
	case !c.listMember(p.guid):
		return !c.needs(p)
	}
	if c.unclaimed() {
		return false // replication rule 14
	}
	if c.ok(counts) {
		return true
	}
	if c.mayRecord() && len(c.nameable()) > 0 {
		return false // the volume is served without p in a moment
	}
	behind := func(q *peer) bool {
		return (c.waitsComplete(q) || q.state == staging && c.listMember(q.guid)) && q.report.Key().Less(p.report.Key())
	}
	if slices.ContainsFunc(c.peers, func(q *peer) bool { return behind(q) && c.now >= q.retryAt && !c.heldBack(q) }) {
		return false // that one goes first
	}
	stays := func(q *peer) bool { return q != p && (q.state >= catching || q.state == staging || c.waitsComplete(q)) }
	if c.satisfies(stays) && !slices.ContainsFunc(c.peers, behind) {
		return true
	}
	return !c.riskedGoesOn()
}

// mostRisked is for how many times Settings.Deadline a member that gets on with its rebuild is waited for.
const mostRisked = 10

// riskedGoesOn reports whether the last complete member that became incomplete may count soon: it has had less than
// Settings.Deadline, or gets on with its rebuild. It tells of its progress once a second.
func (c *Core) riskedGoesOn() bool {
	p := c.risked
	if p == nil || p.state == insync {
		return false
	}
	had, deadline := c.now-c.riskedAt, c.settings.Deadline
	return had < deadline || c.moves(p) && had < mostRisked*deadline
}

// moves reports whether p, which catches up, gets on with that.
func (c *Core) moves(p *peer) bool {
	return p.state > pulling || p.state == pulling && c.now-p.pulled < 2*c.settings.Deadline
}

// waitsComplete reports whether p is a complete member that has promised, or has yet had Settings.Deadline for that, and is not
// on its way to be in sync. One whose device hangs keeps nobody waiting.
func (c *Core) waitsComplete(p *peer) bool {
	asked := p.state == connected && (p.owes == 0 || c.now-p.owed < c.settings.Deadline)
	return (asked || p.state == promised) && p.report.State.Complete && c.listMember(p.guid)
}

// resendable reports whether p holds a beginning of this target's stream, and all that it lacks is still here. Before
// the epoch was opened that means: exactly what the authority held then.
func (c *Core) resendable(p *peer) bool {
	s, last := p.report.State, p.report.Last
	if !s.Complete || last.N+1 < c.ring.low || last.N > c.last() {
		return false
	}
	if last.Epoch == c.promise.Epoch {
		return slices.Equal(s.History, c.history)
	}
	return last == c.before && slices.Equal(s.History.with(c.history[len(c.history)-1]), c.history)
}

// resend streams to p from behind what it holds. It counts when it has flushed (replication rule 24).
func (c *Core) resend(p *peer) {
	p.sent, p.acked, p.stable, p.mark, p.fua = p.report.Last.N, p.report.Last.N, 0, 0, 0
	c.catchUp(p)
}

// catchUp is the last stage of every way to get in sync: lists, a flush, and then see count.
func (c *Core) catchUp(p *peer) {
	if c.listMember(p.guid) {
		c.sendLists(p)
	}
	p.admit, p.required = c.last(), false
	c.become(p, catching)
	c.flushMark(p, p.admit)
}

// pickSource returns the member in sync that p should pull from, nil if there is none.
func (c *Core) pickSource(p *peer) *peer {
	var best *peer
	load := func(q *peer) (n int) {
		for _, o := range c.peers {
			if o.source == q && o.pulls() {
				n++
			}
		}
		if q == p.avoid {
			n += len(c.peers) // better any other
		}
		return n
	}
	for _, q := range c.peers {
		if q.state == insync && q != p && (best == nil || load(q) < load(best)) {
			best = q
		}
	}
	return best
}

// join begins a rebuild. The source is in sync, so that it holds everything completed and will apply everything up to
// the point from which operations are streamed.
func (c *Core) join(p, source *peer) {
	c.attempt++
	c.counters.Joins++
	last := block.Version{Epoch: c.promise.Epoch, N: source.acked}
	c.noteDivergent(p, last)
	if p.report.State.Complete && c.listMember(p.guid) {
		c.risked, c.riskedAt = p, c.now
	}
	p.attempt, p.source, p.progress = c.attempt, source, Progress{}
	c.become(p, joining)
	c.send(p, Join{
		Attempt: p.attempt,
		Source:  source.peer(),
		History: c.history,
		Last:    last,
		Size:    c.size,
	})
}

// peer is how others reach p.
func (p *peer) peer() Peer {
	return Peer{GUID: p.guid, Name: p.report.Name, Addr: p.report.PullAddr}
}

// pulls reports whether p is to pull from its source, or does.
func (p *peer) pulls() bool { return p.state == staging || p.state == joining || p.state == pulling }

// noteDivergent counts p if it is complete and has operations that the volume, which is at last, has not.
func (c *Core) noteDivergent(p *peer, last block.Version) {
	if key := p.report.Key(); p.report.State.Complete && CommonPoint(p.report.State.History, key, c.history, last) != key {
		c.counters.Divergent++
	}
}

// joinReady begins the stream: from here on p gets every operation, and what came before is in the chunks of a source
// that has applied it.
func (c *Core) joinReady(p *peer, attempt uint64) {
	if p.state != joining || attempt != p.attempt {
		return
	}
	p.report.State.Complete = false
	p.sent, p.acked, p.stable, p.mark, p.fua = c.last(), c.last(), 0, 0, 0
	p.pulled = c.now
	c.send(p, Stream{Attempt: attempt, From: block.Version{Epoch: c.promise.Epoch, N: p.sent}})
	c.become(p, pulling)
}

// rebuilt lets p become complete, since every chunk equals the source's. The source may have been ahead of p's stream
// when it answered, so that what p holds is a state of the volume only once p has applied everything that the source
// may have had: that is all in the stream before this Promote.
func (c *Core) rebuilt(p *peer, attempt uint64) {
	if p.state != pulling || attempt != p.attempt {
		return
	}
	c.become(p, promoting)
	c.send(p, Promote{Attempt: p.attempt, History: c.history})
}

// onPromoted goes on with a replica that is durably complete (replication rule 34).
func (c *Core) onPromoted(p *peer, attempt uint64) {
	if p.state != promoting || attempt != p.attempt {
		return
	}
	c.counters.Promotions++
	p.source = nil
	p.report.State.Complete = true
	c.catchUp(p)
}

// joinFailed ends an attempt that the replica gave up.
func (c *Core) joinFailed(p *peer, m JoinFailed) {
	if m.Attempt == p.attempt && (p.state == joining || p.state == pulling) {
		c.giveUpJoin(p, m.Reason)
	}
}

// giveUpJoin ends an attempt together with its session, which ends the stream cleanly on both sides. The replica
// connects again and another attempt begins after a while, with another source if there is one (replication rule 33).
func (c *Core) giveUpJoin(p *peer, why string) {
	p.avoid = p.source
	c.delay(p)
	doing := "rebuild from"
	if p.state == staging {
		doing = "catching up with"
	}
	why = fmt.Sprintf("%s %s: %s", doing, c.name(p.source.guid), why)
	c.close(p, why)
	p.error = why
}

// delay keeps p from being admitted again for a while, longer from time to time.
func (c *Core) delay(p *peer) {
	p.backoff = min(max(2*p.backoff, c.settings.Backoff), 64*c.settings.Backoff)
	p.retryAt = c.now + p.backoff
}

// orphan lets those who pull from p begin again.
func (c *Core) orphan(p *peer) {
	for _, q := range c.peers {
		if q.source == p && q.pulls() {
			c.giveUpJoin(q, "source is gone")
		}
	}
}
