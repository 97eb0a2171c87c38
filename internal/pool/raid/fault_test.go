package raid

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// liar makes a device lie in part of what it holds.
func (r *rig) lie(i int) {
	size := int64(testUnits * testUnit)
	switch r.rng.IntN(3) {
	case 0: // single bits
		for range 1 + r.rng.IntN(200) {
			r.mem[i].FlipBit(testBase+r.rng.Int64N(size), uint(r.rng.IntN(8)))
		}
	case 1: // a run
		off := r.rng.Int64N(size)
		r.mem[i].Corrupt(testBase+off, 1+r.rng.Int64N(size-off), r.rng)
	case 2: // everything: as after writes that were all lost
		r.must(r.mem[i].Discard(testBase, size))
	}
}

// TestLies: as many devices as there is parity lie; what is read is right, and Heal makes every column exact.
func TestLies(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		for round := range 2 {
			r := newRig(t, sh, rng)
			r.fill()
			for _, i := range r.pick(sh.p) {
				r.lie(i)
			}
			if round == 0 {
				for range 100 {
					off, n := r.some()
					r.must(r.get(off, n))
				}
			}
			if _, err := r.heal(); err != nil {
				t.Fatal(err)
			}
			r.exact()
			if res, err := r.heal(); err != nil || res.Rewritten > 0 || res.Wrong > 0 {
				t.Fatal(res, err)
			}
		}
	})
}

// TestRecoverRepairs: what was recovered is right on the devices afterwards, and exactly the liars are blamed.
func TestRecoverRepairs(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		lied := map[int]bool{}
		for _, i := range r.pick(sh.p) {
			lied[i] = true
			r.mem[i].Corrupt(testBase, testUnits*testUnit, rng)
		}
		for at := int64(0); at < r.Size(); {
			n := int(min(int64(1+rng.IntN(20))*blockSize, r.Size()-at))
			b := make([]byte, n)
			if rng.IntN(2) == 0 {
				r.must(r.RecoverBlocks(b, at, r.bad(at)))
			} else {
				r.must(r.Recover(b, at, func(b []byte) bool { return len(r.bad(at)(b)) == 0 }))
			}
			if !bytes.Equal(b, r.want(at, n)) {
				t.Fatal("recovered wrong bytes")
			}
			r.must(r.Read(b, at))
			if !bytes.Equal(b, r.want(at, n)) {
				t.Fatal("not repaired")
			}
			at += int64(n)
		}
		for i, d := range r.dev {
			if _, _, sums := d.Errors(); (sums > 0) != lied[i] && sh.kind != Mirror {
				t.Errorf("%s: %d checksum errors, lied %v", d.Name(), sums, lied[i])
			} else if sums > 0 && !lied[i] {
				t.Errorf("%s is blamed for %d", d.Name(), sums)
			}
		}
	})
}

// TestScatteredLies: in each row another device lies, and one check covers many rows.
func TestScatteredLies(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		for row := range int64(r.rows()) {
			for _, i := range r.pick(1 + rng.IntN(sh.p)) {
				r.mem[i].Corrupt(testBase+row*blockSize, 1+rng.Int64N(blockSize), rng)
			}
		}
		for range 5 {
			off, n := r.some()
			r.must(r.RecoverBlocks(make([]byte, n), off, r.bad(off)))
		}
		for range 3 { // one check for up to three rows: the combinations are tried
			row := int64(rng.IntN(int(r.unitRows) - 2))
			off, n := row*int64(r.Row()), (1+rng.IntN(2))*r.Row()
			r.must(r.Recover(make([]byte, n), off, func(b []byte) bool { return bytes.Equal(b, r.want(off, n)) }))
		}
		if _, err := r.heal(); err != nil {
			t.Fatal(err)
		}
		r.exact()
	})
}

