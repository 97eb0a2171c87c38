package pool

import (
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/volume"
)

func connected(s *replica.Status)    { s.Connected = true }
func disconnected(s *replica.Status) { s.Connected, s.InSync, s.Rebuilding = false, false, false }
func starting(s *replica.Status)     { s.Rebuilding = true }
func rebuilding(s *replica.Status) {
	s.Rebuilding, s.Progress = true, volume.Progress{Done: 512 << 20, Total: 1 << 30, BytesPerSec: 256 << 20}
	s.Used, s.Allocated = 512<<20, 513<<20
}
func filled(s *replica.Status) { s.Rebuilding, s.Complete = false, true }
func member(s *replica.Status) { s.Member = true }
func inSync(s *replica.Status) {
	s.Complete, s.Member, s.InSync, s.Rebuilding = true, true, true, false
}

func TestNeverHealthyUnlessCompleteInSyncAndAMember(t *testing.T) {
	all := []cstorv1.ReplicaPhase{
		cstorv1.ReplicaInit, cstorv1.ReplicaOffline, cstorv1.ReplicaHealthy, cstorv1.ReplicaDegraded, cstorv1.ReplicaReconstructing,
	}
	for bits := range 1 << 6 {
		on := func(n int) bool { return bits>>n&1 == 1 }
		s := replica.Status{Connected: on(0), Complete: on(1), Member: on(2), InSync: on(3), Rebuilding: on(4)}
		for _, now := range all {
			for _, d := range []time.Duration{0, time.Hour} {
				got := phaseOf(s, on(5), now, d)
				if want := s.Connected && s.Complete && s.Member && s.InSync; (got == cstorv1.ReplicaHealthy) != want {
					t.Errorf("%+v joining %v, was %s: %s", s, on(5), now, got)
				}
			}
		}
	}
}

func TestFoundingReplica(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	w.addReplica("")
	w.pass()
	if got := w.disks.pool.attached[cvr]; got != (replica.Spec{Name: cvr, ReplicaID: "42", Target: "10.0.0.9:6060", Size: 5 << 30}) {
		t.Errorf("attached %+v", got)
	}
	w.wantEvents("CStorVolumeReplica Normal Created Resource created successfully")
	got := w.phases(func(*replica.Status) {}, connected, inSync)
	if want := []cstorv1.ReplicaPhase{"Offline", "Offline", "Healthy"}; !slices.Equal(got, want) {
		t.Errorf("phases %v", got)
	}
	if cr := w.instance(); cr.Status.ProvisionedReplicas != 1 {
		t.Errorf("pool %+v", cr.Status)
	}
	w.pass()
	if cr := w.instance(); cr.Status.HealthyReplicas != 1 {
		t.Errorf("pool %+v", cr.Status)
	}
	if err := w.agent.stop(); err != nil {
		t.Fatal(err)
	}
	if cr := w.instance(); cr.Status.Phase != cstorv1.PoolOffline || cr.Status.HealthyReplicas != 0 {
		t.Errorf("after the end of the process: %+v", cr.Status)
	}
	w.restart()
	w.pass()
	w.wantEvents("Normal Imported Resource imported successfully")
	if len(w.replica().Annotations) != 0 {
		t.Errorf("a founder must not be marked: %v", w.replica().Annotations)
	}
}

func TestScaleUpReplica(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	w.addReplica(cstorv1.ReplicaRecreate)
	w.pass()
	got := w.phases(func(*replica.Status) {}, connected, starting, rebuilding)
	if want := []cstorv1.ReplicaPhase{"Offline", "NewReplicaDegraded", "ReconstructingNewReplica", "ReconstructingNewReplica"}; !slices.Equal(got, want) {
		t.Errorf("phases %v", got)
	}
	st := w.replica().Status
	if st.Capacity.Total != "513M" || st.Capacity.Used != "512M" || st.GUID != (block.GUID{1}).String() {
		t.Errorf("status %+v", st)
	}
	if p := st.Progress; p == nil || p.Percent != 50 || p.Done != "50%" || p.Rate != "256M/s" || p.ETA != "2s" {
		t.Errorf("progress %+v", p)
	}
	w.restart() // the phase says Offline then; which way it goes must not be lost
	w.set(disconnected)
	got = append(w.phases(disconnected, connected), w.phases(rebuilding, filled, member, inSync)...)
	want := []cstorv1.ReplicaPhase{"Offline", "NewReplicaDegraded", "ReconstructingNewReplica", "ReconstructingNewReplica", "Degraded", "Healthy"}
	if !slices.Equal(got, want) {
		t.Errorf("phases %v", got)
	}
	if st := w.replica().Status; st.Progress != nil || !st.Verified {
		t.Errorf("after the end: %+v", st)
	}
	w.wantEvents("Normal RebuildStarted", "RebuildProgress Rebuild is 50% done", "RebuildCompleted")
	// From now on it is a member like any other.
	got = w.phases(disconnected, func(s *replica.Status) { connected(s); rebuilding(s) })
	if want := []cstorv1.ReplicaPhase{"Offline", "Rebuilding"}; !slices.Equal(got, want) {
		t.Errorf("phases as a member %v", got)
	}
	if w.replica().Status.Verified {
		t.Error("verified while it is being rebuilt")
	}
}

