package raid

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

var seedFlag = flag.Uint64("raid.seed", 0, "seed of the random tests; 0 picks one")

func newSeed(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d (-raid.seed=%d)", seed, seed)
	return rand.New(rand.NewPCG(seed, 1))
}

const (
	testBase  = 64 << 10
	testUnit  = 48 * blockSize // rotations begin within units
	testUnits = 3
)

// shapes are all kinds with every number of devices up to ten that they take.
func shapes(redundantOnly bool) (out []shape) {
	for k := Stripe; k <= RAIDZ2; k++ {
		for n := 1; n <= 10; n++ {
			if d, p, err := k.Shape(n); err == nil && (p > 0 || !redundantOnly) {
				out = append(out, shape{k, n, d, p})
			}
		}
	}
	return out
}

type shape struct {
	kind       Kind
	n, data, p int
}

func (s shape) String() string { return fmt.Sprintf("%s-%d", s.kind, s.n) }

// rig is a group on memory devices beside what it should hold.
type rig struct {
	*Group
	t    testing.TB
	rng  *rand.Rand
	mem  []*disk.Mem
	dev  []*Device
	ref  []byte
	sums []uint32 // of the blocks of ref
}

func newRig(t testing.TB, sh shape, rng *rand.Rand) *rig {
	t.Helper()
	r := &rig{t: t, rng: rng}
	cfg := Config{Kind: sh.kind, Base: testBase, UnitBytes: testUnit, Units: testUnits}
	for i := range sh.n {
		r.mem = append(r.mem, disk.NewMem(fmt.Sprintf("d%d", i), testBase+testUnits*testUnit))
		r.dev = append(r.dev, NewDevice(block.NewGUID(), r.mem[i]))
		cfg.Columns = append(cfg.Columns, Column{Devices: []*Device{r.dev[i]}})
	}
	var err error
	if r.Group, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	r.ref = make([]byte, r.Size())
	r.sums = make([]uint32, len(r.ref)/blockSize)
	for i := range r.sums {
		r.sums[i] = block.ZeroSum
	}
	return r
}

// write writes rows of random content, in buffers of random sizes.
func (r *rig) write(row, rows int) error {
	n := rows * r.Row()
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := r.rng.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	var bufs [][]byte
	fine := r.rng.IntN(3) == 0
	for rest := b; len(rest) > 0; {
		k := blockSize * (1 + r.rng.IntN(4))
		if fine {
			k = 64 * (1 + r.rng.IntN(100))
		}
		k = min(k, len(rest))
		bufs = append(bufs, rest[:k:k])
		rest = rest[k:]
	}
	if err := r.Write(bufs, int64(row*r.Row())); err != nil {
		return err
	}
	r.note(row, b)
	return nil
}

func (r *rig) note(row int, b []byte) {
	at := row * r.Row()
	copy(r.ref[at:], b)
	for i := at / blockSize; i < (at+len(b))/blockSize; i++ {
		r.sums[i] = block.Sum(r.ref[i*blockSize : (i+1)*blockSize])
	}
}

func (r *rig) rows() int { return len(r.ref) / r.Row() }

// fill writes everything.
func (r *rig) fill() {
	r.t.Helper()
	for row := 0; row < r.rows(); {
		n := min(1+r.rng.IntN(40), r.rows()-row)
		r.must(r.write(row, n))
		row += n
	}
}

