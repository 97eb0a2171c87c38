package pool

import (
	"errors"
	"strings"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/label"
)

var foreign = &engine.ErrForeign{Device: "/dev/sdb", Found: "xfs filesystem"}

func TestJudge(t *testing.T) {
	blank := func(n string) listed { return listed{name: n, err: engine.ErrBlank} }
	gone := func(n string) listed { return listed{name: n, err: errors.New("no such file")} }
	mine := func(n string, generation uint64, members ...byte) listed {
		l := &engine.Label{Pool: block.GUID{1}, Owner: cspiUID, Device: block.GUID{n[0]}, Generation: generation}
		for _, m := range members {
			l.Members = append(l.Members, label.Member{GUID: block.GUID{m}})
		}
		return listed{name: n, label: l}
	}
	other := listed{name: "c", label: &engine.Label{Pool: block.GUID{2}, Name: "cstor-x", Owner: "y", Device: block.GUID{'c'}, Members: []label.Member{{GUID: block.GUID{'c'}}}}}
	third := listed{name: "d", label: &engine.Label{Pool: block.GUID{3}, Name: "cstor-x", Owner: "z", Device: block.GUID{'d'}}}
	for _, c := range []struct {
		name    string
		devices []listed
		made    bool
		want    verdict
		ours    int
		why     string
		adopt   string
	}{
		{"new", []listed{blank("a"), blank("b")}, false, create, 0, "", ""},
		{"known", []listed{mine("a", 1, 'a', 'b'), mine("b", 1, 'a', 'b')}, true, imports, 2, "", ""},
		{"created, but the process died before it said so", []listed{mine("a", 1, 'a')}, false, imports, 1, "", ""},
		{"died while it created", []listed{mine("a", 1, 'a', 'b'), blank("b")}, false, create, 1, "", ""},
		{"died while it created, and a disk went away", []listed{mine("a", 1, 'a', 'b'), blank("b"), gone("c")}, false, impossible, 0, "c: no such file", ""},
		{"not all there to create", []listed{blank("a"), gone("b")}, false, impossible, 0, "b: no such file", ""},
		{"disks replaced by blank ones", []listed{blank("a")}, true, impossible, 0, "a are blank, but the pool was made before", ""},
		{"one disk replaced by a blank one", []listed{mine("a", 1, 'a', 'b'), blank("b")}, true, imports, 1, "b: device  is blank", ""},
		{"one disk gone", []listed{mine("a", 1, 'a', 'b'), gone("b")}, true, imports, 1, "b: no such file", ""},
		{"one disk gone of a pool that did not say yet that it was made", []listed{mine("a", 1, 'a', 'b'), gone("b")}, false, imports, 1, "b: no such file", ""},
		{"all disks gone", []listed{gone("a"), gone("b")}, true, impossible, 0, "b: no such file", ""},
		{"one that was replaced is listed again", []listed{mine("x", 1, 'a', 'x'), mine("a", 2, 'a', 'b'), mine("b", 2, 'a', 'b')}, true, imports, 2, "x: device  is not a member of pool", ""},
		{"one that was replaced is blank by now", []listed{mine("a", 2, 'a'), {name: "x", leaving: true, err: engine.ErrBlank}}, true, imports, 1, "", ""},
		{"foreign", []listed{blank("a"), {name: "b", err: foreign}}, false, impossible, 0, "xfs filesystem", ""},
		{"damaged", []listed{{name: "a", err: engine.ErrDamaged}}, false, impossible, 0, "damaged", ""},
		{"another pool", []listed{other}, false, impossible, 0, `pool "cstor-x" of another owner`, ""},
		{"one of another pool", []listed{mine("a", 1, 'a'), other}, true, imports, 1, `pool "cstor-x" of another owner`, ""},
		{"no disks", nil, false, impossible, 0, "lists no devices", ""},
		{"to be taken over", []listed{other, gone("a")}, false, adopts, 1, "a: no such file", "cstor-x"},
		{"to be taken over by one that was restored", []listed{other, blank("a")}, true, adopts, 1, "a: device  is blank", "cstor-x"},
		{"to be taken over, beside a blank disk", []listed{other, blank("a")}, false, adopts, 1, "a: device  is blank", "cstor-x"},
		{"another one is to be taken over", []listed{other}, false, impossible, 0, "annotate the CStorPoolCluster with import.cspi.cstor.openebs.io/existing-pool-name=cstor-x", "cstor-z"},
		{"two of that name", []listed{other, third}, false, impossible, 0, "c and d carry two pools named cstor-x", "cstor-x"},
		{"was taken over", []listed{mine("a", 1, 'a')}, false, imports, 1, "", "cstor-x"},
		{"was taken over, and there is another one of that name", []listed{mine("a", 1, 'a'), other}, true, imports, 1, "c: device  belongs to pool", "cstor-x"},
		{"nothing to be taken over", []listed{blank("a")}, false, impossible, 0, "a are blank, and annotation", "cstor-x"},
	} {
		got, ours, err := judge(c.devices, identity{cspiUID, c.adopt, c.made})
		if got != c.want || len(ours) != c.ours || (err != nil) != (c.why != "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, %d devices, %v", c.name, got, len(ours), err)
		}
	}
}