func TestProgressOfARebuildThatStopsToMoveSaysSo(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaRecreate)
	w.pass()
	w.phases(connected, rebuilding)
	w.phases(func(s *replica.Status) { s.Progress.BytesPerSec, s.Progress.WaitingFor = 0, "its source" })
	if p := w.replica().Status.Progress; p == nil || p.Done != "50%" || p.BytesPerSecond != 0 || p.Rate != "" || p.ETA != "" || p.SecondsLeft != nil || p.WaitingFor != "its source" {
		t.Errorf("while it waits: %+v", p)
	}
	goesOn := func() {
		t.Helper()
		if p := w.replica().Status.Progress; p == nil || p.Rate != "256M/s" || p.ETA != "2s" || p.WaitingFor != "" {
			t.Errorf("when it goes on: %+v", p)
		}
	}
	more := func(s *replica.Status) {
		rebuilding(s)
		s.Progress.Done, s.Progress.Total = s.Progress.Done+4096, s.Progress.Total+4096
	}
	w.phases(more)
	goesOn()
	w.phases(func(*replica.Status) {}) // the source hangs: nothing changes, the rate included
	if p := w.replica().Status.Progress; p == nil || p.Done != "50%" || p.Rate != "" || p.ETA != "" || p.WaitingFor != "data from its source" {
		t.Errorf("when nothing comes: %+v", p)
	}
	w.phases(rebuilding)
	goesOn()
}

// What an attempt to connect ends with differs from one to the next, by its port if by nothing else.
func TestTheMessageOfAReplicaIsNotWrittenWithEveryAttempt(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaEmpty)
	w.pass()
	w.phases(connected, inSync)
	look := func(after time.Duration, problem string) *cstorv1.CStorVolumeReplica {
		w.now = w.now.Add(after)
		w.set(func(s *replica.Status) { s.LastError = problem })
		if err := w.agent.Pass(w.ctx, true); err != nil {
			t.Fatal(err)
		}
		return w.replica()
	}
	w.set(disconnected)
	first := look(time.Minute, "read 127.0.0.1:1: connection reset")
	if want := "no session with the target, see the pod of Deployment " + pv + "-target: read 127.0.0.1:1: connection reset"; first.Status.Message != want {
		t.Errorf("message %q", first.Status.Message)
	}
	for range 10 {
		if next := look(2*time.Second, "read 127.0.0.1:2: connection reset"); next.ResourceVersion != first.ResourceVersion {
			t.Fatalf("written again: %+v", next.Status)
		}
	}
	if next := look(heartbeat, "refused"); !strings.HasSuffix(next.Status.Message, "refused") {
		t.Errorf("message %q does not follow at all", next.Status.Message)
	}
	w.set(connected)
	w.set(inSync)
	if next := look(2*time.Second, ""); next.Status.Message != "" {
		t.Errorf("message %q of a Healthy replica", next.Status.Message)
	}
}

// The agent may not get to write at the very moment when a rebuild ends: it is restarted, or the API server is away.
func TestVerifiedFollowsWhatTheReplicaSays(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaEmpty)
	w.pass()
	verified := func(want bool, when string) {
		t.Helper()
		if w.replica().Status.Verified != want {
			t.Errorf("verified is %v %s", !want, when)
		}
	}
	verified(false, "before the volume was founded")
	w.phases(connected, inSync)
	verified(true, "of a founder")
	incomplete := func(s *replica.Status) { rebuilding(s); s.Complete, s.InSync = false, false }
	w.phases(incomplete)
	verified(false, "while it is being rebuilt")
	w.phases(disconnected, connected)
	verified(false, "though its rebuild was interrupted")
	w.phases(incomplete)
	w.restart()
	w.phases(connected, inSync)
	verified(true, "though nothing was missing when the process came back")
	w.phases(disconnected)
	verified(true, "though what it holds is as good as before")
}

func TestConnectingMemberIsNotDegradedAtOnce(t *testing.T) {
	s := replica.Status{Connected: true, Member: true, Complete: true}
	if got := phaseOf(s, false, cstorv1.ReplicaOffline, 0); got != cstorv1.ReplicaOffline {
		t.Error(got)
	}
	if got := phaseOf(s, false, cstorv1.ReplicaOffline, settle); got != cstorv1.ReplicaDegraded {
		t.Error(got)
	}
	if got := phaseOf(s, false, cstorv1.ReplicaHealthy, 0); got != cstorv1.ReplicaDegraded {
		t.Error(got)
	}
}

