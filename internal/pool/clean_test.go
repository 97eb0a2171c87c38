package pool

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestCleaningCost bounds what cleaning costs, generously: a small pool has more overhead than a large one.
func TestCleaningCost(t *testing.T) {
	dev := &ramDisk{b: make([]byte, 66<<20)}
	run := func(pat pattern) cleaned {
		clear(dev.b[:1<<20])
		clear(dev.b[len(dev.b)-1<<20:])
		c := overwrite(t, dev, Options{SegmentBytes: 256 << 10, DeltaEntries: 8192, NoDiscard: true}, .8, pat, 32, 3, 1.5)
		t.Logf("%s: %v", pat.name, c)
		return c
	}
	uniform, skewed := run(patterns[0]), run(patterns[1])
	if uniform.data > 1.35*uniform.want || uniform.data < 1.5 {
		t.Errorf("overwriting at random costs x%.2f, x%.2f by analysis", uniform.data, uniform.want)
	}
	if skewed.data > .85*uniform.data {
		t.Errorf("overwriting mostly a tenth costs x%.2f, all alike x%.2f", skewed.data, uniform.data)
	}
}

// cleanTest is a replica that is overwritten all the time in a pool that is nearly full, and what it must contain.
type cleanTest struct {
	t   *testing.T
	rng *rand.Rand
	p   *Pool
	r   *Replica
	n   uint64
	now []uint32 // checksums
}

func newCleanTest(t *testing.T, p *Pool, blocks int) *cleanTest {
	t.Helper()
	r, err := p.CreateReplica("v", int64(blocks)*block.Size)
	must(t, err)
	c := &cleanTest{t: t, rng: testRand(t), p: p, r: r, now: make([]uint32, blocks)}
	for i := range c.now {
		c.now[i] = block.ZeroSum
	}
	return c
}

// put overwrites blocks in so many batches of eight.
func (c *cleanTest) put(batches int) {
	c.t.Helper()
	for range batches {
		var ops []Op
		for range 8 {
			c.n++
			o := Op{Kind: OpWrite, Block: c.rng.Uint64N(uint64(len(c.now))), Count: 1, Version: ver(c.n), Data: noise(1, c.rng.Uint64())}
			if c.rng.IntN(20) == 0 {
				o.Kind, o.Data = OpDiscard, nil
			}
			c.did(&o)
			ops = append(ops, o)
		}
		if err := c.r.Apply(ops); err != nil {
			c.t.Fatalf("%v; %+v", err, c.p.Stats())
		}
	}
}

func (c *cleanTest) did(o *Op) {
	for i := range uint64(o.Count) {
		if c.now[o.Block+i] = block.ZeroSum; o.Kind == OpWrite {
			c.now[o.Block+i] = block.Sum(o.Data[i*block.Size : (i+1)*block.Size])
		}
	}
}

// fill writes everything once, in order.
func (c *cleanTest) fill() {
	c.t.Helper()
	for b := 0; b < len(c.now); b += 60 {
		c.n++
		n := min(60, len(c.now)-b)
		o := Op{Kind: OpWrite, Block: uint64(b), Count: uint32(n), Version: ver(c.n), Data: noise(n, c.n)}
		must(c.t, c.r.Apply([]Op{o}))
		c.did(&o)
	}
}

// look compares the content and checks the pool.
func (c *cleanTest) look() {
	c.t.Helper()
	for i, want := range c.now {
		var sum [1]uint32
		must(c.t, c.r.Read(uint64(i), make([]byte, block.Size), sum[:]))
		if sum[0] != want {
			c.t.Fatalf("block %d", i)
		}
	}
	must(c.t, c.p.Check())
}

// kinds counts the segments of each kind.
func kinds(p *Pool) (n [segKinds]int) {
	p.seg.mu.Lock()
	defer p.seg.mu.Unlock()
	for _, k := range p.seg.kind {
		n[k]++
	}
	return n
}

