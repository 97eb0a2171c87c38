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

// TestHardLimit: more devices hang than can be spared: an error in bounded time, and they are out. In a stripe the
// caller itself is in the device, see TestStripeHangs.
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

// TestStripeHangs: a write or flush that the only device never answers cannot be given up, but the device goes out, and
// what follows fails.
func TestStripeHangs(t *testing.T) {
	for _, kind := range []string{"write", "flush"} {
		r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
		r.fill()
		r.tick = soon / ticksPerDeadline
		out := make(chan struct{})
		r.onChange = sync.OnceFunc(func() { close(out) })
		waits, resume := r.mem[0].HangIf(func(op string, _, _ int64) bool { return op == kind })
		stuck := make(chan error, 1)
		go func() {
			if kind == "flush" {
				stuck <- r.Flush()
			} else {
				stuck <- r.Write([][]byte{make([]byte, r.Row())}, 0)
			}
		}()
		<-waits
		<-out
		if r.State() != Faulted || !errors.Is(r.dev[0].Cause(), ErrHung) || !strings.Contains(r.dev[0].Cause().Error(), kind) {
			t.Fatal(r.State(), r.dev[0].Cause())
		}
		if err := r.write(1, 1); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		if err := r.Flush(); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		resume()
		if err := <-stuck; err != nil {
			t.Fatal(err)
		}
		if r.dev[0].Stuck() != 0 {
			t.Fatal("requests left")
		}
	}
}
