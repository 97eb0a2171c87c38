package volume

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// phase is how far a target got in taking over the volume.
type phase uint8

const (
	claiming phase = iota // gathers promises
	opening               // waits for the epoch to be open on the authority
	open                  // the authority was admitted; others follow
	over                  // asked for a restart
)

// Core is the target's side of one volume. It is not safe for concurrent use.
type Core struct {
	nonce    uint64
	size     int64
	settings Settings
	now      time.Duration
	ticked   time.Duration // when Tick was last called

	desired Desired
	adopted Desired // see Status.Desired

	phase    phase
	promise  Promise
	floor    uint64 // epochs up to this one are known to be promised to others
	quorumAt time.Duration
	holding  string // why it is not serving, while it claims
	recorded List   // the highest committed list that the record or any replica ever showed
	rec      record
	bare     bool // the claim goes on without the record: see knowsRecord
	past     past
	asked    time.Duration // when the front end last asked for anything
	company  time.Duration // when a quorum of members last told that there is no other target, or Tick was late
	cutOff   bool          // see CutOff

	committed   List
	pending     *List // a change under way: every quorum needs both lists
	next        *List // the pending list as it is being committed: the record may hold it, or else members
	history     History
	inherited   bool // the pending list is an earlier target's
	withdrawn   List // no pending list up to this one is finished: the core before could not
	removing    string
	before      block.Version // the authority's last operation before the epoch was opened
	authority   *peer
	unknowing   time.Duration // since when who is being added has not recorded it, zero: it has
	uncommitted time.Duration // since when the next list cannot be agreed on
	unfinished  time.Duration // since when the pending list cannot be, and the committed one would do, zero: it can
	stuck       time.Duration // since when nobody is in sync and nobody on the way to it, zero: somebody is

	peers     []*peer       // by GUID
	serving   bool          // the epoch is open and the in-sync set satisfies the lists
	suspended bool          // a member in sync is silent, and the others are no quorum
	since     time.Duration // since when a quorum is known to keep its promise, zero: none is; see leasedSince
	leased    bool          // no other target can have opened the volume by now
	attempt   uint64        // of the last Join
	risked    *peer         // the last complete member that was sent a Join, at riskedAt
	riskedAt  time.Duration

	ring      ring
	completed uint64   // operations up to this one are acknowledged by the in-sync set
	flushed   uint64   // operations up to this one were reported stable
	fua       []uint64 // acknowledged operations that wait to be stable, ascending
	held      []*Op    // proposed, not sequenced
	flushes   []flush
	reads     []*ReadOp // waiting to be sent to a member
	answered  []*ReadOp // data is here; waiting for overlapping operations to complete
	turn      int       // spreads reads over equally loaded members

	counters Counters
	pace     pace   // of rebuilds
	out      *Ready // being filled
	outs     [2]Ready
	dirty    bool // Sends may be due although out is empty
}

// peerState is what a replica is to this target.
type peerState uint8

const (
	gone      peerState = iota
	connected           // asked, or to be asked, for its promise
	promised            // waits to be admitted
	staging             // complete; fetches what it lacks, to apply it at once
	joining             // Join was sent
	pulling             // incomplete; operations are streamed, chunks are pulled
	promoting           // reported Rebuilt; Promote was sent
	catching            // complete; has to acknowledge and to flush what it was sent
	insync              // counted
)

