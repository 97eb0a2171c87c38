package pool

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// besideTest is a pool in the middle of whose scrub the index is written. All its pages are in a few rows.
type besideTest struct {
	t    *testing.T
	p    *Pool
	mems []*disk.Mem
	r    *Replica
	n    uint64
	only uint64 // the walk is only through the segment of this address, if it is not 0
}

const besideChunks = 48

// batch writes the second blocks of some chunks with one batch, which begins at a row.
func (s *besideTest) batch(from, to uint64) {
	var ops []Op
	for c := from; c < to; c++ {
		s.n++
		ops = append(ops, Op{Kind: OpWrite, Block: c*block.ChunkBlocks + 1, Count: 1, Version: ver(s.n), Data: noise(1, s.n)})
	}
	must(s.t, s.r.Apply(ops))
}

func newBesideTest(t *testing.T, l layout) *besideTest {
	p, mems := newLayoutPool(t, l, 24<<20, manualOptions(rand.New(rand.NewPCG(1, 1))))
	r, err := p.CreateReplica("v", besideChunks*block.ChunkBlocks*block.Size)
	must(t, err)
	s := &besideTest{t: t, p: p, mems: mems, r: r}
	s.write(0, besideChunks)
	must(t, p.cycle())
	return s
}

// write writes a block of each chunk from one to below another.
func (s *besideTest) write(from, to uint64) {
	for c := from; c < to; c++ {
		s.n++
		must(s.t, s.r.Apply([]Op{write(c*block.ChunkBlocks, 1, s.n)}))
	}
}

// page returns the reference of a chunk.
func (s *besideTest) page(chunk uint64) chunkRef {
	d, err := s.r.rlock(chunk)
	must(s.t, err)
	defer s.p.idx.mu.RUnlock()
	return *d
}

// drain runs a cycle that leaves the checkpoint to the next one.
func (s *besideTest) drain() {
	d := &s.p.drain
	d.cycle.Lock()
	defer d.cycle.Unlock()
	d.mu.Lock()
	s.p.freeze()
	d.mu.Unlock()
	must(s.t, s.p.drainAll())
	must(s.t, s.p.drained())
}

// lie changes a byte at an address, on the first device that has it.
func (s *besideTest) lie(addr uint64) {
	device, off := s.p.where(addr)
	s.mems[indexOf(s.mems, device)].FlipBit(off, 3)
}

// lieInPage is lie for a page, which is forgotten.
func (s *besideTest) lieInPage(d chunkRef) {
	s.lie(d.pageAddr() + 100)
	s.p.cache.drop(d.id)
}

// place returns the address of the second block of a chunk.
func (s *besideTest) place(chunk uint64) uint64 {
	c := chunkPieces{r: s.r, number: chunk}
	must(s.t, s.p.fillChunk(&c))
	i := slices.IndexFunc(c.data, func(x blockAt) bool { return x.block == 1 })
	return c.data[i].loc.Addr()
}

// parity returns the devices that hold the parity of a row.
func (s *besideTest) parity(l layout, addr uint64) (mems []int) {
	_, off := s.p.seg.locate(addr)
	n, data := l.groups[0].n, l.data(0)
	turn := int(off / int64(data*block.Size) / raid.RotateRows)
	for shard := data; shard < n; shard++ {
		mems = append(mems, (shard+turn)%n)
	}
	return mems
}

// cut cuts the power. Of what is not flushed there is only what some devices have.
func (s *besideTest) cut(kept []int) {
	s.mems = disk.PowerCutAll(s.mems, func(i int) disk.Fate {
		if slices.Contains(kept, i) {
			return disk.Kept
		}
		return disk.Lost
	}, rand.New(rand.NewPCG(1, 1)))
}

// scrub walks as a scrub does, and calls during when the walk has asked the index about so many chunks.
func (s *besideTest) scrub(chunks int, during func()) { s.walk(false, chunks, during) }

// resilver is scrub, but walks as a resilver does.
func (s *besideTest) resilver(chunks int, during func()) { s.walk(true, chunks, during) }

