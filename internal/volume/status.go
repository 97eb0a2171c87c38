package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

func mode(s peerState) Mode {
	switch s {
	case gone:
		return Offline
	case staging, joining, pulling, promoting, catching:
		return Rebuilding
	case insync:
		return Healthy
	}
	return Degraded
}

// Counters count what happened to the volume under this target.
type Counters struct {
	Ejections   uint64 // members that left while the rest could go on
	Suspensions uint64 // members that left while the rest could not
	Resends     uint64 // replicas that came back by resending
	Stages      uint64 // times that a replica began to catch up at once
	Staged      uint64 // and that it had
	Joins       uint64 // rebuilds begun
	Interrupted uint64 // rebuilds that ended before promotion
	Divergent   uint64 // replicas found to hold operations that the volume does not
	Promotions  uint64
	Finished    uint64 // pending lists of an earlier target finished
	Withdrawn   uint64 // and such as were given up, since their members were away
	Added       uint64
	Removed     uint64
	Superseded  uint64 // times that another target was found to have opened the volume
	Lossy       uint64 // epochs opened without proof that nothing completed was lost with the power
	HeldReads   uint64 // replies to reads that had to wait for an overlapping operation
	LeaseWaits  uint64 // replies to reads that had to wait for leases
	StandDowns  uint64 // times that the leases ran out while the members in sync were a quorum
	ReadRetries uint64

	RecordWrites uint64 // writes of the record begun
	RecordDoubts uint64 // of which it was not told what they led to
	Reduced      uint64 // times that fewer members than a quorum were written into the record
	ByRecord     uint64 // takeovers for which those that the record names counted
	Bare         uint64 // takeovers without the record
}

// Counters returns what has happened so far.
func (c *Core) Counters() Counters { return c.counters }

// Status describes the volume: every member of a list and every replica that is connected.
func (c *Core) Status() Status {
	s := Status{
		Serving:  c.serving && c.holdsLease() && c.silentNow() == "",
		Epoch:    c.promise.Epoch,
		Last:     c.last(),
		Removing: c.removing,
		Holding:  c.holdingNow(),

		StoodDown: c.phase == claiming && c.now < c.past.until,
	}
	if c.phase == open {
		s.Committed, s.Pending, s.Desired = c.committed, c.pending, c.adopted
		s.Redundant, s.Lacks = c.redundant()
		s.Lossy = c.history.lossy().Epoch
	}
	if back := c.wentBack(); back != nil && c.phase != over && (c.witnessed() || c.desired.Witness) && (c.rec.read || c.claimed()) {
		s.WentBack = c.backText(*back)
		for _, x := range c.contradictions() {
			if !slices.Contains(s.Accept, x.Noted) {
				s.Accept = append(s.Accept, x.Noted)
			}
		}
	}
	seen := func(g [16]byte) bool { return c.find(g) != nil }
	for _, p := range c.peers {
		m := mode(p.state)
		if m == Healthy && !c.committed.Has(p.guid) {
			m = Rebuilding // not before its list is committed
		}
		s.Replicas = append(s.Replicas, Replica{
			GUID: p.guid, ReplicaID: p.report.ReplicaID, Name: p.report.Name, Member: c.committed.Has(p.guid),
			Mode: m, Applied: p.acked, Recorded: slices.Contains(c.named(), p.guid), Since: p.since, Progress: p.progress, LastError: p.problem(),
		})
	}
	for _, g := range c.committed.Members {
		if !seen(g) {
			s.Replicas = append(s.Replicas, Replica{GUID: g, Member: true, Mode: Offline})
		}
	}
	return s
}

// redundant reports whether every member has everything and none is named by the record, so that any of them may be lost;
// or else what is lacking.
func (c *Core) redundant() (yes bool, lacks string) {
	var here, away []string
	for _, g := range c.committed.Members {
		if p := c.find(g); p != nil && p.state == insync && !c.silent(p) {
			here = append(here, c.name(g))
		} else {
			away = append(away, c.name(g))
		}
	}
	switch n := len(c.committed.Members); {
	case n == 1:
		return false, "the volume has one replica"
	case len(here) == 1 && c.serving:
		return false, fmt.Sprintf("runs without redundancy: only %s has everything, and nothing can replace it; away or behind: %s", here[0], strings.Join(away, ", "))
	case len(away) > 0:
		return false, fmt.Sprintf("%d of %d replicas are in sync; away or behind: %s", len(here), n, strings.Join(away, ", "))
	case c.unclaimed():
		return false, "all replicas are in sync, and all are needed, since the volume's record could not be claimed: " + cmp.Or(c.rec.error, "it is being written")
	case len(c.named()) > 0 || c.witnessed() && slices.ContainsFunc(c.rec.doubts, func(d doubt) bool { return len(d.set) > 0 }):
		return false, "all replicas are in sync, and the volume's record does not say so yet: " + cmp.Or(c.rec.error, "it is being written")
	}
	return true, ""
}

// problem says what is wrong with a replica, "" if nothing is.
func (p *peer) problem() string {
	switch {
	case p.full && p.state >= catching:
		return "its pool has no room for more, or is above its read-only limit: the volume refuses writes until that has changed"
	case p.full && p.streaming():
		return "its pool has no room for more, or is above its read-only limit: the rebuild waits until that has changed"
	case p.full && p.state == promised && p.report.State.Complete:
		return "its pool has no room for more, or is above its read-only limit: it is not rebuilt until that has changed, while the volume can serve without it"
	}
	return p.error
}

// holdingNow says why the volume cannot serve.
func (c *Core) holdingNow() string {
	switch {
	case c.serving:
		return cmp.Or(c.silentNow(), c.leaseless())
	case c.phase != open:
		return c.holding
	}
	parts := []string{"not enough replicas are in sync: " + cmp.Or(c.missing(counts), c.unnamed(counts))}
	switch {
	case c.unclaimed():
		parts[0] = "every member has to be in sync, since the volume's record could not be claimed: " + c.short(counts, func(l List) int { return len(l.Members) })
	case c.witnessed() && (c.rec.busy || len(c.rec.doubts) > 0):
		parts = append(parts, "waiting for the volume's record to be written: "+cmp.Or(c.rec.error, "no answer yet"))
	}
	for _, p := range c.peers {
		if c.listMember(p.guid) && p.state != insync && p.error != "" {
			parts = append(parts, c.name(p.guid)+": "+p.error)
		}
	}
	return strings.Join(parts, "; ")
}

// unnamed says of which replicas that the record names, or may name, is says no.
func (c *Core) unnamed(is func(*peer) bool) string {
	var names []string
	for _, g := range c.committed.Members {
		if p := c.find(g); c.bound(g) && (p == nil || !is(p)) {
			names = append(names, c.name(g))
		}
	}
	return "nothing is completed without those that the volume's record names; missing: " + strings.Join(names, ", ")
}

// silentNow says which members in sync are silent and cannot be spared, "" if there are none.
func (c *Core) silentNow() string {
	var names []string
	for _, p := range c.peers {
		if c.suspended && p.state == insync && c.silent(p) {
			names = append(names, c.name(p.guid))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "waiting for replicas that are silent, the others are no quorum: " + strings.Join(names, ", ")
}

// leaseless says whose leases are missing, "" if they suffice.
func (c *Core) leaseless() string {
	if c.holdsLease() {
		return ""
	}
	return "waiting for replicas to tell that no other target has taken over: " + cmp.Or(c.missing(c.leases), c.unnamed(c.leases))
}
