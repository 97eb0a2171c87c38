package pool

import (
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
)

// serving makes the replica r of the pool one that is served.
func (w *world) serving(suspect bool) {
	w.t.Helper()
	b, err := json.Marshal(volume.State{Complete: true, BootID: "1", Suspect: suspect})
	if err == nil {
		err = w.engine().Replica("r").SetState(b, block.Version{Epoch: 1, N: 1})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// wantSuspect looks whether the replica r is suspect in the pool that is open, and would be to the next process.
func (w *world) wantSuspect(want bool) {
	w.t.Helper()
	var st volume.State
	if err := json.Unmarshal(w.engine().Replica("r").State(), &st); err != nil || st.Suspect != want {
		w.t.Errorf("suspect: %v, not %v (%v)", st.Suspect, want, err)
	}
	set := Settings{}
	if w.agent.opening(&set); set.Suspect {
		w.t.Error("the failure is noted still")
	}
	if _, err := os.Stat(w.agent.failedFile()); w.state != "" && !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("the node has it that the pool failed: %v", err)
	}
}

// killed is a new process of the pool after the one before was killed.
func (w *world) killed() {
	w.t.Helper()
	if eng, _ := w.agent.open(); eng != nil {
		eng.(*opened).Pool.Close() // as the kernel gives the devices back; what the agent did for it it does not do
	}
	real := w.agent.Storage
	w.restart()
	w.agent.Storage = real
	w.dropped = 0
}

// What was acknowledged before a pool failed may be gone, whoever opens it then.
func TestReplicasOfAPoolThatFailedAreSuspect(t *testing.T) {
	fails := func(w *world, m *disk.Mem) {
		w.t.Helper()
		m.Inject(disk.Faults{FailFlush: true})
		if err := w.write("lost"); !errors.Is(err, engine.ErrFailed) {
			w.t.Fatal(err)
		}
		m.Inject(disk.Faults{})
	}
	noted := func(w *world) { // the pool tells in a goroutine of its own
		for {
			if _, err := os.Stat(w.agent.failedFile()); err == nil {
				return
			}
			runtime.Gosched()
		}
	}
	for name, c := range map[string]struct {
		stateless bool
		happens   func(w *world, m *disk.Mem)
		suspect   bool
	}{
		"killed": {false, func(w *world, _ *disk.Mem) { w.killed() }, false},
		"opened again by the same process": {true, func(w *world, m *disk.Mem) {
			fails(w, m)
			w.now = w.now.Add(-15 * time.Second)
			w.pass()
			w.wantPhase(cstorv1.PoolFaulted)
		}, true},
		"killed when the agent has seen it": {false, func(w *world, m *disk.Mem) {
			fails(w, m)
			w.pass()
			w.killed()
		}, true},
		"killed before the agent has seen it": {false, func(w *world, m *disk.Mem) {
			fails(w, m)
			noted(w)
			w.killed()
		}, true},
		"killed twice": {false, func(w *world, m *disk.Mem) {
			fails(w, m)
			noted(w)
			w.killed()
			m.Disappear()
			w.pass()
			w.killed()
			m.Reappear()
		}, true},
		"it fails as it is closed": {false, func(w *world, m *disk.Mem) {
			r := w.engine().Replica("r")
			if err := r.PutState(r.State(), r.Applied()); err != nil {
				w.t.Fatal(err)
			}
			m.Inject(disk.Faults{FailFlush: true})
			if err := w.agent.stop(); err == nil {
				w.t.Error("closed")
			}
			m.Inject(disk.Faults{})
			w.killed()
		}, true},
		"it fails as it is opened": {false, func(w *world, m *disk.Mem) {
			w.killed()
			m.Inject(disk.Faults{FailFlush: true})
			w.pass()
			m.Inject(disk.Faults{})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			if c.stateless {
				state = ""
			}
			w, mems := onMemoryIn(t, state, "stripe", "a")
			if err := w.write("r"); err != nil {
				t.Fatal(err)
			}
			w.serving(false)
			if err := w.engine().Sync(); err != nil {
				t.Fatal(err)
			}
			c.happens(w, mems["/dev/a"])
			w.pass()
			w.untilPhase(cstorv1.PoolOnline)
			w.wantSuspect(c.suspect)
			if w.dropped == 0 {
				t.Error("what was cached of the device was kept")
			}
			// It is told once.
			w.serving(false)
			if err := w.engine().Sync(); err != nil {
				t.Fatal(err)
			}
			w.killed()
			w.pass()
			w.wantSuspect(false)
		})
	}
}

// A pool whose raid group has lost too much is FAULTED before it is asked for anything. That is noted although no request of
// the API server is answered, and the pool is opened by it without the API server too.
func TestAFailureIsNotedWithoutTheAPIServer(t *testing.T) {
	w, _ := outage(t)
	w.alone()
	if w.disks.set.Suspect {
		t.Error("suspect without a reason")
	}
	w.disks.pool.stats.Health, w.disks.pool.stats.Failure = engine.HealthFaulted, "stripe-0 has lost more than its redundancy"
	w.alone()
	w.restart()
	w.alone()
	if !w.disks.set.Suspect {
		t.Error("the pool was opened as if it had not failed")
	}
	w.disks.pool.stats.Health = engine.HealthOnline
	w.restart()
	w.alone()
	if w.disks.set.Suspect {
		t.Error("suspect once more")
	}
}
