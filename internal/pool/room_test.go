package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// roomTest fills a pool with single blocks, and knows what they must be.
type roomTest struct {
	t      *testing.T
	rng    *rand.Rand
	p      *Pool
	mems   []*disk.Mem
	opt    Options
	step   uint64 // blocks from one that is written to the next
	n      uint64 // last version
	seeds  map[uint64]uint64
	blocks []uint64 // with data
	gone   []uint64 // that had data
	fresh  uint64   // next block that never had any, in steps
	data   []byte
	work   int // in manual mode: of how many operations one is followed by a step of the background
}

const roomBlocks = 1 << 28 // of the replica: 1 TiB

func newRoomTest(t *testing.T, l layout, size, segment int64, step uint64) *roomTest {
	return startRoomTest(t, l, size, step, &roomTest{rng: rand.New(rand.NewPCG(seedOf(t), 8)), opt: Options{SegmentBytes: segment}})
}

// newManualRoomTest is newRoomTest for a pool of which the background does a step after one of so many operations, 0: only
// what somebody waits for.
func newManualRoomTest(t *testing.T, l layout, work int, step uint64) *roomTest {
	rng := rand.New(rand.NewPCG(seedOf(t), uint64(work)))
	return startRoomTest(t, l, 16<<20, step, &roomTest{rng: rng, work: work, opt: Options{SegmentBytes: 256 << 10, Manual: true, Rand: rng.Uint64}})
}

func startRoomTest(t *testing.T, l layout, size int64, step uint64, c *roomTest) *roomTest {
	c.t, c.mems, c.step, c.seeds, c.data = t, l.blank(size), step, map[uint64]uint64{}, noise(1, 1)
	c.opt.DeltaEntries, c.opt.Compression, c.opt.NoDiscard = 4096, compress.Off, true
	p, err := Create(l.arrange(c.mems), Config{Name: "room"}, c.opt)
	must(t, err)
	c.p = p
	_, err = p.CreateReplica("v", roomBlocks*block.Size)
	must(t, err)
	t.Cleanup(func() { c.p.Close() })
	return c
}

// content returns the block that a seed stands for.
func (c *roomTest) content(seed uint64) []byte {
	for i := range 8 {
		c.data[i] = byte(seed >> (8 * i))
	}
	return c.data
}

// background does some of what the background does.
func (c *roomTest) background() {
	if c.work > 0 && c.rng.IntN(c.work) == 0 {
		c.p.Work(false)
	}
}

func (c *roomTest) write(b uint64) error {
	c.background()
	err := c.p.Replica("v").Apply([]Op{{Kind: OpWrite, Block: b, Count: 1, Version: ver(c.n + 1), Data: c.content(c.n + 1)}})
	if err == nil {
		c.n++
		if n := len(c.gone); n > 0 && c.gone[n-1] == b {
			c.gone = c.gone[:n-1]
		}
		if c.seeds[b] == 0 {
			c.blocks = append(c.blocks, b)
			c.fresh++
		}
		c.seeds[b] = c.n
	}
	return err
}

// discard takes a block away, which is never refused.
func (c *roomTest) discard(b uint64) {
	c.t.Helper()
	c.background()
	c.n++
	if err := c.p.Replica("v").Apply([]Op{discard(b, 1, c.n)}); err != nil {
		c.t.Fatalf("a discard was refused: %v; %s", err, c.state())
	}
	delete(c.seeds, b)
	c.gone = append(c.gone, b)
}

func (c *roomTest) state() string {
	s := c.p.Stats()
	updates, work := c.p.indexNeed()
	return fmt.Sprintf("%d blocks; %.1f %% of %d KiB, %d of %d segments free (reserve %d), kinds %v, index needs %d and %d, moved %d in %d cycles, %d waits, %s",
		len(c.seeds), float64(s.Allocated)/float64(s.Capacity)*100, s.Capacity>>10, s.FreeSegments, s.Segments, c.p.seg.reserve(), kinds(c.p), updates, work, s.BlocksMoved, s.Drains, s.WritesStalled, s.Failure)
}

// next returns a block without data: one that had some, if there is any.
func (c *roomTest) next() uint64 {
	if n := len(c.gone); n > 0 {
		return c.gone[n-1]
	}
	for {
		b := c.fresh*c.step + c.rng.Uint64N(min(c.step, block.ChunkBlocks))
		if c.step > block.ChunkBlocks { // anywhere
			b = c.rng.Uint64N(roomBlocks)
		}
		if c.seeds[b] == 0 {
			return b
		}
		c.fresh++
	}
}

