package pool

import (
	"errors"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

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
