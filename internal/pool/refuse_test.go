package pool

import (
	"errors"
	"runtime"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
)

// TestRefusalIsQuick has a full pool refuse: at once when what is live is the reason, after a few cycles when there is
// nothing to be gained from any.
func TestRefusalIsQuick(t *testing.T) {
	l := layouts[0]
	c := newRoomTest(t, l, 16<<20, 256<<10, 512)
	c.fill()
	waits := func() uint64 { return c.p.Stats().WritesStalled }
	before := waits()
	for range 20 {
		if err := c.write(c.next()); !errors.Is(err, ErrNoSpace) {
			t.Fatal(err)
		}
	}
	if n := waits() - before; n > 20 {
		t.Errorf("20 refusals waited for %d cycles", n)
	}
	must(t, c.p.DestroyReplica("v"))
	must(t, c.p.cycle())
	must(t, c.p.cycle())
	r, err := c.p.CreateReplica("w", roomBlocks*block.Size)
	must(t, err)
	segs, _ := c.p.seg.alloc(nil, c.p.seg.freeCount()-c.p.keep(forUser), segLog, 0) // somebody has all the rest
	before = waits()
	n := 0
	for err = nil; err == nil && n < 1000; n++ {
		err = r.Apply([]Op{{Kind: OpWrite, Block: uint64(n), Count: 1, Version: ver(uint64(n) + 1), Data: c.content(1)}})
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if n := waits() - before; n < 2 || n > 4*maxFruitless {
		t.Errorf("refused after %d cycles", n)
	}
	before = waits()
	if err := r.Apply([]Op{write(uint64(n)*512, 64, uint64(n)+1)}); !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if n := waits() - before; n > 1 {
		t.Errorf("refused again after %d cycles", n)
	}
	for _, s := range segs {
		c.p.seg.mu.Lock()
		c.p.seg.pinned[s] = false
		c.p.seg.setFree(s)
		c.p.seg.mu.Unlock()
	}
}

// TestFullPoolWaitsForPurge deletes a snapshot that holds most of a full pool: writes wait for what it held.
func TestFullPoolWaitsForPurge(t *testing.T) {
	c := newRoomTest(t, layouts[0], 16<<20, 256<<10, 1)
	r := c.p.Replica("v")
	c.fill()
	c.giveBack(.5)
	c.n++
	must(t, r.Apply([]Op{{Kind: OpSnapshot, Name: "s", Version: ver(c.n)}}))
	must(t, c.p.cycle())
	for _, b := range c.blocks { // the snapshot holds what they were
		if err := c.write(b); errors.Is(err, ErrNoSpace) {
			break
		} else {
			must(t, err)
		}
	}
	c.fill()
	held, stop := make(chan struct{}), make(chan struct{}, 1)
	c.p.drain.cycle.Lock() // nothing is purged before the write waits
	c.n++
	err := r.Apply([]Op{{Kind: OpDeleteSnapshot, Name: "s", Version: ver(c.n)}})
	go func() {
		defer close(held)
		for !c.p.cycles.wanted() && len(stop) == 0 {
			runtime.Gosched()
		}
		c.p.drain.cycle.Unlock()
	}()
	for i := 0; i < 300 && err == nil; i++ {
		err = c.write(c.next())
	}
	stop <- struct{}{}
	<-held
	must(t, err)
	c.look()
}

// TestCompactionIsBounded has few free segments and a large sparse index: one cycle looks at a part of it only.
func TestCompactionIsBounded(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 1 << 14, NoDiscard: true})
	r, err := p.CreateReplica("v", roomBlocks*block.Size)
	must(t, err)
	const dirs = compactDirs + 1000
	n := uint64(0)
	put := func(i uint64) {
		n++
		must(t, r.Apply([]Op{discard(i*dirSpan*block.ChunkBlocks, 7, n)}))
	}
	for i := range uint64(dirs) {
		put(i)
	}
	must(t, p.cycle())
	p.drain.cycle.Lock()
	p.idx.mu.Lock()
	p.seg.mu.Lock()
	victims := map[uint32]bool{}
	for i, k := range p.seg.kind {
		if k == segIndex && !p.seg.pinned[i] && len(victims) < 2 {
			victims[uint32(i)] = true
		}
	}
	p.seg.mu.Unlock()
	p.idx.mu.Unlock()
	p.drain.compaction = compaction{victims: victims, tight: true}
	segs, _ := p.seg.alloc(nil, p.seg.freeCount()-p.keep(forUser)+1, segLog, 0)
	p.drain.mu.Lock()
	err = p.compactIndex()
	next := p.drain.compaction
	p.drain.mu.Unlock()
	p.drain.cycle.Unlock()
	must(t, err)
	if next.victims == nil || next.next == 0 || next.next > compactDirs+1 {
		t.Errorf("one cycle went as far as directory block %d of %d", next.next, dirs)
	}
	p.seg.mu.Lock()
	for _, s := range segs {
		p.seg.pinned[s] = false
		p.seg.setFree(s)
	}
	p.seg.mu.Unlock()
	must(t, p.cycle())
	must(t, p.Check())
}