// segmentOf returns the segment that pages say a block is in.
func (c *cleanTest) segmentOf(b uint64) uint32 {
	c.t.Helper()
	ticket := c.p.read.enter()
	defer c.p.read.leave(ticket)
	v := new(chunkView)
	must(c.t, c.r.list(v, b/block.ChunkBlocks))
	return c.p.seg.of(v.page.Loc[b%block.ChunkBlocks])
}

// TestColdCopiesAtPowerCut cuts power while the cleaner is at work, with copies that are not on stable storage lost or
// torn: what was synced is there, wherever it is, and nothing else is missing.
func TestColdCopiesAtPowerCut(t *testing.T) {
	for _, fate := range []disk.Fate{disk.Lost, disk.Torn, disk.Prefix, disk.Kept} {
		t.Run(fmt.Sprint("fate=", fate), func(t *testing.T) {
			t.Parallel()
			opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: fate == disk.Torn}
			p, m := newMemPool(t, 24<<20, opt)
			c := newCleanTest(t, p, 3500) // of 76 x 64
			c.fill()
			for range 12 {
				c.put(50 + c.rng.IntN(60))
				must(t, c.p.Sync())
				synced, at := slices.Clone(c.now), c.n
				var versions []Op
				for range c.rng.IntN(100) {
					c.n++
					o := Op{Kind: OpWrite, Block: c.rng.Uint64N(uint64(len(c.now))), Count: 1, Version: ver(c.n), Data: noise(1, c.rng.Uint64())}
					must(t, c.r.Apply([]Op{o}))
					versions = append(versions, o)
				}
				m = m.PowerCut(fate, c.rng)
				c.p.Close()
				q, err := Open([]disk.Device{m}, opt)
				must(t, err)
				c.p, c.r, c.now = q, q.Replica("v"), synced
				for i := 0; ver(at) != c.r.Applied(); i++ {
					if i == len(versions) {
						t.Fatalf("applied %v", c.r.Applied())
					}
					c.did(&versions[i])
					at = versions[i].Version.N
				}
				c.look()
			}
			must(t, c.p.Close())
		})
	}
}

// TestMovesAreCheckpointed has the cleaner move everything that it can and sees that the moved data is where pages say,
// with the age of its segments, after a reopen and after a kill.
func TestMovesAreCheckpointed(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096}
	p, m := newMemPool(t, 32<<20, opt)
	c := newCleanTest(t, p, 5000)
	c.fill()
	c.put(1500)
	must(t, p.cycle())
	k := kinds(p)
	if k[segWarm] == 0 || k[segCold] == 0 {
		t.Fatalf("kinds %v", k)
	}
	births := map[uint32]uint64{}
	for i, k := range p.seg.kind {
		if (k == segWarm || k == segCold) && p.seg.pageLive[i] > 0 && !p.seg.pinned[i] {
			births[uint32(i)] = p.seg.birth[i]
		}
	}
	c.look()
	must(t, p.Close())
	m.Reopen()
	q, err := Open([]disk.Device{m}, opt)
	must(t, err)
	for i, b := range births {
		if p.seg.kind[i] == segFree { // cleaned since then
			continue
		}
		if q.seg.birth[i] != b || q.seg.kind[i] != p.seg.kind[i] {
			t.Fatalf("segment %d: birth %d and kind %d, was %d and %d", i, q.seg.birth[i], q.seg.kind[i], b, p.seg.kind[i])
		}
	}
	if q.seg.clock.Load() < p.drain.clock {
		t.Fatalf("clock %d, was %d", q.seg.clock.Load(), p.drain.clock)
	}
	c.p, c.r = q, q.Replica("v")
	c.look()
	m = m.Kill()
	q.Close()
	q, err = Open([]disk.Device{m}, opt)
	must(t, err)
	defer q.Close()
	c.p, c.r = q, q.Replica("v")
	c.look()
	c.put(300)
	c.look()
}

// devOff returns the device of an address of a stripe and the offset there.
func devOff(p *Pool, addr uint64) (name string, off int64) { return p.where(addr) }

