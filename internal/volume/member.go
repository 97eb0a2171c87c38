package volume

import (
	"errors"

	"github.com/cstor-go/cstor/internal/block"
)

// ErrNotYet answers a pull that will be served soon: the replica has not applied far enough.
var ErrNotYet = errors.New("source has not applied the join point yet")

// Pull says what a joiner's shell has to pull.
type Pull struct {
	Attempt uint64
	Source  Peer
	Promise Promise       // the target's, under which the source must be admitted
	From    block.Version // the source serves once it has applied this
	Base    block.Version // chunks whose newest version is above this, here or at the source, are candidates
	Size    int64
}

// MemberReady is what the shell must do, in this order.
type MemberReady struct {
	State    *State        // non-nil: persist (stable) with Applied before sending Messages
	Applied  block.Version // the version of the last applied operation, to be persisted with State
	Messages []Message
	Pull     *Pull  // start pulling; replaces any other
	StopPull bool   // end the pull that runs
	Close    string // non-empty: close the session after Messages, this is why
}

// Member is a replica's side.
type Member struct{}

// NewMember returns a replica as it was opened.
func NewMember(r Report) *Member { return &Member{} }

// Report is what the replica tells about itself.
func (m *Member) Report() Report { return Report{} }

// Connect tells of a new connection; the shell has closed and drained the old one (replication rule 6).
func (m *Member) Connect(id SessionID) {}

// Disconnect tells that the connection is gone.
func (m *Member) Disconnect(id SessionID) {}

// Step takes a message of the target.
func (m *Member) Step(id SessionID, msg Message) MemberReady { return MemberReady{} }

// Check reports whether n consecutive operations starting at first may be applied.
func (m *Member) Check(id SessionID, first block.Version, n int) error { return nil }

// Applied tells that the pool applied operations up to last.
func (m *Member) Applied(last block.Version) {}

// Open takes the operation that opens an epoch.
func (m *Member) Open(id SessionID, op *Op) MemberReady { return MemberReady{} }

// MayServe reports whether a pull may be answered.
func (m *Member) MayServe(p Promise, from block.Version) error { return nil }

// Rebuilt tells that the pull is done and flushed.
func (m *Member) Rebuilt(attempt uint64) MemberReady { return MemberReady{} }

// PullFailed tells that the pull cannot go on.
func (m *Member) PullFailed(attempt uint64, reason string) MemberReady { return MemberReady{} }
