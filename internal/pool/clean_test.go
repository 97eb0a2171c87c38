package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
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
	t    *testing.T
	rng  *rand.Rand
	p    *Pool
	r    *Replica
	n    uint64
	now  []uint32 // checksums
	past [][]uint32
}

func newCleanTest(t *testing.T, p *Pool, blocks int) *cleanTest {
	t.Helper()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1e9)
	}
	t.Log("seed", seed)
	r, err := p.CreateReplica("v", int64(blocks)*block.Size)
	must(t, err)
	c := &cleanTest{t: t, rng: rand.New(rand.NewPCG(seed, 5)), p: p, r: r, now: make([]uint32, blocks)}
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

// look compares the content, but for the blocks that are known to be damaged, and checks the pool.
func (c *cleanTest) look(damaged ...uint64) {
	c.t.Helper()
	for i, want := range c.now {
		var sum [1]uint32
		if slices.Contains(damaged, uint64(i)) {
			continue
		}
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

// TestDamagedHeader damages the headers of segments that are then cleaned: their blocks are found through the index.
func TestDamagedHeader(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: true})
	c := newCleanTest(t, p, 5000)
	c.fill()
	must(t, p.cycle())
	bad := map[uint32]uint64{} // when they were taken
	for b := uint64(100); len(bad) < 5; b += 300 {
		seg := c.segmentOf(b)
		if _, ok := bad[seg]; ok {
			continue
		}
		bad[seg] = p.seg.birth[seg]
		for blk := range p.seg.blocks() { // whatever is a header there
			addr := uint64(seg)<<p.seg.shift + uint64(blk)<<block.Shift
			h := make([]byte, block.Size)
			must(t, p.seg.readAt(h, addr))
			if _, err := wal.Decode(h); err == nil {
				_, off := devOff(p, addr)
				m.FlipBit(off+20, 3)
			}
		}
	}
	used := func() (n int) {
		for seg, birth := range bad {
			p.seg.mu.Lock()
			if p.seg.kind[seg] == segLog && p.seg.birth[seg] == birth { // and not taken again
				n++
			}
			p.seg.mu.Unlock()
		}
		return n
	}
	for i := 0; used() > 0; i++ {
		if i == 100 {
			t.Fatalf("%d segments with damaged headers are still in use; lost %v %v", used(), p.cleaner.lost.now, p.cleaner.lost.next)
		}
		c.put(100)
	}
	c.look()
	if p.Stats().BlocksMoved == 0 {
		t.Fatal("nothing was moved")
	}
}

// TestDamagedBlock damages a block in a segment that is then cleaned: it stays where it is and is reported, the rest is
// moved, and the segment is not tried again and again. When the block is overwritten, its segment becomes free.
func TestDamagedBlock(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: true})
	c := newCleanTest(t, p, 5000)
	c.fill()
	must(t, p.cycle())
	const b = 777
	c.now = c.now[:b] // not overwritten for now
	seg := c.segmentOf(b)
	v := new(chunkView)
	must(t, c.r.list(v, b/block.ChunkBlocks))
	_, off := devOff(p, v.page.Loc[b%block.ChunkBlocks].Addr())
	m.FlipBit(off+99, 1)
	var sum *ChecksumError
	if err := c.r.Read(b, make([]byte, block.Size), nil); !errors.As(err, &sum) || sum.Block != b {
		t.Fatal(err)
	}
	live := func() uint32 {
		p.idx.mu.RLock()
		defer p.idx.mu.RUnlock()
		return p.seg.pageLive[seg]
	}
	for i := 0; live() != block.Size; i++ {
		if i == 200 {
			t.Fatalf("%d bytes are left in the segment of the damaged block", live())
		}
		for range 40 { // the same few blocks, so that segments grow empty whose rest must move
			c.put(1)
		}
	}
	before := p.Stats().ChecksumErrors
	c.put(1000)
	if n := p.Stats().ChecksumErrors - before; n > 0 {
		t.Errorf("tried %d times again", n)
	}
	c.now = append(c.now, block.ZeroSum)
	c.n++
	o := write(b, 1, c.n)
	must(t, c.r.Apply([]Op{o}))
	c.did(&o)
	must(t, p.cycle())
	if n := live(); n != 0 && p.seg.kind[seg] == segLog {
		t.Errorf("%d bytes live", n)
	}
	c.look()
}

// devOff returns the device of an address of a stripe and the offset there.
func devOff(p *Pool, addr uint64) (name string, off int64) { return p.where(addr) }

