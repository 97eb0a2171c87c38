package raid

import (
	"errors"
	"runtime"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// pair returns two devices that hold the same, all of it flushed: a mirror, or a stripe whose device is being replaced by
// one that has everything already.
func pair(t *testing.T, kind Kind) (r *rig, a, b int) {
	t.Helper()
	if kind == Mirror {
		r = newRig(t, shape{Mirror, 2, 1, 1}, newSeed(t))
		r.fill()
		r.must(r.Flush())
		return r, 0, 1
	}
	r = newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
	r.replacement()
	r.fill()
	r.must(r.Flush())
	return r, 0, 1
}

// lastCopy returns a mirror of which only b has the first rows, which were not flushed, and only a some others.
func lastCopy(t *testing.T) (r *rig, a, b int) {
	t.Helper()
	r, a, b = pair(t, Mirror)
	r.dev[b].SetStale(2) // so that a cannot be spared
	r.mem[a].Inject(disk.Faults{FailWrite: true})
	r.must(r.write(0, 1))
	r.mem[a].Inject(disk.Faults{})
	if r.dev[a].State() != Online || !r.dev[a].IsStale(0) {
		t.Fatal(r.dev[a].State(), r.dev[a].StaleUnits())
	}
	return r, a, b
}

// replacement puts a device beside the one of a stripe that is taken for healed.
func (r *rig) replacement() {
	r.t.Helper()
	r.mem = append(r.mem, disk.NewMem("new", testBase+testUnits*testUnit))
	r.dev = append(r.dev, NewDevice(block.NewGUID(), r.mem[1]))
	r.must(r.Replace(0, r.dev[1]))
	for u := range testUnits {
		r.dev[1].ClearStale(u)
	}
}

// answered waits until a device has answered everything.
func (r *rig) answered(i int) {
	for r.dev[i].Stuck() > 0 {
		runtime.Gosched()
	}
}

// TestWriteOnDeviceThatLeft: what only a device has that is out by the time the write is decided is not written. And a
// write that failed takes nothing else with it.
func TestWriteOnDeviceThatLeft(t *testing.T) {
	for _, kind := range []Kind{Mirror, Stripe} {
		r, a, b := pair(t, kind)
		waits, resume := r.mem[a].HangOp("write", 1)
		done := make(chan error, 1)
		go func() { done <- r.write(0, 1) }()
		<-waits
		r.answered(b)
		if !r.dev[b].FailSpared(errors.New("test")) {
			t.Fatal(kind, "a device that can be spared stayed")
		}
		r.mem[a].Inject(disk.Faults{FailWrite: true})
		resume()
		if err := <-done; err == nil {
			t.Fatal(kind, "rows that only a device has that is out are called written")
		}
		r.mem[a].Inject(disk.Faults{})
		if r.dev[a].State() != Online || r.dev[a].Stale() {
			t.Fatal(kind, r.dev[a].State(), r.dev[a].StaleUnits())
		}
		r.must(r.get(int64(r.Row()), r.Row()))
	}
}

// TestWriteOnReplacedDevice: rows that went to a device that has been replaced meanwhile are not written.
func TestWriteOnReplacedDevice(t *testing.T) {
	r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
	r.fill()
	r.must(r.Flush())
	waits, resume := r.mem[0].HangOp("write", 1)
	done := make(chan error, 1)
	go func() { done <- r.write(0, 1) }()
	<-waits
	r.replacement()
	_, err := r.Promote(0)
	r.must(err)
	resume()
	if err := <-done; !errors.Is(err, ErrLost) {
		t.Fatal("rows that only the device has that was replaced are called written:", err)
	}
}

// TestForcedOutWithLastCopy: when a device goes out, whatever that costs, with rows that no flush has covered and no other
// device has, nothing is called flushed any more. A device that has only what is elsewhere or was flushed costs nothing.
func TestForcedOutWithLastCopy(t *testing.T) {
	r, _, b := lastCopy(t)
	r.dev[b].Fail(errors.New("test"))
	for _, flush := range []func() error{r.Flush, r.FlushInline} {
		if err := flush(); !errors.Is(err, ErrLost) {
			t.Fatal("rows are called flushed that no device has which is in use:", err)
		}
	}
	if r.State() != Faulted {
		t.Fatal(r.State())
	}

	r, _, b = lastCopy(t)
	r.must(r.Flush())
	r.dev[b].Fail(errors.New("test"))
	r.must(r.Flush())
	if r.State() != Degraded {
		t.Fatal(r.State())
	}
}

// TestForcedOutDuringFlush: the same while the flush of the other device is under way.
func TestForcedOutDuringFlush(t *testing.T) {
	r, a, b := lastCopy(t)
	waits, resume := r.mem[a].HangOp("flush", 1)
	waitsB, resumeB := r.mem[b].HangOp("flush", 1)
	done := make(chan error, 1)
	go func() { done <- r.Flush() }()
	<-waits
	<-waitsB
	r.mem[b].Inject(disk.Faults{FailFlush: true})
	r.dev[b].Fail(errors.New("test"))
	resumeB()
	r.answered(b)
	resume()
	if err := <-done; !errors.Is(err, ErrLost) {
		t.Fatal("rows are called flushed that no device has which is in use:", err)
	}
}

// TestAbandonedRepair: a repair that its device does not answer is not left under way in a device that stays in use, since
// it would land over what is written there later.
func TestAbandonedRepair(t *testing.T) {
	r, a, b := pair(t, Mirror)
	r.dev[b].SetStale(2) // so that a cannot be spared
	r.tick = soon / ticksPerDeadline
	r.mem[a].BadSectors(testBase, blockSize)
	waits, resume := r.mem[a].HangOp("write", 1)
	defer resume()
	r.must(r.get(0, blockSize))
	<-waits
	if d := r.dev[a]; d.State() != Out || !errors.Is(d.Cause(), ErrHung) {
		t.Fatal("a device is in use in which an abandoned write is under way:", d.State(), d.Cause())
	}
}

// TestFlushOfForfeitedStripe: when the device of a stripe went out with what its replacement lacks, flushes of the
// replacement fail too, whoever makes them.
func TestFlushOfForfeitedStripe(t *testing.T) {
	r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
	r.replacement()
	r.fill()
	r.dev[1].SetStale(0)
	r.dev[0].Fail(errors.New("test"))
	r.dev[1].ClearStale(0)
	_, err := r.Promote(0)
	r.must(err)
	for _, flush := range []func() error{r.Flush, r.FlushInline} {
		if err := flush(); !errors.Is(err, ErrLost) {
			t.Error("what went with a device is called flushed:", err)
		}
	}
}
