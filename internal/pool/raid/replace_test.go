package raid

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestReplace: a column is replaced under writes, with the old device alive, dead, or lying.
func TestReplace(t *testing.T) {
	forShapes(t, false, func(t *testing.T, sh shape, rng *rand.Rand) {
		for _, old := range []string{"alive", "dead", "lies"} {
			if sh.p == 0 && old != "alive" {
				continue
			}
			r := newRig(t, sh, rng)
			r.fill()
			r.must(r.Flush())
			c := rng.IntN(sh.n)
			switch old {
			case "dead":
				r.mem[c].Disappear()
				r.dev[c].Fail(syscall.ENODEV)
			case "lies":
				r.lie(c)
			}
			mem := disk.NewMem("new", r.mem[0].Size())
			dev := NewDevice(r.dev[c].GUID(), mem)
			if err := r.Replace(c, NewDevice(dev.GUID(), disk.NewMem("small", testBase))); err == nil {
				t.Fatal("a small device was taken")
			}
			r.must(r.Replace(c, dev))
			if dev.StaleCount() != testUnits {
				t.Fatal(dev.StaleCount())
			}
			if _, err := r.Promote(c); err == nil {
				t.Fatal("promoted while stale")
			}
			r.must(r.write(3, 5))
			off, n := r.some()
			r.must(r.get(off, n))
			for u := range testUnits {
				size := int64(r.unitRows) * int64(r.Row())
				off := int64(u) * size
				if _, err := r.Heal(off, size, r.bad(off)); err != nil {
					t.Fatal(old, err)
				}
				dev.ClearStale(u)
			}
			r.must(r.write(60, 9))
			was, err := r.Promote(c)
			r.must(err)
			if was != r.dev[c] {
				t.Fatal("another device left")
			}
			r.must(r.write(100, 30))
			r.exact()
			if r.State() != Healthy {
				t.Fatal(r.State())
			}
		}
	})
}

// TestReplacementHelps: where the new device is complete and the old one gone, it is read.
func TestReplacementHelps(t *testing.T) {
	forShapes(t, false, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		c := rng.IntN(sh.n)
		dev := NewDevice(r.dev[c].GUID(), disk.NewMem("new", r.mem[0].Size()))
		r.must(r.Replace(c, dev))
		size := int64(r.unitRows) * int64(r.Row())
		if _, err := r.Heal(size, size, r.bad(size)); err != nil {
			t.Fatal(err)
		}
		dev.ClearStale(1)
		r.mem[c].Corrupt(testBase+testUnit, testUnit, rng) // the new one is the only one that tells the truth here
		others := r.pick(sh.n)
		k := 0
		for _, i := range others {
			if i != c && k < sh.p {
				r.mem[i].Corrupt(testBase+testUnit, testUnit, rng)
				k++
			}
		}
		b := make([]byte, 2*r.Row())
		r.must(r.RecoverBlocks(b, size, r.bad(size)))
		if !bytes.Equal(b, r.want(size, len(b))) {
			t.Fatal("wrong bytes")
		}
		r.dev[c].Fail(fmt.Errorf("test"))
		if sh.p == 0 {
			r.must(r.Read(b, size))
			if !bytes.Equal(b, r.want(size, len(b))) {
				t.Fatal("wrong bytes")
			}
		}
	})
}
