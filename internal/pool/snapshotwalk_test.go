package pool

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestWalkLetsSegmentsGo looks at many chunks of snapshots, and a segment is to become free meanwhile: that waits for the
// chunk that is being read, and not for the walk.
func TestWalkLetsSegmentsGo(t *testing.T) {
	const chunks = 4
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096}
	m := disk.NewMem("mem0", 64<<20)
	p, err := Create(Stripe(m), Config{Name: "test"}, opt)
	must(t, err)
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1), snap("a", 2), snap("b", 3)}))
	for c := range uint64(chunks) {
		must(t, r.Apply([]Op{write(c*block.ChunkBlocks, 1, 4+2*c), snap(fmt.Sprint("s", c), 5+2*c), write(c*block.ChunkBlocks, 1, 20+c)}))
	}
	must(t, p.Close())
	for _, walk := range []struct {
		name string
		do   func(r *Replica) error
	}{
		{"unique", func(r *Replica) error { _, err := r.SnapshotUnique("a"); return err }},
		{"diff", func(r *Replica) error {
			if _, _, done, err := r.Diff("a", "b", 0, nil); err != nil || !done {
				return fmt.Errorf("at the end: %v, %w", done, err)
			}
			return nil
		}},
	} {
		m.Reopen()
		h := &hooked{Device: m}
		p := openIdle(t, []disk.Device{h}, opt)
		r := p.Replica("v")
		must(t, r.warm(0))
		over, kept := make(chan bool), int64(-1)
		h.read = func() { // of the first page
			begun := p.read.gen.Load()
			go func() { over <- p.read.drain(p.quit, p.broken) }()
			for p.read.gen.Load() == begun {
				runtime.Gosched()
			}
			h.read = func() { kept = p.read.count[begun&1].n.Load() } // of the next one
		}
		must(t, walk.do(r))
		if !<-over || kept != 0 {
			t.Errorf("%s: readers from before the second chunk: %d", walk.name, kept)
		}
		must(t, closeIdle(p))
	}
}
