package pool

import (
	"errors"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestScatteredIndexIsBroughtTogether has the index in more than twice as many segments as it takes, and so few others free
// that it has to be brought together: what is to be gained with as many is gained in one cycle. The pages that move do not
// become longer, and are not priced as if they did, or the walk would end before it has paid for itself.
func TestScatteredIndexIsBroughtTogether(t *testing.T) {
	m, opt := scatteredIndex(t)
	walks := 0
	for more := range 12 {
		p, err := Open([]disk.Device{m.Clone()}, opt)
		must(t, err)
		updates, _ := p.indexNeed()
		if _, ok := p.seg.alloc(nil, p.seg.freeCount()-updates-more, segLog, 0); !ok {
			t.Fatal("fewer segments are free")
		}
		victims, gain, _ := p.sparseIndex()
		if gain < p.seg.bytes() {
			continue
		}
		walks++
		before := kinds(p)[segIndex]
		must(t, p.cycle())
		if after := kinds(p)[segIndex]; int64(before-after) < gain/p.seg.bytes() {
			t.Errorf("%d segments are free, and by emptying %d of %d there are %d KiB to be gained: %d remain", updates+more, len(victims), before, gain>>10, after)
		}
	}
	if walks < 4 {
		t.Errorf("with %d numbers of free segments something was to be gained", walks)
	}
}

// TestCleanerLeavesRoomForIndex has the index scattered, and no more segments free than the cleaner leaves: that is enough
// for bringing the index together, after which there is room again for whoever gives back.
func TestCleanerLeavesRoomForIndex(t *testing.T) {
	m, opt := scatteredIndex(t)
	p, err := Open([]disk.Device{m}, opt)
	must(t, err)
	if _, ok := p.seg.alloc(nil, p.seg.freeCount()-p.keep(forCleaner), segLog, 0); !ok {
		t.Fatal("fewer segments are free")
	}
	before := kinds(p)
	must(t, p.cycle())
	must(t, p.cycle())
	if free, keep := p.seg.freeCount(), p.keep(forRecords); free < keep {
		t.Errorf("%d segments are free, and %d are to remain for records; kinds %v, were %v", free, keep, kinds(p), before)
	}
}

// TestLargeIndexIsLeftItsRoom fills a pool of which the index is so large that users have to leave more free segments than
// the reserve has: they are refused when what they are to leave is left, however many of these are free.
func TestLargeIndexIsLeftItsRoom(t *testing.T) {
	const chunks = 24000
	p, _ := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 16384, Manual: true})
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	for c := range uint64(chunks) {
		must(t, r.Apply([]Op{discard(c*block.ChunkBlocks, 1, c+1)})) // index only
	}
	must(t, p.cycle())
	if keep := p.keep(forUser); keep <= p.seg.reserve() {
		t.Fatalf("users leave %d segments, and the reserve has %d", keep, p.seg.reserve())
	}
	for n := uint64(0); err == nil; n++ {
		err = r.Apply([]Op{{Kind: OpWrite, Block: n * 16, Count: 16, Version: ver(chunks + n + 1), Data: noise(16, n)}})
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	must(t, p.cycle())
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	if over := p.allocated() + p.spare(0) - p.capacity(); over > p.seg.bytes() || over < -4*p.seg.bytes() {
		t.Errorf("refused %d KiB past what users may take", over>>10)
	}
}

// scatteredIndex returns a pool of which the index is in several times as many segments as it takes.
func scatteredIndex(t *testing.T) (*disk.Mem, Options) {
	const chunks = 12000
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 16384, Manual: true}
	p, m := newMemPool(t, 64<<20, opt)
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	zero, n := make([]byte, block.Size), uint64(0)
	put := func(first, step uint64) {
		for c := first; c < chunks; c += step {
			n++
			must(t, r.Apply([]Op{{Kind: OpWrite, Block: c * block.ChunkBlocks, Count: 1, Version: ver(n), Data: zero}})) // index only
		}
		must(t, p.cycle())
	}
	put(0, 1)
	for k := range uint64(4) { // of the pages of the first time one in five is left
		put(k, 5)
	}
	return m.Clone(), opt
}