func TestPoolIsCreated(t *testing.T) {
	w := newWorld(t, cstorv1.PoolPending, engine.ErrBlank)
	if w.agent.Ready() == nil {
		t.Error("ready before the pool is open")
	}
	w.pass()
	cr := w.instance()
	if cr.Status.Phase != cstorv1.PoolOnline || cr.Status.ReadOnly {
		t.Errorf("status %+v", cr.Status)
	}
	if c := cr.Status.Capacity; c.Used.String() != "230k" || c.Total.String() != "10G" {
		t.Errorf("capacity %s of %s", c.Used.String(), c.Total.String())
	}
	if !hasFinalizer(cr) {
		t.Error("no pool protection")
	}
	if err := w.agent.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	w.wantEvents("CStorPoolInstance Normal Created Pool created successfully")
	lease := get(w, cspi, &coordinationv1.Lease{})
	if *lease.Spec.HolderIdentity != "pod" || !lease.Spec.RenewTime.Time.Equal(w.now) {
		t.Errorf("lease %+v", lease.Spec)
	}
}

func TestPoolIsImportedAfterARestart(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	w.restart()
	w.pass()
	w.wantEvents("Normal Pool Imported Pool Import successful: cstor-cspc-uid")
	if w.disks.created != 1 {
		t.Errorf("created %d times", w.disks.created)
	}
}

func TestForeignDeviceIsNeverFormatted(t *testing.T) {
	w := newWorld(t, cstorv1.PoolPending, foreign)
	w.pass()
	w.pass()
	if w.disks.created != 0 {
		t.Fatal("a foreign device was formatted")
	}
	if p := w.instance().Status.Phase; p != cstorv1.PoolCreationFailed {
		t.Errorf("phase %s", p)
	}
	w.wantEvents("Warning FailCreate Failed to create pool due to 'bd-1: device /dev/sdb: device /dev/sdb is not blank: found xfs filesystem")
	if err := w.agent.Ready(); err == nil || !strings.Contains(err.Error(), "xfs") {
		t.Errorf("ready: %v", err)
	}
	w.disks.content["/dev/sdb"] = engine.ErrBlank // the user wiped it
	w.pass()
	if p := w.instance().Status.Phase; p != cstorv1.PoolOnline {
		t.Errorf("phase %s after the device was wiped", p)
	}
}

func TestLostPoolIsNotMadeAnew(t *testing.T) {
	w := newWorld(t, cstorv1.PoolPending, engine.ErrBlank)
	w.pass()
	kept := w.disks.content["/dev/sdb"]
	w.disks.content["/dev/sdb"] = engine.ErrBlank
	w.restart()
	w.pass()
	cr := w.instance()
	if w.disks.created != 1 || cr.Status.Phase != cstorv1.PoolOffline {
		t.Fatalf("created %d times, phase %s", w.disks.created, cr.Status.Phase)
	}
	if len(cr.Status.Conditions) != 1 || cr.Status.Conditions[0].Type != "PoolLost" || cr.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("conditions %+v", cr.Status.Conditions)
	}
	w.wantEvents("Warning FailedSync")
	w.disks.content["/dev/sdb"] = kept
	w.pass()
	if cr := w.instance(); cr.Status.Phase != cstorv1.PoolOnline || len(cr.Status.Conditions) != 0 {
		t.Errorf("after its return: %+v", cr.Status)
	}
}

