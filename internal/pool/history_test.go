package pool

import (
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// deepReplica has a hundred versions of block 3, most of which are in history pages; s1 shows version 2 and so on.
func deepReplica(t *testing.T) (*Pool, *Replica, *chunkView) {
	p, _ := newMemPool(t, 64<<20, smallHistory)
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(600, 1, 1)}))
	for i := uint64(1); i <= 100; i++ {
		must(t, r.Apply([]Op{write(3, 1, 2*i), snap(fmt.Sprint("s", i), 2*i+1)}))
	}
	must(t, r.Apply([]Op{write(600, 1, 250)})) // the version before stays in the page
	must(t, p.cycle())
	return p, r, loadedPage(t, r)
}

// loadedPage returns the page of chunk 0 with its references.
func loadedPage(t *testing.T, r *Replica) *chunkView {
	t.Helper()
	v := new(chunkView)
	d := refOf(t, r, 0)
	e, err := r.p.loadPage(r, 0, &d, &v.view)
	must(t, err)
	v.view.Decode(&v.page)
	r.p.cache.release(e)
	if len(v.page.Hist) < 2 {
		t.Fatal("no history: ", len(v.page.Hist))
	}
	return v
}

func looksDeep(t *testing.T, p *Pool, r *Replica) {
	t.Helper()
	must(t, p.Check())
	for i := uint64(1); i <= 100; i++ {
		shows(t, r, fmt.Sprint("s", i), 3, 2*i)
		shows(t, r, fmt.Sprint("s", i), 600, 1)
	}
}

// TestCleanerEmptiesSegmentsOfThePast has the cleaner move everything out of the segment with the oldest version.
func TestCleanerEmptiesSegmentsOfThePast(t *testing.T) {
	p, r, v := deepReplica(t)
	for i := uint64(0); i < 64; i++ { // go on in another segment
		must(t, r.Apply([]Op{write(512, 20, 300+i)}))
	}
	must(t, p.cycle())
	oldest, err := p.history(r, 0, &v.page.Hist[len(v.page.Hist)-1], nil)
	must(t, err)
	seg := p.seg.of(oldest[len(oldest)-1].Loc)
	p.drain.cycle.Lock()
	err = p.moveSegment(seg)
	p.drain.cycle.Unlock()
	must(t, err)
	looksDeep(t, p, r)
	must(t, p.cycle())
	if n := p.seg.pageLive[seg] + p.seg.deltaLive[seg]; n != 0 {
		t.Fatalf("%d bytes of the segment are still referred to", n)
	}
	looksDeep(t, p, r)
}

// TestHistoryLeavesSparseIndexSegments empties the segment that holds history pages, as compaction does.
func TestHistoryLeavesSparseIndexSegments(t *testing.T) {
	p, r, v := deepReplica(t)
	seg := uint32(v.page.Hist[0].Addr() >> p.seg.shift)
	p.drain.cycle.Lock()
	p.drain.mu.Lock()
	s := &p.drain
	s.cold.open = false // a segment is not compacted while it is written to
	s.victims, s.work, s.next = map[uint32]bool{seg: true}, []uint64{index.Key(r.slot, 0) / block.ChunkBlocks}, 0
	err := p.drainStep()
	s.victims, s.work, s.next = nil, nil, 0
	p.drain.mu.Unlock()
	p.drain.cycle.Unlock()
	must(t, err)
	for i, h := range loadedPage(t, r).page.Hist {
		if uint32(h.Addr()>>p.seg.shift) == seg {
			t.Fatalf("history page %d is still there", i)
		}
	}
	looksDeep(t, p, r)
}

// TestDamagedHistory flips a bit in a history page: what is in it cannot be read, the rest can.
func TestDamagedHistory(t *testing.T) {
	p, m := newMemPool(t, 64<<20, smallHistory)
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	for i := uint64(1); i <= 100; i++ {
		must(t, r.Apply([]Op{write(3, 1, 2*i), snap(fmt.Sprint("s", i), 2*i+1)}))
	}
	must(t, p.cycle())
	h := loadedPage(t, r).page.Hist[0]
	p.cache.drop(h.ID)
	_, off := p.where(h.Addr())
	m.FlipBit(off+100, 3)
	old := uint64(h.Lo.N / 2)
	if err := r.ReadSnapshot(fmt.Sprint("s", old), 3, make([]byte, block.Size), nil); err == nil || p.Stats().ChecksumErrors == 0 {
		t.Fatal(err)
	}
	shows(t, r, "", 3, 200)
	shows(t, r, "s1", 0, 0)
}