// TestTooManyLies: one more than parity lies; there is an error and never wrong bytes, and rows that are not affected
// are healed.
func TestTooManyLies(t *testing.T) {
	forShapes(t, false, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		liars := r.pick(sh.p + 1)
		for _, i := range liars {
			r.mem[i].Corrupt(testBase, testUnit, rng)
		}
		b := make([]byte, r.Row())
		if err := r.RecoverBlocks(b, 0, r.bad(0)); !errors.Is(err, ErrUnrecoverable) {
			t.Fatal(err)
		}
		if err := r.Recover(b, 0, func(b []byte) bool { return len(r.bad(0)(b)) == 0 }); !errors.Is(err, ErrUnrecoverable) {
			t.Fatal(err)
		}
		res, err := r.Heal(0, r.Size(), r.bad(0))
		if !errors.Is(err, ErrUnrecoverable) {
			t.Fatal(res, err)
		}
		if want := int(r.unitRows) * r.data; len(res.Lost) != want || res.Lost[want-1] != want-1 {
			t.Fatal(len(res.Lost), want)
		}
		for range 20 {
			off, n := r.some()
			if err := r.get(off, n); off >= int64(r.unitRows)*int64(r.Row()) {
				r.must(err)
			} else if err != nil && !errors.Is(err, ErrUnrecoverable) {
				t.Fatal(err)
			}
		}
	})
}

// TestHealKeepsRedundancy: a block that nobody needs and that one device lies about is what is wrong in its row, and no
// parity, as long as the others can tell: they may be needed for blocks of the row that are in use, and a power cut could tear
// what is written to them.
func TestHealKeepsRedundancy(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		if sh.p < 2 {
			t.Skip("the others cannot tell")
		}
		r := newRig(t, sh, rng)
		r.fill()
		var written []int
		for i, m := range r.mem {
			m.HangIf(func(op string, _, _ int64) bool {
				if op == "write" {
					written = append(written, i)
				}
				return false
			})
		}
		for s := range sh.n {
			written = nil
			row := int64(rng.IntN(r.rows()))
			liar := r.column(s, row)
			r.mem[liar].Corrupt(r.devOff(row), blockSize, rng)
			off := row * int64(r.Row())
			inUse := func(b []byte) []int {
				return slices.DeleteFunc(r.bad(off)(b), func(i int) bool { return i == s || sh.data == 1 })
			}
			faults, _, err := r.Audit(off, int64(r.Row()), inUse)
			r.must(err)
			if len(faults) != 1 || faults[0].Device != r.dev[liar] {
				t.Errorf("device %d lies, and audit finds %+v", liar, faults)
			}
			_, err = r.Heal(off, int64(r.Row()), inUse)
			r.must(err)
			if !slices.Equal(written, []int{liar}) {
				t.Errorf("device %d lies, and %v are written", liar, written)
			}
			r.exact()
		}
	})
}

// TestPartsNobodyNeeds: of a block about which devices lie the part in use is repaired. What they lie about beside it is not
// in use: nobody is blamed for it, least of all who tells the truth. Where anything of the row is in use somebody is.
func TestPartsNobodyNeeds(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		const lo, hi = 1024, 1600
		row := int64(rng.IntN(r.rows()))
		off := row * int64(r.Row())
		for s := range sh.n - 1 { // all copies but one, of a coded row the block
			if s == 0 || sh.data == 1 {
				r.mem[r.column(s, row)].Corrupt(r.devOff(row), blockSize, rng)
			}
		}
		b, want := make([]byte, blockSize), bytes.Clone(r.ref[off:][:blockSize])
		ok := func(b []byte) bool { return bytes.Equal(b[lo:hi], want[lo:hi]) }
		r.must(r.RecoverPart(b, off, lo, hi, ok))
		inUse := func(b []byte) []int {
			if ok(b) {
				return nil
			}
			return []int{0}
		}
		used := make([]uint64, sh.data)
		AddParts(used, lo, hi)
		before := make([]uint64, sh.n)
		for i, d := range r.dev {
			_, _, before[i] = d.Errors()
		}
		faults, lost, err := r.AuditParts(off, int64(r.Row()), used, inUse)
		r.must(err)
		if len(faults)+len(lost) > 0 {
			t.Errorf("audit finds %+v, lost %v", faults, lost)
		}
		AddParts(used, hi, hi+64)
		if faults, _, err = r.AuditParts(off, int64(r.Row()), used, inUse); err != nil || len(faults) == 0 {
			t.Errorf("audit does not see what differs in a part that is in use: %v", err)
		}
		used[0] = 0
		AddParts(used, lo, hi)
		res, err := r.HealParts(off, int64(r.Row()), used, inUse)
		r.must(err)
		if res.Rewritten == 0 {
			t.Error("the columns are left different")
		}
		for i, d := range r.dev {
			if _, _, n := d.Errors(); n > before[i] {
				t.Errorf("device %d is blamed", i)
			}
		}
		if faults, lost, err = r.Audit(off, int64(r.Row()), inUse); err != nil || len(faults)+len(lost) > 0 {
			t.Errorf("after it: %+v, lost %v: %v", faults, lost, err)
		}
	})
}

