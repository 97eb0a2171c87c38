package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
)

// noteList remembers a committed list. That it was committed stays true when the replica that shows it is gone, or is
// dropped because that very list is without it.
func (c *Core) noteList(l List) {
	if l.founded() && (!c.recorded.founded() || l.Compare(c.recorded) > 0) {
		c.recorded = l
	}
}

// known returns the highest committed list that the record or any replica showed, and the highest pending one that a
// connected replica shows if that is higher still (replication rule 12). Lists only move under a quorum of their
// members, so that the highest one that a quorum shows is the one that binds.
func (c *Core) known() (committed List, pending *List) {
	committed = c.recorded
	for _, p := range c.peers {
		l := p.report.State.Pending
		if p.state == gone || l == nil || l.Compare(committed) <= 0 || pending != nil && l.Compare(*pending) <= 0 {
			continue
		}
		pending = l
	}
	return committed, pending
}

// claim gathers promises until they are a quorum of every list that may bind, chooses the authority among those who
// gave them, and opens the epoch there (replication rules 10 to 13).
func (c *Core) claim() {
	if c.superseded() {
		return
	}
	c.committed, c.pending = c.known()
	if !c.committed.founded() {
		c.askRecord()
		return
	}
	here := func(p *peer) bool { return p.state != gone }
	if !c.knowsRecord(here) {
		return
	}
	if why := c.lacking(here); why != "" {
		c.hold("connected", why)
		c.release()
		return
	}
	highest := c.floor
	for _, p := range c.peers {
		if s := p.report.State.Promised; p.state != gone && s != c.promise {
			highest = max(highest, s.Epoch)
		}
	}
	if (c.promise.Epoch <= highest || c.unclaimed() && !c.bare) && !c.chooseEpoch(highest) {
		return
	}
	if c.bare && c.rec.read {
		c.claimRecord(c.promise.Epoch)
	}
	for _, p := range c.peers {
		if p.state == connected && !p.claimed {
			p.claimed = true
			c.send(p, Claim{Promise: c.promise})
		}
	}
	has := func(p *peer) bool { return p.state == promised }
	if why := c.lacking(has); why != "" {
		c.quorumAt = 0
		c.hold("promised", why)
		return
	}
	if c.quorumAt == 0 {
		c.quorumAt = max(c.now, 1)
	}
	set := c.believed()
	all := c.everyMember(has) || len(set) > 0 && c.haveAll(set, has)
	if !all && c.now-c.quorumAt < c.settings.ClaimGrace {
		c.holding = "waiting a moment for the remaining replicas"
		return
	}
	if auth := c.chooseAuthority(); auth != nil && c.holdsStable(auth) && c.oneLine(auth) {
		if lossy := !c.lossless(auth); !lossy || !c.awaitsOthers() {
			c.openEpoch(auth, lossy)
		}
	}
}

// knowsRecord reports whether the claim may go on with what is known of the record: it was read, or is not needed, or it
// cannot be read, or not be written, and all members are here, which satisfy whatever it says (replication rule 14).
func (c *Core) knowsRecord(here func(*peer) bool) bool {
	c.bare = false
	switch {
	case !c.witnessed():
		return true
	case !c.rec.read:
		c.readRecord()
		c.bare = c.rec.failed && c.everyMember(here)
		c.holding = "waiting for the volume's record: " + cmp.Or(c.rec.error, "it is being read")
		return c.bare
	case c.now-c.rec.asked >= recordEvery:
		c.readRecord() // another target may have claimed it, or what was read was old
	}
	if back := c.wentBack(); back != nil {
		c.holding = c.backText(*back) + "; waiting for it to be accepted"
		return false
	}
	c.bare = c.rec.unwritten && !c.rec.restored && c.everyMember(here)
	return true
}

// oneLine reports whether the record, if it cannot be read, is not known to have gone back by the replicas alone: each has noted it last in
// an epoch that auth has. Otherwise auth may lack what was completed in that one, and only the record tells.
func (c *Core) oneLine(auth *peer) bool {
	if !c.bare || c.rec.read {
		return true
	}
	h := auth.report.State.History
	for _, p := range c.peers {
		by := p.report.State.RecordBy
		has := func(e EpochStart) bool { return e.by() == by }
		if p.state == promised && len(h) > 0 && by.Epoch >= h[0].Epoch && !slices.ContainsFunc(h, has) {
			c.holding = fmt.Sprintf("%s was told of the volume's record in epoch %d, which %s, the furthest replica, has not; waiting for the record: %s",
				c.name(p.guid), by.Epoch, c.name(auth.guid), c.rec.error)
			return false
		}
	}
	return true
}

