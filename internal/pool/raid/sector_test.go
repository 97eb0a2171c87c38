package raid

import (
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestBadSectors: unreadable blocks are served from the others, rewritten and counted; a device full of them goes out.
func TestBadSectors(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		for _, row := range rng.Perm(r.rows())[:6] {
			for _, i := range r.pick(sh.p) {
				r.mem[i].BadSectors(testBase+int64(row)*blockSize, blockSize)
			}
		}
		for range 2 {
			for off := int64(0); off < r.Size(); off += int64(r.unitRows) * int64(r.Row()) {
				r.must(r.get(off, int(r.unitRows)*r.Row()))
			}
		}
		if _, err := r.heal(); err != nil {
			t.Fatal(err)
		}
		r.exact()
		var reads uint64
		for _, d := range r.dev {
			n, _, _ := d.Errors()
			if reads += n; d.State() != Online {
				t.Fatal(d.Cause())
			}
		}
		if reads == 0 {
			t.Fatal("no read error was counted")
		}
		bad := rng.IntN(sh.n)
		r.mem[bad].Inject(disk.Faults{FailRead: true})
		for i := 0; r.dev[bad].State() == Online; i++ {
			if i > 100 {
				t.Fatal("still online")
			}
			off, n := r.some()
			r.must(r.get(off, n))
			if _, err := r.Heal(0, int64(r.Row()), r.bad(0)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestBadSectorsApart: unreadable blocks of more devices than parity, each in another row of one read.
func TestBadSectorsApart(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		for i := range sh.n {
			r.mem[i].BadSectors(testBase+int64(i*2)*blockSize, blockSize)
		}
		r.must(r.get(0, 2*sh.n*r.Row()))
		for i := range sh.n {
			r.mem[i].BadSectors(testBase+int64(i*2)*blockSize, blockSize)
		}
		if _, err := r.heal(); err != nil {
			t.Fatal(err)
		}
		r.exact()
	})
}

// TestOnlyUnreadableIsRewritten: a device with one unreadable block is not rewritten where it can be read, since what
// the others give there is a lie.
func TestOnlyUnreadableIsRewritten(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		p := r.pick(sh.p + 1)
		r.mem[p[0]].BadSectors(testBase+3*blockSize, blockSize)
		for _, i := range p[1:] {
			r.mem[i].Corrupt(testBase+5*blockSize, blockSize, rng)
		}
		r.must(r.get(0, 12*r.Row()))
		if _, err := r.heal(); err != nil {
			t.Fatal(err)
		}
		r.exact()
	})
}