// fill writes until the pool refuses it, which is when what is live is about what the pool is for.
func (c *roomTest) fill() (n int) {
	c.t.Helper()
	for {
		err := c.write(c.next())
		if errors.Is(err, ErrNoSpace) {
			break
		}
		if err != nil {
			c.t.Fatalf("%v; %s", err, c.state())
		}
		n++
	}
	c.t.Logf("full after %d: %s", n, c.state())
	if s := c.p.Stats(); s.Free > s.Capacity/20 {
		c.t.Errorf("refused with %d of %d KiB free: %s", s.Free>>10, s.Capacity>>10, c.state())
	}
	return n
}

// look compares all content.
func (c *roomTest) look() {
	c.t.Helper()
	for b, seed := range c.seeds {
		var sum [1]uint32
		must(c.t, c.p.Replica("v").Read(b, make([]byte, block.Size), sum[:]))
		if sum[0] != block.Sum(c.content(seed)) {
			c.t.Fatalf("block %d", b)
		}
	}
	must(c.t, c.p.Check())
}

// giveBack discards a share of the blocks.
func (c *roomTest) giveBack(share float64) {
	c.t.Helper()
	kept := c.blocks[:0]
	for _, b := range c.blocks {
		if c.rng.Float64() < share {
			c.discard(b)
		} else {
			kept = append(kept, b)
		}
	}
	c.blocks = kept
}

// overwrite replaces blocks that have data.
func (c *roomTest) overwrite(n int) {
	c.t.Helper()
	for range n {
		if err := c.write(c.blocks[c.rng.IntN(len(c.blocks))]); err != nil {
			c.t.Fatalf("an overwrite was refused: %v; %s", err, c.state())
		}
	}
}

func (c *roomTest) setState() {
	c.t.Helper()
	c.n++
	if err := c.p.Replica("v").SetState(noise(1, c.n), ver(c.n)); err != nil {
		c.t.Fatalf("a state record was refused: %v; %s", err, c.state())
	}
}

// point makes or deletes a snapshot.
func (c *roomTest) point(kind OpKind) {
	c.t.Helper()
	c.n++
	if err := c.p.Replica("v").Apply([]Op{{Kind: kind, Name: "s", Version: ver(c.n)}}); err != nil {
		c.t.Fatalf("a snapshot was refused: %v; %s", err, c.state())
	}
}

func (c *roomTest) reopen(kill bool) {
	c.t.Helper()
	if kill {
		c.mems = disk.KillAll(c.mems)
		c.p.Close()
	} else {
		must(c.t, c.p.Close())
		reopenAll(c.mems)
	}
	p, err := Open(devicesOf(c.mems), c.opt)
	if err != nil {
		c.t.Fatal(err)
	}
	c.p = p
}

// life fills a pool, gives some of that back and fills it again, several times: refills find as much room as there was.
func (c *roomTest) life() {
	c.t.Helper()
	t := c.t
	n := c.fill()
	c.overwrite(300)
	for range 50 {
		c.setState()
	}
	c.point(OpSnapshot)
	c.look()
	c.giveBack(.05)
	c.point(OpDeleteSnapshot)
	c.reopen(true)
	c.look()
	c.giveBack(.05)
	c.setState()
	c.fill()
	c.giveBack(.5)
	if m := c.fill(); m < n*2/5 {
		t.Errorf("%d blocks fitted, half of them were given back, and then %d fit", n, m)
	}
	c.look()
	c.reopen(false)
	c.overwrite(300)
	c.giveBack(1)
	must(t, c.p.DestroyReplica("v"))
	_, err := c.p.CreateReplica("v", roomBlocks*block.Size)
	must(t, err)
	c.seeds, c.blocks, c.gone, c.fresh = map[uint64]uint64{}, nil, nil, 0
	if m := c.fill(); m < n*95/100 {
		t.Errorf("%d blocks fitted once, and then %d", n, m)
	}
}