// someOnline reports whether one of the devices is online.
func (r *rig) someOnline(devs []int) bool {
	for _, i := range devs {
		if r.dev[i].State() == Online {
			return true
		}
	}
	return false
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// some returns a random range of blocks within a unit.
func (r *rig) some() (off int64, n int) {
	per := int(r.unitRows) * r.data
	u, a := r.rng.IntN(testUnits), r.rng.IntN(per)
	return int64(u*per+a) * blockSize, (1 + r.rng.IntN(min(40, per-a))) * blockSize
}

// bad is the check of a range of blocks.
func (r *rig) bad(off int64) func(b []byte) []int {
	return func(b []byte) (bad []int) {
		for i := 0; i < len(b)/blockSize; i++ {
			if block.Sum(b[i*blockSize:(i+1)*blockSize]) != r.sums[int(off/blockSize)+i] {
				bad = append(bad, i)
			}
		}
		return bad
	}
}

func (r *rig) want(off int64, n int) []byte { return r.ref[off : off+int64(n)] }

// get reads a range as the pool does: what does not verify is recovered. It never returns without a check.
func (r *rig) get(off int64, n int) error {
	r.t.Helper()
	b := make([]byte, n)
	if err := r.Read(b, off); err != nil {
		return err
	}
	if !bytes.Equal(b, r.want(off, n)) {
		var err error
		if r.rng.IntN(2) == 0 {
			err = r.RecoverBlocks(b, off, r.bad(off))
		} else {
			err = r.Recover(b, off, func(b []byte) bool { return len(r.bad(off)(b)) == 0 })
		}
		if err != nil {
			return err
		}
		if !bytes.Equal(b, r.want(off, n)) {
			r.t.Fatalf("recovered wrong bytes at %d", off)
		}
	}
	return nil
}

// heal heals everything.
func (r *rig) heal() (total HealResult, err error) {
	for row := 0; row < r.rows(); {
		n := min(1+r.rng.IntN(60), r.rows()-row)
		off := int64(row * r.Row())
		res, e := r.Heal(off, int64(n*r.Row()), r.bad(off))
		total.Rewritten += res.Rewritten
		total.Wrong += res.Wrong
		total.Lost = append(total.Lost, res.Lost...)
		if e != nil && err == nil {
			err = e
		}
		row += n
	}
	return total, err
}

// exact fails unless every device of every column holds exactly what it should.
func (r *rig) exact() {
	r.t.Helper()
	shards := make([][]byte, r.data+r.parity)
	got := make([]byte, blockSize)
	for row := range r.rows() {
		for s := range r.data {
			at := (row*r.data + s) * blockSize
			shards[s] = r.ref[at : at+blockSize]
		}
		for s := r.data; s < len(shards); s++ {
			if shards[s] = shards[0]; r.data > 1 {
				shards[s] = make([]byte, blockSize)
			}
		}
		if r.data > 1 {
			specified(shards[:r.data], shards[r.data:])
		}
		for s := range shards {
			for _, d := range r.layout.Load().cols[r.column(s, int64(row))].Devices {
				r.must(d.Disk().ReadAt(got, testBase+int64(row)*blockSize))
				if !bytes.Equal(got, shards[s]) {
					r.t.Fatalf("row %d: shard %d on %s is not what it should be", row, s, d.Name())
				}
			}
		}
	}
}

// specified computes parity as docs/format.md says, and not as the engine does: the first is the sum of the data, the second
// the sum of 2ⁱ times data i in GF(2⁸) modulo x⁸+x⁴+x³+x²+1.
func specified(data, parity [][]byte) {
	for at := range parity[0] {
		var p, q uint16
		for i := len(data) - 1; i >= 0; i-- {
			if q <<= 1; q > 0xff {
				q ^= 0x11d
			}
			q ^= uint16(data[i][at])
			p ^= uint16(data[i][at])
		}
		if parity[0][at] = byte(p); len(parity) > 1 {
			parity[1][at] = byte(q)
		}
	}
}

// TestParity compares the parity of groups of all sizes with the specification.
func TestParity(t *testing.T) {
	rng := newSeed(t)
	for data := 2; data <= 60; data++ {
		for parity := 1; parity <= 2; parity++ {
			shards := make([][]byte, data+parity)
			for i := range shards {
				shards[i] = make([]byte, 256)
				for at := range shards[i] {
					shards[i][at] = byte(rng.Uint32())
				}
			}
			c, err := newCoder(data, parity)
			if err != nil {
				t.Fatal(err)
			}
			c.encode(shards)
			want := [][]byte{make([]byte, 256), make([]byte, 256)}[:parity]
			specified(shards[:data], want)
			for i := range want {
				if !bytes.Equal(shards[data+i], want[i]) {
					t.Fatalf("%d+%d: parity %d is not as specified", data, parity, i)
				}
			}
		}
	}
}

// pick returns k different devices.
func (r *rig) pick(k int) []int { return r.rng.Perm(len(r.mem))[:k] }

func forShapes(t *testing.T, redundantOnly bool, f func(t *testing.T, sh shape, rng *rand.Rand)) {
	rng := newSeed(t)
	for _, sh := range shapes(redundantOnly) {
		a, b := rng.Uint64(), rng.Uint64()
		if testing.Short() && sh.kind == Mirror && sh.n > 3 {
			continue
		}
		t.Run(sh.String(), func(t *testing.T) { f(t, sh, rand.New(rand.NewPCG(a, b))) })
	}
}

// TestReadWrite: rows are read as they were written, and copies and parity fit.
func TestReadWrite(t *testing.T) {
	forShapes(t, false, func(t *testing.T, sh shape, rng *rand.Rand) {
		r := newRig(t, sh, rng)
		r.fill()
		r.exact()
		for range 50 {
			row := rng.IntN(r.rows())
			r.must(r.write(row, 1+rng.IntN(min(70, r.rows()-row))))
			off, n := r.some()
			b := make([]byte, n)
			r.must(r.Read(b, off))
			if !bytes.Equal(b, r.want(off, n)) {
				t.Fatalf("%d bytes at %d differ", n, off)
			}
		}
		r.must(r.Flush())
		r.exact()
		whole := make([]byte, r.Size())
		r.must(r.Read(whole, 0))
		if !bytes.Equal(whole, r.ref) {
			t.Fatal("content differs")
		}
		if r.State() != Healthy {
			t.Fatal(r.State())
		}
		r.must(r.Discard(0, r.Size()))
		for _, m := range r.mem {
			if m.Bytes() != 0 {
				t.Fatal("not discarded")
			}
		}
		for _, c := range []struct{ off, n int64 }{{1, int64(r.Row())}, {r.Size(), int64(r.Row())}, {-4096, 4096}, {0, 100}} {
			if err := r.Write([][]byte{make([]byte, c.n)}, c.off); !errors.Is(err, ErrRange) {
				t.Fatal(c, err)
			}
			if err := r.Read(make([]byte, c.n), c.off); !errors.Is(err, ErrRange) {
				t.Fatal(c, err)
			}
		}
	})
}

// TestShape: numbers of devices that each kind takes, and names of kinds.
func TestShape(t *testing.T) {
	want := map[Kind]map[int][2]int{
		Stripe: {1: {1, 0}},
		Mirror: {2: {1, 1}, 3: {1, 2}, 4: {1, 3}, 5: {1, 4}, 6: {1, 5}, 7: {1, 6}, 8: {1, 7}, 9: {1, 8}, 10: {1, 9}},
		RAIDZ:  {3: {2, 1}, 5: {4, 1}, 9: {8, 1}},
		RAIDZ2: {6: {4, 2}, 10: {8, 2}},
	}
	for k := Stripe; k <= RAIDZ2; k++ {
		for n := 0; n <= 10; n++ {
			d, p, err := k.Shape(n)
			w, ok := want[k][n]
			if ok != (err == nil) || ok && w != [2]int{d, p} {
				t.Errorf("%s of %d: %d+%d, %v", k, n, d, p, err)
			}
		}
		if got, err := ParseKind(k.String()); err != nil || got != k {
			t.Error(k, got, err)
		}
	}
	if _, err := ParseKind("raid5"); err == nil {
		t.Error("raid5 is a kind")
	}
	if _, _, err := Kind(0).Shape(1); err == nil {
		t.Error("kind 0 has a shape")
	}
}

// TestRecoverPart has both copies of a block damaged, each in another part: what is verified is repaired, and nothing
// beside it is.
func TestRecoverPart(t *testing.T) {
	r := newRig(t, shape{Mirror, 2, 1, 1}, newSeed(t))
	want := make([]byte, 4*blockSize)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	if err := r.Write([][]byte{want}, 0); err != nil {
		t.Fatal(err)
	}
	block := want[blockSize : 2*blockSize]
	at := r.devOff(1)
	r.mem[0].FlipBit(at+100, 1)
	r.mem[1].FlipBit(at+3000, 1)
	for i, x := range [][2]int{{0, 1024}, {2048, blockSize}} {
		b := make([]byte, blockSize)
		ok := func(b []byte) bool { return bytes.Equal(b[x[0]:x[1]], block[x[0]:x[1]]) }
		if err := r.RecoverPart(b, blockSize, x[0], x[1], ok); err != nil || !ok(b) {
			t.Fatal(err)
		}
		for j, m := range r.mem {
			if err := m.ReadAt(b, at); err != nil {
				t.Fatal(err)
			}
			if right := j <= i; bytes.Equal(b, block) != right {
				t.Fatalf("after part %d: device %d is right: %t, want %t", i, j, !right, right)
			}
			if _, _, sums := r.dev[j].Errors(); (sums > 0) != (j <= i) {
				t.Fatalf("after part %d: device %d counts %d checksum errors", i, j, sums)
			}
		}
	}
}

// TestRecoverPartOfTwo verifies the end of one block and the begin of the next one in its row. One column lies in the
// first of them, another one in bytes that only the second one is verified in: a guess that fits the check blames an
// honest third column, which must not be made to agree with it.
func TestRecoverPartOfTwo(t *testing.T) {
	r := newRig(t, shape{RAIDZ2, 6, 4, 2}, newSeed(t))
	r.fill()
	want := bytes.Clone(r.ref[:2*blockSize])
	r.mem[0].Corrupt(r.devOff(0), blockSize, r.rng)
	bad := make([]byte, blockSize)
	if err := r.mem[3].ReadAt(bad, r.devOff(0)); err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		bad[i] ^= 0x55
	}
	if err := r.mem[3].WritevAt([][]byte{bad}, r.devOff(0)); err != nil {
		t.Fatal(err)
	}
	var before [6][]byte
	for i, m := range r.mem {
		before[i] = make([]byte, blockSize)
		if err := m.ReadAt(before[i], r.devOff(0)); err != nil {
			t.Fatal(err)
		}
	}
	lo, hi := 2560, blockSize+1500
	b := make([]byte, 2*blockSize)
	ok := func(b []byte) bool { return bytes.Equal(b[lo:hi], want[lo:hi]) }
	if err := r.RecoverPart(b, 0, lo, hi, ok); err != nil || !ok(b) {
		t.Fatal(err)
	}
	for _, i := range []int{1, 2, 4, 5} {
		now := make([]byte, blockSize)
		if err := r.mem[i].ReadAt(now, r.devOff(0)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(now, before[i]) {
			t.Fatalf("honest device %d was changed", i)
		}
	}
}
