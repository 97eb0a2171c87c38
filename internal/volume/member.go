package volume

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// ErrNotYet answers a pull that will be served soon: the replica has not applied far enough.
var ErrNotYet = errors.New("source has not applied the join point yet")

// Pull says what a joiner's shell has to pull.
type Pull struct {
	Attempt uint64
	Source  Peer
	Promise Promise       // the target's; the source must have been admitted under it
	From    block.Version // the source serves once it has applied this
	Base    block.Version // chunks whose newest version is above this, here or at the source, are candidates
	Size    int64         // bytes of the volume
	Stage   bool          // nothing changes before all that differs is here, for one moment: see Member.Staged
	// Ambiguous: what is newer than Base has to be fetched even if the source has the same version of it.
	Ambiguous bool
}

// MemberReady is what the shell must do, in this order.
type MemberReady struct {
	State    *State        // non-nil: persist it (stable) with Applied before anything else
	Applied  block.Version // the version of the last applied operation, part of the same record
	Messages []Message
	Pull     *Pull         // start pulling; replaces any other pull
	StopPull bool          // end the pull that runs, if any
	Pace     *Pace         // how fast the pull that runs may go from now on
	Close    string        // non-empty: close the session after Messages, this is why
	After    time.Duration // call Wake when so much time has passed, if the session is still the current one; zero: no need
}

// joinPhase is how far a rebuild got in this session.
type joinPhase uint8

const (
	joinNone   joinPhase = iota
	joinReady            // complete=false is stable; waits for Stream
	joinPull             // operations are streamed, chunks are pulled
	joinedPull           // Rebuilt was reported; waits for Promote
	joinStage            // complete; fetches what is then applied at once
)

// Member is a replica's side of replication: what it promised, what it may apply, when it is complete. It is not
// safe for concurrent use.
//
// Whatever it answers is to be stable first (replication rule 4), which is why the shell gets a State together with
// the messages that rely on it. A session's end needs no record: Disconnect ends a pull, the shell stops it.
type Member struct {
	report  Report // State and Last inside are the current ones
	session SessionID
	claimed bool // this session's target has our promise
	phase   joinPhase
	attempt uint64
	join    Join
	toStage Stage
	longest time.Duration // of the leases that are given
	lease   lease
	asked   Promise // waits until the lease ends, the last one that was asked for; zero: none does
	spared  bool    // a target said so, and nothing was promised since
}

// NewMember returns the replica that r describes, as it was found on disk. now is the time of a clock that goes on
// steadily from here; all methods that take a time want it of the same. longest is LeaseTime, or what leases last at most
// where that is known to be another time: the replica may have given one to the target that has its promise just now,
// which nothing but this remembers.
func NewMember(now time.Duration, r Report, longest time.Duration) *Member {
	m := &Member{report: r, longest: longest}
	if p := r.State.Promised; p != (Promise{}) {
		m.lease = lease{nonce: p.Nonce, until: now + longest}
	}
	return m
}

// Report tells what the replica is now.
func (m *Member) Report() Report { return m.report }

// Spared reports whether the volume does not need the replica, and will not as long as that is not served any more: a target
// said so last.
func (m *Member) Spared() bool { return m.spared }

// Connect begins a session. The shell has closed and drained the one before (replication rule 6), and reads Report
// for its Register message afterwards.
func (m *Member) Connect(id SessionID) {
	m.session = id
	m.claimed, m.asked = false, Promise{}
	m.endJoin()
}

// Disconnect ends a session. A pull that runs ends with it.
func (m *Member) Disconnect(id SessionID) {
	if id == m.session {
		m.session = 0
		m.claimed, m.asked = false, Promise{}
		m.endJoin()
	}
}

func (m *Member) endJoin() {
	m.phase = joinNone
	m.attempt = 0
	m.join, m.toStage = Join{}, Stage{}
}

