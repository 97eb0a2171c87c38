package volume

import (
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Message is one control message of a session between the target and a replica. Operations, acknowledgements and
// reads are not messages; they have compact frames of their own (package wire).
type Message interface{ message() }

// From the target to a replica.
type (
	// Claim asks for the promise of an epoch. Answered by Promised or Refused.
	Claim struct{ Promise Promise }
	// Found makes a replica that is empty and was never founded a complete member of the first list. Answered by Founded.
	Found struct{ List List }
	// Join asks the replica to become incomplete and to rebuild from Source. Answered by JoinReady once complete=false
	// and base are stable.
	Join struct {
		Attempt uint64
		Source  Peer
		History History       // the source's
		Last    block.Version // the source's, when this was sent: bounds the common point
		Size    int64
	}
	// Stream says that the operations which follow on this session start after From; the replica's Applied becomes
	// From. Pulling from the source may begin: the source answers once it has applied From.
	Stream struct {
		Attempt uint64
		From    block.Version
	}
	// Promote makes a replica that reported Rebuilt complete. Answered by Promoted when that is stable.
	Promote struct {
		Attempt uint64
		History History
	}
	// SetList installs member lists. Answered by ListSet when they are stable.
	SetList struct {
		Committed List
		Pending   *List
		Record    uint64  `json:",omitempty"` // version of the volume's record, to be noted; zero: keep what is noted
		Told      Promise `json:",omitzero"`  // the newest lossy epoch, if the initiator knows of it; zero: keep what is noted
	}
	// Stage asks a complete replica to catch up with Source at once: see stage.go. Answered by Staged when that is stable, or
	// by StageFailed; meanwhile nothing is streamed.
	Stage struct {
		Attempt uint64
		Source  Peer
		History History       // the source's
		From    block.Version // what it had applied when this was sent: bounds the common point, and the source has to have it
	}
	// Drop ends the session: the replica is not wanted. It may register again later. Spared: it may be destroyed, see spares.
	Drop struct {
		Reason string
		Spared bool `json:",omitempty"`
	}
	// Ping asks for a sign of life; any frame is one. Answered by Pong. With a Lease it asks a replica that has promised not
	// to promise another target for so long: see lease.go.
	Ping struct {
		At    time.Duration // of the target's clock, when this was sent
		Lease time.Duration // zero: none is asked for
	}
	// Release ends the lease: the target shows nothing any more.
	Release struct{}
	// Pace says how fast the rebuild of that attempt may go, and what it leaves the rest to. Sent to replicas that know it
	// (Report.Paces), as soon as the rebuild has begun and whenever it changes.
	Pace struct {
		Attempt     uint64
		BytesPerSec uint64 // zero: as fast as it can
		For         string // what the rebuild waits for, for people
	}
	// Counted tells a suspect replica that it is in sync: it holds, and has made stable, whatever it may have lost.
	Counted struct{}
)

// From a replica to the target.
type (
	// Register is the first message of a session.
	Register struct{ Report Report }
	Promised struct {
		Promise Promise
		Report  Report
	}
	// Refused answers a Claim that is below the replica's promise.
	Refused struct{ Promised Promise }
	Founded struct{}
	// JoinReady says that nothing keeps operations from being streamed and chunks from being pulled.
	JoinReady struct{ Attempt uint64 }
	// Progress reports a rebuild, about once a second.
	Progress struct {
		Attempt     uint64
		Done, Total uint64 // bytes
		BytesPerSec uint64
		ChunksDone  uint64
		ChunksTotal uint64
		WaitingFor  string // what it waits for, all of the time or much of it; empty when nothing holds it up
	}
	// Rebuilt says that every chunk equals the source's, that the stream was contiguous, and that all of it is stable.
	Rebuilt struct{ Attempt uint64 }
	// JoinFailed ends an attempt; the target starts another, with another source if there is one.
	JoinFailed struct {
		Attempt uint64
		Reason  string
	}
	Promoted struct{ Attempt uint64 }
	// Staged says that the replica has become, durably, what the source was when it had applied Last.
	Staged struct {
		Attempt uint64
		Last    block.Version
	}
	// StageFailed says that it is what it was. TooMuch: it differs in more than can be applied at once.
	StageFailed struct {
		Attempt uint64
		Reason  string
		TooMuch bool `json:",omitempty"`
	}
	ListSet struct {
		Committed List
		Pending   *List
		Record    uint64 `json:",omitempty"`
	}
	// Space tells that the pool has no room for more allocating writes, or has it again. Those that were sequenced before
	// the target hears of it still find room.
	Space struct{ Full bool }
	// Failed says that the replica cannot go on (device error, gap in the stream) before it closes the session.
	Failed struct{ Reason string }
	// Pong answers a Ping; At is repeated if it gives the lease.
	Pong struct{ At time.Duration }
)

// Peer names a replica that another pulls from.
type Peer struct {
	GUID block.GUID
	Name string
	Addr string // host:port
}

func (Claim) message()       {}
func (Found) message()       {}
func (Join) message()        {}
func (Stream) message()      {}
func (Promote) message()     {}
func (SetList) message()     {}
func (Stage) message()       {}
func (Drop) message()        {}
func (Ping) message()        {}
func (Release) message()     {}
func (Counted) message()     {}
func (Pace) message()        {}
func (Register) message()    {}
func (Promised) message()    {}
func (Refused) message()     {}
func (Founded) message()     {}
func (JoinReady) message()   {}
func (Progress) message()    {}
func (Rebuilt) message()     {}
func (JoinFailed) message()  {}
func (Promoted) message()    {}
func (Staged) message()      {}
func (StageFailed) message() {}
func (ListSet) message()     {}
func (Space) message()       {}
func (Failed) message()      {}
func (Pong) message()        {}

// OpKind is the kind of an Op.
type OpKind uint8

const (
	OpWrite   OpKind = iota + 1
	OpDiscard        // whole blocks; they read as zeroes afterwards
	OpOpen           // opens an epoch: the first operation of every target
)

// Op is one mutating operation of the volume's write order. The target's shell makes it, the core gives it its Version
// and decides when it is done; both sides leave Data alone.
type Op struct {
	Kind    OpKind
	FUA     bool // complete only when stable on the completing set
	Block   uint64
	Count   uint32
	Version block.Version
	Open    *EpochStart   // OpOpen
	Data    []byte        // OpWrite: Count blocks
	Sums    []uint32      // OpWrite: block.Sum of each
	Buf     *block.Buffer // owns Data; the core never looks at it
	Tag     any           // the shell's own
	Err     error         // set when it is in Ready.Completed: nil, block.ErrNoSpace, ErrRetry or ErrSuperseded

	completed bool          // reported in Ready.Completed
	since     time.Duration // when it was proposed
}

// ReadOp is one read of whole blocks. The core chooses the member and decides when the reply may be shown.
type ReadOp struct {
	Block uint64
	Count uint32
	Err   error
	Tag   any // the shell's own

	session SessionID     // where it is under way; zero: nowhere
	index   int           // in that replica's reads
	tried   []block.GUID  // replicas that failed to read it
	since   time.Duration // when it was asked for
	after   uint64        // answered; may be shown once the operations up to this one are complete
}

// SessionID names a connection of a replica to this target process; never reused.
type SessionID uint64

// Ready is what the shell must do, in this order: send Messages and Ops (they share one ordered stream per session, in
// the order of Sends), close sessions, report completions. It is drained by Core.Ready, which says how long it is valid.
type Ready struct {
	Sends     []Send
	Closes    []SessionClose
	Completed []*Op // report Op.Err to the front end; each exactly once
	Released  []*Op // no longer needed for resending, and completed: Buf may be released; each exactly once, never before Completed
	Reads     []ReadSend
	ReadsDone []*ReadOp  // show Err or the data received
	Flushed   []any      // tags of Flush calls that are done
	FlushHeld []FlushEnd // Flush calls that waited for a quorum longer than Settings.HoldLimit, or were superseded, or fail for what was lost
	Record    *RecordOp  // read or write the volume's record, then call RecordIs or RecordFailed
	Status    bool       // Status() changed in a way that is worth reporting
	// Superseded says that another target has opened the volume since this one served. All that was asked before ends with
	// block.ErrSuperseded: what the core held, in this Ready, and what the shell has not yet handed to it, now. Deal with it
	// before Completed and ReadsDone.
	Superseded bool
	// Restart is not empty when this core can go no further: close every session, replace the core by its Successor,
	// and let the replicas connect again. It does nothing more itself.
	Restart string
}

// Send is one item for a session's ordered stream: a message, operations, or a flush mark, exactly one of them.
type Send struct {
	Session SessionID
	Message Message
	Ops     []*Op
	Flush   uint64 // ask for an Ack whose stable is at least this n; it is answered even if nothing is left to do
}

// FlushEnd is what a Flush that failed is to be answered.
type FlushEnd struct {
	Tag  any
	Err  error   // block.ErrRetry, ErrSuperseded or ErrLost
	Lost Promise // ErrLost: what Told is to be called with when the initiator has got the answer
}

// ReadSend asks the shell to send a read to a session's replica.
type ReadSend struct {
	Session SessionID
	Read    *ReadOp
}

// SessionClose asks the shell to close a session's connection; Disconnect need not be called for it.
type SessionClose struct {
	Session SessionID
	Reason  string
}

// Settings bound what the core waits for. Durations are of the shell's monotonic clock.
type Settings struct {
	Deadline time.Duration // a member that owes an answer and is silent for this long is ejected if the rest is a quorum; default 1 s
	// FlushDeadline is the same for a member that does not get on with a flush; default 5 times Deadline.
	FlushDeadline time.Duration
	PingEvery     time.Duration // default Deadline/4
	Lease         time.Duration // how long a lease lasts, at most LeaseTime, which is the default
	ClaimGrace    time.Duration // how long a target that starts waits for promises beyond a quorum; default 500 ms
	LossyGrace    time.Duration // how long it waits for members that may have what those who promised may have lost; default 10 s
	HoldLimit     time.Duration // requests held longer than this without quorum are answered with block.ErrRetry; default 100 s
	Backoff       time.Duration // before a failed rebuild is tried again; doubles up to 64 times that; default 100 ms
	RetainOps     int           // a replica that catches up and lags by more operations is dropped; default 16384
	RetainData    int64         // or by more bytes; default 64 MiB
}

// Desired is what the control plane wants of the membership.
type Desired struct {
	Founding int          // number of replicas to found a new volume with
	Factor   int          // most replicas that may be connected, members or not
	Remove   []block.GUID // members to remove, one after the other, when that is safe
	Witness  bool         // with it fewer members than a quorum may serve, when the record names them
	// AcceptRecord is what replicas have noted of the record that does not count: it went back, and the volume goes on as it was
	// found. Each is noted under one claim, so that nothing that is noted later is meant.
	AcceptRecord []Noted
	RebuildLimit int64 // bytes/s that the rebuilds of the volume move at most; zero: no limit
}

// Mode is a replica's state as the target sees it.
type Mode uint8

const (
	Offline    Mode = iota // not connected
	Degraded               // connected, catching up not begun
	Rebuilding             // catching up
	Healthy                // in sync, counted
)

// Replica is the state of one replica in a Status.
type Replica struct {
	GUID      block.GUID
	ReplicaID string
	Name      string
	Member    bool // in the committed list
	Mode      Mode
	Applied   uint64 // number of the last operation acknowledged
	Since     time.Duration
	Progress  Progress
	LastError string
	Recorded  bool // the volume's record names it: nothing is completed without it
}

// Status describes the volume for people and for the control plane.
type Status struct {
	Serving   bool   // I/O is possible now
	Holding   string // why not, in words that say what to do; empty when Serving
	StoodDown bool   // another target has opened the volume since this one served: for a while this one wants no replicas
	Epoch     uint64
	Last      uint64 // number of the last operation sequenced
	Lossy     uint64 // the newest epoch that began without proof that nothing completed was lost with the power; zero: none is known
	Committed List   // no members: not known yet, until a claim is won
	Pending   *List
	Desired   Desired // as adopted: what it refuses by this can no longer happen
	Replicas  []Replica
	Removing  string  // what a removal waits for, empty when none is wanted
	Redundant bool    // every member has everything, and any one may be lost
	Lacks     string  // why not; empty until the volume is open
	WentBack  string  // how it is known that the record was restored from an old copy, which nobody has accepted; empty if it is not
	Accept    []Noted // what Desired.AcceptRecord has to have to go on all the same
}
