package volume

import (
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// A target that is cut off completes nothing any more, but a member in sync that it still reaches could go on showing it
// what another target's writes have long replaced. So reads need leases (replication rules 11 and 18, history H16): with
// its answer to a Ping a member gives its word not to promise another target for a while, and a read is shown only while
// members that are a quorum of every list in force have given theirs. Whoever takes over needs the promise of one of
// these (the same intersection that keeps completed writes), and that one waits. Nor is anything completed without: see advance.
//
// A lease counts at the target from when it sent the Ping, at the member from when it answered; and at the target for a
// tenth less, so that clocks may differ by 5 % in each direction. It costs one Ping for each member and Settings.PingEvery,
// and a comparison for each read and each acknowledgement.

// LeaseTime is how long leases last.
const LeaseTime = time.Second

// counted is for how long a lease of d counts at the target.
func counted(d time.Duration) time.Duration { return d - d/10 }

// leasedSince returns the latest time since when a quorum of every list in force is known to have kept its promise to this
// target: each of these members in sync answered a Ping that was sent then or later. Zero: there is none.
//
// Where the record names members that have to have everything, it is all of these instead, since whoever takes over needs
// one of them; and every member while the record is not claimed (replication rule 18).
func (c *Core) leasedSince() time.Duration {
	if c.unclaimed() {
		since := c.listLeased(c.committed, len(c.committed.Members))
		if c.pending != nil {
			since = min(since, c.listLeased(*c.pending, len(c.pending.Members)))
		}
		return since
	}
	since := c.setLeased(c.named())
	if !c.witnessed() {
		return since
	}
	for _, d := range c.rec.doubts {
		since = min(since, c.setLeased(d.set))
	}
	return since
}

func (c *Core) setLeased(set []block.GUID) time.Duration {
	if len(set) > 0 {
		return c.listLeased(List{Members: set}, len(set))
	}
	since := c.listLeased(c.committed, c.committed.Quorum())
	if c.pending != nil {
		since = min(since, c.listLeased(*c.pending, c.pending.Quorum()))
	}
	return since
}

// listLeased returns the same for that many of l.
func (c *Core) listLeased(l List, quorum int) time.Duration {
	var room [8]time.Duration
	times := room[:0]
	for _, p := range c.peers {
		if p.state == insync && p.leased != 0 && l.Has(p.guid) {
			times = append(times, p.leased)
		}
	}
	if len(times) < quorum {
		return 0
	}
	slices.Sort(times)
	return times[len(times)-quorum]
}

// renew recomputes what leases allow, after anything that they depend on, time included.
func (c *Core) renew() {
	was := c.leased
	c.since = 0
	if c.serving {
		c.since = c.leasedSince()
	}
	if c.leased = c.holdsLease(); c.leased != was {
		c.out.Status = true
		if !c.leased && c.serving {
			c.counters.StandDowns++
		}
	}
}

// holdsLease reports whether no other target can have opened the volume by now.
func (c *Core) holdsLease() bool {
	return c.since != 0 && c.now < c.since+counted(c.settings.Lease)
}

// leases reports whether p's lease has not run out.
func (c *Core) leases(p *peer) bool { return p.state == insync && c.gaveLease(p) }

func (c *Core) gaveLease(p *peer) bool {
	return p.leased != 0 && c.now < p.leased+counted(c.settings.Lease)
}

// mayShow reports whether what r found may be shown: no other target can have opened the volume by now, or, whatever the
// clocks say, when r had come already; in which case r is older than anything that another target did.
func (c *Core) mayShow(r *ReadOp) bool { return c.holdsLease() || r.since < c.since }

// tookLease notes p's answer to the Ping of that time. It reports false if there was none.
func (c *Core) tookLease(p *peer, at time.Duration) bool {
	if at > p.pingSent {
		return false
	}
	if at > p.leased {
		p.leased = at
		c.renew()
		c.advance()
	}
	return true
}

// Stop ends the target in good order: after what Ready has now, nothing is shown any more, so that the members need not
// keep their leases for whoever comes next.
func (c *Core) Stop(now time.Duration) {
	c.now = now
	if c.phase != over {
		c.phase, c.serving, c.holding = over, false, "the target has ended"
		c.releaseLeases()
		c.out.Status = true
	}
}

// releaseLeases ends the leases of a core that shows nothing any more.
func (c *Core) releaseLeases() {
	for _, p := range c.peers {
		if p.state >= promised {
			c.out.Sends = append(c.out.Sends, Send{Session: p.session, Message: Release{}})
		}
	}
}

// lease is a member's word to promise no other target until then.
type lease struct {
	nonce uint64 // of the target that has it
	until time.Duration
}

// wait returns for how long a promise to the target with that nonce has to wait.
func (l lease) wait(now time.Duration, nonce uint64) time.Duration {
	if nonce == l.nonce {
		return 0
	}
	return max(l.until-now, 0)
}

// ping answers a Ping. One that asks for a lease gets it if this session's target has the promise.
func (m *Member) ping(now time.Duration, p Ping) MemberReady {
	pong := Pong{}
	if m.claimed && p.At != 0 && p.Lease <= m.longest {
		m.lease = lease{nonce: m.report.State.Promised.Nonce, until: max(m.lease.until, now+p.Lease)}
		pong.At = p.At
	}
	return MemberReady{Messages: []Message{pong}}
}
