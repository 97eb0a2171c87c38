package volume

import (
	"fmt"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// past is what a target did and told its front end, over all its cores. It decides what its next core may do.
type past struct {
	history History // of the order as it last opened it, or found that another target had: its epoch is the newest known
	// tried is the epochs that it tried to open since, which a replica may have or not, and those for which it stood back
	// already; the newest ones.
	tried  []Promise
	stable uint64 // operations of that order up to this one were reported stable
	// completed is the number up to which operations of that order are completed, unless an earlier epoch was lossy; none
	// is beyond it. It is unknown until this target has served.
	completed uint64

	told Promise // the newest lossy epoch of which the initiator is known to have been told

	claimed Promise // the highest that it tried to write into the record
	yielded uint64  // the epoch of another target's claim in the record for which it stood back

	opened time.Duration // when it last opened an epoch
	delay  time.Duration // how long it stood back last
	until  time.Duration // it stands back until then; zero when it has opened an epoch since
}

// maxTried bounds past.tried. An epoch that is forgotten counts as another target's, which is the safe side.
const maxTried = 64

// try notes that an epoch is about to be opened.
func (c *Core) try(p Promise) {
	c.past.tried = append(c.past.tried, p)
	c.past.tried = slices.Clone(c.past.tried[max(len(c.past.tried)-maxTried, 0):])
}

// opened notes that the epoch is open.
func (c *Core) opened() {
	c.past.history, c.past.tried, c.past.opened, c.past.until = c.history, nil, c.now, 0
	if c.past.completed != unknown { // else what it begins with may have been completed or not
		c.past.completed = min(c.past.completed, c.before.N)
	}
	if c.history[len(c.history)-1].Lossy {
		c.counters.Lossy++
	}
}

// newer returns a replica that has an epoch which another target opened since this one last opened one, nil if none has:
// the one with the newest. Of another one with the same number it is not known when it was opened, so that it counts as well.
func (c *Core) newer() (newest *peer) {
	if len(c.past.history) == 0 {
		return nil // it never served, so that nobody has asked it for anything
	}
	known := c.past.history[len(c.past.history)-1]
	foreign := func(e EpochStart) bool {
		return e.Epoch >= known.Epoch && e != known && !slices.Contains(c.past.tried, e.by())
	}
	for _, p := range c.peers {
		h := p.report.State.History
		if p.state == gone || newest != nil && h.Epoch() <= newest.report.State.History.Epoch() {
			continue
		}
		if slices.ContainsFunc(h, foreign) {
			newest = p
		}
	}
	return newest
}

// superseded reports whether another target has opened the volume since this one did, or did so a moment ago.
//
// Whatever was asked before may have been asked of the other target again, and may have been overwritten there since. So
// everything held ends, and nothing of it is ever proposed: an operation is in the order of one target's epochs only,
// after which no other target's came, or it is in none. The shell ends what it has not yet proposed itself.
//
// The other target may be alive. Two that both claimed at once would take the volume from each other for ever; so this
// one lets the replicas go, and claims only after a delay that doubles every time, up to the point where the two change
// so rarely that each of them gets something done.
func (c *Core) superseded() bool {
	newer, claim := c.newer(), c.claimedByOther()
	if newer != nil || claim {
		const shortest, longest = 10, 320 // times Settings.Backoff
		if c.now-c.past.opened > 10*longest*c.settings.Backoff {
			c.past.delay = 0
		}
		c.past.delay = min(max(2*c.past.delay, shortest*c.settings.Backoff), longest*c.settings.Backoff)
		c.past.until = c.now + c.past.delay
		if newer != nil {
			c.try(c.past.history[len(c.past.history)-1].by()) // a replica may go on showing it
			c.past.history, c.past.stable, c.past.completed = newer.report.State.History, 0, unknown
		}
		if claim {
			c.past.yielded = c.rec.known.Epoch
		}
		c.rec.read = false
		c.counters.Superseded++
		c.endHeld()
		c.letGo(func(*peer) bool { return true }, c.taken())
	}
	if c.now >= c.past.until {
		return false
	}
	c.holding = fmt.Sprintf("another target %s: waiting %v before claiming it back", c.otherTarget(), c.past.delay)
	return true
}

// late reports whether what is asked now is asked in a session that began before the target was superseded: there are no
// logins until it has opened an epoch again. It is as old as what superseded ends, whenever it arrives.
func (p *past) late() bool { return p.until != 0 }

// claimedByOther reports whether another target has claimed the record since this one did.
func (c *Core) claimedByOther() bool {
	own, known := c.past.claimed, c.rec.known
	return own.Epoch != 0 && known.Epoch >= own.Epoch && known.Epoch > c.past.yielded && (Promise{known.Epoch, known.Nonce}) != own
}

// otherTarget says what another target has done.
func (c *Core) otherTarget() string {
	if e := c.past.history.Epoch(); e >= c.past.yielded {
		return fmt.Sprintf("opened epoch %d", e)
	}
	return fmt.Sprintf("claimed the volume's record for epoch %d", c.past.yielded)
}

// Above lets the target serve in an epoch above e, which was seen outside of the replicas and of which they know nothing: they
// went back in time, all of them, or are not the ones that it was said of. What is said in epochs up to e would be taken for old.
func (c *Core) Above(now time.Duration, e uint64) {
	c.now = now
	if c.phase == over || c.promise.Epoch > e {
		return
	}
	c.floor = max(c.floor, e)
	if c.phase != claiming {
		c.restart(fmt.Sprintf("epoch %d was seen, which no replica knows of", e))
	}
}

// CutOff tells whether Kubernetes has not been heard of for long. Then it may have started another target, to which it leads the
// initiators, and those of the replicas that look for one; while those that are here see no reason to.
func (c *Core) CutOff(now time.Duration, yes bool) { c.now, c.cutOff = now, yes }

// endHeld ends everything that waits, with block.ErrSuperseded.
func (c *Core) endHeld() {
	c.out.Superseded = true
	for _, op := range c.held {
		c.refuse(op, block.ErrSuperseded)
	}
	c.held = nil
	for _, f := range c.flushes {
		c.out.FlushHeld = append(c.out.FlushHeld, FlushEnd{Tag: f.tag, Err: block.ErrSuperseded})
	}
	c.flushes = nil
	all := func(time.Duration) bool { return true }
	c.reads = c.giveUp(c.reads, all, block.ErrSuperseded)
	c.answered = c.giveUp(c.answered, all, block.ErrSuperseded)
}

// letGo drops replicas, so that they may connect to another target.
func (c *Core) letGo(which func(*peer) bool, why string) {
	for _, p := range c.peers {
		if p.state != gone && which(p) {
			c.drop(p, why)
		}
	}
}

func (c *Core) taken() string { return "another target " + c.otherTarget() }

// release lets replicas go that have waited for a quorum here since this target was superseded: the others may well be
// connected to the other target.
func (c *Core) release() {
	if c.past.late() {
		c.letGo(func(p *peer) bool { return c.now-p.since > c.past.delay }, c.taken())
	}
}

// loneliness is for how many times Settings.Backoff a target without a quorum keeps its replicas, and up to half as much again.
const loneliness = 300

// releaseLonely lets replicas go that have been here for long without a quorum of members that tell that no other target has
// taken over; in sync or not, these are what a rebuild needs. There may be a target that nobody here has heard of: this target's node is cut off from others,
// Kubernetes has started another target elsewhere, and neither of the two gets a quorum, or the other one lacks a replica,
// for as long as both hold on to what they have. A replica that finds nobody else comes back at once, to where it was: nothing
// is lost but a moment. Members that serve by the record without being a quorum are let go only while nobody asks for anything:
// if there is another target, the initiator uses that. So is a quorum of them if the target is cut off, and nobody gets on with
// catching up.
func (c *Core) releaseLonely() {
	wait := loneliness * c.settings.Backoff
	keeps := func(p *peer) bool { return p.state >= promised && c.gaveLease(p) }
	catchesUp := func(p *peer) bool { return p.state == staging || p.state > promised && p.state < insync && c.moves(p) }
	if c.ok(keeps) && (c.satisfies(keeps) && (!c.cutOff || slices.ContainsFunc(c.peers, catchesUp)) || c.now-c.asked < wait) {
		c.company = c.now
	}
	wait += time.Duration(c.nonce%1024) * wait / 2048 // two targets do not let go at the same time, for ever
	why := "there has been no quorum here for long"
	if c.cutOff {
		why = "this target has not heard of Kubernetes for long"
	}
	c.letGo(func(p *peer) bool { return c.now-max(p.since, c.company) > wait }, why+": it may find another target")
}

// holdsStable reports whether auth holds everything that was reported stable. A replica that was part of the in-sync set
// does, unless a device lies about flushes or went back in time; then going on would lose it without anybody knowing.
func (c *Core) holdsStable(auth *peer) bool {
	told := block.Version{Epoch: c.past.history.Epoch(), N: c.past.stable}
	has := CommonPoint(c.past.history, told, auth.report.State.History, auth.report.Last).N
	if has >= told.N {
		return true
	}
	c.holding = fmt.Sprintf("flushed data is missing: operations up to %d were reported stable, and %s, the furthest replica that answers, has them up to %d only; "+
		"waiting for a replica that has them all (to go on without them, restart the target)", told.N, c.name(auth.guid), has)
	return false
}
