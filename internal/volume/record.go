package volume

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// The record is what Kubernetes keeps of a volume, outside of its replicas: an object that is changed by compare-and-swap,
// each change of which has the next Version. With a list that has Witness it is the witness (replication rules 9, 10, 14, 15
// and 20 to 23): a target writes its epoch into it before it claims, and when fewer members are in sync than a quorum, it
// writes these into Set before it goes on with them alone; from then on nobody else can be authoritative, until the Set is
// another.
//
// Nothing waits for the record while a quorum is in sync. What a write led to may be unknown for long; until a change of the
// record is seen, what it held and everything that may have been written bind at once: see ok.

// Record is what the record says. The zero value: there is none.
type Record struct {
	Version      uint64
	Epoch, Nonce uint64       // of the target that claimed it last; it alone writes anything else
	Set          []block.GUID // without all of these nothing is completed; empty: a quorum of every list is enough
	Cfg          ListID       // the list that Set was chosen from
	List         *List        // the founding one, or the latest that was committed
	Claims       []Noted      // the latest ones, from which version on each of them was in the record; the newest is Epoch and Nonce
}

// maxClaims bounds Record.Claims.
const maxClaims = 64

// Noted is a version of the record, and the claim that it carried. When the record has gone back the same versions come once
// more, with other claims: the two together tell what the record was from what it would have been.
type Noted struct {
	Version uint64
	By      Promise // zero: not known, it was noted under an older program
}

// String returns n as people name it, to accept that it does not count: version, epoch and nonce.
func (n Noted) String() string {
	return fmt.Sprintf("%d.%d.%x", n.Version, n.By.Epoch, n.By.Nonce)
}

// maxVersion is far above what a record comes to, and far below what overflows: versions that are accepted come from people.
const maxVersion = 1 << 62

// ParseNoted reads what String returns.
func ParseNoted(s string) (n Noted, err error) {
	if _, err = fmt.Sscanf(s, "%d.%d.%x", &n.Version, &n.By.Epoch, &n.By.Nonce); err == nil && (n.String() != s || n.Version > maxVersion) {
		err = fmt.Errorf("%q is not version.epoch.nonce", s)
	}
	return n, err
}

// has reports whether the record was n when it had that version, as far as it knows: claims of long ago are forgotten.
func (r Record) has(n Noted) bool {
	if n.Version > r.Version {
		return false
	}
	for _, c := range slices.Backward(r.Claims) {
		if c.Version <= n.Version {
			return c.By == n.By || n.By == Promise{}
		}
	}
	return true
}

// claimedBy returns what the next write of the record makes of it when it is p's claim.
func (r Record) claimedBy(p Promise) Record {
	r.Epoch, r.Nonce = p.Epoch, p.Nonce
	r.Claims = append(slices.Clip(r.Claims), Noted{Version: r.Version + 1, By: p})
	r.Claims = r.Claims[max(len(r.Claims)-maxClaims, 0):]
	return r
}

// ListID names a member list.
type ListID struct{ Epoch, Generation uint64 }

// Equal reports whether two records say the same.
func (r Record) Equal(o Record) bool {
	same := func(a, b *List) bool {
		if a == nil || b == nil {
			return a == b
		}
		return a.Compare(*b) == 0 && a.Witness == b.Witness && slices.Equal(a.Members, b.Members)
	}
	return r.Version == o.Version && r.Epoch == o.Epoch && r.Nonce == o.Nonce && r.Cfg == o.Cfg && slices.Equal(r.Set, o.Set) && same(r.List, o.List) && slices.Equal(r.Claims, o.Claims)
}

// RecordOp asks for the record to be read, or to be changed from what it was last found to hold to Want. The shell tells
// what came of it by RecordIs or RecordFailed with the same ID; it gives up after about a second, or several if what keeps the record has been slow.
type RecordOp struct {
	ID   uint64
	From uint64  // the version of what the core knows, from which alone it may be changed
	Want *Record // of a higher version; nil: read
}

