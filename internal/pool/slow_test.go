package pool

import (
	"runtime"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

// TestWritersKeepToTheDrain writes while a table is drained: a writer who is ahead waits, and goes on with the drain, not
// after it.
func TestWritersKeepToTheDrain(t *testing.T) {
	const chunks = 2048
	p, _ := newMemPool(t, 256<<20, Options{SegmentBytes: 1 << 20, DeltaEntries: 8192, Compression: compress.Off})
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	p.drain.cycle.Lock() // the background comes to nothing meanwhile
	unlock := sync.OnceFunc(p.drain.cycle.Unlock)
	t.Cleanup(unlock)
	n := uint64(0)
	for c := range uint64(chunks) { // one update of each chunk
		n++
		must(t, r.Apply([]Op{write(c*block.ChunkBlocks, 1, n)}))
	}
	s := &p.drain
	s.mu.Lock()
	p.freeze()
	s.mu.Unlock()
	used := func() int {
		p.idx.mu.RLock()
		defer p.idx.mu.RUnlock()
		return p.idx.tables[p.idx.active].Len()
	}
	var failed error
	over := make(chan struct{})
	const updates = 8192 / 16 * 13 // of 13/16 of a table
	go func() {
		defer close(over)
		for i := uint64(0); i < updates && failed == nil; i += 64 {
			n += 64
			failed = r.Apply([]Op{write(i, 64, n)})
		}
	}()
	ahead := func(most int) bool { return used() >= most-64 }
	for !ahead(8192 / 4) {
		runtime.Gosched()
	}
	for step := 0; s.next < len(s.work); step++ {
		if n := used(); n > 8192/4+8192*5/8*s.next/len(s.work) {
			t.Fatalf("%d updates after %d of %d chunks", n, s.next, len(s.work))
		}
		before := s.next
		s.mu.Lock()
		must(t, p.drainStep())
		s.mu.Unlock()
		for s.next > before && !ahead(min(updates, 8192/4+8192*5/8*s.next/len(s.work))) { // who waited goes on
			runtime.Gosched()
		}
	}
	<-over
	must(t, failed)
	must(t, p.drained())
	unlock()
	must(t, p.Close())
}
