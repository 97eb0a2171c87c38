package pool

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestDeviceLostAnywhere lets the devices that may be lost fail from one of their operations on, for good. The workload
// goes on. Then the power is cut, and the devices are back, or stay away for one more mount: nothing old is ever seen.
func TestDeviceLostAnywhere(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		seed := seedOf(t)
		rng := rand.New(rand.NewPCG(seed, 5))
		losses := 0
		for n := 1; loseDevices(t, l, rng.Uint64(), int64(n)); n++ {
			losses++
			if !*everyOp {
				n += rng.IntN(6)
			}
		}
		t.Logf("%d losses", losses)
		if losses < 5 {
			t.Error("too few losses")
		}
	})
}

// loseDevices lets devices fail from their n-th operation on. It returns whether there was such an operation.
func loseDevices(t *testing.T, l layout, seed uint64, n int64) bool {
	opt := Options{Compression: compress.Algorithm(seed % 3), DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10, Deadline: time.Minute}
	mems := l.blank(8 << 20)
	p, err := Create(l.arrange(mems), Config{Name: "loss"}, opt)
	must(t, err)
	a := newActor(t, seed, p)
	a.maxSize, a.maxCount = 600, 3
	victims := l.victims()
	for _, v := range victims {
		mems[v].Inject(disk.Faults{FailFrom: n})
	}
	work := func(steps int) {
		for range steps {
			a.step(faultyActs)
		}
	}
	// again cuts the power and opens the pool, with or without the victims.
	again := func(with bool) {
		fates := make([]disk.Fate, len(mems))
		for i := range fates {
			fates[i] = disk.Fate(a.rng.IntN(4))
		}
		mems = disk.PowerCutAll(mems, func(i int) disk.Fate { return fates[i] }, a.rng)
		a.p.Close()
		var devs []disk.Device
		for i, m := range mems {
			m.Inject(disk.Faults{})
			away := false
			for _, v := range victims {
				away = away || i == v && !with
			}
			if !away {
				devs = append(devs, m)
			}
		}
		a.note("power cut, fates %d, then %d of %d devices", fates, len(devs), len(mems))
		if a.p, err = Open(devs, opt); err != nil {
			a.fatalf("open: %v", err)
		}
		a.recover(false)
		copies(a.t, a.p)
	}
	work(40)
	lost := p.Stats().Health == HealthDegraded
	a.note("devices %v lost at operation %d: %t", victims, n, lost)
	switch a.rng.IntN(3) {
	case 0: // away for a while, and back after another crash
		again(false)
		work(a.rng.IntN(20))
		again(true)
		work(a.rng.IntN(20))
		again(true)
	case 1: // back
		again(true)
		work(a.rng.IntN(20))
		again(true)
	default:
		again(true)
	}
	must(t, a.p.Close())
	return lost
}