// chooseEpoch begins a claim above e. With a witness that epoch is in the record first, by which every earlier target is
// kept from changing it (replication rule 10). It reports false while that is not done.
func (c *Core) chooseEpoch(e uint64) bool {
	r := &c.rec
	p := Promise{Epoch: e + 1, Nonce: c.nonce}
	if c.witnessed() && !c.bare {
		if r.known.Nonce != c.nonce || r.known.Epoch <= e {
			c.holding = "waiting for the volume's record to be claimed: " + cmp.Or(r.error, "it is being written")
			c.claimRecord(max(r.known.Epoch, e) + 1)
			return false
		}
		p.Epoch = r.known.Epoch
	} else if c.bare && r.read { // the claim that could not be written, and may be yet, is of this epoch
		p.Epoch = max(r.known.Epoch, e) + 1
	}
	c.reclaim(e)
	c.promise = p
	return true
}

// claimRecord writes this target's claim of an epoch into the record.
func (c *Core) claimRecord(epoch uint64) {
	r := &c.rec
	if r.busy {
		return
	}
	c.past.claimed = Promise{Epoch: max(c.past.claimed.Epoch, epoch), Nonce: c.nonce}
	r.restored = r.restored || r.newest > r.known.Version
	c.writeRecord(r.known.claimedBy(Promise{Epoch: epoch, Nonce: c.nonce}))
}

// askRecord asks for a new volume's list to be written once enough replicas wait for it (replication rule 5).
func (c *Core) askRecord() {
	if !c.rec.read {
		c.readRecord()
		c.holding = "waiting for the volume's record: " + cmp.Or(c.rec.error, "it is being read")
		return
	}
	var guids []block.GUID
	for _, p := range c.peers {
		if p.state != gone && p.report.fresh() && !slices.Contains(c.desired.Remove, p.guid) && len(guids) < c.desired.Founding {
			guids = append(guids, p.guid)
		}
	}
	switch {
	case c.desired.Founding == 0 || len(guids) < c.desired.Founding:
		c.holding = fmt.Sprintf("new volume: %d of %d empty replicas are connected", len(guids), c.desired.Founding)
	default:
		want := c.rec.known
		want.List = &List{Generation: 1, Members: guids, Witness: c.desired.Witness}
		c.writeRecord(want)
		c.holding = "new volume: waiting for its record to be written"
	}
}

// hold says what is missing before the volume can be claimed.
func (c *Core) hold(what, why string) { c.holding = "not enough replicas have " + what + ": " + why }

// missing returns "" if the replicas of which is says yes are a quorum of every list in force, otherwise who is
// missing.
func (c *Core) missing(is func(*peer) bool) string { return c.short(is, List.Quorum) }

// short returns "" if the replicas of which is says yes are as many of every list in force as need says, otherwise who is
// missing.
func (c *Core) short(is func(*peer) bool, need func(List) int) string {
	s := c.shortOf(c.committed, is, need)
	if s == "" && c.pending != nil {
		s = c.shortOf(*c.pending, is, need)
	}
	return s
}

// shortOf returns the same for l.
func (c *Core) shortOf(l List, is func(*peer) bool, need func(List) int) string {
	var n int
	var away []string
	for _, g := range l.Members {
		if p := c.find(g); p != nil && is(p) {
			n++
		} else {
			away = append(away, c.name(g))
		}
	}
	if n >= need(l) {
		return ""
	}
	return fmt.Sprintf("%d of %d, need %d; missing: %s", n, len(l.Members), need(l), strings.Join(away, ", "))
}

