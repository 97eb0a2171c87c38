package pool

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// compactAll empties all index segments that are not being written, as far as can be.
func compactAll(t *testing.T, p *Pool) {
	t.Helper()
	victims := map[uint32]bool{}
	for i, k := range p.seg.kind {
		if k == segIndex && !p.seg.pinned[i] && p.seg.pageLive[i] > 0 {
			victims[uint32(i)] = true
		}
	}
	s := &p.drain
	s.cycle.Lock()
	defer s.cycle.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compaction = compaction{victims: victims, tight: true}
	for s.compaction.victims != nil {
		must(t, p.compactIndex())
	}
}

// TestCompactionPassesOverDamage empties index segments in which a page, or a part of the directory, cannot be read: that
// stays where it is, all else is moved, and the pool goes on.
func TestCompactionPassesOverDamage(t *testing.T) {
	const chunks, node = 2000, dirSpan * nodeSpan
	for _, x := range []struct {
		name  string
		at    func(r *Replica) uint64 // address of what is damaged
		moved uint64                  // pages
		hides bool                    // chunk 7
	}{
		{"page", func(r *Replica) uint64 { d := refOf(t, r, 7); return d.pageAddr() }, chunks, true},
		{"directory block", func(r *Replica) uint64 { return r.dir[0].node.slots[1].addr }, chunks + 1 - dirSpan, false},
		{"node", func(r *Replica) uint64 { return r.dir[0].addr }, 1, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 1 << 14, NoDiscard: true}
			p, m := newMemPool(t, 64<<20, opt)
			r, err := p.CreateReplica("v", 2*node*block.ChunkBlocks*block.Size)
			must(t, err)
			var ops []Op
			for i := range uint64(chunks) {
				ops = append(ops, write(i*block.ChunkBlocks, 1, i+1))
			}
			must(t, r.Apply(append(ops, write(node*block.ChunkBlocks, 1, chunks+1))))
			must(t, p.cycle())
			_, off := p.where(x.at(r))
			must(t, p.Close())
			m.Reopen()
			m.FlipBit(off+50, 1)
			p = openIdle(t, []disk.Device{m}, opt)
			r = p.Replica("v")
			compactAll(t, p)
			if n := p.Stats().PagesWritten; n != x.moved {
				t.Errorf("%d of %d pages were moved", n, chunks+1)
			}
			if err := r.Read(7*block.ChunkBlocks, make([]byte, block.Size), nil); errors.Is(err, ErrChecksum) != x.hides {
				t.Error(err)
			}
			m.FlipBit(off+50, 1)
			must(t, p.cycle())
			must(t, p.Check())
			reads(t, r, 7*block.ChunkBlocks, fill(1, 8))
			reads(t, r, node*block.ChunkBlocks, fill(1, chunks+1))
			must(t, closeIdle(p))
		})
	}
}

// TestCompactionPassesOverHistory is the same for the last one of several history pages of a chunk: none of them moves.
func TestCompactionPassesOverHistory(t *testing.T) {
	p, m := newMemPool(t, 64<<20, smallHistory)
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(600, 1, 1)}))
	for i := uint64(1); i <= 100; i++ {
		must(t, r.Apply([]Op{write(3, 1, 2*i), snap(fmt.Sprint("s", i), 2*i+1)}))
	}
	must(t, p.cycle())
	hist := loadedPage(t, r).page.Hist
	_, off := p.where(hist[len(hist)-1].Addr())
	must(t, p.Close())
	m.Reopen()
	m.FlipBit(off+100, 3)
	p = openIdle(t, []disk.Device{m}, smallHistory)
	r = p.Replica("v")
	compactAll(t, p)
	if n := p.Stats().PagesWritten; n != 1 {
		t.Errorf("%d pages were moved instead of that of the other chunk", n)
	}
	m.FlipBit(off+100, 3)
	must(t, p.Check())
	looksDeep(t, p, r)
	must(t, closeIdle(p))
}