// peer is one replica.
type peer struct {
	guid    block.GUID
	report  Report
	session SessionID
	state   peerState
	since   time.Duration // of its Mode
	error   string        // the last one

	claimed bool // Claim was sent
	founded bool // Found was sent
	full    bool

	sent   uint64 // operations up to this one were sent
	acked  uint64
	stable uint64
	mark   uint64 // highest flush mark sent
	fua    uint64 // highest operation sent that has to be stable before it is completed
	// admit is what must be stable before completions wait for this replica; that they do (required) makes what it
	// lacks of the completed operations vanish, so that it can be counted.
	admit    uint64
	required bool
	listed   bool // has acknowledged lists of this epoch
	lists    ListSet
	noted    uint64 // version of the record that is stable there

	attempt  uint64
	source   *peer
	avoid    *peer // the source of the attempt that failed
	tooMuch  bool  // it differs in too much to be staged
	unstaged int   // stages that failed since it counted
	progress Progress
	paced    Pace          // as it was told last
	pulled   time.Duration // when progress moved last, or it said that it has to wait before it catches up at once
	retryAt  time.Duration
	backoff  time.Duration

	reads     []*ReadOp     // under way there
	heard     time.Duration // when anything came from it
	moved     time.Duration // when it last answered something that it owed, or began to owe
	readMoved time.Duration // the same for reads
	flushed   time.Duration // the same for what has to be stable
	owes      int           // messages that want an answer, which has to be stable first
	owed      time.Duration // when it last gave one, or began to owe
	patience  time.Duration // for what has to be stable, if more than the settings say: see expired
	pinged    bool          // since pingedAt nothing came
	pingedAt  time.Duration
	pingSent  time.Duration // the last one
	leased    time.Duration // when the last one was sent that it answered with a lease
}

type flush struct {
	tag   any
	n     uint64 // operations up to this one must be stable; unset while the volume cannot serve
	set   bool
	since time.Duration
}

// NewCore returns the core of a target that has just started. nonce is random and never used twice; size is in bytes.
func NewCore(nonce uint64, size int64, s Settings, d Desired) *Core {
	s.Deadline = cmp.Or(s.Deadline, time.Second)
	s.FlushDeadline = cmp.Or(s.FlushDeadline, 5*s.Deadline)
	s.PingEvery = cmp.Or(s.PingEvery, s.Deadline/4)
	s.Lease = cmp.Or(s.Lease, LeaseTime)
	s.ClaimGrace = cmp.Or(s.ClaimGrace, 500*time.Millisecond)
	s.LossyGrace = cmp.Or(s.LossyGrace, 10*time.Second)
	s.HoldLimit = cmp.Or(s.HoldLimit, 100*time.Second)
	s.Backoff = cmp.Or(s.Backoff, 100*time.Millisecond)
	s.RetainOps = cmp.Or(s.RetainOps, 1<<14)
	s.RetainData = cmp.Or(s.RetainData, 64<<20)
	c := &Core{nonce: nonce, size: size, settings: s, desired: d, attempt: nonce}
	c.out = &c.outs[0]
	c.ring = newRing(1)
	c.past.completed = unknown
	c.holding = "waiting for replicas to connect"
	return c
}

// Successor returns the core that takes over from one that asked for a restart: what was held or not completed is
// proposed to it again, in the same order, and it claims above every epoch that was seen. Operations that were
// sequenced but not completed may take effect twice, which nobody can tell from once, since nothing that they overlap
// was shown meanwhile; one that ends with an error may have taken effect. If another target has opened the volume
// since, none of this is so: see superseded. The shell drops what it has queued for the old core's sessions first,
// because the operations get new versions.
func (c *Core) Successor(nonce uint64) *Core {
	s := NewCore(nonce, c.size, c.settings, c.desired)
	s.now, s.ticked = c.now, c.ticked
	s.floor, s.cutOff = max(c.floor, c.promise.Epoch), c.cutOff
	s.recorded, s.withdrawn, s.rec, s.past = c.recorded, c.withdrawn, c.rec.carried(), c.past
	for n := c.ring.low; n < c.ring.next; n++ {
		switch op := c.ring.at(n); {
		case op.Kind == OpOpen:
		case op.completed:
			s.out.Released = append(s.out.Released, op)
		default:
			op.Version = block.Version{}
			s.held = append(s.held, op)
		}
	}
	s.held = append(s.held, c.held...)
	s.out.Completed = append(s.out.Completed, c.out.Completed...)
	s.out.Released = append(s.out.Released, c.out.Released...)
	s.out.ReadsDone = append(s.out.ReadsDone, c.out.ReadsDone...)
	s.out.Flushed = append(s.out.Flushed, c.out.Flushed...)
	s.out.FlushHeld = append(s.out.FlushHeld, c.out.FlushHeld...)
	s.out.Superseded = c.out.Superseded
	for _, p := range c.peers {
		s.reads = append(s.reads, p.reads...)
	}
	s.reads = append(append(s.reads, c.reads...), c.answered...)
	for _, r := range s.reads {
		r.session, r.after, r.tried = 0, 0, nil
	}
	for _, f := range c.flushes {
		s.flushes = append(s.flushes, flush{tag: f.tag, since: f.since})
	}
	s.pace = c.pace
	return s
}