// TestMissing: devices vanish, writing goes on, they come back stale and are healed.
func TestMissing(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		r.must(r.Flush())
		gone := r.pick(sh.p)
		for _, i := range gone {
			r.mem[i].Disappear()
		}
		for range 20 {
			row := rng.IntN(int(r.unitRows))
			r.must(r.write(row, 1+rng.IntN(int(r.unitRows)-row)))
			off, n := r.some()
			r.must(r.get(off, n))
		}
		r.must(r.Flush())
		if r.State() != Degraded {
			t.Fatal(r.State())
		}
		for _, i := range gone {
			d := r.dev[i]
			if d.State() != Out || !errors.Is(d.Cause(), syscall.ENODEV) {
				t.Fatal(d.State(), d.Cause())
			}
			if !d.IsStale(0) || d.IsStale(1) || d.StaleUnits().Count() != 1 {
				t.Fatal("stale units", d.StaleUnits())
			}
			r.mem[i].Reappear()
			r.must(d.Return(r.mem[i]))
		}
		if r.State() != Degraded {
			t.Fatal(r.State())
		}
		for range 50 { // stale content is not what Read gives
			off, n := r.some()
			b := make([]byte, n)
			r.must(r.Read(b, off))
			if !bytes.Equal(b, r.want(off, n)) {
				t.Fatal("stale content was read")
			}
		}
		res, err := r.heal()
		if err != nil || res.Wrong > 0 {
			t.Fatal(res, err)
		}
		r.exact()
		r.must(r.Flush())
		for _, i := range gone {
			r.dev[i].ClearStale(0)
		}
		if r.State() != Healthy {
			t.Fatal(r.State())
		}
		for _, i := range gone {
			if d := r.dev[i]; d.Stale() || d.StaleCount() != 0 {
				t.Fatal("stale after healing")
			}
		}
	})
}

// TestTooManyMissing: one more than parity is gone: errors, and no wrong bytes.
func TestTooManyMissing(t *testing.T) {
	forShapes(t, false, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		for _, i := range r.pick(sh.p + 1) {
			r.mem[i].Disappear()
			r.dev[i].Fail(errors.New("gone"))
		}
		if r.State() != Faulted {
			t.Fatal(r.State())
		}
		if err := r.write(0, 1); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		if err := r.Flush(); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		failed := 0
		for range 20 {
			off, n := r.some()
			b := make([]byte, n)
			err := r.Read(b, off)
			switch {
			case err == nil && !bytes.Equal(b, r.want(off, n)):
				t.Fatal("wrong bytes")
			case errors.Is(err, ErrLost):
				failed++
			case err != nil:
				t.Fatal(err)
			}
			if err := r.Recover(b, off, func([]byte) bool { return true }); !errors.Is(err, ErrLost) {
				t.Fatal(err)
			}
		}
		if failed == 0 {
			t.Fatal("nothing failed")
		}
		if _, err := r.Heal(0, int64(r.Row()), nil); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
	})
}

// TestStaleIsNeverRead: the content of a stale unit is poison, and no device may be spared for it.
func TestStaleIsNeverRead(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		stale := r.pick(sh.p)
		for _, i := range stale {
			r.dev[i].SetStale(1)
			r.mem[i].Corrupt(testBase+testUnit, testUnit, rng)
		}
		size := int64(r.unitRows) * int64(r.Row())
		b := make([]byte, size)
		r.must(r.Read(b, size))
		if !bytes.Equal(b, r.want(size, int(size))) {
			t.Fatal("stale content was read")
		}
		other := -1
		for i := range r.dev {
			if !r.dev[i].Stale() {
				other = i
			}
		}
		r.mem[other].Inject(disk.Faults{FailWrite: true})
		if err := r.write(2*int(r.unitRows)-1, 1); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		b = b[:size-int64(r.Row())] // the last row has not been written, nor has it stayed as it was
		if r.dev[other].State() != Online || r.dev[other].Stale() {
			t.Fatal("a device that cannot be spared went out")
		}
		r.mem[other].Inject(disk.Faults{FailRead: true})
		if err := r.Read(b, size); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		r.mem[other].Inject(disk.Faults{})
		r.must(r.Read(b, size))
		if !bytes.Equal(b, r.want(size, len(b))) {
			t.Fatal("content")
		}
	})
}