// ErrNotWritten says that a write of the record was not carried out, and never will be.
var ErrNotWritten = errors.New("not written")

// recordEvery is the least time between two writes that nothing waits for.
const recordEvery = time.Second

// record is what a core knows of the record.
type record struct {
	known  Record
	read   bool          // known is what it held at some time since this core began
	doubts []doubt       // what it may hold, or come to hold, instead of known
	id     uint64        // of the last operation
	busy   bool          // it has not ended
	want   *Record       // it writes this; nil: it reads
	retry  time.Duration // no operation begins before
	failed bool          // the last one was not answered
	// unwritten says that a write failed since the record was last found to have changed: it may be read, and not written.
	unwritten bool
	error     string        // why
	asked     time.Duration // when the last read began
	heard     time.Duration // when it was last told what it holds
	wrote     time.Duration // when the last write began
	need      uint64        // members that are fewer than a quorum serve only if they have noted this version
	seen      []seen        // what replicas have noted, as each showed it last
	newest    uint64        // the highest version that one has ever noted
	// restored says that it had gone back when it was claimed, and was accepted: whom it names is not to be relied on, until
	// these are all in sync.
	restored bool
}

// seen is what a replica has noted of the record.
type seen struct {
	guid block.GUID
	Noted
}

// doubt is a Set and a List that a write may have led to, or may yet lead to.
type doubt struct {
	id   uint64
	set  []block.GUID
	list *List
}

// RecordIs tells what the record holds: the end of operation id. changed: it has changed since it was last found to hold what
// the core knows, so that no write from then can happen any more.
func (c *Core) RecordIs(now time.Duration, id uint64, is Record, changed bool) {
	c.now, c.rec.heard = now, now
	changed = c.endRecordOp(id) && changed // what an earlier core asked for says nothing of later writes
	r := &c.rec
	switch {
	case c.phase == over:
		return
	case is.Version < r.known.Version:
		r.retry = now + c.settings.Backoff // an answer from the past
		return
	}
	if is.Version > r.known.Version || changed || !r.read && len(r.doubts) == 0 {
		r.doubts, r.unwritten = nil, false
		c.learn(is)
	}
	r.read, r.failed, r.error = true, false, ""
	c.poke()
}

// learn takes what the record was found to hold after a change.
func (c *Core) learn(is Record) {
	was := c.rec.known
	c.rec.known = is
	c.reviseNext()
	c.out.Status = true
	if is.List != nil {
		c.noteList(*is.List)
	}
	if c.phase < opening || !c.claimed() {
		return
	}
	if smaller := slices.ContainsFunc(was.Set, func(g block.GUID) bool { return !slices.Contains(is.Set, g) }); smaller || len(was.Set) == 0 || was.Epoch != is.Epoch {
		c.rec.need = is.Version
	}
	c.spread() // which has the members note the version
}

// RecordFailed tells that operation id was not answered, or was refused. definite: what it wanted to write is not written and
// will not be.
func (c *Core) RecordFailed(now time.Duration, id uint64, definite bool, reason string) {
	c.now = now
	if !c.endRecordOp(id) || c.phase == over {
		return
	}
	r := &c.rec
	r.failed, r.retry = true, now+c.settings.Backoff
	if r.error != reason {
		r.error, c.out.Status = reason, true
	}
	if i := slices.IndexFunc(r.doubts, func(d doubt) bool { return d.id == id }); i >= 0 {
		last := r.doubts[i]
		r.doubts = slices.Delete(r.doubts, i, i+1)
		if !definite && !slices.ContainsFunc(r.doubts, func(d doubt) bool { return slices.Equal(d.set, last.set) && sameList(d.list, last.list) }) {
			r.doubts = append(r.doubts, last)
		}
		c.reviseNext()
	}
	r.unwritten = r.unwritten || r.want != nil
	if r.want != nil && !definite {
		c.counters.RecordDoubts++
	}
	c.poke()
}

// endRecordOp reports whether id is the operation under way, which ends by that.
func (c *Core) endRecordOp(id uint64) bool {
	if !c.rec.busy || id != c.rec.id {
		return false
	}
	c.rec.busy = false
	return true
}

