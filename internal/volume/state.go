package volume

import (
	"cmp"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// Promise is a member's word to serve one target only: the highest epoch that it promised, and the nonce of the target
// that asked, which tells two targets apart that chose the same epoch.
type Promise struct {
	Epoch uint64 `json:"epoch"`
	Nonce uint64 `json:"nonce"`
}

// List is the members that count for quorum. Lists order by (Epoch, Generation).
type List struct {
	Epoch      uint64       `json:"epoch"`
	Generation uint64       `json:"generation"`
	Members    []block.GUID `json:"members"`
	Witness    bool         `json:"witness,omitempty"` // the record has to be claimed, and may name fewer members than a quorum: see Record
}

// Quorum returns CF = RF/2 + 1, the number of members that must hold whatever is completed.
func (l List) Quorum() int { return len(l.Members)/2 + 1 }

// Has reports whether g is in the list.
func (l List) Has(g block.GUID) bool { return slices.Contains(l.Members, g) }

// Compare orders lists by (Epoch, Generation), the higher one being the later (replication rule 12).
func (l List) Compare(o List) int {
	if c := cmp.Compare(l.Epoch, o.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(l.Generation, o.Generation)
}

// founded reports whether l is a list at all.
func (l List) founded() bool { return len(l.Members) > 0 }

// EpochStart is an entry of a History: Epoch's first operation has number First. Epoch and Nonce say which target opened it:
// after the volume's record went back two targets may have opened the same Epoch, each on replicas of its own.
type EpochStart struct {
	Epoch uint64 `json:"epoch"`
	First uint64 `json:"first"`
	Lossy bool   `json:"lossy,omitempty"` // opened without proof that nothing completed was lost with the power
	Nonce uint64 `json:"nonce,omitempty"` // zero: written by a program that did not know of it
}

// by returns the promise under which the epoch was opened.
func (e EpochStart) by() Promise { return Promise{Epoch: e.Epoch, Nonce: e.Nonce} }

// History is the epochs that a replica's operations came from, oldest first; the newest maxHistory of them.
type History []EpochStart

// State is what a replica persists for replication, as one record of its pool's log, always replaced as a whole.
// Whatever a message relies on is on stable storage before the message is sent. The version of the last applied
// operation is kept by the pool itself, beside it.
type State struct {
	Promised   Promise       `json:"promised"`
	Committed  List          `json:"committed"`         // no members: not founded, or never admitted to a list
	Pending    *List         `json:"pending,omitempty"` // a change under way; while it exists every quorum needs both lists
	Complete   bool          `json:"complete"`
	CompleteAt block.Version `json:"completeAt"` // last when it was complete, zero if it never was
	Base       block.Version `json:"base"`       // while incomplete: what it has agreed on with every source so far; only ever lowered
	History    History       `json:"history"`
	Pulled     History       `json:"pulled,omitempty"`     // while incomplete: the epochs that sources had and History has not
	Ambiguous  bool          `json:"ambiguous,omitempty"`  // while incomplete: equal versions do not mean equal blocks, see beginJoin
	RecordSeen uint64        `json:"recordSeen,omitempty"` // the version of the volume's record that the target told last
	RecordBy   Promise       `json:"recordBy,omitzero"`    // and the target, whose claim the record carried then
	BootID     string        `json:"bootID,omitempty"`     // of the machine, when the replica was served last
	Clean      bool          `json:"clean,omitempty"`      // that ended in good order
	Suspect    bool          `json:"suspect,omitempty"`    // may lack what it acknowledged: see Started
	Told       Promise       `json:"told,omitzero"`        // the newest lossy epoch of which the initiator knows: see Core.untold
	Place      Place         `json:"place,omitzero"`
}

// noted returns what the replica knows of the volume's record.
func (s State) noted() Noted { return Noted{Version: s.RecordSeen, By: s.RecordBy} }

// Place is where a replica is served: what its pool has to know to serve it again before anybody tells it. It means nothing
// to replication. The zero value: nobody wants it served.
type Place struct {
	ReplicaID string `json:"replicaID"`
	Target    string `json:"target"` // host:port
}

// Report is what a replica tells a target about itself when it registers, and once more when it has promised.
type Report struct {
	GUID      block.GUID    `json:"guid"`
	ReplicaID string        `json:"replicaID"` // CVR.spec.replicaid; names the place, not the data
	Name      string        `json:"name"`      // for people: the CVR's name
	PullAddr  string        `json:"pullAddr"`  // host:port where other replicas pull from it
	State     State         `json:"state"`
	Last      block.Version `json:"last"`             // version of the last applied operation
	Size      int64         `json:"size"`             // bytes
	Stages    bool          `json:"stages,omitempty"` // its program knows Stage, and can be the source of one
	Paces     bool          `json:"paces,omitempty"`  // its program knows Pace
}

// Key is how far the replica is for the choice of the authoritative one: Last if complete, else where it last was.
func (r Report) Key() block.Version {
	if r.State.Complete {
		return r.Last
	}
	return r.State.CompleteAt
}

// has reports whether the replica, which is complete, has all that o had when that was complete.
func (r Report) has(o Report) bool {
	return CommonPoint(r.State.History, r.Last, o.State.History, o.Key()) == o.Key()
}

// fresh reports whether the replica is empty and was never founded nor rebuilt (replication rule 5).
func (r Report) fresh() bool {
	s := r.State
	return !s.Committed.founded() && s.Pending == nil && !s.Complete && r.Last.IsZero() && len(s.History) == 0
}