func TestPhaseDoesNotFallBackBetweenCopyAndPromotion(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaRecreate)
	w.pass()
	w.phases(connected, rebuilding)
	w.set(func(s *replica.Status) { s.Rebuilding = false })
	for _, want := range []cstorv1.ReplicaPhase{cstorv1.ReplicaReconstructing, cstorv1.ReplicaNewDegraded} {
		if err := w.agent.Pass(w.ctx, true); err != nil {
			t.Fatal(err)
		}
		if got := w.replica().Status.Phase; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		w.now = w.now.Add(settle) // and still no promotion: the attempt has failed
	}
}

func TestLostReplicaJoins(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	w.phases(connected, inSync)
	delete(w.disks.pool.replicas, cvr)
	w.restart()
	w.pass()
	if w.replica().Annotations[annotationJoining] == "" {
		t.Error("a replica without its data must join, not found")
	}
	if p := w.replica().Status.Phase; p != cstorv1.ReplicaOffline {
		t.Errorf("phase %s", p)
	}
}

func TestTargetMoves(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	cr := w.replica()
	cr.Spec.TargetIP = "10.0.0.10"
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if got := w.disks.pool.attached[cvr].Target; got != "10.0.0.10:6060" {
		t.Errorf("target %s", got)
	}
}

func TestInvalidReplica(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	w.addReplica(cstorv1.ReplicaInit)
	cr := w.replica()
	cr.Spec.TargetIP = ""
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantEvents("Warning FailValidate Resource validation failed")
	if p := w.replica().Status.Phase; p != cstorv1.ReplicaOffline {
		t.Errorf("phase %s", p)
	}
	if len(w.disks.pool.replicas) != 0 {
		t.Error("created all the same")
	}
}

func TestReplicaIsDestroyed(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	w.phases(connected, inSync)
	w.disks.pool.destroyErr = errDisk
	if err := w.client.Delete(w.ctx, w.replica()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if st := w.replica().Status; st.Phase != cstorv1.ReplicaDeletionFailed || st.Message != errDisk.Error() {
		t.Errorf("status %+v", st)
	}
	w.wantEvents("Warning FailDestroy failed to destroy volume replica error: input/output error")
	w.disks.pool.destroyErr = nil
	w.pass()
	w.wantGone()
	if len(w.disks.pool.replicas) != 0 {
		t.Error("data is still there")
	}
}

func (w *world) wantGone() {
	w.t.Helper()
	err := w.client.Get(w.ctx, types.NamespacedName{Namespace: ns, Name: cvr}, &cstorv1.CStorVolumeReplica{})
	if !apierrors.IsNotFound(err) {
		w.t.Errorf("the replica's object: %v", err)
	}
}

func TestMemberOfALivingVolumeIsNotDestroyed(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	w.phases(connected, inSync)
	w.addVolume(w.replica().Status.GUID)
	if err := w.client.Delete(w.ctx, w.replica()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if len(w.disks.pool.replicas) != 1 || len(w.disks.pool.attached) != 1 {
		t.Fatal("a member was destroyed")
	}
	w.wantEvents("Warning FailDestroy replica is a member of volume pvc-1 and is kept; remove pool cspc-6qkw from")
	w.restart() // it goes on as a member in the next process too
	w.set(disconnected)
	w.pass()
	if got := w.phases(connected, inSync); len(w.disks.pool.attached) != 1 || got[1] != cstorv1.ReplicaHealthy {
		t.Fatalf("attached %v, phases %v", w.disks.pool.attached, got)
	}
	cv := get(w, pv, &cstorv1.CStorVolume{})
	cv.Status.ReplicaDetails.KnownReplicas = nil // the volume removed it
	if err := w.client.Update(w.ctx, cv); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantGone()
}

func TestReplicaOfADeletedVolumeIsDestroyed(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	w.addVolume(w.replica().Status.GUID)
	config := get(w, pv, &cstorv1.CStorVolumeConfig{})
	if err := kube.AddFinalizer(w.ctx, w.client, config, cstorv1.FinalizerVolumeConfig); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Delete(w.ctx, config); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Delete(w.ctx, w.replica()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantGone()
}

func TestDataWithoutAnObjectIsKept(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	cr := w.replica()
	cr.Finalizers = nil // somebody forces it away
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Delete(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if len(w.disks.pool.replicas) != 1 || len(w.disks.pool.attached) != 0 {
		t.Errorf("replicas %v, attached %v", w.disks.pool.replicas, w.disks.pool.attached)
	}
}

func TestFieldsOfOthersStay(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	cr := w.replica()
	cr.Labels["x"], cr.Spec.ZvolWorkers = "y", "3" // after the agent has read it
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.set(inSync)
	w.set(connected)
	if err := w.agent.Pass(w.ctx, false); err != nil {
		t.Fatal(err)
	}
	if got := w.replica(); got.Labels["x"] != "y" || got.Spec.ZvolWorkers != "3" || got.Status.Phase != cstorv1.ReplicaHealthy {
		t.Errorf("%+v", got)
	}
}
