package raid

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// soon is a deadline that tests can wait for. Nothing here depends on how long that takes.
const soon = 8 * time.Millisecond

// TestHangs: up to P devices stop answering one kind of request; everything goes on without them, nothing that is read
// changes later, and they come back when they have answered. On a machine so busy that other devices go out too, the
// deadline was too short, and it is tried again with a longer one.
func TestHangs(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		t.Parallel()
		for _, kind := range []string{"read", "write", "flush"} {
			for deadline := 20 * time.Millisecond; !testHang(t, sh, rng, kind, deadline); deadline *= 2 {
				if deadline > time.Minute {
					t.Fatal("other devices go out too, however long the deadline")
				}
			}
		}
	})
}

func testHang(t *testing.T, sh shape, rng *rand.Rand, kind string, deadline time.Duration) bool {
	r := newRig(t, sh, rng)
	r.fill()
	r.must(r.Flush())
	r.tick = deadline / ticksPerDeadline
	victims := r.pick(sh.p)
	var resume []func()
	var waits []<-chan struct{}
	for _, i := range victims {
		w, f := r.mem[i].HangIf(func(op string, _, _ int64) bool { return op == kind })
		defer f()
		resume, waits = append(resume, f), append(waits, w)
	}
	others := func() bool { // all others are online
		for i, d := range r.dev {
			if !slices.Contains(victims, i) && d.State() != Online {
				return false
			}
		}
		return true
	}
	var got, wants [][]byte
	for r.someOnline(victims) {
		off, n := r.some()
		b := make([]byte, n)
		var err error
		switch kind {
		case "read":
			if err = r.Read(b, off); err == nil {
				_, err = r.Heal(0, int64(r.Row()), r.bad(0))
			}
			got, wants = append(got, b), append(wants, bytes.Clone(r.want(off, n)))
		case "write":
			err = r.write(rng.IntN(r.rows()), 1)
		case "flush":
			if err = r.write(0, 1); err == nil {
				err = r.Flush()
			}
		}
		if !others() {
			return false
		}
		r.must(err)
	}
	for i, v := range victims {
		<-waits[i]
		d := r.dev[v]
		if d.State() != Out || !errors.Is(d.Cause(), ErrHung) {
			t.Fatal(d.State(), d.Cause())
		}
		if err := d.Return(r.mem[v]); !errors.Is(err, ErrStuck) {
			t.Fatal(err)
		}
		if kind != "read" && !d.Stale() {
			t.Fatal("not stale")
		}
	}
	r.tick = DefaultDeadline
	r.must(r.write(10, 10))
	r.must(r.Flush())
	for _, v := range victims { // what comes now would be noticed
		if kind == "read" {
			r.mem[v].Corrupt(testBase, testUnits*testUnit, rng)
		}
	}
	for i := range resume {
		resume[i]()
	}
	for _, v := range victims {
		r.must(r.back(v))
	}
	for i, b := range got {
		if !bytes.Equal(b, wants[i]) {
			t.Fatal("wrong bytes, or they have changed since they were read")
		}
	}
	r.must(r.get(0, r.Row()))
	if res, err := r.heal(); err != nil {
		t.Fatal(res, err)
	}
	r.exact()
	return true
}

// back returns a device as soon as it has answered everything.
func (r *rig) back(i int) error {
	for {
		err := r.dev[i].Return(r.mem[i])
		if !errors.Is(err, ErrStuck) {
			return err
		}
		runtime.Gosched()
	}
}

// TestAllSlow: when all devices are slow at the same time, none is taken out: the machine is slow.
func TestAllSlow(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		t.Parallel()
		const deadline = 100 * time.Millisecond
		r := newRig(t, sh, rng)
		r.fill()
		r.tick = deadline / ticksPerDeadline
		var resume []func()
		var waits []<-chan struct{}
		for _, m := range r.mem {
			w, f := m.Hang()
			resume, waits = append(resume, f), append(waits, w)
		}
		done := make(chan error, 1)
		go func() { done <- r.write(0, 1) }()
		for _, w := range waits {
			<-w
		}
		late := time.NewTimer(2 * deadline) // twice the deadline, far below the hard limit
		<-late.C
		for _, f := range resume {
			f()
		}
		r.must(<-done)
		for _, d := range r.dev {
			if d.State() != Online || d.Stale() {
				t.Fatal(d.Name(), d.Cause())
			}
		}
		r.exact()
	})
}

// TestHardLimit: more devices hang than can be spared: an error in bounded time, and they are out.
func TestHardLimit(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		t.Parallel()
		for _, kind := range []string{"read", "write", "flush"} {
			r := newRig(t, sh, rng)
			r.fill()
			r.tick = soon / ticksPerDeadline
			victims := r.pick(sh.p + 1)
			for _, i := range victims {
				_, f := r.mem[i].HangIf(func(op string, _, _ int64) bool { return op == kind })
				defer f()
			}
			var err error
			switch kind {
			case "read":
				err = r.Read(make([]byte, r.Row()), 0)
				for k := int64(1); err == nil; k++ {
					err = r.Read(make([]byte, r.Row()), k%int64(r.rows())*int64(r.Row()))
					if _, e := r.Heal(0, int64(r.Row()), r.bad(0)); e != nil {
						err = e
					}
				}
			case "write":
				err = r.write(0, 1)
			case "flush":
				err = r.Flush()
			}
			if !errors.Is(err, ErrHung) && !errors.Is(err, ErrLost) {
				t.Fatal(kind, err)
			}
			if r.State() != Faulted {
				t.Fatal(kind, r.State())
			}
		}
	})
}

