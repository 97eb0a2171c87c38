package raid

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestMarksOfSlowWrite: what happens while a write hangs in one device must not lose the marks that the write owes.
func TestMarksOfSlowWrite(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		during := func(do func(r *rig, slow, other int)) (r *rig, slow, other int) {
			r = newRig(t, sh, rng)
			r.fill()
			r.must(r.Flush())
			p := r.pick(2)
			slow, other = p[0], p[1]
			if sh.p > 1 || other == slow {
				r.dev[other].Fail(errors.New("test"))
			}
			waits, resume := r.mem[slow].HangOp("write", 1)
			done := make(chan error, 1)
			go func() { done <- r.write(0, 1) }()
			<-waits
			do(r, slow, other)
			resume()
			r.must(<-done)
			return r, slow, other
		}
		// A flush takes the mark of the write and does not cover it.
		r, slow, _ := during(func(r *rig, _, _ int) { r.must(r.Flush()) })
		r.dev[slow].Fail(errors.New("test"))
		if !r.dev[slow].IsStale(0) {
			t.Fatal("a write that ended after the flush is taken for stable")
		}
		// A device that the write skipped comes back and is healed, before the write is done.
		if sh.p > 1 {
			r, _, other := during(func(r *rig, _, other int) {
				r.must(r.dev[other].Return(r.mem[other]))
				r.dev[other].ClearStale(0)
			})
			if !r.dev[other].IsStale(0) {
				t.Fatal("a write that the device missed is forgotten")
			}
		}
		// A replacement that the write did not see comes and is healed, before the write is done.
		dev := NewDevice(block.NewGUID(), disk.NewMem("new", testBase+testUnits*testUnit))
		during(func(r *rig, slow, _ int) {
			r.must(r.Replace(slow, dev))
			for u := range testUnits {
				dev.ClearStale(u)
			}
		})
		if !dev.IsStale(0) || dev.IsStale(1) {
			t.Fatal("a write that the new device missed is forgotten")
		}
	})
}

// TestMissedWriteKept: a device that misses a write but cannot be spared elsewhere stays, and its unit is stale.
func TestMissedWriteKept(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		if sh.p < 2 {
			t.Skip("nothing is left to write to")
		}
		r := newRig(t, sh, rng)
		r.fill()
		p := r.pick(sh.p + 1)
		for _, i := range p[1:] {
			r.dev[i].SetStale(2)
		}
		r.mem[p[0]].Inject(disk.Faults{FailOp: 1})
		r.must(r.write(0, 3))
		if d := r.dev[p[0]]; d.State() != Online || !d.IsStale(0) || d.IsStale(2) {
			t.Fatal(d.State(), d.StaleUnits())
		}
		b := make([]byte, r.Size())
		r.must(r.Read(b, 0))
		if !bytes.Equal(b, r.ref) {
			t.Fatal("wrong bytes")
		}
	})
}

// TestNothingUnproved: recovering one block leaves other blocks of its row alone, which the check says nothing about.
func TestNothingUnproved(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		if sh.data == 1 {
			t.Skip("one block per row")
		}
		r := newRig(t, sh, rng)
		r.fill()
		for row := range int64(r.rows()) {
			s := rng.IntN(r.data)
			r.mem[r.column(s, row)].Corrupt(testBase+row*blockSize, blockSize, rng)
			other := (s + 1 + rng.IntN(r.data-1)) % r.data // what was read of it was wrong on the way here, say
			off := (row*int64(r.data) + int64(other)) * blockSize
			r.must(r.Recover(make([]byte, blockSize), off, func(b []byte) bool { return len(r.bad(off)(b)) == 0 }))
		}
		if _, err := r.heal(); err != nil {
			t.Fatal(err)
		}
		r.exact()
	})
}

// TestLostRowsAreLeft: what cannot be healed is not touched, so that what comes back later still helps.
func TestLostRowsAreLeft(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		flip := func() {
			for i := range r.mem { // all: whichever columns hold data
				r.mem[i].FlipBit(testBase+5*blockSize+77, 3)
			}
		}
		flip()
		if _, err := r.heal(); !errors.Is(err, ErrUnrecoverable) {
			t.Fatal(err)
		}
		flip()
		r.exact()
	})
}