// Step takes a message of the target. Messages of a session that is not the current one are ignored.
func (m *Member) Step(now time.Duration, id SessionID, msg Message) (rd MemberReady) {
	if id != m.session || id == 0 {
		return MemberReady{Close: "session is not the current one"}
	}
	if claim, ok := msg.(Claim); ok {
		return m.claim(now, claim.Promise)
	}
	if !m.claimed {
		switch msg.(type) {
		case Ping, Drop:
		default:
			return MemberReady{Close: fmt.Sprintf("%T before a promise", msg)}
		}
	}
	switch msg := msg.(type) {
	case Found:
		return m.found(msg.List)
	case Join:
		return m.beginJoin(msg)
	case Stream:
		return m.stream(msg)
	case Stage:
		return m.beginStage(msg)
	case Promote:
		return m.promote(msg)
	case SetList:
		return m.setList(msg)
	case Drop:
		stop := m.phase != joinNone
		m.Disconnect(id)
		m.spared = msg.Spared
		return MemberReady{StopPull: stop, Close: "dropped by the target: " + msg.Reason}
	case Ping:
		return m.ping(now, msg)
	case Release:
		m.lease = lease{}
		return MemberReady{}
	case Counted:
		return m.counted()
	case Pace:
		if m.phase != joinPull || msg.Attempt != m.attempt {
			return MemberReady{} // of an attempt that is over
		}
		return MemberReady{Pace: &msg}
	}
	return MemberReady{Close: fmt.Sprintf("unexpected %T", msg)}
}

// Wake goes on with what had to wait: see MemberReady.After.
func (m *Member) Wake(now time.Duration, id SessionID) MemberReady {
	if id != m.session || m.asked == (Promise{}) {
		return MemberReady{}
	}
	return m.claim(now, m.asked)
}

// claim gives the promise if it is above every one given so far, or the very same, when no other target has a lease any
// more (replication rule 11).
func (m *Member) claim(now time.Duration, p Promise) MemberReady {
	s := &m.report.State
	m.asked = Promise{}
	if p != s.Promised && p.Epoch <= s.Promised.Epoch {
		return MemberReady{Messages: []Message{Refused{Promised: s.Promised}}}
	}
	if wait := m.lease.wait(now, p.Nonce); wait > 0 {
		m.asked = p
		return MemberReady{After: wait}
	}
	var rd MemberReady
	rd.StopPull = m.phase != joinNone
	m.endJoin()
	if p != s.Promised {
		s.Promised = p
		m.persist(&rd)
	}
	m.claimed, m.spared = true, false
	rd.Messages = []Message{Promised{Promise: p, Report: m.report}}
	return rd
}

// found makes an empty replica a complete member of the first list (replication rule 5).
func (m *Member) found(l List) MemberReady {
	s := &m.report.State
	switch {
	case !l.Has(m.report.GUID):
		return MemberReady{Close: "founding list is without this replica"}
	case !m.report.fresh():
		return MemberReady{Close: "founding asked of a replica that is not empty"}
	}
	s.Committed = l
	s.Pending = nil
	s.Complete = true
	var rd MemberReady
	m.persist(&rd)
	rd.Messages = []Message{Founded{}}
	return rd
}

// beginJoin makes the replica incomplete before the first byte comes out of order (replication rule 27). The history
// and CompleteAt stay those of the time when it was complete: against them, and against base, every later source is
// compared, and two sources share at least what each shares with us.
//
// Blocks are compared by version. If the source has an epoch of which the replica has, or may have pulled, operations of
// another target, one version may stand for two contents: no version of its own above base is relied on, until it is promoted.
func (m *Member) beginJoin(j Join) MemberReady {
	rd := MemberReady{StopPull: m.phase != joinNone}
	s := &m.report.State
	if s.Complete {
		s.CompleteAt = m.report.Last
		s.Base = CommonPoint(s.History, s.CompleteAt, j.History, j.Last)
		s.Complete = false
	} else if c := CommonPoint(s.History, s.CompleteAt, j.History, j.Last); c.Less(s.Base) {
		s.Base = c
	}
	if j.History.contradicts(s.History) || j.History.contradicts(s.Pulled) {
		s.Ambiguous = true
	}
	s.Pulled = append(slices.Clip(s.Pulled), j.History.without(slices.Concat(s.History, s.Pulled))...).trimmed()
	m.report.Size = j.Size
	m.phase, m.attempt, m.join = joinReady, j.Attempt, j
	m.persist(&rd)
	rd.Messages = []Message{JoinReady{Attempt: j.Attempt}}
	return rd
}