// TestRoomForGivingBack fills pools with blocks that are near each other, each in another chunk, or anywhere: a write
// is refused only when what is live, data and index, is what the pool is for, and whoever gives back or records state,
// and who overwrites what is there, is never refused.
func TestRoomForGivingBack(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		for _, x := range []struct {
			size, segment int64
			step          uint64
		}{
			{16 << 20, 256 << 10, 1}, {16 << 20, 256 << 10, 512}, {16 << 20, 256 << 10, 1 << 17},
			{64 << 20, 256 << 10, 512}, {64 << 20, 256 << 10, 1 << 17}, {64 << 20, 1 << 20, 512}, {64 << 20, 1 << 20, 64},
			{256 << 20, 1 << 20, 512}, {256 << 20, 4 << 20, 512}, {256 << 20, 512 << 10, 1 << 15},
		} {
			if plain := l.name == "stripe"; !plain && x.size > 16<<20 || testing.Short() && x.step != block.ChunkBlocks || testing.Short() && plain && x.segment > 256<<10 {
				continue
			}
			t.Run(fmt.Sprintf("%dM/%dK/%d", x.size>>20, x.segment>>10, x.step), func(t *testing.T) {
				t.Parallel()
				c := newRoomTest(t, l, x.size, x.segment, x.step)
				c.life()
			})
		}
	})
}

// TestRefusalFollowsFromWhatIsLive fills pools of which the index is in pages, and pools of which it still is in memory:
// the same fits.
func TestRefusalFollowsFromWhatIsLive(t *testing.T) {
	l := layout{"mirror-cache", []shape{{raid.Mirror, 2, false}, {raid.Mirror, 2, true}}}
	for _, step := range []uint64{1, 512, 1 << 17} {
		early := newManualRoomTest(t, l, 3, step).fill()
		late := newManualRoomTest(t, l, 0, step).fill()
		if late < early*97/100 || early < late*97/100 {
			t.Errorf("step %d: %d blocks fitted while the index was written, %d when it was left", step, early, late)
		}
	}
}

// TestRoomStepByStep is TestRoomForGivingBack with a background of which the test says when it works. A life of a pool takes
// a second, for most of which it is nearly full and brings data and index together, so each layout meets each amount of
// work, and both meet each distance of the blocks, but not all three.
func TestRoomStepByStep(t *testing.T) {
	for i, l := range []layout{layouts[0], layouts[5], layouts[8]} {
		for j, work := range []int{0, 3, 30} {
			if testing.Short() && i != 1 {
				continue
			}
			step := []uint64{512, 1 << 17}[(i+j)%2]
			t.Run(fmt.Sprintf("%s/%d/%d", l.name, step, work), func(t *testing.T) {
				t.Parallel()
				newManualRoomTest(t, l, work, step).life()
			})
		}
	}
}

// TestWideRowsArePriced writes chunk after chunk far apart to a group whose rows are wide, with little memory for the
// directory: what a drain writes, padded to whole rows each time, is within what it was priced at.
func TestWideRowsArePriced(t *testing.T) {
	for _, cache := range []int64{512 << 10, 8 << 20} {
		t.Run(fmt.Sprint(cache>>10), func(t *testing.T) {
			l := layout{"raidz-17", []shape{{raid.RAIDZ, 17, false}}}
			opt := Options{SegmentBytes: 4 << 20, PageCacheBytes: cache, NoDiscard: true, Compression: compress.Off}
			p, mems := newLayoutPool(t, l, 512<<20, opt)
			must(t, p.Close())
			for _, m := range mems {
				m.Reopen()
			}
			p = openIdle(t, devicesOf(mems), opt)
			defer closeIdle(p)
			const chunks = 4000
			r, err := p.CreateReplica("v", roomBlocks*block.Size)
			must(t, err)
			for c := range uint64(chunks) {
				must(t, r.Apply([]Op{write(c*(roomBlocks/chunks), 1, c+1)}))
			}
			x := &p.idx
			x.mu.RLock()
			cost := x.cost[x.active]
			cost.root = p.rootCost()
			cost.pages += int64(x.tables[x.active].Len()) * entryCost
			most := p.bytesOf(&cost)
			x.mu.RUnlock()
			must(t, p.cycle())
			if n := p.drain.wrote.Load(); n > most {
				t.Errorf("%d KiB of index were written, and priced at %d KiB", n>>10, most>>10)
			} else {
				t.Logf("%d KiB of index were written, priced at %d KiB", n>>10, most>>10)
			}
		})
	}
}