// lacking returns "" if the replicas of which is says yes are enough for a claim (replication rule 12): of those that the
// record names one that is complete, or all; if it names none, so many of the committed list that they share a member with each
// quorum: where the record keeps two targets apart that need not be a quorum. Who completed anything by a pending list did so
// by the committed one as well, and was seen to have committed it if that is not so any more: see openEpoch. Without the record
// it needs all of every list. Otherwise it returns who is missing.
func (c *Core) lacking(is func(*peer) bool) string {
	set := c.believed()
	if c.bare {
		return c.short(is, func(l List) int { return len(l.Members) })
	}
	if len(set) == 0 {
		return c.shortOf(c.committed, is, func(l List) int {
			if l.Witness {
				return len(l.Members) - l.Quorum() + 1
			}
			return l.Quorum()
		})
	}
	var names []string
	for _, g := range set {
		if p := c.find(g); p != nil && is(p) && p.report.State.Complete {
			return ""
		}
		names = append(names, c.name(g))
	}
	if c.haveAll(set, is) {
		return ""
	}
	return "of those that the volume's record names, and without which nobody is sure to have everything, one; missing: " + strings.Join(names, ", ")
}

// everyMember reports whether is says yes of every member of the lists in force.
func (c *Core) everyMember(is func(*peer) bool) bool {
	yes := func(g block.GUID) bool { p := c.find(g); return p != nil && is(p) }
	for _, g := range c.committed.Members {
		if !yes(g) {
			return false
		}
	}
	if c.pending != nil {
		for _, g := range c.pending.Members {
			if !yes(g) {
				return false
			}
		}
	}
	return true
}

// reclaim begins the claim again, with an epoch above e.
func (c *Core) reclaim(e uint64) {
	c.phase = claiming
	c.authority, c.quorumAt = nil, 0
	c.floor = max(c.floor, e, c.promise.Epoch)
	c.promise = Promise{}
	c.ring = newRing(1)
	for _, p := range c.peers {
		if p.state != gone {
			p.state, p.claimed, p.founded, p.required, p.listed = connected, false, false, false, false
		}
	}
}

// refused handles a replica that promised a higher epoch to another target. While nothing was opened the claim is
// repeated above it. Afterwards only a new claim can win it, since it may hold completed operations of that epoch; so
// this core ends and its successor claims.
func (c *Core) refused(p *peer, by Promise) {
	p.report.State.Promised = by
	c.floor = max(c.floor, by.Epoch)
	switch {
	case c.phase == opening:
		p.error = fmt.Sprintf("promised epoch %d to another target", by.Epoch)
	case c.phase == open && by.Epoch >= c.promise.Epoch:
		c.restart(fmt.Sprintf("%s promised epoch %d to another target", c.name(p.guid), by.Epoch))
	}
}

// furthest returns of the members that have promised the one with the highest key, and a complete one that is as far, nil
// if there is none. If the record names members, only these count; but when all of them have promised, and none of them
// can be the authority, any may be that is as far as every other (replication rule 13). So may one that is no member, if no
// member can be: what makes sure that nothing is missing is the members' keys, and it has all that is below them, since it is
// complete. The members may have taken from it what they had lost.
func (c *Core) furthest() (top, auth *peer) {
	if set := c.believed(); len(set) > 0 && !c.bare {
		top, auth = c.furthestOf(func(p *peer) bool { return slices.Contains(set, p.guid) })
		if auth != nil || !c.haveAll(set, func(p *peer) bool { return p.state == promised }) {
			return top, auth
		}
	}
	top, auth = c.furthestOf(func(p *peer) bool { return c.listMember(p.guid) })
	if top != nil && auth == nil {
		auth = c.outsider(top.report.Key())
	}
	return top, auth
}

// outsider returns the furthest complete replica that is no member, if it has promised and is as far as key.
func (c *Core) outsider(key block.Version) (best *peer) {
	for _, p := range c.peers {
		if last := p.report.Last; p.state == promised && !c.listMember(p.guid) && p.report.State.Complete && !last.Less(key) &&
			(best == nil || best.report.Last.Less(last)) {
			best = p
		}
	}
	return best
}

func (c *Core) furthestOf(is func(*peer) bool) (top, auth *peer) {
	for _, p := range c.peers {
		if p.state == promised && is(p) && (top == nil || top.report.Key().Less(p.report.Key())) {
			top = p
		}
	}
	if top == nil {
		return nil, nil
	}
	for _, p := range c.peers {
		if p.state != promised || !is(p) || !p.report.State.Complete || p.report.Last != top.report.Key() {
			continue
		}
		if auth == nil || !c.inBoth(auth.guid) && c.inBoth(p.guid) {
			auth = p
		}
	}
	return top, auth
}

