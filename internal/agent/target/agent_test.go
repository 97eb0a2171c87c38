package target

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

const (
	ns = "openebs"
	pv = "pvc-1"
)

// fakeTarget is a target whose status the test says; it adopts at once what is wanted.
type fakeTarget struct {
	st    volume.Status
	wants []volume.Desired
	above []uint64
	cut   bool
}

func (t *fakeTarget) Want(d volume.Desired)    { t.wants = append(t.wants, d); t.st.Desired = d }
func (t *fakeTarget) Above(e uint64)           { t.above = append(t.above, e) }
func (t *fakeTarget) CutOff(yes bool)          { t.cut = yes }
func (t *fakeTarget) Status() volume.Status    { return t.st }
func (t *fakeTarget) Changed() <-chan struct{} { return nil }

// world is an agent between a fake target and a fake API server that remembers every state of the CStorVolume.
type world struct {
	t       *testing.T
	ctx     context.Context
	client  client.WithWatch
	agent   *Agent
	target  *fakeTarget
	now     time.Time
	history []cstorv1.CStorVolume
	before  func() // runs once, before the next patch of the CStorVolume
}

func guid(n byte) block.GUID { return block.GUID{15: n} }

// id of the n-th replica's place.
func id(n byte) string { return "100" + string('0'+rune(n)) }

func newWorld(t *testing.T, factor int) *world {
	w := &world{t: t, ctx: t.Context(), target: &fakeTarget{}, now: time.Unix(1_800_000_000, 0)}
	cv := &cstorv1.CStorVolume{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, UID: "cv-uid"},
		Spec: cstorv1.CStorVolumeSpec{
			Capacity: resource.MustParse("5Gi"), ReplicationFactor: factor, DesiredReplicationFactor: factor,
			ConsistencyFactor: cstorv1.ConsistencyFactor(factor),
		},
	}
	w.client = fake.NewClientBuilder().WithScheme(kube.Scheme()).WithObjects(cv).WithInterceptorFuncs(interceptor.Funcs{
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, p client.Patch, opts ...client.PatchOption) error {
			if _, ok := obj.(*cstorv1.CStorVolume); !ok {
				return c.Patch(ctx, obj, p, opts...)
			}
			if f := w.before; f != nil {
				w.before = nil
				f()
			}
			if err := c.Patch(ctx, obj, p, opts...); err != nil {
				return err
			}
			w.history = append(w.history, *obj.DeepCopyObject().(*cstorv1.CStorVolume))
			return nil
		},
	}).Build()
	w.agent = New(Config{
		Client: w.client, Namespace: ns, Volume: pv, Pod: "target-pod", Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return w.now },
	})
	if _, err := w.agent.Load(w.ctx, nil); err != nil {
		t.Fatal(err)
	}
	w.agent.target = w.target
	w.agent.wanted = Desired(w.agent.cv)
	w.target.st.Desired = w.agent.wanted
	return w
}

// serve makes replicas 1…n healthy members.
func (w *world) serve(members ...byte) {
	w.target.st.Serving, w.target.st.Holding = true, ""
	w.target.st.Committed = volume.List{Epoch: 1, Generation: w.target.st.Committed.Generation + 1}
	w.target.st.Replicas = nil
	for _, n := range members {
		w.target.st.Committed.Members = append(w.target.st.Committed.Members, guid(n))
		w.target.st.Replicas = append(w.target.st.Replicas, volume.Replica{GUID: guid(n), ReplicaID: id(n), Member: true, Mode: volume.Healthy})
	}
}

func (w *world) pass() {
	w.t.Helper()
	for range 3 { // a conflict is answered by reading again
		err := w.agent.Pass(w.ctx, true)
		if err == nil {
			return
		} else if !apierrors.IsConflict(err) {
			w.t.Fatal(err)
		}
	}
	w.t.Fatal("conflicts do not end")
}

func (w *world) cv() *cstorv1.CStorVolume {
	w.t.Helper()
	cv := &cstorv1.CStorVolume{}
	if err := w.client.Get(w.ctx, client.ObjectKey{Namespace: ns, Name: pv}, cv); err != nil {
		w.t.Fatal(err)
	}
	return cv
}

// edit is an update by the operator.
func (w *world) edit(change func(*cstorv1.CStorVolume)) {
	w.t.Helper()
	cv := w.cv()
	change(cv)
	if err := w.client.Update(w.ctx, cv); err != nil {
		w.t.Fatal(err)
	}
}