func (s *besideTest) walk(stale bool, chunks int, during func()) {
	want := func(seg uint32) bool { return s.only == 0 || uint64(seg) == s.only>>s.p.seg.shift }
	w, err := s.p.newWalk(0, uint32(s.p.seg.count()), want)
	must(s.t, err)
	w.stale = stale
	w.pace = func(n int64) error {
		if n > 0 { // has healed something
			return nil
		}
		if chunks--; chunks == 0 {
			during()
		}
		return nil
	}
	must(s.t, w.all(0, func(uint32, bool) error { return nil }))
	if chunks > 0 {
		s.t.Fatalf("the walk did not ask about %d chunks", chunks)
	}
}

// notLost fails the test unless all that a kill leaves can be read.
func (s *besideTest) notLost() {
	s.t.Helper()
	report, err := Verify(devicesOf(clones(s.mems)), Options{})
	must(s.t, err)
	for _, f := range report.Findings {
		if f.Lost && f.What != FoundHeader {
			s.t.Error(f)
		}
	}
}

// TestHealBesideDrain: while a walk asks the index what there is, a drain writes the pages of chunks that it has looked at
// and of others into the same row, where a device lies then. What the walk does not know of the row is not lost.
func TestHealBesideDrain(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		s := newBesideTest(t, l)
		s.scrub(besideChunks+besideChunks/2, func() { // first where data is, then where pages are
			s.write(0, besideChunks)
			must(t, s.p.cycle())
			s.lieInPage(s.page(besideChunks/2 - 1))
		})
		s.notLost()
	})
}

// TestHealBeforeCheckpoint: pages that a drain has replaced are what a crash brings back until the next checkpoint, and
// share rows with others. When a device lies there they are not lost.
func TestHealBeforeCheckpoint(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		s := newBesideTest(t, l)
		old := s.page(besideChunks/2 - 1)
		s.only = old.pageAddr()
		s.scrub(besideChunks, func() {
			s.write(0, besideChunks/2)
			s.drain()
			s.lieInPage(old)
		})
		s.notLost()
	})
}

// TestResilverBeforeCheckpoint: a batch is dead when a resilver looks, since a drain is over after all of its blocks were
// overwritten, and a power cut takes that back. When a device lies in the row of its header, which a resilver brings to all
// devices, the blocks in it are not lost.
func TestResilverBeforeCheckpoint(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		if l.data(0) == 1 {
			t.Skip("a row is a block, so that there is none beside the header")
		}
		s := newBesideTest(t, l)
		s.batch(besideChunks/2, besideChunks)
		must(t, s.p.cycle())
		at := s.place(besideChunks / 2)
		s.only = at
		s.resilver(besideChunks/2-1, func() {
			s.lie(at)
			s.batch(besideChunks/2, besideChunks)
			s.drain()
		})
		s.cut(s.parity(l, at))
		s.notLost()
	})
}

// TestAdoptBeforeCheckpoint: nothing says any more what is in a batch, so that a scrub asks the index, which does not refer
// to one of its blocks any more, since a drain is over after that was overwritten. A power cut takes that back. When a
// device lies in the block it is not lost, though it shares a row with others that are healed.
func TestAdoptBeforeCheckpoint(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		if l.data(0) == 1 {
			t.Skip("a row is a block")
		}
		s := newBesideTest(t, l)
		s.batch(besideChunks/2, besideChunks)
		must(t, s.p.cycle())
		first := s.place(besideChunks/2) - block.Size
		_, off := s.p.where(first)
		s.lie(first)
		for _, i := range s.parity(l, first) {
			s.mems[i].FlipBit(off, 3)
		}
		const chunk = besideChunks/2 + 6 // the last of a row
		at := s.place(chunk)
		s.scrub(2*besideChunks+chunk, func() { // the third look is for what headers do not say
			s.lie(at)
			s.batch(chunk, chunk+1)
			s.drain()
		})
		s.cut(s.parity(l, at))
		s.notLost()
	})
}
