package pool

import (
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

var everyOp = flag.Bool("every", false, "try more: every operation of the devices where some would do, and more fates")

// powerSwitch cuts the power of several devices at the n-th of all their writes, flushes and discards together.
type powerSwitch struct {
	mu   sync.Mutex
	left int
	done int
	off  func()
}

func (s *powerSwitch) step() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done++
	if s.left--; s.left == 0 {
		s.off()
	}
}

// switched is a device behind a powerSwitch.
type switched struct {
	*disk.Mem
	s *powerSwitch
}

func (d switched) WritevAt(b [][]byte, off int64) error { d.s.step(); return d.Mem.WritevAt(b, off) }
func (d switched) Flush() error                         { d.s.step(); return d.Mem.Flush() }
func (d switched) Discard(off, n int64) error           { d.s.step(); return d.Mem.Discard(off, n) }

// sweep is a pool that a test does certain things to, with what is known of it in the reference model. The methods
// return the errors of the engine, which leave open what happened.
type sweep struct {
	modelTest
}

func newSweep(t *testing.T, l layout, rng *rand.Rand) *sweep {
	s := &sweep{modelTest{actor: newActor(t, rng.Uint64(), nil), layout: l, away: map[int]bool{}}}
	s.cutting = true
	s.opt = Options{Compression: []compress.Algorithm{compress.Off, compress.LZ4}[rng.IntN(2)], DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10, Deadline: 10 * time.Second}
	return s
}

func (s *sweep) synced() { s.sure() }

func (s *sweep) create(name string, blocks int) (err error) {
	size := int64(blocks) * block.Size
	s.did("create "+name, true, func(m refPool) { m.add(name, block.GUID{}, size) }, func() error {
		_, err = s.p.CreateReplica(name, size)
		return err
	})
	return err
}

func (s *sweep) destroy(name string) (err error) {
	s.did("destroy "+name, true, func(m refPool) { delete(m, name) }, func() error {
		err = s.p.DestroyReplica(name)
		return err
	})
	return err
}

func (s *sweep) ops(name string, ops ...Op) (err error) {
	for i := range ops {
		ops[i].Version = s.version()
		if ops[i].Kind == OpWrite {
			ops[i].Data = fill(int(ops[i].Count), s.rng.Uint64())
		}
	}
	s.didParts("apply to "+name+":"+describe(ops), false, name, s.parts(name, ops), func() error {
		err = s.p.Replica(name).Apply(ops)
		return err
	})
	return err
}

func (s *sweep) sync() (err error) {
	s.did("sync", true, func(refPool) {}, func() error {
		err = s.p.Sync()
		return err
	})
	return err
}

// goOn writes some more, with as many checkpoints, so that segments become free and are used again.
func (s *sweep) goOn(checkpoints int) error {
	if s.now["c"] == nil {
		if err := s.create("c", 300); err != nil {
			return err
		}
	}
	for i := range checkpoints + 1 {
		for range 3 {
			if err := s.ops("c", Op{Kind: OpWrite, Block: uint64(s.rng.IntN(100)), Count: 150}); err != nil {
				return err
			}
		}
		if i < checkpoints {
			if err := s.p.cycle(); err != nil {
				return err
			}
		}
	}
	if err := s.sync(); err != nil {
		return err
	}
	return s.ops("c", Op{Kind: OpWrite, Block: 40, Count: 80})
}

// crash opens the pool after the devices went away under it and finds the prefix of the happenings that is there.
func (s *sweep) crash(all bool) {
	s.t.Helper()
	s.p.Close() // fails, since the devices are gone; stops the background
	s.modelTest.again(all)
}

func (s *sweep) differs(state refPool) string {
	seen, err := observe(s.p)
	if err != nil {
		return err.Error()
	}
	return state.diff(seen)
}

// copies looks at every stored block on the devices themselves: one that is online has the block, unless the unit is
// known to be stale.
func copies(t testing.TB, p *Pool) {
	t.Helper()
	var scratch readScratch
	b, content := disk.Buffer(block.Size), make([]byte, block.Size)
	for _, r := range p.Replicas() {
		for first := uint64(0); first < r.blocks(); first += block.ChunkBlocks {
			n := int(min(block.ChunkBlocks, r.blocks()-first))
			must(t, r.find(&scratch, first, n))
			for i, x := range scratch.places[:n] {
				if !x.stored {
					continue
				}
				from := x.loc.Addr() &^ (block.Size - 1)
				if x.loc.End() > from+block.Size { // compressed, and in two blocks
					continue
				}
				g, off := p.seg.locate(from)
				_, at := g.place(off)
				for c, col := range g.Columns() {
					d := col.Devices[0]
					if name, _ := g.place(off); g.row > 1 && d.Name() != name || d.State() != raid.Online || d.IsStale(int(off>>p.seg.shift)) {
						continue
					}
					must(t, d.Disk().ReadAt(b, at))
					if !x.content(content, b[x.loc.Addr()-from:x.loc.End()-from]) {
						t.Fatalf("replica %s block %d at %#x: device %s, column %d, has something else, and nobody knows", r.name, first+uint64(i), x.loc.Addr(), d.Name(), c)
					}
				}
			}
		}
	}
}
