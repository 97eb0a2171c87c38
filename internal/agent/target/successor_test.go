package target

import (
	"context"
	"slices"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/volume"
)

// other is another target of the same volume, in a pod of its own, that has just started.
func (w *world) other(pod string) *world {
	w.t.Helper()
	o := &world{t: w.t, ctx: w.ctx, client: w.client, target: &fakeTarget{}, now: w.now}
	cfg := w.agent.Config
	cfg.Pod, cfg.Now = pod, func() time.Time { return o.now }
	o.agent = New(cfg)
	if _, err := o.agent.Load(o.ctx, nil); err != nil {
		w.t.Fatal(err)
	}
	o.agent.target = o.target
	o.agent.wanted = Desired(o.agent.cv)
	o.target.st.Desired = o.agent.wanted
	o.target.st.Holding = "waiting for a quorum of replicas"
	return o
}

// open makes the target serve in an epoch of its own.
func (w *world) open(epoch uint64, members ...byte) {
	w.serve(members...)
	w.target.st.Epoch, w.target.st.Committed.Epoch, w.target.st.Committed.Generation = epoch, epoch, uint64(len(members))
}

// suspend is what becomes of a target that does not hear its replicas any more.
func (w *world) suspend() {
	w.target.st.Serving, w.target.st.Holding = false, "replicas are silent"
}

func (w *world) wantStatus(phase cstorv1.VolumePhase, message, target string, epoch int64) {
	w.t.Helper()
	st := w.cv().Status
	if st.Phase != phase || st.Message != message || st.Target != target || st.Epoch != epoch {
		w.t.Errorf("%s %q by %s in epoch %d, want %s %q by %s in epoch %d",
			st.Phase, st.Message, st.Target, st.Epoch, phase, message, target, epoch)
	}
}

// two is a target that was frozen while it served with replicas 1 and 2, and its successor, which serves with 2 and 3.
func two(t *testing.T) (old, successor *world) {
	old = newWorld(t, 2)
	old.open(1, 1, 2)
	old.pass()
	successor = old.other("successor")
	successor.open(2, 2, 3)
	successor.pass()
	old.wantMembers(2, id(2), id(3))
	return old, successor
}

func TestATargetThatWasLeftDoesNotBringItsMembersBack(t *testing.T) {
	old, _ := two(t)
	old.pass() // it does not know yet that it is nobody's target any more
	old.wantMembers(2, id(2), id(3))
	old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
	old.suspend()
	old.pass()
	old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
}

// The old target has read the volume, and is frozen until its successor has written.
func TestAPatchOfATargetThatWasLeftIsRefused(t *testing.T) {
	old := newWorld(t, 2)
	old.open(1, 1, 2)
	old.pass()
	old.serve(1)
	old.before = func() {
		successor := old.other("successor")
		successor.open(2, 2, 3)
		successor.pass()
	}
	old.pass()
	old.wantMembers(2, id(2), id(3))
	old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
}

func TestTheEndOfATargetThatWasLeftIsNotTheVolumes(t *testing.T) {
	old, _ := two(t)
	ctx, cancel := context.WithCancel(old.ctx)
	cancel()
	old.agent.Run(ctx, old.target)
	old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
}

// A target that has just started tells why it does not serve; one that serves knows better.
func TestWhoeverServesReports(t *testing.T) {
	old := newWorld(t, 2)
	old.open(1, 1, 2)
	old.pass()
	successor := old.other("successor")
	successor.pass()
	old.wantStatus(cstorv1.VolumeOffline, "waiting for a quorum of replicas", "successor", 1)
	old.pass()
	old.wantStatus(cstorv1.VolumeHealthy, "", "target-pod", 1)
	successor.pass()
	old.wantStatus(cstorv1.VolumeHealthy, "", "target-pod", 1)
	successor.open(2, 1, 2)
	successor.pass()
	old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
	old.open(3, 1, 2) // the replicas came back to it
	old.pass()
	old.wantStatus(cstorv1.VolumeHealthy, "", "target-pod", 3)
	old.suspend()
	successor.suspend()
	successor.pass()
	old.pass()
	old.wantStatus(cstorv1.VolumeOffline, "replicas are silent", "target-pod", 3)
}

