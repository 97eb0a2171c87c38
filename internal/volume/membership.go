package volume

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Want takes what the control plane wants. Replicas that are not members and do not fit are dropped at once. The
// Desired in Status follows when nothing that it refuses can happen any more: a change of the list that is under way
// is finished first, since a part of the members may act on it.
func (c *Core) Want(now time.Duration, d Desired) {
	c.now = now
	c.desired = d
	c.out.Status = true
	if c.phase == over {
		return
	}
	c.enforce()
	c.poke()
}

// extra reports whether p is connected without being a member of a list in force.
func (c *Core) extra(p *peer) bool { return p.state != gone && !c.listMember(p.guid) }

// room returns how many replicas that are no members may be connected.
func (c *Core) room() int {
	n := len(c.committed.Members)
	if c.pending != nil {
		for _, g := range c.pending.Members {
			if !c.committed.Has(g) {
				n++
			}
		}
	}
	return max(c.desired.Factor-n, 0)
}

// unwanted says why p, which just connected, is to be dropped, "" if it is not.
func (c *Core) unwanted(p *peer) string {
	switch {
	case !c.extra(p):
		return ""
	case c.needs(p):
		return ""
	case slices.Contains(c.desired.Remove, p.guid):
		return "replica was removed from the volume"
	case !c.committed.founded():
		return "" // who is a member is not known yet
	}
	n := 0
	for _, q := range c.peers {
		if q != p && c.extra(q) {
			n++
		}
	}
	if n >= c.room() {
		return fmt.Sprintf("volume wants %d replicas and has them", c.desired.Factor)
	}
	return ""
}

// needs reports whether the volume may have to go on from p, which is no member, or not any more: it is complete, and those
// who are do not serve without it.
func (c *Core) needs(p *peer) bool { return !c.serving && p.report.State.Complete }

// spares reports whether the volume never needs p again, as long as p promises nothing to anybody: it is no member, and all who are
// have everything. While one is incomplete p may be the only one that has what that has given up.
func (c *Core) spares(p *peer) bool {
	return !c.listMember(p.guid) && c.serving && c.holdsLease() && c.everyMember(counts)
}

// enforce drops the replicas that are no members and not wanted, the least advanced ones first.
func (c *Core) enforce() {
	n := 0
	for _, p := range c.peers {
		if c.extra(p) {
			if slices.Contains(c.desired.Remove, p.guid) && !c.needs(p) {
				c.drop(p, "replica was removed from the volume")
			} else {
				n++
			}
		}
	}
	for c.committed.founded() && n > c.room() {
		var worst *peer
		for _, p := range c.peers {
			if c.extra(p) && !c.needs(p) && (worst == nil || p.state <= worst.state) {
				worst = p
			}
		}
		if worst == nil {
			break
		}
		c.drop(worst, fmt.Sprintf("volume wants %d replicas and has them", c.desired.Factor))
		n--
	}
}

// lists returns what members are to install now. What is committed is in the record before anybody installs it, so that no
// replica gives up its place in the volume for a list that the next target may not find.
func (c *Core) lists() SetList {
	var version uint64
	if c.claimed() {
		version = c.rec.known.Version
	}
	l := SetList{Committed: c.committed, Pending: c.pending, Record: version}
	if c.next != nil && c.nextRecorded() {
		l.Committed, l.Pending = *c.next, nil
	}
	if c.untold() == (Promise{}) {
		l.Told = c.history.lossy().by()
	}
	return l
}

// sendLists sends p the lists in force.
func (c *Core) sendLists(p *peer) { c.send(p, c.lists()) }

// listSet notes which lists are stable at p.
func (c *Core) listSet(p *peer, m ListSet) {
	p.lists, p.noted = m, max(p.noted, m.Record)
	if m.Record != 0 {
		c.noteSeen(p.guid, Noted{Version: m.Record, By: c.promise})
	}
	p.listed = m.Committed.Epoch == c.promise.Epoch
	if p.state == catching {
		c.count(p)
	}
}