// TestSettle: after a crash devices differ and nobody is to blame.
func TestSettle(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		for _, i := range r.pick(sh.p) {
			r.lie(i)
		}
		res, err := r.Settle(0, r.Size(), r.bad(0))
		if err != nil || res.Rewritten == 0 || res.Wrong != 0 {
			t.Fatal(res, err)
		}
		r.exact()
		for _, d := range r.dev {
			if _, _, n := d.Errors(); n > 0 {
				t.Fatal("blamed")
			}
		}
		if res, err := r.Heal(0, r.Size(), nil); err != nil || res.Rewritten != 0 {
			t.Fatal(res, err)
		}
	})
}

// TestMissingFromTheStart: devices that were never there.
func TestMissingFromTheStart(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		whole := newRig(t, sh, rng)
		whole.fill()
		cfg := Config{Kind: sh.kind, Base: testBase, UnitBytes: testUnit, Units: testUnits}
		gone := whole.pick(sh.p)
		var devs []*Device
		for i, m := range whole.mem {
			var dev disk.Device = m
			for _, k := range gone {
				if k == i {
					dev = nil
				}
			}
			devs = append(devs, NewDevice(whole.dev[i].GUID(), dev))
			cfg.Columns = append(cfg.Columns, Column{Devices: devs[i : i+1]})
		}
		g, err := New(cfg)
		whole.must(err)
		whole.Group = g
		if g.State() != Degraded || devs[gone[0]].State() != Missing || devs[gone[0]].Cause() == nil {
			t.Fatal(g.State(), devs[gone[0]].State())
		}
		whole.must(whole.write(7, 30))
		whole.must(whole.get(0, 40*whole.Row()))
		whole.must(whole.Flush())
		for _, i := range gone {
			whole.must(devs[i].Return(whole.mem[i]))
		}
		whole.must(whole.get(0, 40*whole.Row()))
		if _, err := whole.heal(); err != nil {
			t.Fatal(err)
		}
		whole.exact()
		if err := devs[0].Return(whole.mem[0]); err == nil {
			t.Fatal("a device that is online came back")
		}
		if _, err := New(cfg); err == nil {
			t.Fatal("devices are in two groups")
		}
	})
}

// TestStripeFailure: a stripe has nothing to fall back on: errors are the device's, and it stays.
func TestStripeFailure(t *testing.T) {
	r := newRig(t, shape{Stripe, 1, 1, 0}, newSeed(t))
	r.fill()
	r.mem[0].Inject(disk.Faults{FailFrom: 1})
	if err := r.write(0, 1); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := r.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := r.get(0, blockSize); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	r.mem[0].Inject(disk.Faults{})
	if r.State() != Healthy {
		t.Fatal(r.State())
	}
	r.fill()
	r.exact()
}

// TestFlushAwaitsWhoGoesOut: a flush that a device which goes out has no part in is not over before it is known what that
// device may lack of what the flush covers.
func TestFlushAwaitsWhoGoesOut(t *testing.T) {
	const units = 1 << 17 // to be marked while it goes
	for range 20 {
		var devs []*Device
		cfg := Config{Kind: Mirror, UnitBytes: blockSize, Units: units}
		for range 2 {
			d := NewDevice(block.NewGUID(), disk.NewMem("d", units*blockSize))
			devs, cfg.Columns = append(devs, d), append(cfg.Columns, Column{Devices: []*Device{d}})
		}
		g, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		d := devs[0]
		d.dirty.addRange(0, units-1)
		gone := make(chan bool)
		go func() {
			d.Fail(errors.New("test"))
			close(gone)
		}()
		for d.State() == Online {
			runtime.Gosched()
		}
		met := d.StaleCount() < units
		if err := g.Flush(); err != nil {
			t.Fatal(err)
		}
		if n := d.StaleCount(); n < units {
			t.Fatalf("%d of %d units are stale on the device that is out", n, units)
		}
		if <-gone; met {
			return
		}
	}
}