// stream begins the operations of a join. The version of the last applied operation is then that of the stream; it
// says nothing about what the replica holds until it is promoted.
func (m *Member) stream(msg Stream) MemberReady {
	if m.phase != joinReady || msg.Attempt != m.attempt {
		return MemberReady{} // an attempt that is over
	}
	if msg.From.Epoch != m.report.State.Promised.Epoch {
		return MemberReady{Close: fmt.Sprintf("stream from %v, promised epoch %d", msg.From, m.report.State.Promised.Epoch)}
	}
	var rd MemberReady
	m.report.Last = msg.From
	m.phase = joinPull
	m.persist(&rd)
	rd.Pull = &Pull{
		Attempt: m.attempt,
		Source:  m.join.Source,
		Promise: m.report.State.Promised,
		From:    msg.From,
		Base:    m.report.State.Base,
		Size:    m.join.Size,

		Ambiguous: m.report.State.Ambiguous,
	}
	return rd
}

// Rebuilt tells that the pull of attempt is done: every candidate chunk was merged and all of it is stable.
func (m *Member) Rebuilt(attempt uint64) MemberReady {
	if m.phase != joinPull || attempt != m.attempt {
		return MemberReady{}
	}
	m.phase = joinedPull
	return MemberReady{Messages: []Message{Rebuilt{Attempt: attempt}}}
}

// PullFailed tells that the pull of attempt cannot go on. For one that is to be staged there is StageFailed.
func (m *Member) PullFailed(attempt uint64, reason string) MemberReady {
	if m.phase != joinPull || attempt != m.attempt {
		return MemberReady{}
	}
	m.phase = joinNone
	return MemberReady{StopPull: true, Messages: []Message{JoinFailed{Attempt: attempt, Reason: reason}}}
}

// promote makes a rebuilt replica complete, with the history of its source (replication rule 34).
func (m *Member) promote(msg Promote) MemberReady {
	if m.phase != joinedPull || msg.Attempt != m.attempt {
		return MemberReady{}
	}
	s := &m.report.State
	if msg.History.Epoch() != s.Promised.Epoch {
		return MemberReady{Close: "promotion with another epoch's history"}
	}
	s.Complete = true
	s.CompleteAt = m.report.Last
	s.Base = block.Version{}
	s.Pulled, s.Ambiguous = nil, false
	s.History = msg.History
	m.endJoin()
	var rd MemberReady
	m.persist(&rd)
	rd.Messages = []Message{Promoted{Attempt: msg.Attempt}}
	return rd
}

// counted ends the suspicion that the replica lacks what it acknowledged. Until that is stable it stays suspect, which
// is the safe side, so that nobody waits for it.
func (m *Member) counted() (rd MemberReady) {
	if s := &m.report.State; s.Suspect && s.Complete {
		s.Suspect = false
		m.persist(&rd)
	}
	return rd
}

// setList installs the lists of the target that has our promise. They never go back (replication rule 12).
func (m *Member) setList(msg SetList) MemberReady {
	s := &m.report.State
	if msg.Committed.Compare(s.Committed) < 0 {
		return MemberReady{Close: "member list is older than the one here"}
	}
	s.Committed = msg.Committed
	s.Pending = msg.Pending
	if msg.Record != 0 {
		s.RecordSeen, s.RecordBy = msg.Record, s.Promised
	}
	if msg.Told != (Promise{}) {
		s.Told = msg.Told
	}
	var rd MemberReady
	m.persist(&rd)
	rd.Messages = []Message{ListSet{Committed: msg.Committed, Pending: msg.Pending, Record: msg.Record}}
	return rd
}

