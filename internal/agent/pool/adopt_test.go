package pool

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// onFiles is an agent on a node whose disks are files.
func onFiles(t *testing.T, kind, devices string, paths []string) *world {
	t.Helper()
	w := newWorld(t, "", engine.ErrBlank)
	for i, name := range strings.Fields(strings.ReplaceAll(devices, ",", " ")) {
		w.addDevice(name, engine.ErrBlank)
		w.carry(name, paths[i])
	}
	w.list(kind, devices)
	w.start()
	return w
}

// start is a new process of the pool with the node's real disks.
func (w *world) start() {
	w.t.Helper()
	w.restart()
	w.agent.Storage = storage()
	agent := w.agent
	w.t.Cleanup(func() {
		if eng, _ := agent.open(); eng != nil {
			eng.Close()
		}
	})
	w.pass()
	w.pass()
}

// stop ends the pool's process.
func (w *world) stop() {
	w.t.Helper()
	if err := w.agent.stop(); err != nil {
		w.t.Fatal(err)
	}
	w.agent.setOpen(nil, nil, "")
}

// carry puts a disk in elsewhere: its BlockDevice has another path.
func (w *world) carry(name, path string) {
	w.t.Helper()
	bd := get(w, name, &openebsv1alpha1.BlockDevice{})
	bd.Spec.Path = path
	if err := w.client.Update(w.ctx, bd); err != nil {
		w.t.Fatal(err)
	}
}

// lose replaces the pool's object by one of another cluster of pools, of the same name and with the same devices.
func (w *world) lose(cluster, uid types.UID, annotations map[string]string) {
	w.t.Helper()
	cr := w.deleteInstance()
	cr.ObjectMeta = metav1.ObjectMeta{Namespace: ns, Name: cspi, UID: uid, Labels: cr.Labels, OwnerReferences: cr.OwnerReferences, Annotations: annotations}
	cr.OwnerReferences[0].UID = cluster
	cr.Status = cstorv1.CStorPoolInstanceStatus{}
	if err := w.client.Create(w.ctx, cr); err != nil {
		w.t.Fatal(err)
	}
}

// Disks are carried to another node, where they have other paths and come in another order; one is left behind.
func TestDisksAreCarriedToAnotherNode(t *testing.T) {
	paths := files(t, 4)
	w := onFiles(t, "mirror", "a b,c d", paths)
	w.wantPhase(cstorv1.PoolOnline)
	if err := w.write("before"); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.wantPhase(cstorv1.PoolOffline)
	there := t.TempDir()
	for i, name := range []string{"d", "a", "c"} {
		to := filepath.Join(there, []string{"sdx", "sdy", "sdz"}[i])
		if err := os.Rename(paths[slices.Index([]string{"a", "b", "c", "d"}, name)], to); err != nil {
			t.Fatal(err)
		}
		w.carry(name, to)
	}
	left := paths[1] + ".left"
	if err := os.Rename(paths[1], left); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.wantPhase(cstorv1.PoolDegraded)
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "Following disks [b] are unavailable/faulted")
	if w.engine().Replica("before") == nil {
		t.Error("the pool lacks a replica")
	}
	w.carry("b", left)
	w.untilPhase(cstorv1.PoolOnline)
	if n := w.count("Pool Imported"); n != 1 || w.count("Pool created") != 1 {
		t.Errorf("imported %d times", n)
	}
}

// The objects of a cluster are lost. The pool is refused with a way out, and taken over when somebody asks for it.
func TestPoolOfLostObjects(t *testing.T) {
	paths := files(t, 3)
	w := onFiles(t, "mirror", "a b", paths)
	if err := w.write("before"); err != nil {
		t.Fatal(err)
	}
	w.stop()
	w.lose("cspc-2", "cspi-2", nil)
	w.start()
	w.wantPhase(cstorv1.PoolCreationFailed)
	const existing = "cstor-cspc-uid"
	w.wantEvents(`belongs to pool "cstor-cspc-uid" of another owner (cspi-uid); to take that pool over with its data, annotate the CStorPoolCluster with ` +
		cstorv1.AnnotationExistingPool + "=" + existing + "; wipe the device if it may be used anew")

	// One disk is away while that is done.
	away := paths[1] + ".away"
	if err := os.Rename(paths[1], away); err != nil {
		t.Fatal(err)
	}
	cr := w.instance()
	cr.Annotations = map[string]string{cstorv1.AnnotationExistingPool: existing}
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantPhase(cstorv1.PoolDegraded)
	w.wantEvents("Normal Pool Imported Pool Import successful: cstor-cspc-2, taken over from cstor-cspc-uid (cspi-uid) with replicas before")
	l, err := storage().Probe(paths[0])
	if err != nil || l.Name != "cstor-cspc-2" || l.Owner != "cspi-2" {
		t.Errorf("label %+v, %v", l, err)
	}
	if err := os.Rename(away, paths[1]); err != nil {
		t.Fatal(err)
	}
	w.untilPhase(cstorv1.PoolOnline)

	// From then on it is an ordinary one, with the annotation or without.
	w.stop()
	cr = w.instance()
	cr.Annotations = nil
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.wantPhase(cstorv1.PoolOnline)
	if w.engine().Replica("before") == nil {
		t.Error("the pool lacks a replica")
	}
}

// A device that was away when the pool was taken over still carries its former owner.
func TestStaleDeviceOfAPoolThatWasTakenOver(t *testing.T) {
	paths := files(t, 2)
	w := onFiles(t, "mirror", "a b", paths)
	w.stop()
	away := paths[1] + ".away"
	if err := os.Rename(paths[1], away); err != nil {
		t.Fatal(err)
	}
	w.lose("cspc-2", "cspi-2", map[string]string{cstorv1.AnnotationExistingPool: "cstor-cspc-uid"})
	w.start()
	w.wantPhase(cstorv1.PoolDegraded)
	w.stop()
	if err := os.Rename(away, paths[1]); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.untilPhase(cstorv1.PoolOnline)
	if l, err := storage().Probe(paths[1]); err != nil || l.Owner != "cspi-2" {
		t.Errorf("label %+v, %v", l, err)
	}
}
