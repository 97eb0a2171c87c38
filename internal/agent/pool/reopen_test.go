package pool

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// kept is a device in memory that whoever had it open gives back.
type kept struct{ *disk.Mem }

func (kept) Close() error { return nil }

// onMemory is an agent with the real engine, and the devices below it.
func onMemory(t *testing.T, kind, devices string) (w *world, mems map[string]*disk.Mem) {
	t.Helper()
	return onMemoryIn(t, "", kind, devices)
}

// onMemoryIn is onMemory with a directory of the node.
func onMemoryIn(t *testing.T, state, kind, devices string) (w *world, mems map[string]*disk.Mem) {
	t.Helper()
	w, mems = newWorld(t, "", engine.ErrBlank), map[string]*disk.Mem{}
	if state != "" {
		w.state = state
		w.restart()
	}
	for name := range strings.FieldsSeq(devices) {
		w.addDevice(name, engine.ErrBlank)
		mems["/dev/"+name] = disk.NewMem("/dev/"+name, 64<<20)
	}
	w.list(kind, devices)
	d := storage()
	d.open = func(path string, _ disk.Options) (disk.Device, error) {
		if m := mems[path]; m != nil {
			return kept{m}, nil
		}
		return nil, os.ErrNotExist
	}
	d.drop = func(path string) error {
		w.dropped++
		return nil
	}
	w.agent.Storage = d
	w.pass()
	t.Cleanup(func() {
		if eng, _ := w.agent.open(); eng != nil {
			eng.Close()
		}
	})
	w.wantPhase(cstorv1.PoolOnline)
	return w, mems
}

// engine is the real one of the pool.
func (w *world) engine() *engine.Pool {
	w.t.Helper()
	eng, _ := w.agent.open()
	if eng == nil {
		w.t.Fatal(w.agent.Ready())
	}
	return eng.(*opened).Pool
}

func (w *world) wantPhase(want cstorv1.PoolPhase) {
	w.t.Helper()
	if got := w.instance().Status.Phase; got != want {
		w.t.Errorf("phase %s, not %s", got, want)
	}
}

// untilPhase lets the agent look until the pool is in that phase.
func (w *world) untilPhase(want cstorv1.PoolPhase) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); w.instance().Status.Phase != want && time.Now().Before(end); {
		w.pass()
	}
	w.wantPhase(want)
}

// write makes a change that has to be on stable storage.
func (w *world) write(name string) error {
	w.t.Helper()
	_, err := w.engine().CreateReplica(name, 1<<20)
	return err
}

// A flush that failed once fails the pool, though the device is fine.
func TestFailedPoolIsOpenedAgain(t *testing.T) {
	w, mems := onMemory(t, "stripe", "a")
	if err := w.write("before"); err != nil {
		t.Fatal(err)
	}
	w.addReplica(cstorv1.ReplicaOffline)
	lost := 0
	fails := func() {
		t.Helper()
		mems["/dev/a"].Inject(disk.Faults{FailFlush: true})
		lost++
		if err := w.write(fmt.Sprint("lost", lost)); !errors.Is(err, engine.ErrFailed) {
			t.Fatal(err)
		}
		mems["/dev/a"].Inject(disk.Faults{})
	}
	fails()
	w.now = w.now.Add(-15 * time.Second)
	w.pass()
	w.wantPhase(cstorv1.PoolFaulted)
	w.wantEvents("Warning PoolFaulted Pool takes no writes: ", "; it is opened again at ")
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "the pool takes no writes, it is opened again at ")
	w.pass()
	w.pass()
	w.wantPhase(cstorv1.PoolOnline)
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksAvailable, "")
	w.wantEvents("Normal Pool Imported")
	if w.dropped != 1 {
		t.Error("what was cached of the device was kept")
	}
	if err := w.write("after"); err != nil {
		t.Error(err)
	}
	if w.engine().Replica("before") == nil {
		t.Error("what was flushed is gone")
	}

	// One that fails again and again is opened ever more seldom.
	tries := w.count("Pool Imported")
	for range 100 { // 27 minutes
		if w.engine().Stats().Health == engine.HealthOnline {
			fails()
		}
		w.pass()
	}
	if n := w.count("Pool Imported") - tries; n < 5 || n > 8 {
		t.Errorf("opened %d times", n)
	}
	w.wantPhase(cstorv1.PoolFaulted)
	// Until it has been well for a while.
	for range 200 {
		w.pass()
	}
	w.wantPhase(cstorv1.PoolOnline)
	fails()
	w.pass()
	w.pass()
	w.wantPhase(cstorv1.PoolOnline)
}