func TestPoolThatFailsIsNotOnline(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	w.disks.pool.stats.Health, w.disks.pool.stats.Failure = "FAULTED", errDisk.Error()
	w.pass()
	cr := w.instance()
	if cr.Status.Phase != cstorv1.PoolFaulted || len(cr.Status.Conditions) != 1 || !strings.HasPrefix(cr.Status.Conditions[0].Message, errDisk.Error()+"; the pool takes no writes, it is opened again at ") {
		t.Errorf("status %+v", cr.Status)
	}
}

func TestReadOnlyThreshold(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	w.disks.pool.stats.ReadOnly = true
	w.disks.pool.stats.Allocated, w.disks.pool.stats.Free = 9*gib, 1*gib
	w.pass()
	if !w.instance().Status.ReadOnly {
		t.Error("not shown read-only")
	}
	w.wantEvents("Warning PoolReadOnlyThreshold Pool is read-only: 90% of its space is used, the limit is 85%")
	w.disks.pool.stats.ReadOnly = false
	w.pass()
	w.wantEvents("Normal PoolReadOnlyThreshold")
}

func TestConditionsOfOthersStay(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	cr := w.instance()
	cr.Status.Conditions = []cstorv1.CStorPoolInstanceCondition{{Type: cstorv1.PoolUnheard, Status: corev1.ConditionFalse}}
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.disks.pool.stats.Health, w.disks.pool.stats.Failure = "FAULTED", "x"
	w.pass()
	if got := w.instance().Status.Conditions; len(got) != 2 || got[0].Type != cstorv1.PoolUnheard {
		t.Errorf("conditions %+v", got)
	}
}

func TestShutdownSaysOffline(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	if err := w.agent.stop(); err != nil {
		t.Fatal(err)
	}
	if p := w.instance().Status.Phase; p != cstorv1.PoolOffline {
		t.Errorf("pool %s", p)
	}
	if p := w.replica().Status.Phase; p != cstorv1.ReplicaOffline {
		t.Errorf("replica %s", p)
	}
	if !w.disks.pool.closed {
		t.Error("pool not closed")
	}
}

func TestPoolIsDestroyedWhenItsReplicasAreGone(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	if err := w.client.Delete(w.ctx, w.instance()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if p := w.instance().Status.Phase; p != cstorv1.PoolDeletionFailed {
		t.Errorf("phase %s while a replica is there", p)
	}
	w.wantEvents("Warning FailDestroy")
	if err := w.client.Delete(w.ctx, w.replica()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.pass()
	err := w.client.Get(w.ctx, types.NamespacedName{Namespace: ns, Name: cspi}, &cstorv1.CStorPoolInstance{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("pool's object: %v", err)
	}
	if w.disks.content["/dev/sdb"] != engine.ErrBlank {
		t.Error("device was not given back")
	}
	if err := w.agent.Pass(w.ctx, true); err != nil {
		t.Errorf("after the deletion: %v", err)
	}
	if w.disks.created != 1 {
		t.Error("pool was made anew")
	}
}

func TestPoolThatWasNeverMadeCanBeDeleted(t *testing.T) {
	w := newWorld(t, cstorv1.PoolPending, foreign)
	w.pass()
	if err := w.client.Delete(w.ctx, w.instance()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	err := w.client.Get(w.ctx, types.NamespacedName{Namespace: ns, Name: cspi}, &cstorv1.CStorPoolInstance{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("pool's object: %v", err)
	}
}

func TestApplyWritesOnlyWhatDiffers(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	w.pass()
	version := w.instance().ResourceVersion
	w.pass()
	if got := w.instance().ResourceVersion; got != version {
		t.Error("a pass without news wrote the pool's object")
	}
	diff, err := kube.Diff(w.instance(), kube.Fields{"status": kube.Fields{"phase": "OFFLINE", "readOnly": false}})
	if err != nil || len(diff) != 1 || len(diff["status"].(kube.Fields)) != 1 {
		t.Errorf("diff %v, %v", diff, err)
	}
}