// replica writes the phase of a replica's own object.
func (w *world) replica(n byte, phase cstorv1.ReplicaPhase) {
	w.t.Helper()
	cr := &cstorv1.CStorVolumeReplica{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv + "-pool" + id(n), Labels: map[string]string{cstorv1.LabelVolumeName: pv}},
		Spec:       cstorv1.CStorVolumeReplicaSpec{ReplicaID: id(n)},
		Status:     cstorv1.CStorVolumeReplicaStatus{Phase: phase},
	}
	w.client.Delete(w.ctx, cr.DeepCopy())
	if err := w.client.Create(w.ctx, cr); err != nil {
		w.t.Fatal(err)
	}
}

// events returns "type reason message" of all, sorted.
func (w *world) events() []string {
	w.t.Helper()
	list := &corev1.EventList{}
	if err := w.client.List(w.ctx, list); err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, strings.Join([]string{e.Type, e.Reason, e.Message}, " "))
	}
	slices.Sort(out)
	return out
}

func (w *world) wantMembers(rf int, ids ...string) {
	w.t.Helper()
	cv := w.cv()
	spec, status := idsOf(cv.Spec.ReplicaDetails), idsOf(cv.Status.ReplicaDetails)
	if !slices.Equal(spec, ids) || !slices.Equal(status, ids) {
		w.t.Errorf("known replicas: spec %v, status %v, want %v", spec, status, ids)
	}
	if cv.Spec.ReplicationFactor != rf || cv.Spec.ConsistencyFactor != rf/2+1 {
		w.t.Errorf("RF %d CF %d, want %d and %d", cv.Spec.ReplicationFactor, cv.Spec.ConsistencyFactor, rf, rf/2+1)
	}
}

func idsOf(d cstorv1.CStorVolumeReplicaDetails) []string {
	return slices.Sorted(maps.Keys(d.KnownReplicas))
}

func TestFounding(t *testing.T) {
	w := newWorld(t, 2)
	w.pass()
	if cv := w.cv(); cv.Status.Phase != cstorv1.VolumeInit || len(cv.Status.ReplicaDetails.KnownReplicas) != 0 {
		t.Fatalf("before it was founded: %+v", cv.Status)
	}
	w.replica(1, cstorv1.ReplicaOffline) // founders are shown without waiting for anything
	w.serve(1, 2)
	w.pass()
	w.wantMembers(2, id(1), id(2))
	cv := w.cv()
	if cv.Status.Phase != cstorv1.VolumeHealthy || cv.Status.DesiredReplicationFactor != 2 || cv.Status.Capacity.String() != "5Gi" {
		t.Errorf("status %+v", cv.Status)
	}
	if got := cv.Status.ReplicaStatuses; len(got) != 2 || got[0].ID != guid(1).String() || got[0].Mode != "Healthy" || got[0].Quorum != "1" {
		t.Errorf("replica statuses %+v", got)
	}
	if cv.Status.ReplicaDetails.KnownReplicas[id(2)] != guid(2).String() {
		t.Errorf("known %v", cv.Status.ReplicaDetails)
	}
	if got, want := w.events(), []string{"Normal Healthy Volume is in Healthy state", "Normal Init Volume is in Init state"}; !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
	ev := &corev1.Event{}
	if err := w.client.Get(w.ctx, client.ObjectKey{Namespace: ns, Name: pv + ".Healthy"}, ev); err != nil || ev.Source.Component != "target-pod" {
		t.Errorf("event %+v: %v", ev, err)
	}
	n := len(w.history)
	w.now = w.now.Add(time.Second)
	w.pass()
	if len(w.history) != n {
		t.Error("a pass without news wrote something")
	}
	w.now = w.now.Add(heartbeat)
	w.pass()
	if len(w.history) != n+1 {
		t.Error("no heartbeat")
	}
}

// migrate drives a volume of two through a scale-up to the point where the third replica is a member.
func migrate(t *testing.T) *world {
	w := newWorld(t, 2)
	w.serve(1, 2)
	w.pass()
	w.edit(func(cv *cstorv1.CStorVolume) { cv.Spec.DesiredReplicationFactor = 3 })
	w.pass()
	if last := w.target.wants[len(w.target.wants)-1]; last.Factor != 3 || len(last.Remove) != 0 {
		t.Fatalf("wanted %+v", last)
	}
	w.pass()
	if w.cv().Status.DesiredReplicationFactor != 3 {
		t.Fatal("adopted factor not shown")
	}
	w.serve(1, 2, 3)
	return w
}