// readRecord asks for the record to be read.
func (c *Core) readRecord() { c.recordOp(nil) }

// writeRecord asks for the record to become want, with the version after the one that it has there.
func (c *Core) writeRecord(want Record) {
	if c.rec.busy || c.now < c.rec.retry {
		return
	}
	want.Version++
	c.counters.RecordWrites++
	c.recordOp(&want)
	c.rec.doubts = append(c.rec.doubts, doubt{id: c.rec.id, set: want.Set, list: want.List})
	c.renew() // leases are needed of these as well from now on
}

func (c *Core) recordOp(want *Record) {
	r := &c.rec
	if r.busy || c.now < r.retry {
		return
	}
	r.id++
	r.busy, r.want = true, want
	if want == nil {
		r.asked = c.now
	}
	c.out.Record = &RecordOp{ID: r.id, From: r.known.Version, Want: want}
}

// carried is what the next core of the same process knows of the record: what was written may still happen.
func (r *record) carried() record {
	return record{known: r.known, doubts: r.doubts, id: r.id, seen: r.seen, newest: r.newest, restored: r.restored, failed: r.failed, error: r.error}
}

// witnessed reports whether a list in force wants the record to be claimed before the members are.
func (c *Core) witnessed() bool {
	return c.committed.Witness || c.pending != nil && c.pending.Witness
}

// mayReduce reports whether every list in force lets Set be used. Not while the next list is being committed: the members
// that are in sync have to be a quorum of that.
func (c *Core) mayReduce() bool {
	return c.committed.Witness && (c.pending == nil || c.pending.Witness) && c.next == nil
}

// claimed reports whether the record carries this target's promise, by which nobody else writes it.
func (c *Core) claimed() bool {
	return c.promise.Epoch != 0 && c.rec.known.Epoch == c.promise.Epoch && c.rec.known.Nonce == c.nonce
}

// unclaimed reports whether the volume is served without a claim in the record, since it could not be written. Then all
// members have to have everything, which satisfies whatever the record says, nobody is ejected and nobody made incomplete
// (replication rule 14).
func (c *Core) unclaimed() bool { return c.witnessed() && !c.claimed() }

// ok reports whether the replicas of which is says yes may complete operations: they satisfy what the record is known to
// hold, and whatever else it may hold (replication rules 9 and 15).
func (c *Core) ok(is func(*peer) bool) bool {
	if !c.witnessed() {
		return c.satisfies(is)
	}
	if c.next != nil && c.countOf(*c.next, is) < c.next.Quorum() {
		return false // the next target may count by that list
	}
	if c.unclaimed() {
		return c.everyMember(is)
	}
	r := &c.rec
	if !c.allows(r.known.Set, is) || slices.ContainsFunc(r.doubts, func(d doubt) bool { return !c.allows(d.set, is) }) {
		return false
	}
	return c.satisfies(is) || !slices.ContainsFunc(r.known.Set, func(g block.GUID) bool { return c.find(g).noted < r.need })
}

// allows reports whether the replicas of which is says yes may complete operations under a record with set: they are all
// of it, or a quorum of every list if it is empty.
func (c *Core) allows(set []block.GUID, is func(*peer) bool) bool {
	if len(set) == 0 {
		return c.satisfies(is)
	}
	return c.haveAll(set, is)
}

// haveAll reports whether is says yes of all of these.
func (c *Core) haveAll(set []block.GUID, is func(*peer) bool) bool {
	for _, g := range set {
		if p := c.find(g); p == nil || !is(p) {
			return false
		}
	}
	return true
}

// counts reports whether p is in sync.
func counts(p *peer) bool { return p.state == insync }

// named returns the members that the record names, if a list in force has it count: it named nobody when the witness was
// turned off.
func (c *Core) named() []block.GUID {
	if !c.witnessed() {
		return nil
	}
	return c.rec.known.Set
}