// Connect tells that a replica connected; r is its first message. A session that it had before is over.
func (c *Core) Connect(now time.Duration, id SessionID, r Register) {
	c.now = now
	if c.phase == over {
		return
	}
	p := c.find(r.Report.GUID)
	if p == nil {
		p = &peer{guid: r.Report.GUID}
		i, _ := slices.BinarySearchFunc(c.peers, p, func(a, b *peer) int { return slices.Compare(a.guid[:], b.guid[:]) })
		c.peers = slices.Insert(c.peers, i, p)
	}
	if p.session != 0 {
		c.close(p, "replica connected again")
	}
	*p = peer{guid: p.guid, report: r.Report, session: id, state: connected, since: now, error: p.error,
		avoid: p.avoid, tooMuch: p.tooMuch, unstaged: p.unstaged, retryAt: p.retryAt, backoff: p.backoff, patience: p.patience, reads: p.reads[:0], heard: now, moved: now, readMoved: now}
	c.out.Status = true
	c.noteList(r.Report.State.Committed)
	c.noteSeen(p.guid, r.Report.State.noted())
	if c.phase == claiming {
		c.committed, c.pending = c.known() // it may be a member by a list that only it shows
	}
	if why := c.unwanted(p); why != "" {
		c.drop(p, why)
		c.sweep()
		return
	}
	if c.now < c.past.until {
		c.letGo(func(q *peer) bool { return q == p }, c.taken())
	}
	c.poke()
}

// Disconnect tells that a session's connection is gone.
func (c *Core) Disconnect(now time.Duration, id SessionID) {
	c.now = now
	if p := c.session(id); p != nil && c.phase != over {
		c.lose(p, "disconnected")
		c.poke()
	}
}

// Step takes any message but Register.
func (c *Core) Step(now time.Duration, id SessionID, m Message) {
	c.now = now
	p := c.session(id)
	if p == nil || c.phase == over {
		return
	}
	p.heard, p.pinged = now, false
	if pong, ok := m.(Pong); ok {
		if !c.tookLease(p, pong.At) {
			c.close(p, "replica answered a ping that it was not sent")
			c.poke()
		}
		return
	}
	switch m := m.(type) {
	case Promised:
		c.answer(p)
		if m.Promise == c.promise && p.state == connected {
			p.owes = 0 // a claim that had to wait is not answered when another one comes
			p.report = m.Report
			c.noteList(m.Report.State.Committed)
			c.noteSeen(p.guid, m.Report.State.noted())
			c.become(p, promised)
			c.sendPing(p)
		}
	case Refused:
		c.answer(p)
		c.refused(p, m.Promised)
	case Founded:
		c.answer(p)
		c.onFounded(p)
	case JoinReady:
		c.answer(p)
		c.joinReady(p, m.Attempt)
	case Progress:
		if m.Attempt == p.attempt && (p.state >= pulling || p.state == staging) {
			if m.Done != p.progress.Done || m.ChunksDone != p.progress.ChunksDone || p.state == staging && m.WaitingFor != "" {
				p.pulled = now
			}
			p.progress = m
			c.out.Status = true
		}
		return
	case Rebuilt:
		c.rebuilt(p, m.Attempt)
	case JoinFailed:
		c.joinFailed(p, m)
	case Staged:
		c.staged(p, m)
	case StageFailed:
		c.stageFailed(p, m)
	case Promoted:
		c.answer(p)
		c.onPromoted(p, m.Attempt)
	case ListSet:
		c.answer(p)
		c.listSet(p, m)
	case Space:
		if p.full != m.Full {
			p.full, c.out.Status = m.Full, true
		}
	case Failed:
		p.error = m.Reason
		c.close(p, "replica failed: "+m.Reason)
	default:
		c.close(p, fmt.Sprintf("unexpected %T", m))
	}
	c.poke()
}