func TestASilentTargetIsNotBelievedForEver(t *testing.T) {
	old, successor := two(t)
	old.suspend()
	for range 3 {
		for _, w := range []*world{old, successor} {
			w.now = w.now.Add(heartbeat)
		}
		successor.pass()
		old.pass()
		old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
	}
	old.now = old.now.Add(abandoned)
	old.pass()
	old.wantStatus(cstorv1.VolumeOffline, "replicas are silent", "target-pod", 2)
	old.wantMembers(2, id(2), id(3))
	successor.pass()
	old.wantStatus(cstorv1.VolumeHealthy, "", "successor", 2)
}

// While a new member is not shown, the list that it is in is not either.
func TestGenerationIsThatOfTheMembersShown(t *testing.T) {
	generation := func(w *world) int64 { return w.cv().Status.Generation }
	w := migrate(t)
	before := generation(w)
	w.replica(3, cstorv1.ReplicaReconstructing)
	w.pass()
	if got := generation(w); got != before {
		t.Errorf("generation %d with the old members, before it was %d", got, before)
	}
	o := w.other("successor")
	o.open(2, 1, 2, 3)
	o.pass()
	if got := generation(w); got != 0 {
		t.Errorf("generation %d of a list that is not shown", got)
	}
	w.replica(3, cstorv1.ReplicaHealthy)
	o.pass()
	if got := generation(w); got != int64(o.target.st.Committed.Generation) {
		t.Errorf("generation %d, want %d", got, o.target.st.Committed.Generation)
	}
}

func TestTheWishOfAnOldTargetIsNotAdopted(t *testing.T) {
	old, successor := two(t)
	old.edit(func(cv *cstorv1.CStorVolume) { cv.Spec.DesiredReplicationFactor = 3 })
	old.pass()
	successor.pass()
	successor.pass()
	old.edit(func(cv *cstorv1.CStorVolume) { cv.Spec.DesiredReplicationFactor = 2 })
	old.pass()
	old.pass()
	if got := old.cv().Status.DesiredReplicationFactor; got != 3 {
		t.Errorf("%d is adopted, and the target that serves did not", got)
	}
	if !slices.ContainsFunc(old.target.wants, func(d volume.Desired) bool { return d.Factor == 2 }) {
		t.Error("the old target was not even asked: the test shows nothing")
	}
}

func TestAnEpochThatNobodyKnowsIsOutranked(t *testing.T) {
	w := newWorld(t, 2)
	w.open(9, 1, 2)
	w.pass()
	late := w.other("late") // its replicas have gone back in time
	late.open(6, 1, 2)
	late.suspend()
	late.pass() // it has just started, and does not know anything yet
	late.wantStatus(cstorv1.VolumeOffline, "replicas are silent", "late", 9)
	late.open(6, 1, 2)
	late.pass()
	late.pass()
	late.wantStatus(cstorv1.VolumeOffline, "replicas are silent", "late", 9)
	if got := late.target.above; len(got) == 0 || slices.Max(got) != 9 || slices.Min(got) != 9 {
		t.Fatalf("told to be above %v, want 9", got)
	}
	late.open(10, 1, 2)
	late.pass()
	late.wantStatus(cstorv1.VolumeHealthy, "", "late", 10)

	late.edit(func(cv *cstorv1.CStorVolume) { cv.Status.Epoch = epochLimit })
	late.target.above = nil
	late.pass()
	if late.target.above != nil {
		t.Errorf("told to be above %v", late.target.above)
	}
}

func TestWhatIsNotAdoptedYetIsNotShown(t *testing.T) {
	old := newWorld(t, 2)
	old.open(1, 1, 2)
	old.pass()
	successor := old.other("successor")
	successor.open(2, 1, 2)
	successor.target.st.Desired = volume.Desired{} // it finishes a change that the old one began
	successor.pass()
	if got := successor.cv().Status; got.DesiredReplicationFactor != 2 || got.Epoch != 2 {
		t.Errorf("desiredReplicationFactor %d shown in epoch %d", got.DesiredReplicationFactor, got.Epoch)
	}
}