// More devices go away than the pool can do without, and come back.
func TestPoolIsOpenedAgainWhenItsDevicesAreBack(t *testing.T) {
	for _, c := range []struct {
		kind, devices string
		gone, missing []string
	}{
		{"stripe", "a", []string{"a"}, []string{"a"}},
		{"mirror", "a b", []string{"a", "b"}, []string{"a", "b"}},
		{"raidz", "a b c", []string{"a", "c"}, []string{"a", "c"}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			w, mems := onMemory(t, c.kind, c.devices)
			if err := w.write("before"); err != nil {
				t.Fatal(err)
			}
			w.agent.recovery.pause = lastReopen // it must not be opened because time has passed
			for _, name := range c.gone {
				mems["/dev/"+name].Disappear()
			}
			if err := w.write("lost"); err == nil {
				t.Fatal("written to nowhere")
			}
			for range 20 { // longer than any back-off of before
				w.pass()
			}
			w.wantPhase(cstorv1.PoolFaulted)
			w.wantEvents("; it is opened again when these are there: " + strings.Join(c.missing, ", "))
			w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "it is opened again when these are there: ")
			if n := w.count("PoolFaulted"); n != 1 {
				t.Errorf("said %d times", n)
			}
			mems["/dev/"+c.gone[0]].Reappear()
			w.pass()
			if len(c.gone) == 1 {
				w.wantPhase(cstorv1.PoolOnline)
			} else {
				mems["/dev/"+c.gone[1]].Reappear()
			}
			w.untilPhase(cstorv1.PoolOnline) // one that missed writes is brought up to date
			if err := w.write("after"); err != nil || w.engine().Replica("before") == nil {
				t.Errorf("after it was opened again: %v", err)
			}
		})
	}
}

// A pool that does not close ends the process, which says why.
func TestPoolThatDoesNotCloseEndsTheProcess(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.addReplica(cstorv1.ReplicaOffline)
	w.pass()
	closing := make(chan struct{})
	defer close(closing)
	w.disks.pool.close = closing
	w.disks.pool.stats.Health, w.disks.pool.stats.Failure = "FAULTED", "flush: input/output error"
	w.pass()
	w.pass()
	w.wantPhase(cstorv1.PoolFaulted)
	if err := w.agent.Ready(); err == nil || !strings.Contains(err.Error(), "flush: input/output error") {
		t.Errorf("ready while it is being closed: %v", err)
	}
	w.now = w.now.Add(closeLimit)
	if err := w.agent.Run(t.Context()); !errors.Is(err, errStuck) {
		t.Fatal(err)
	}
	w.wantPhase(cstorv1.PoolOffline)
	if p := w.replica().Status.Phase; p != cstorv1.ReplicaOffline {
		t.Errorf("replica %s", p)
	}
}

// What the system has cached of a device is dropped before a pool that failed is opened: it may not be there.
func TestCachedPagesAreForgotten(t *testing.T) {
	path := files(t, 1)[0]
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	before := resident(t, f)
	if err := forget(path); err != nil {
		t.Fatal(err)
	}
	if before == 0 {
		t.Skip("nothing is cached here")
	}
	if n := resident(t, f); n == before {
		t.Errorf("%d pages are cached still", n)
	}
}

// resident returns how many pages of the first MiB of a file are in memory.
func resident(t *testing.T, f *os.File) (n int) {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	pages := make([]byte, len(b)/os.Getpagesize())
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&pages[0]))); e != 0 {
		t.Fatal(e)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}