func TestScaleUpIsCountedAfterTheReplicaShowsHealthy(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaReconstructing)
	w.pass()
	w.wantMembers(2, id(1), id(2))
	w.replica(3, cstorv1.ReplicaHealthy)
	w.pass()
	w.wantMembers(3, id(1), id(2), id(3))
	if !slices.Contains(w.events(), "Normal Updated Successfully updated the desiredReplicationFactor to 3") {
		t.Errorf("events %q", w.events())
	}
}

func TestNewMemberIsShownInTheEnd(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaReconstructing)
	w.pass()
	w.now = w.now.Add(holdLimit)
	w.pass()
	w.wantMembers(3, id(1), id(2), id(3))
}

func TestCancelledScaleUpShowsMembersWithTheAdoption(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaReconstructing)
	w.pass() // held
	w.edit(func(cv *cstorv1.CStorVolume) { cv.Spec.DesiredReplicationFactor = 2 })
	w.history = nil
	w.pass()
	for _, cv := range w.history {
		if cv.Status.DesiredReplicationFactor == 2 && len(cv.Status.ReplicaDetails.KnownReplicas) != 3 {
			t.Fatalf("2 adopted, but members shown are %v", cv.Status.ReplicaDetails.KnownReplicas)
		}
	}
	w.wantMembers(3, id(1), id(2), id(3))
}

func TestScaleDown(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaHealthy)
	w.pass()
	w.history = nil
	w.edit(func(cv *cstorv1.CStorVolume) {
		cv.Spec.DesiredReplicationFactor = 2
		delete(cv.Spec.ReplicaDetails.KnownReplicas, id(1))
	})
	w.pass()
	if last := w.target.wants[len(w.target.wants)-1]; last.Factor != 2 || !slices.Equal(last.Remove, []block.GUID{guid(1)}) {
		t.Fatalf("wanted %+v", last)
	}
	if cv := w.cv(); cv.Spec.ReplicationFactor != 3 || len(cv.Status.ReplicaDetails.KnownReplicas) != 3 {
		t.Fatalf("shown as removed before it was: %+v %+v", cv.Spec, cv.Status)
	}
	w.target.st.Removing = "replica 2 is not in sync"
	w.pass()
	w.now = w.now.Add(removeGrace)
	w.pass()
	want := "Warning FailUpdate failed to update desired replication factor to 2 Error: replica 2 is not in sync"
	if !slices.Contains(w.events(), want) {
		t.Errorf("events %q", w.events())
	}
	w.target.st.Removing = ""
	w.serve(2, 3)
	w.pass()
	w.wantMembers(2, id(2), id(3))
	if !slices.Contains(w.events(), "Normal Updated Successfully updated the desiredReplicationFactor to 2") {
		t.Errorf("events %q", w.events())
	}
	for _, cv := range w.history {
		if _, back := cv.Spec.ReplicaDetails.KnownReplicas[id(1)]; back {
			t.Fatal("an id that the operator removed was put back")
		}
	}
}

func TestScaleDownBeforeTheNewMemberIsShown(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaHealthy)
	// Between the agent's reading and its writing the operator removes the first replica.
	w.before = func() {
		w.edit(func(cv *cstorv1.CStorVolume) {
			cv.Spec.DesiredReplicationFactor = 2
			delete(cv.Spec.ReplicaDetails.KnownReplicas, id(1))
		})
	}
	w.pass()
	w.pass()
	cv := w.cv()
	if got := idsOf(cv.Spec.ReplicaDetails); !slices.Equal(got, []string{id(2), id(3)}) {
		t.Errorf("spec %v", got)
	}
	last := w.target.wants[len(w.target.wants)-1]
	if !slices.Equal(last.Remove, []block.GUID{guid(1)}) {
		t.Errorf("wanted %+v, the new member must stay", last)
	}
}

