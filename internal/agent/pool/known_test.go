package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/replica"
)

// outage is a world whose pool has a replica, when its process has been started again and no request is answered.
func outage(t *testing.T) (w *world, over func()) {
	w = newWorld(t, cstorv1.PoolPending, engine.ErrBlank)
	w.state = t.TempDir()
	w.restart()
	w.addReplica(cstorv1.ReplicaEmpty)
	w.pass()
	w.pass()
	if w.disks.pool.attached[cvr].Target != "10.0.0.9:6060" {
		t.Fatalf("attached: %v", w.disks.pool.attached)
	}
	server, down := w.client, errors.New("connection refused")
	w.client = interceptor.NewClient(server, interceptor.Funcs{
		Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
			return down
		},
		List:   func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error { return down },
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return down },
		Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
			return down
		},
	})
	w.restart()
	w.disks.pool.attached = nil
	return w, func() {
		w.client = server
		w.agent.Client = server
		w.agent.poolEvents.Client, w.agent.replicaEvents.Client = server, server
	}
}

// alone lets the agent look once, without the API server.
func (w *world) alone() {
	w.t.Helper()
	w.now = w.now.Add(16 * time.Second)
	if err := w.agent.Pass(w.ctx, true); err == nil {
		w.t.Fatal("no error without the API server")
	}
}

// deleteInstance removes the pool's object, whatever protects it, and returns it.
func (w *world) deleteInstance() *cstorv1.CStorPoolInstance {
	w.t.Helper()
	cr := w.instance()
	cr.Finalizers = nil
	if err := w.client.Update(w.ctx, cr); err != nil {
		w.t.Fatal(err)
	}
	if err := w.client.Delete(w.ctx, cr); err != nil {
		w.t.Fatal(err)
	}
	return cr
}

func TestPoolIsOpenedWithoutTheAPIServer(t *testing.T) {
	w, over := outage(t)
	w.alone()
	if err := w.agent.Ready(); err != nil {
		t.Fatal(err)
	}
	if got := w.disks.pool.attached[cvr]; got.Target != "10.0.0.9:6060" || got.ReplicaID != "42" {
		t.Errorf("served: %+v", w.disks.pool.attached)
	}
	if set := w.disks.set; set.ReadOnlyPercent != cstorv1.DefaultROThreshold || set.Compression != "lz4" || w.disks.created != 1 {
		t.Errorf("opened with %+v, created %d times", set, w.disks.created)
	}
	w.alone()
	if w.disks.pool.closed {
		t.Error("the pool was closed")
	}

	over()
	w.pass()
	if got := w.disks.pool.attached[cvr]; got.Target != "10.0.0.9:6060" || w.disks.pool.closed {
		t.Errorf("served: %+v", w.disks.pool.attached)
	}
	w.phases(func(s *replica.Status) { s.Connected, s.Complete, s.Member, s.InSync = true, true, true, true })
	if got := w.replica().Status.Phase; got != cstorv1.ReplicaHealthy {
		t.Errorf("replica is %s", got)
	}
	if got := w.instance().Status.Phase; got != cstorv1.PoolOnline {
		t.Errorf("pool is %s", got)
	}
}

// What was taken back while nobody could say so is found when the API server answers.
func TestReplicaThatIsNotWantedAnyMore(t *testing.T) {
	w, over := outage(t)
	w.alone()
	over()
	cr := w.replica()
	cr.Finalizers = nil
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Delete(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if p := w.disks.pool; len(p.attached) != 0 || len(p.known) != 0 || p.replicas[cvr] == nil {
		t.Errorf("served %v, known %v, there %v", p.attached, p.known, p.replicas)
	}
}

func TestPoolOfAnEarlierObject(t *testing.T) {
	w, over := outage(t)
	w.alone()
	over()
	cr := w.instance()
	w.deleteInstance()
	cr.ResourceVersion, cr.UID = "", "another"
	if err := w.client.Create(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	if err := w.agent.Pass(w.ctx, true); !errors.Is(err, errNotOurs) {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(w.state); len(left) != 0 {
		t.Errorf("kept: %v", left)
	}
}

func TestPoolIsNotOpenedWithoutTheAPIServer(t *testing.T) {
	for name, change := range map[string]func(w *world, over func()){
		"blank":        func(w *world, _ func()) { w.disks.content["/dev/sdb"] = engine.ErrBlank },
		"of another":   func(w *world, _ func()) { w.disks.content["/dev/sdb"].(*engine.Label).Owner = "another" },
		"gone":         func(w *world, _ func()) { delete(w.disks.content, "/dev/sdb") },
		"nothing kept": func(w *world, _ func()) { os.Remove(filepath.Join(w.state, cspi+".json")) },
		"garbage kept": func(w *world, _ func()) { os.WriteFile(filepath.Join(w.state, cspi+".json"), []byte("{"), 0o600) },
		"answered": func(w *world, over func()) {
			over()
			w.deleteInstance()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, over := outage(t)
			change(w, over)
			w.alone()
			if w.agent.Ready() == nil || len(w.disks.pool.attached) != 0 || w.disks.created != 1 {
				t.Errorf("open: %v, served %v, created %d times", w.agent.Ready(), w.disks.pool.attached, w.disks.created)
			}
		})
	}
}

func TestDestroyedPoolIsForgotten(t *testing.T) {
	w := newWorld(t, cstorv1.PoolPending, engine.ErrBlank)
	w.state = t.TempDir()
	w.restart()
	w.pass()
	if left, _ := os.ReadDir(w.state); len(left) != 1 {
		t.Fatalf("kept: %v", left)
	}
	if err := w.client.Delete(w.ctx, w.instance()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if left, _ := os.ReadDir(w.state); len(left) != 0 {
		t.Errorf("kept: %v", left)
	}
}