// believed returns the members of which the record says that they have everything that is completed. One that went back, and
// was accepted, says nothing, as long as it is below what was noted. Above, it is what became of that, and binds.
func (c *Core) believed() []block.GUID {
	if c.rec.restored || c.rec.newest > c.rec.known.Version {
		return nil
	}
	return c.named()
}

// bound reports whether the record names g, or may.
func (c *Core) bound(g block.GUID) bool {
	return c.unclaimed() || slices.Contains(c.named(), g) || c.witnessed() &&
		slices.ContainsFunc(c.rec.doubts, func(d doubt) bool { return slices.Contains(d.set, g) })
}

// advanceRecord brings the record to what it should hold: this target's claim if it serves without, the members in sync
// (replication rules 21 to 23), the list that is being committed (rule 37).
func (c *Core) advanceRecord() {
	r := &c.rec
	if c.phase != open || !c.witnessed() && !c.desired.Witness || r.busy {
		return
	}
	if old := !c.claimed() && c.wentBack() != nil; !r.read || old && c.now-r.asked >= recordEvery {
		c.readRecord()
		return
	} else if old {
		return
	}
	want := r.known
	if !c.claimed() {
		switch {
		case want.Epoch < c.promise.Epoch:
			if !r.busy {
				c.past.claimed = c.promise
				c.writeRecord(want.claimedBy(c.promise))
			}
		case c.witnessed():
			c.restart("another target has claimed the volume's record")
		}
		return
	}
	set, urgent := c.wantedSet()
	next := c.due()
	if next != nil && c.witnessed() {
		want.List, set, urgent = next, want.Set, true
	} else if l := r.known.List; c.next == nil && (l == nil || l.Witness != c.committed.Witness || !slices.Equal(l.Members, c.committed.Members)) {
		l := c.committed // a replica showed it, and whoever began it ended before it was recorded
		want.List = &l
	}
	r.restored = r.restored && !c.serving
	if c.serving || !slices.Equal(set, want.Set) { // one that went back, and was accepted, is from now on like any other: whom it names have everything
		want.Version = max(want.Version, r.newest)
		for _, n := range c.desired.AcceptRecord { // another target was shown these
			want.Version = max(want.Version, n.Version)
		}
		urgent = urgent || want.Version > r.known.Version // until then the next target does not rely on it
	}
	if want.Version == r.known.Version && slices.Equal(set, want.Set) && sameList(want.List, r.known.List) && len(r.doubts) == 0 {
		return
	}
	if !slices.Equal(set, want.Set) {
		want.Set, want.Cfg = set, ListID{Epoch: c.committed.Epoch, Generation: c.committed.Generation}
	}
	if urgent || r.wrote == 0 || c.now-r.wrote >= recordEvery {
		if c.cutOff && c.now-r.heard >= recordEvery {
			c.readRecord() // a write that is not answered would bind all the same
			return
		}
		if urgent && !slices.Equal(set, r.known.Set) && !r.busy {
			c.counters.Reduced++
		}
		if c.writeRecord(want); r.busy {
			c.next = next
		}
		r.wrote = c.now
	}
}

// reviseNext forgets the list that was being committed if it turns out that it was not written into the record. Until it was, or
// may have been, nothing depends on it: operations go on by the lists that there are.
func (c *Core) reviseNext() {
	if r := &c.rec; c.next != nil && c.witnessed() && !sameList(r.known.List, c.next) &&
		!slices.ContainsFunc(r.doubts, func(d doubt) bool { return sameList(d.list, c.next) }) {
		c.next = nil
	}
}

func sameList(a, b *List) bool {
	return a == b || a != nil && b != nil && a.Compare(*b) == 0
}