// advanceChange carries a change of the member list on (replication rules 35 and 36): pending on a quorum of the old
// and of the new list, then in the record if there is a witness, then committed on a quorum of both; until that is done
// every quorum needs both. Without one under way it begins the next that is wanted and safe. Who is added has recorded that before it is a member, so that whoever looks at it
// alone knows; if it is lost meanwhile, the change that is committed is the one back to the members there were.
func (c *Core) advanceChange() {
	if c.phase != open {
		return
	}
	if c.pending == nil {
		c.enforce()
		if !c.serving {
			return // a change that an earlier target began is outranked for good only when a quorum has this target's list
		}
		if c.adopted.Factor != c.desired.Factor || !slices.Equal(c.adopted.Remove, c.desired.Remove) || c.adopted.Founding != c.desired.Founding {
			c.adopted = c.desired
			c.out.Status = true
		}
		c.beginChange()
	}
	if !c.witnessed() && c.next == nil { // else see advanceRecord
		if c.next = c.due(); c.next != nil {
			c.spread()
		}
	}
	if c.next != nil && c.agreed() {
		c.commitChange()
	}
}

// due returns the list that is being committed, or is to be: the pending one is stable on enough members. Nil: there is none.
func (c *Core) due() *List {
	if c.pending == nil || c.next != nil {
		return c.next
	}
	has := func(p *peer) bool {
		return p.state == insync && !c.silent(p) && p.lists.Pending != nil && p.lists.Pending.Compare(*c.pending) == 0
	}
	leaves := func(g block.GUID) bool { return !c.pending.Has(g) && c.bound(g) }
	members, due := c.pending.Members, true
	if !c.addedKnow(has) {
		members, due = c.committed.Members, c.now-c.unknowing > mostUnknowing*c.settings.Deadline
	}
	if !due || c.unclaimed() || !c.ok(has) || c.countOf(*c.pending, has) < c.pending.Quorum() || slices.ContainsFunc(c.committed.Members, leaves) {
		return nil
	}
	return &List{Epoch: c.promise.Epoch, Generation: c.pending.Generation + 1, Members: members, Witness: c.pending.Witness}
}

// withdraw asks for a restart when the pending list has lacked members for as long as a silent member is waited for, or for much longer
// if nothing waits for them or they are here to catch up, and the committed one has enough: the next claim is by that, and gives the pending one up, even if its members
// are back by then, since they may have much to catch up with: see openEpoch. A claim needs the record, so that is asked first whether it is there; and it would wait for somebody to accept
// that the record went back.
func (c *Core) withdraw() bool {
	here := func(p *peer) bool { return p.state != gone && !c.silent(p) }
	live := func(p *peer) bool { return p.state == insync && here(p) }
	if c.pending == nil || c.next != nil || c.unclaimed() || c.witnessed() && c.wentBack() != nil || c.countOf(*c.pending, live) >= c.pending.Quorum() || c.lacking(live) != "" {
		c.unfinished = 0
		return false
	}
	if c.unfinished == 0 {
		c.unfinished = max(c.now, 1)
	}
	patience := c.settings.Deadline
	if c.ok(live) || c.countOf(*c.pending, here) >= c.pending.Quorum() {
		patience *= mostUnknowing
	}
	switch {
	case c.now-c.unfinished <= patience:
		return false
	case c.witnessed() && (c.rec.failed || c.now-c.rec.heard >= recordEvery):
		c.readRecord()
		return false
	}
	c.withdrawn = *c.pending
	c.restart("the list that is pending lacks members")
	return true
}

// nextRecorded reports whether the next list is in the record, or need not be.
func (c *Core) nextRecorded() bool { return !c.witnessed() || sameList(c.rec.known.List, c.next) }

// mostUnknowing is for how many times Settings.Deadline a member that is being added may take to record that.
const mostUnknowing = 10

// addedKnow reports whether has says yes of all that the pending list adds.
func (c *Core) addedKnow(has func(*peer) bool) bool {
	for _, g := range c.pending.Members {
		if p := c.find(g); !c.committed.Has(g) && (p == nil || !has(p)) {
			if c.unknowing == 0 {
				c.unknowing = max(c.now, 1)
			}
			return false
		}
	}
	c.unknowing = 0
	return true
}