// TestLastResort: what a stale unit holds is used when a check says that it is right, and only then.
func TestLastResort(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		p := r.pick(sh.p + 1)
		for _, i := range p[1:] {
			r.dev[i].SetStale(0)
		}
		r.mem[p[0]].Corrupt(testBase, testUnit, rng) // and now nobody else has it
		b := make([]byte, 4*r.Row())
		r.must(r.RecoverBlocks(b, 0, r.bad(0)))
		if !bytes.Equal(b, r.want(0, len(b))) {
			t.Fatal("wrong bytes")
		}
		if _, err := r.heal(); err != nil {
			t.Fatal(err)
		}
		r.exact()
	})
}

// TestNthOperation: the n-th operation of up to P devices fails, for every n of a workload.
func TestNthOperation(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		for n := int64(1); n < 40; n += 1 + rng.Int64N(4) {
			r := newRig(t, sh, rng)
			victims := r.pick(1 + rng.IntN(sh.p))
			for _, i := range victims {
				f := disk.Faults{FailOp: n}
				switch rng.IntN(3) {
				case 0:
					f = disk.Faults{FailFrom: n}
				case 1:
					f = disk.Faults{LoseOp: n}
				}
				r.mem[i].Inject(f)
			}
			for k := range 12 {
				row := rng.IntN(30)
				r.must(r.write(row, 1+rng.IntN(20)))
				if k%4 == 3 {
					r.must(r.Flush())
				}
				r.must(r.get(int64(row*r.Row()), r.Row()))
			}
			for _, i := range victims {
				r.mem[i].Inject(disk.Faults{})
				if r.dev[i].State() == Out {
					r.must(r.dev[i].Return(r.mem[i]))
				}
			}
			r.must(r.get(0, 40*r.Row()))
			if _, err := r.heal(); err != nil {
				t.Fatal(err)
			}
			r.exact()
		}
	})
}

// TestFlushFailure: what was not flushed on a device that fails to is stale there, what was is not.
func TestFlushFailure(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.must(r.write(0, 4))
		r.must(r.Flush())
		r.must(r.write(int(r.unitRows), 4))
		bad := r.pick(sh.p)
		for _, i := range bad {
			r.mem[i].Inject(disk.Faults{FailFlush: true})
		}
		r.must(r.Flush())
		for _, i := range bad {
			if d := r.dev[i]; d.State() != Out || d.IsStale(0) || !d.IsStale(1) {
				t.Fatal(d.State(), d.StaleUnits())
			}
		}
		last := -1
		for i, d := range r.dev {
			if d.State() == Online {
				last = i
			}
		}
		r.mem[last].Inject(disk.Faults{FailFlush: true})
		if err := r.Flush(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		r.mem[last].Inject(disk.Faults{})
		r.must(r.Flush())
		r.mem[last].Disappear() // dirty after the flush that failed and the one that did not: nothing
		r.dev[last].Fail(errors.New("gone"))
		if r.dev[last].Stale() {
			t.Fatal("stale, though the group has it nowhere else")
		}
	})
}

// TestUnflushedIsStale: a device that goes out for any reason may have lost what no flush covered.
func TestUnflushedIsStale(t *testing.T) {
	forShapes(t, true, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.must(r.write(0, 1))
		r.must(r.Flush())
		r.must(r.write(int(2*r.unitRows), 1))
		d := r.dev[rng.IntN(sh.n)]
		d.Fail(errors.New("gone"))
		if d.IsStale(0) || d.IsStale(1) || !d.IsStale(2) {
			t.Fatal(d.StaleUnits())
		}
	})
}