// poke does whatever has become possible.
func (c *Core) poke() {
	if c.phase == claiming {
		c.claim()
	}
	if c.phase == open {
		c.refreshServing()
		for _, p := range c.peers {
			c.admit(p)
		}
		c.advanceChange()
		c.advanceRecord()
		c.drain()
	}
	c.sweep()
}

// sweep forgets replicas that are gone and no members.
func (c *Core) sweep() {
	c.peers = slices.DeleteFunc(c.peers, c.forgettable)
}

// forgettable reports whether nothing is lost by forgetting p: it is gone and no member. One whose rebuild has failed is
// remembered for a while, and with it the source to avoid and how long to wait.
func (c *Core) forgettable(p *peer) bool {
	return p.state == gone && !c.listMember(p.guid) && (p.avoid == nil || c.now-p.since > time.Minute)
}

// restart gives up: a new target has to claim the volume.
func (c *Core) restart(why string) {
	if c.phase != over {
		c.releaseLeases()
		c.phase, c.serving = over, false
		c.holding = why
		c.out.Restart = why
		c.out.Status = true
	}
}

func (c *Core) find(g block.GUID) *peer {
	for _, p := range c.peers {
		if p.guid == g {
			return p
		}
	}
	return nil
}

func (c *Core) session(id SessionID) *peer {
	for _, p := range c.peers {
		if p.session == id && id != 0 {
			return p
		}
	}
	return nil
}

// become changes a peer's state.
func (c *Core) become(p *peer, s peerState) {
	if mode(p.state) != mode(s) {
		p.since = c.now
	}
	p.state = s
	c.out.Status = true
}

// close ends a session.
func (c *Core) close(p *peer, why string) {
	c.out.Closes = append(c.out.Closes, SessionClose{Session: p.session, Reason: why})
	c.lose(p, why)
}

// drop ends the session of a replica that is not wanted.
func (c *Core) drop(p *peer, why string) {
	p.avoid = nil
	c.send(p, Drop{Reason: why, Spared: c.spares(p)})
	c.close(p, why)
}

// lose is the end of a session, whoever ended it. The in-sync set shrinks, which lets operations complete only if the
// rest satisfies the lists (replication rules 20 and 21): a set that is too small completes nothing, and what was not
// acknowledged stays in the ring until it is.
func (c *Core) lose(p *peer, why string) {
	was := p.state
	c.out.Sends = slices.DeleteFunc(c.out.Sends, func(s Send) bool { return s.Session == p.session && s.Ops != nil })
	p.session, p.required, p.listed, p.claimed = 0, false, false, false
	p.owes, p.pinged, p.leased = 0, false, 0
	c.become(p, gone)
	if p.error == "" || was == insync {
		p.error = why
	}
	for _, r := range p.reads {
		r.session = 0
		c.reads = append(c.reads, r)
	}
	p.reads = p.reads[:0]
	if was == staging {
		p.unstaged++
	}
	if was == joining || was == pulling || was == promoting {
		c.counters.Interrupted++
	}
	if c.phase == opening && p == c.authority {
		c.reclaim(c.promise.Epoch) // it may have opened this epoch, and another member would open it elsewhere
		return
	}
	if c.phase != open {
		return
	}
	if was == insync {
		if c.refreshServing(); c.serving {
			c.counters.Ejections++
		} else {
			c.counters.Suspensions++
		}
		c.orphan(p)
	}
	c.advance()
}