// wantedSet returns what Set should be, and whether the volume waits for that.
func (c *Core) wantedSet() (set []block.GUID, urgent bool) {
	known := c.rec.known.Set
	live := func(p *peer) bool { return p.state == insync && !c.silent(p) }
	urgent = !c.ok(live)
	switch {
	case c.everyMember(live):
		current := func(p *peer) bool {
			return sameList(p.lists.Pending, c.pending) && p.lists.Committed.Compare(c.committed) == 0
		}
		if c.everyMember(current) {
			return nil, urgent
		}
		return known, urgent
	case !c.mayReduce():
		return known, urgent
	}
	set = c.nameable()
	if len(set) == 0 {
		return known, false
	}
	if urgent && slices.ContainsFunc(c.peers, c.almostCounts) {
		return known, false // it may not be needed
	}
	return set, urgent
}

// nameable returns the members in sync that the record may name: those of every list in force, else the one that is being
// removed. Never only such as are being added: whoever cannot read the record may not know of them.
func (c *Core) nameable() []block.GUID {
	live := func(p *peer) bool { return p.state == insync && !c.silent(p) }
	if set := c.guids(func(p *peer) bool { return live(p) && c.inBoth(p.guid) }); len(set) > 0 {
		return set
	}
	return c.guids(func(p *peer) bool { return live(p) && c.committed.Has(p.guid) })
}

func (c *Core) guids(is func(*peer) bool) (guids []block.GUID) {
	for _, p := range c.peers {
		if is(p) {
			guids = append(guids, p.guid)
		}
	}
	return guids
}

// almostCounts reports whether p is a member that will be in sync in a moment.
func (c *Core) almostCounts(p *peer) bool {
	return (p.state == catching || p.state == staging) && c.listMember(p.guid) && c.now-p.since < c.settings.Deadline
}

// mayRecord reports whether the members in sync may be written into the record soon, so that they go on without others.
func (c *Core) mayRecord() bool { return c.mayReduce() && c.rec.read && !c.rec.failed }

// noteSeen remembers what a replica has noted of the record. One that is no member of a volume that is open has noted nothing that
// counts: it may have been removed because of that.
func (c *Core) noteSeen(g block.GUID, n Noted) {
	r := &c.rec
	if c.phase == open && !c.listMember(g) {
		n = Noted{}
	}
	r.seen = slices.DeleteFunc(r.seen, func(s seen) bool { return s.guid == g })
	if n.Version > 0 {
		r.seen, r.newest = append(r.seen, seen{g, n}), max(r.newest, n.Version)
	}
}

// contradictions returns what replicas have noted that is no version of the record as it was found: it was restored from an
// old copy, and what it says of the members is not true (history H22).
func (c *Core) contradictions() (all []seen) {
	for _, s := range c.rec.seen {
		if !c.rec.known.has(s.Noted) {
			all = append(all, s)
		}
	}
	return all
}

// wentBack returns one of these that nobody has accepted, nil if there is none.
func (c *Core) wentBack() *seen {
	all := c.contradictions()
	if i := slices.IndexFunc(all, func(s seen) bool { return !c.accepts(s.Noted) }); i >= 0 {
		return &all[i]
	}
	return nil
}

// accepts reports whether somebody has said that what was noted as n is given up.
func (c *Core) accepts(n Noted) bool { return slices.Contains(c.desired.AcceptRecord, n) }

// heldBack reports whether p is not to catch up, since it shows that the record went back before this target claimed it: p may
// hold what was completed, and nobody has said that it is to be given up.
func (c *Core) heldBack(p *peer) bool {
	n := p.report.State.noted()
	return n.Version > 0 && c.witnessed() && c.claimed() && !c.rec.known.has(n) && !c.accepts(n)
}

// backText says for people by what the record is known to have gone back.
func (c *Core) backText(s seen) string {
	known := c.rec.known
	if s.Version > known.Version {
		return fmt.Sprintf("the volume's record has version %d, and %s has noted version %d: it was restored from an old copy, and may name replicas that lack completed writes",
			known.Version, c.name(s.guid), s.Version)
	}
	return fmt.Sprintf("the volume's record has version %d, and %s has noted a version %d, of epoch %d, that it never was: it was restored from an old copy, and %s may have completed writes that others lack",
		known.Version, c.name(s.guid), s.Version, s.By.Epoch, c.name(s.guid))
}