// chooseAuthority returns a complete member that is at least as far as every promise's key, nil if there is none yet
// (replication rule 13). It founds the empty members of a volume to which nothing was ever written (rule 5).
func (c *Core) chooseAuthority() *peer {
	top, auth := c.furthest()
	key := top.report.Key()
	waiting := false
	for _, p := range c.peers {
		if p.state != promised || !c.committed.Has(p.guid) || !key.IsZero() || c.pending != nil || !p.report.fresh() {
			continue
		}
		if !p.founded {
			p.founded = true
			c.send(p, Found{List: c.stamped(c.committed)})
		}
		waiting = true
	}
	if waiting {
		c.holding = "new volume: waiting for its replicas to be founded"
		return nil
	}
	if auth == nil {
		c.holding = fmt.Sprintf("%s was complete at %v, and no complete replica is as far: waiting for one that is", c.name(top.guid), key)
	}
	return auth
}

// onFounded notes that a replica is a complete, empty member.
func (c *Core) onFounded(p *peer) {
	if c.phase == claiming && p.founded && p.state == promised {
		p.report.State.Complete = true
		p.report.State.Committed = c.stamped(c.committed)
	}
}

// stamped returns l under this target's epoch, by which it outranks every change that an earlier target began without
// a quorum of l seeing it.
func (c *Core) stamped(l List) List {
	l.Epoch = c.promise.Epoch
	return l
}

// openEpoch makes the first operation of this target, and sends it to the authority alone: nobody can be rebuilt, and
// nothing be read, before it is stable there. A pending list is finished in this epoch if its members are here; if not, or if
// that took too long before, it is withdrawn: the committed list, under this epoch, outranks it, for everybody who sees a quorum of that.
func (c *Core) openEpoch(auth *peer, lossy bool) {
	c.phase, c.authority = opening, auth
	c.rec.need = c.rec.known.Version
	switch {
	case c.bare:
		c.counters.Bare++
	case len(c.believed()) > 0:
		c.counters.ByRecord++
	}
	c.try(c.promise)
	c.holding = "opening epoch"
	c.committed = c.stamped(c.committed)
	switch promises := func(p *peer) bool { return p.state == promised }; {
	case c.pending == nil:
	case c.countOf(*c.pending, promises) < c.pending.Quorum() || c.pending.Compare(c.withdrawn) <= 0:
		c.pending = nil
		c.counters.Withdrawn++
	default:
		l := c.stamped(*c.pending)
		l.Generation = max(l.Generation, c.committed.Generation) + 1
		c.pending, c.inherited = &l, true
	}
	c.before = auth.report.Last
	c.history = auth.report.State.History
	if untold := c.untold(); untold != (Promise{}) && c.history.with(EpochStart{}).lossy().by() != untold {
		lossy = true // its mark leaves the history, and the next target would not know
	}
	start := EpochStart{Epoch: c.promise.Epoch, First: c.before.N + 1, Lossy: lossy, Nonce: c.promise.Nonce}
	c.history = c.history.with(start)
	c.ring = newRing(start.First)
	c.completed, c.flushed = start.First-1, start.First-1
	c.ring.push(&Op{Kind: OpOpen, FUA: true, Open: &start, Version: block.Version{Epoch: start.Epoch, N: start.First}})
	c.resend(auth)
}

// last returns the number of the last operation sequenced.
func (c *Core) last() uint64 { return c.ring.next - 1 }

// listMember reports whether g is in a list in force.
func (c *Core) listMember(g block.GUID) bool {
	return c.committed.Has(g) || c.pending != nil && c.pending.Has(g)
}

// inBoth reports whether g is in every list in force.
func (c *Core) inBoth(g block.GUID) bool {
	return c.committed.Has(g) && (c.pending == nil || c.pending.Has(g))
}

// satisfies reports whether the replicas of which is says yes are a quorum of every list in force.
func (c *Core) satisfies(is func(*peer) bool) bool {
	return c.countOf(c.committed, is) >= c.committed.Quorum() &&
		(c.pending == nil || c.countOf(*c.pending, is) >= c.pending.Quorum())
}

// countOf counts the members of l of which is says yes.
func (c *Core) countOf(l List, is func(*peer) bool) (n int) {
	for _, p := range c.peers {
		if l.Has(p.guid) && is(p) {
			n++
		}
	}
	return n
}

// name returns how people know a replica.
func (c *Core) name(g block.GUID) string {
	if p := c.find(g); p != nil && p.report.Name != "" {
		return p.report.Name
	}
	return g.String()
}