// TestFailSpared: who gives up on a device does not take it out while another one lacks what it has.
func TestFailSpared(t *testing.T) {
	r := newRig(t, shape{Mirror, 2, 1, 1}, newSeed(t))
	a, b := r.dev[0], r.dev[1]
	a.SetStale(1)
	if b.FailSpared(ErrHung) || b.State() != Online {
		t.Fatal("the last one with a unit went out")
	}
	a.ClearStale(1)
	for range 2 {
		if !b.FailSpared(ErrHung) || b.State() != Out {
			t.Fatal("a device that can be spared stayed")
		}
	}
	if a.FailSpared(ErrHung) || a.State() != Online {
		t.Fatal("the last one went out")
	}
}

// inline makes a request of row 0 of a stripe in the caller's goroutine.
func (r *rig) inline(kind string) error {
	switch b := make([]byte, r.Row()); kind {
	case "read":
		return r.ReadInline(b, 0)
	case "write":
		return r.WriteInline([][]byte{b}, 0)
	}
	return r.FlushInline()
}

// TestStripeHangs: what is in the only device when that begins to hang comes back with it. But the device goes out, and all
// that follows fails.
func TestStripeHangs(t *testing.T) {
	for _, kind := range []string{"read", "write", "flush"} {
		r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
		r.fill()
		r.tick = soon / ticksPerDeadline
		out := make(chan struct{})
		r.onChange = sync.OnceFunc(func() { close(out) })
		waits, resume := r.mem[0].HangIf(func(op string, _, _ int64) bool { return op == kind })
		r.settle()
		stuck := make(chan error, 1)
		go func() { stuck <- r.inline(kind) }()
		<-waits
		<-out
		if r.State() != Faulted || !errors.Is(r.dev[0].Cause(), ErrHung) || !strings.Contains(r.dev[0].Cause().Error(), kind) {
			t.Fatal(r.State(), r.dev[0].Cause())
		}
		for _, kind := range []string{"read", "write", "flush"} {
			if err := r.inline(kind); !errors.Is(err, ErrLost) {
				t.Fatal(kind, err)
			}
		}
		resume()
		if err := <-stuck; kind == "read" && err != nil || kind != "read" && !errors.Is(err, ErrLost) {
			t.Fatal(kind, err) // what a device did that is out does not count
		}
		if r.dev[0].Stuck() != 0 {
			t.Fatal("requests left")
		}
	}
}

// settle makes the device of a stripe one that has answered promptly.
func (r *rig) settle() {
	for k := range r.dev[0].took {
		r.dev[0].took[k].Store(0)
	}
}

// TestStripeIsLeft: whoever does not ask to be kept by the device leaves it when it hangs, with an error. What he gave to
// be read into is not touched later.
func TestStripeIsLeft(t *testing.T) {
	for _, kind := range []string{"read", "write", "flush", "heal"} {
		r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
		r.fill()
		r.tick = soon / ticksPerDeadline
		_, resume := r.mem[0].HangIf(func(op string, _, _ int64) bool { return op == kind || kind == "heal" })
		defer resume()
		b := make([]byte, r.Row())
		var err error
		switch kind {
		case "read":
			err = r.Read(b, 0)
		case "write":
			err = r.write(0, 1)
		case "flush":
			err = r.Flush()
		case "heal":
			_, err = r.Heal(0, int64(r.Row()), nil)
		}
		if !errors.Is(err, ErrHung) || !strings.Contains(err.Error(), "device d0") {
			t.Fatal(kind, err)
		}
		if r.State() != Faulted || r.dev[0].Stuck() == 0 {
			t.Fatal(r.State(), r.dev[0].Stuck())
		}
		resume()
		for r.dev[0].Stuck() > 0 {
			runtime.Gosched()
		}
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Fatal("bytes have come after the read was given up")
		}
	}
}

// TestHandedOver: when a device has something that takes long, or took long for the last write or flush, even those leave it
// who would be kept.
func TestHandedOver(t *testing.T) {
	for _, kind := range []string{"read", "write", "flush"} {
		for _, other := range []string{"read", "write", "flush"} {
			r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
			r.fill()
			r.tick = soon / ticksPerDeadline
			d := r.dev[0]
			waits, resume := r.mem[0].HangIf(func(string, int64, int64) bool { return true })
			defer resume()
			r.settle()
			slow := kind == other && kind != "read" // of reads the time is not taken
			if slow {
				d.took[doWrite].Store(int64(promptly))
				d.took[doFlush].Store(int64(promptly))
			} else {
				go r.inline(other)
			}
			for !slow && !d.watch.late.Load() && d.State() == Online {
				runtime.Gosched()
			}
			if err := r.inline(kind); !errors.Is(err, ErrHung) {
				t.Fatal(kind, other, err)
			}
			<-waits
		}
	}
}

// TestWorkCounts: what a device does by itself counts as a request under way, which a device that is out has to end before
// it comes back.
func TestWorkCounts(t *testing.T) {
	r := newRig(t, shape{Mirror, 2, 1, 1}, newSeed(t))
	end := make(chan struct{})
	w := &worker{Device: r.mem[0]}
	d := r.dev[0]
	d.setDisk(w)
	w.run(func() { <-end })
	if d.Stuck() != 1 {
		t.Fatal("not counted")
	}
	if d.takeOut(errors.New("test"), false); !errors.Is(d.Return(w), ErrStuck) {
		t.Fatal(d.State(), d.Cause())
	}
	close(end)
	for d.Stuck() > 0 {
		runtime.Gosched()
	}
	r.must(d.Return(w))
}

// worker is a device that does something by itself when the test says so.
type worker struct {
	disk.Device
	run func(work func())
}

func (w *worker) RunWith(run func(work func())) { w.run = run }