// agreed reports whether the next list is stable on enough members to be in force: also on a quorum of it if fewer would do
// for now, so that no removal leaves less.
func (c *Core) agreed() bool {
	has := func(p *peer) bool { return p.state == insync && p.lists.Committed.Compare(*c.next) == 0 }
	return c.ok(has) && c.countOf(*c.next, has) >= c.next.Quorum()
}

// beginChange starts the change that is wanted most, if one is wanted and safe.
func (c *Core) beginChange() {
	removing, members := c.removal()
	if removing != c.removing {
		c.removing = removing
		c.out.Status = true
	}
	if members == nil {
		members = c.addition()
	}
	if c.unclaimed() { // nobody knows here whom the record names, and the new list has to be in it
		return
	}
	witness := c.committed.Witness
	if known := c.desired.Factor > 0; members == nil && known && c.desired.Witness != witness && c.maySwitch() {
		members, witness = c.committed.Members, !witness
	}
	if members == nil {
		return
	}
	c.pending = &List{Epoch: c.promise.Epoch, Generation: c.committed.Generation + 1, Members: members, Witness: witness}
	c.refreshServing()
	c.spread()
}

// maySwitch reports whether the witness may be turned on or off: all members are in sync, the record is this target's, and
// names nobody (replication rule 39).
func (c *Core) maySwitch() bool {
	return c.everyMember(counts) && c.claimed() && len(c.rec.known.Set) == 0 && len(c.rec.doubts) == 0
}

// removal returns what the removal that is wanted waits for, and the list without its replica when it waits for
// nothing.
func (c *Core) removal() (waits string, members []block.GUID) {
	for _, g := range c.committed.Members {
		if !slices.Contains(c.desired.Remove, g) {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(c.committed.Members), func(m block.GUID) bool { return m == g })
		if len(rest) == 0 {
			return fmt.Sprintf("%s is the last replica of the volume", c.name(g)), nil
		}
		var away []string
		for _, m := range rest {
			if p := c.find(m); p == nil || p.state != insync {
				away = append(away, c.name(m))
			}
		}
		if len(away) > 0 {
			return fmt.Sprintf("removing %s waits until every other replica is healthy: %s", c.name(g), strings.Join(away, ", ")), nil
		}
		if c.bound(g) {
			return fmt.Sprintf("removing %s waits until the volume's record does not name it: %s", c.name(g), cmp.Or(c.rec.error, "it is being written")), nil
		}
		return fmt.Sprintf("removing %s", c.name(g)), rest
	}
	return "", nil
}

// addition returns the list with a replica more, nil if none is ready. It counts with what it would then have to
// satisfy (replication rule 35).
func (c *Core) addition() []block.GUID {
	for _, p := range c.peers {
		if p.state != insync || c.committed.Has(p.guid) || slices.Contains(c.desired.Remove, p.guid) ||
			len(c.committed.Members) >= c.desired.Factor {
			continue
		}
		l := List{Members: append(slices.Clone(c.committed.Members), p.guid)}
		if c.countOf(l, func(q *peer) bool { return q.state == insync }) >= l.Quorum() {
			return l.Members
		}
	}
	return nil
}

// spread sends the lists to every replica that counts for them.
func (c *Core) spread() {
	c.out.Status = true
	for _, p := range c.peers {
		if p.state >= catching && c.listMember(p.guid) {
			c.sendLists(p)
		}
	}
}

// commitChange puts the new list in force. The data of a removed replica may be destroyed from now on (rule 38).
func (c *Core) commitChange() {
	old := c.committed
	c.committed, c.pending, c.next, c.unknowing = *c.next, nil, nil, 0
	c.out.Status = true
	if c.inherited {
		c.inherited = false
		c.counters.Finished++
	}
	for _, g := range c.committed.Members {
		if !old.Has(g) {
			c.counters.Added++
		}
	}
	for _, g := range old.Members {
		if c.committed.Has(g) {
			continue
		}
		c.counters.Removed++
		c.noteSeen(g, Noted{})
		if p := c.find(g); p != nil && p.state != gone {
			p.state = promised // it leaves without being missed
			p.required = false
			c.drop(p, "replica was removed from the volume")
			c.orphan(p)
		}
	}
	c.refreshServing()
	c.advanceChange()
}