// TestFullManyTimes fills a pool until it refuses, discards, and fills it again, with restarts and power cuts between:
// it always refuses at the same point, stays readable, and takes discards and what replicas record.
func TestFullManyTimes(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off}
	p, m := newMemPool(t, 20<<20, opt)
	c := newCleanTest(t, p, 10000)
	at := uint64(0)
	for round := range 10 {
		written := 0
		for {
			c.n++
			o := Op{Kind: OpWrite, Block: at % 9990, Count: uint32(1 + c.rng.IntN(9)), Version: ver(c.n)}
			o.Data = noise(int(o.Count), c.n)
			err := c.r.Apply([]Op{o})
			if errors.Is(err, ErrNoSpace) {
				c.n--
				break
			}
			must(t, err)
			c.did(&o)
			at += uint64(o.Count)
			if written++; written > 5000 {
				t.Fatal("never full")
			}
		}
		s := c.p.Stats()
		if s.Free > s.Capacity/20 || s.Allocated > s.Capacity+2*s.SegmentBytes || s.Health != HealthOnline {
			t.Fatalf("round %d: refuses with %d of %d bytes allocated: %s", round, s.Allocated, s.Capacity, s.Failure)
		}
		c.n++
		must(t, c.r.SetState([]byte(fmt.Sprint("full ", round)), ver(c.n)))
		c.look()
		switch round % 3 {
		case 1:
			must(t, c.p.Close())
			m.Reopen()
		case 2:
			must(t, c.p.Sync())
			m = m.PowerCut(disk.Lost, c.rng)
			c.p.Close()
		}
		if round%3 > 0 {
			q, err := Open([]disk.Device{m}, opt)
			must(t, err)
			t.Cleanup(func() { q.Close() })
			c.p, c.r = q, q.Replica("v")
			c.look()
		}
		for range 40 { // many small holes: space that only cleaning gives back
			c.n++
			o := Op{Kind: OpDiscard, Block: c.rng.Uint64N(9900), Count: uint32(1 + c.rng.IntN(60)), Version: ver(c.n)}
			must(t, c.r.Apply([]Op{o}))
			c.did(&o)
		}
		if round == 5 {
			must(t, c.p.DestroyReplica("v"))
			r, err := c.p.CreateReplica("v", int64(len(c.now))*block.Size)
			must(t, err)
			c.r = r
			for i := range c.now {
				c.now[i] = block.ZeroSum
			}
		}
	}
	if s := c.p.Stats(); s.BlocksMoved == 0 {
		t.Errorf("nothing was moved: %+v", s)
	}
}

// TestCleanerRaces has replicas overwritten, discarded, destroyed and read while the cleaner is at work. It is for the
// race detector, and checks that reads return what was written.
func TestCleanerRaces(t *testing.T) {
	p, _ := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, PageCacheBytes: 64 << 10})
	var data [64][]byte
	valid := map[uint32]bool{block.ZeroSum: true}
	for i := range data {
		data[i] = noise(1, uint64(i))
		valid[block.Sum(data[i])] = true
	}
	const blocks = 2100 // twice, of 5500 that fit
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 2 {
		name := fmt.Sprint("v", w)
		_, err := p.CreateReplica(name, blocks*block.Size)
		must(t, err)
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for n := uint64(1); n < 9000; n++ {
				r := p.Replica(name)
				if n == 3000 && w == 0 {
					if err := p.DestroyReplica(name); err != nil {
						t.Error(err)
					}
					if r, err = p.CreateReplica(name, blocks*block.Size); err != nil {
						t.Error(err)
						return
					}
				}
				o := Op{Kind: OpWrite, Block: rng.Uint64N(blocks), Count: 1, Version: ver(n), Data: data[rng.IntN(64)]}
				if n%100 == 0 {
					o = discard(rng.Uint64N(blocks-100), 100, n)
				}
				if err := r.Apply([]Op{o}); err != nil {
					t.Errorf("%v; %+v", err, p.Stats())
					return
				}
			}
		})
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 2))
			var sums [16]uint32
			dst := make([]byte, 16*block.Size)
			for {
				select {
				case <-stop:
					return
				default:
				}
				r := p.Replica(name)
				if r == nil {
					continue
				}
				if err := r.Read(rng.Uint64N(blocks-16), dst, sums[:]); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
					return
				} else if err != nil {
					continue
				}
				for _, s := range sums {
					if !valid[s] {
						t.Error("content that nobody wrote")
						return
					}
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	must(t, p.Check())
	if p.Stats().BlocksMoved == 0 {
		t.Error("nothing was moved")
	}
}

// TestReleaseInSteps destroys a replica of more chunks than one cycle takes apart, with a restart in between.
func TestReleaseInSteps(t *testing.T) {
	defer func(n int) { releaseStep = n }(releaseStep)
	releaseStep = 3
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, NoDiscard: true})
	fresh := p.Stats()
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	for i := range uint64(128) {
		must(t, r.Apply([]Op{{Kind: OpWrite, Block: i * 64, Count: 40, Version: ver(i + 1), Data: noise(40, i)}}))
	}
	must(t, p.cycle())
	drains := p.Stats().Drains
	must(t, p.DestroyReplica("v"))
	must(t, p.cycle())
	must(t, p.Check())
	q, err := Open([]disk.Device{m.Kill()}, Options{})
	must(t, err)
	defer q.Close()
	q.wake()
	waitUntil(q, func() bool { return q.Stats().FreeSegments >= fresh.FreeSegments-4 })
	must(t, q.Check())
	if n := p.Stats().Drains - drains + q.Stats().Drains; n < 6 {
		t.Errorf("taken apart in %d cycles", n)
	}
}

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