func TestRemovalTakenBack(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaHealthy)
	w.pass()
	w.edit(func(cv *cstorv1.CStorVolume) {
		cv.Spec.DesiredReplicationFactor = 2
		delete(cv.Spec.ReplicaDetails.KnownReplicas, id(1))
	})
	w.pass()
	w.edit(func(cv *cstorv1.CStorVolume) {
		cv.Spec.DesiredReplicationFactor = 3
		cv.Spec.ReplicaDetails.KnownReplicas[id(1)] = guid(1).String()
	})
	w.pass()
	if last := w.target.wants[len(w.target.wants)-1]; last.Factor != 3 || len(last.Remove) != 0 {
		t.Errorf("wanted %+v", last)
	}
}

func TestOldListIsNotShownBeforeServing(t *testing.T) {
	w := migrate(t)
	w.replica(3, cstorv1.ReplicaHealthy)
	w.pass()
	w.serve(1, 2) // what a single replica with an old list says to a target that has just started
	w.target.st.Serving, w.target.st.Holding = false, "waiting for a quorum of replicas"
	w.pass()
	w.wantMembers(3, id(1), id(2), id(3))
	if cv := w.cv(); cv.Status.Phase != cstorv1.VolumeOffline || cv.Status.Message != "waiting for a quorum of replicas" {
		t.Errorf("status %+v", cv.Status)
	}
}

func TestPhase(t *testing.T) {
	member := func(m volume.Mode) volume.Replica { return volume.Replica{Member: true, Mode: m} }
	for _, c := range []struct {
		name    string
		serving bool
		list    int
		modes   []volume.Replica
		want    cstorv1.VolumePhase
	}{
		{"all", true, 3, []volume.Replica{member(volume.Healthy), member(volume.Healthy), member(volume.Healthy)}, cstorv1.VolumeHealthy},
		{"quorum", true, 3, []volume.Replica{member(volume.Healthy), member(volume.Healthy), member(volume.Rebuilding)}, cstorv1.VolumeHealthy},
		{"below", true, 3, []volume.Replica{member(volume.Healthy), member(volume.Offline), member(volume.Rebuilding)}, cstorv1.VolumeDegraded},
		{"others do not count", true, 2, []volume.Replica{member(volume.Healthy), {Mode: volume.Healthy}}, cstorv1.VolumeDegraded},
		{"held", false, 2, []volume.Replica{member(volume.Healthy), member(volume.Healthy)}, cstorv1.VolumeOffline},
	} {
		cv := &cstorv1.CStorVolume{}
		cv.Status.ReplicaDetails.KnownReplicas = map[string]string{"1": "x"}
		st := volume.Status{Serving: c.serving, Replicas: c.modes, Committed: volume.List{Members: make([]block.GUID, c.list)}}
		if got := phaseOf(cv, st); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestInvalidFactorsAreReported(t *testing.T) {
	w := newWorld(t, 2)
	w.edit(func(cv *cstorv1.CStorVolume) { cv.Spec.DesiredReplicationFactor = 6 })
	w.pass()
	if cv := w.cv(); cv.Status.Phase != cstorv1.VolumeInvalid || !strings.Contains(cv.Status.Message, "6 is more than 5") {
		t.Errorf("status %+v", cv.Status)
	}
	if len(w.target.wants) != 0 {
		t.Error("an invalid wish reached the target")
	}
}

func TestShutdownSaysOffline(t *testing.T) {
	w := newWorld(t, 2)
	w.serve(1, 2)
	w.pass()
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	w.agent.Run(ctx, w.target)
	if cv := w.cv(); cv.Status.Phase != cstorv1.VolumeOffline || len(cv.Status.ReplicaDetails.KnownReplicas) != 2 {
		t.Errorf("status %+v", cv.Status)
	}
}

func TestMissingReplicasAreNamed(t *testing.T) {
	w := newWorld(t, 2)
	for n := byte(1); n <= 2; n++ {
		r := &cstorv1.CStorVolumeReplica{ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: pv + "-pool-" + string('0'+rune(n)), Labels: map[string]string{cstorv1.LabelVolumeName: pv}}}
		r.Status.GUID = guid(n).String()
		if err := w.client.Create(w.ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	w.target.st.Holding = "missing: " + guid(1).String() + ", " + guid(2).String() + ", " + guid(3).String()
	w.pass()
	if got, want := w.cv().Status.Message, "missing: pvc-1-pool-1, pvc-1-pool-2, "+guid(3).String(); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}