// Check reports whether n operations that follow each other, the first with version first, may be applied now. The
// shell closes the session when they may not: a frame of an old session (replication rule 6), another epoch, a gap.
func (m *Member) Check(id SessionID, first block.Version, n int) error {
	s := &m.report.State
	switch {
	case id != m.session || !m.claimed:
		return fmt.Errorf("operation %v: its session has no promise", first)
	case first.Epoch != s.Promised.Epoch:
		return fmt.Errorf("operation %v: promised epoch %d", first, s.Promised.Epoch)
	case first.N != m.report.Last.N+1:
		return fmt.Errorf("operation %v: gap after %v", first, m.report.Last)
	case s.Complete && s.History.Epoch() != first.Epoch:
		return fmt.Errorf("operation %v: its epoch was not opened here", first)
	case m.phase == joinStage:
		return fmt.Errorf("operation %v: nothing is streamed to a replica that is to catch up at once", first)
	case !s.Complete && m.phase != joinPull && m.phase != joinedPull:
		return fmt.Errorf("operation %v: nothing is streamed to an incomplete replica", first)
	case n < 1:
		return fmt.Errorf("operation %v: count %d", first, n)
	}
	return nil
}

// MayRead reports whether a read of session id may be answered. Every read of a session that is over is refused, like
// its operations (replication rule 6): the replica may have become incomplete since.
func (m *Member) MayRead(id SessionID) error {
	s := &m.report.State
	switch {
	case id != m.session || !m.claimed:
		return errors.New("read: its session has no promise")
	case !s.Complete || s.History.Epoch() != s.Promised.Epoch:
		return errors.New("read: replica is not complete in the promised epoch")
	}
	return nil
}

// Applied tells that the pool applied every operation up to last; they passed Check.
func (m *Member) Applied(last block.Version) { m.report.Last = last }

// Open takes the operation that opens an epoch. Having it is admission to the epoch (replication rule 13). The shell
// persists the State and then acknowledges the operation as applied and stable.
func (m *Member) Open(id SessionID, op *Op) MemberReady {
	s := &m.report.State
	switch {
	case id != m.session || !m.claimed:
		return MemberReady{Close: fmt.Sprintf("open %v: its session has no promise", op.Version)}
	case op.Kind != OpOpen || op.Open == nil || op.Open.Epoch != op.Version.Epoch || op.Open.First != op.Version.N:
		return MemberReady{Close: fmt.Sprintf("open %v: malformed", op.Version)}
	case op.Open.by() != s.Promised:
		return MemberReady{Close: fmt.Sprintf("open %v: promised epoch %d, or another target", op.Version, s.Promised.Epoch)}
	case op.Version.N != m.report.Last.N+1:
		return MemberReady{Close: fmt.Sprintf("open %v: gap after %v", op.Version, m.report.Last)}
	case !s.Complete || s.History.Epoch() >= op.Version.Epoch:
		return MemberReady{Close: fmt.Sprintf("open %v: not due here", op.Version)}
	}
	s.History = s.History.with(*op.Open)
	m.report.Last = op.Version
	var rd MemberReady
	m.persist(&rd)
	return rd
}

// MayServe reports whether a pull of a joiner that the target with promise p sent here may be answered (replication
// rule 29): nil, ErrNotYet when it is worth asking again soon, or why not. It is asked for every request of a pull.
func (m *Member) MayServe(p Promise, from block.Version) error {
	s := &m.report.State
	switch {
	case !s.Complete:
		return errors.New("source is not complete")
	case p != s.Promised:
		return fmt.Errorf("source promised epoch %d to another target than the one of epoch %d", s.Promised.Epoch, p.Epoch)
	case s.History.Epoch() != p.Epoch || m.report.Last.Less(from):
		return ErrNotYet
	}
	return nil
}

// persist puts a copy of the State into rd. A history that grew too long under an older program is trimmed.
func (m *Member) persist(rd *MemberReady) {
	m.report.State.History = m.report.State.History.trimmed()
	s := m.report.State
	rd.State = &s
	rd.Applied = m.report.Last
}
