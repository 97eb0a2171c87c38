package sim

import (
	"fmt"
	"reflect"
	"strings"
)

// Coverage counts what happened in one run or in several.
type Coverage struct {
	Runs            uint64
	Completed       uint64 // requests that succeeded
	Retries         uint64 // answered with block.ErrRetry
	NoSpace         uint64
	Damaged         uint64
	PowerCuts       uint64
	PowerCutsInside uint64 // in the middle of something that the pool did
	Reboots         uint64 // of machines in good order
	LossyEpochs     uint64 // opened without proof that nothing was lost
	Losses          uint64 // times that the volume went back to what was flushed, or somewhat later
	FailedFlushes   uint64 // since something may be lost
	Cycles          uint64 // and other steps of what pools do in the background
	Takeovers       uint64 // times that a target began to serve
	Restarts        uint64
	SecondTargets   uint64 // times that a target went on beside a new one
	LastingTargets  uint64 // those that lived to the end
	Oversleeps      uint64 // times that a target was stopped while replicas lost power and another one took over
	Superseded      uint64 // times that a target found that another one had served
	Ejections       uint64
	Suspensions     uint64
	Resends         uint64
	Stages          uint64 // times that a replica began to catch up at once
	Staged          uint64 // and that it had
	StageCuts       uint64 // times that the power was lost as it did
	Joins           uint64
	Pulls           uint64
	DeltaPulls      uint64 // of replicas that kept something
	Promotions      uint64
	Interrupted     uint64 // rebuilds that ended before promotion
	Divergent       uint64
	NotYet          uint64 // pulls that were early
	OldFrames       uint64 // operations of a session that was over
	HeldReads       uint64
	LeaseWaits      uint64 // reads that waited for leases
	StandDowns      uint64 // times that the leases of a target ran out
	PromiseWaits    uint64 // promises that waited for the end of a lease
	SecondAnswers   uint64 // requests that succeeded at a target beside a newer one
	ReadRetries     uint64
	ScaleUps        uint64
	ScaleDowns      uint64
	Cancels         uint64
	HandDeletions   uint64 // of complete replicas that are no members, which their pools refuse
	CancelledLate   uint64
	Finished        uint64 // pending lists finished by another target than the one that began
	Withdrawn       uint64 // pending lists given up
	RecordWrites    uint64
	RecordDoubts    uint64 // writes of the record of which nobody was told
	Reduced         uint64 // times that fewer than a quorum were written into the record to go on
	ByRecord        uint64 // takeovers for which those counted that the record names
	Bare            uint64 // takeovers without the record
	Restores        uint64 // times that the record went back
	LostRecords     uint64 // times that it stayed so
	Accepted        uint64 // times that somebody accepted that
}

// Add adds another run's counts.
func (c *Coverage) Add(o Coverage) {
	v, u := reflect.ValueOf(c).Elem(), reflect.ValueOf(o)
	for i := range v.NumField() {
		v.Field(i).SetUint(v.Field(i).Uint() + u.Field(i).Uint())
	}
}

// Missing names the counters that are below their floor, which is for that many runs.
func (c Coverage) Missing(floors Coverage, runs uint64) (names []string) {
	v, f := reflect.ValueOf(c), reflect.ValueOf(floors)
	for i := range v.NumField() {
		if want := f.Field(i).Uint() * c.Runs / runs; v.Field(i).Uint() < want {
			names = append(names, fmt.Sprintf("%s is %d, want %d", v.Type().Field(i).Name, v.Field(i).Uint(), want))
		}
	}
	return names
}

func (c Coverage) String() string {
	var b strings.Builder
	v := reflect.ValueOf(c)
	for i := range v.NumField() {
		fmt.Fprintf(&b, "%s=%d ", v.Type().Field(i).Name, v.Field(i).Uint())
	}
	return strings.TrimSpace(b.String())
}

// harvest adds what a core counted, before it is gone.
func (w *world) harvest(t *target) {
	n := t.core.Counters()
	w.cover.Ejections += n.Ejections
	w.cover.Suspensions += n.Suspensions
	w.cover.Resends += n.Resends
	w.cover.Stages += n.Stages
	w.cover.Staged += n.Staged
	w.cover.Joins += n.Joins
	w.cover.Promotions += n.Promotions
	w.cover.Interrupted += n.Interrupted
	w.cover.Divergent += n.Divergent
	w.cover.LossyEpochs += n.Lossy
	w.cover.Superseded += n.Superseded
	w.cover.HeldReads += n.HeldReads
	w.cover.LeaseWaits += n.LeaseWaits
	w.cover.StandDowns += n.StandDowns
	w.cover.ReadRetries += n.ReadRetries
	w.cover.Finished += n.Finished
	w.cover.Withdrawn += n.Withdrawn
	w.cover.RecordWrites += n.RecordWrites
	w.cover.RecordDoubts += n.RecordDoubts
	w.cover.Reduced += n.Reduced
	w.cover.ByRecord += n.ByRecord
	w.cover.Bare += n.Bare
}