// TestCacheIsEmptied writes to a pool with a write cache: when it is half full, or at rest, data moves on.
func TestCacheIsEmptied(t *testing.T) {
	p, _ := newLayoutPool(t, layouts[8], 40<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: true})
	c := newCleanTest(t, p, 5000)
	onCache := func() (n int64) {
		p.idx.mu.RLock()
		defer p.idx.mu.RUnlock()
		p.seg.mu.Lock()
		defer p.seg.mu.Unlock()
		for i, k := range p.seg.kind {
			if k != segFree && k != segIndex && p.seg.onCache(uint32(i)) {
				n += int64(p.seg.pageLive[i]) + int64(p.seg.deltaLive[i])
			}
		}
		return n
	}
	c.fill()
	c.put(200)
	waitUntil(p, func() bool { return onCache() <= p.seg.bytes() }) // at rest; the segment in which the log goes on stays
	c.look()
	if p.Stats().BlocksMoved == 0 {
		t.Error("nothing was moved")
	}
	c.put(500)
	c.look()
}

// overwriteAtRandom overwrites a replica at random, with content for the version n, in batches of eight blocks, and
// reads everything, also after a kill. It returns the pool as it was before that.
func overwriteAtRandom(t *testing.T, opt Options, blocks, batches uint64, content func(n uint64) []byte) (*Pool, *Replica) {
	t.Helper()
	rng := testRand(t)
	opt.SegmentBytes, opt.DeltaEntries = 256<<10, 4096
	p, m := newMemPool(t, 32<<20, opt)
	r, err := p.CreateReplica("v", int64(blocks*block.Size))
	must(t, err)
	want := make([]uint32, blocks)
	for i := range want {
		want[i] = block.ZeroSum
	}
	for n := range batches {
		var ops []Op
		for range 8 {
			o := writeData(rng.Uint64N(blocks), content(n+1), n+1)
			want[o.Block] = block.Sum(o.Data)
			ops = append(ops, o)
		}
		if err := r.Apply(ops); err != nil {
			t.Fatalf("batch %d: %v; %+v", n, err, p.Stats())
		}
	}
	look := func(p *Pool) {
		t.Helper()
		sums := make([]uint32, blocks)
		must(t, p.Replica("v").Read(0, make([]byte, blocks*block.Size), sums))
		for i := range sums {
			if sums[i] != want[i] {
				t.Fatalf("block %d", i)
			}
		}
		must(t, p.Check())
	}
	look(p)
	q, err := Open([]disk.Device{m.Kill()}, Options{DeltaEntries: 4096})
	must(t, err)
	look(q)
	must(t, q.Close())
	return p, r
}

// TestCleaner overwrites a volume at random for many times the size of the pool.
func TestCleaner(t *testing.T) {
	const blocks = 4800 // 18.75 of 32 MiB, less 10 of 120 segments
	p, _ := overwriteAtRandom(t, Options{}, blocks, 6000, func(n uint64) []byte { return fill(1, n) })
	s := p.Stats()
	t.Logf("%d written, %d moved, %d checkpoints, %d of %d segments free", s.BlocksWritten, s.BlocksMoved, s.Checkpoints, s.FreeSegments, s.Segments)
	if s.BlocksMoved == 0 {
		t.Fatal("nothing was moved")
	}
}

// TestCleanerCompressed overwrites a volume of compressed blocks, some of which are noise at times, many times over.
func TestCleanerCompressed(t *testing.T) {
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
		rng := testRand(t)
		p, r := overwriteAtRandom(t, Options{Compression: a}, 8000, 5000, func(uint64) []byte {
			if rng.IntN(10) == 0 {
				return mixed(rng, 1)
			}
			return half(1, rng.Uint64())
		})
		if s := p.Stats(); s.BlocksMoved == 0 || s.Allocated > s.Capacity || r.Stats().Used < s.Capacity*9/10 {
			t.Fatalf("%+v, %+v", s, r.Stats())
		}
	}
}
