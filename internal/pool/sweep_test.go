package pool

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

var everyOp = flag.Bool("every", false, "let the sweeps fail at every operation of the devices, not at some")

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

// set cuts the power at the n-th operation from now on; 0: never.
func (s *powerSwitch) set(n int) {
	s.mu.Lock()
	s.left = n
	s.mu.Unlock()
}

// switched is a device behind a powerSwitch.
type switched struct {
	*disk.Mem
	s *powerSwitch
}

func (d switched) WritevAt(b [][]byte, off int64) error { d.s.step(); return d.Mem.WritevAt(b, off) }
func (d switched) Flush() error                         { d.s.step(); return d.Mem.Flush() }
func (d switched) Discard(off, n int64) error           { d.s.step(); return d.Mem.Discard(off, n) }

// sweep is a fixed sequence of operations, with what is known of it in a model.
type sweep struct {
	modelTest
	version uint64
}

func newSweep(t *testing.T, l layout, rng *rand.Rand) *sweep {
	s := &sweep{modelTest: modelTest{t: t, rng: rng, layout: l, now: map[string]*modelReplica{}, away: map[int]bool{}}}
	s.opt = Options{Compression: []compress.Algorithm{compress.Off, compress.LZ4}[rng.IntN(2)], DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10, Deadline: 10 * time.Second}
	return s
}

// begin makes the pool, on devices behind a switch.
func (s *sweep) begin() (*powerSwitch, []*disk.Mem) {
	mems, groups := s.layout.make(func() int64 { return 12 << 20 })
	sw := &powerSwitch{off: func() { disk.StopAll(mems) }}
	for i := range groups {
		for j, d := range groups[i].Devices {
			groups[i].Devices[j] = switched{d.(*disk.Mem), sw}
		}
	}
	p, err := Create(groups, Config{Name: "sweep"}, s.opt)
	must(s.t, err)
	s.p, s.mems = p, mems
	s.synced()
	return sw, mems
}

// event carries out one operation. When it fails, it may have happened or not.
func (s *sweep) event(do func() error, then func(map[string]*modelReplica)) error {
	if err := do(); err != nil {
		s.log = append(s.log, then)
		return err
	}
	s.did(then)
	return nil
}

func (s *sweep) create(name string, blocks int) error {
	err := s.event(func() error { _, err := s.p.CreateReplica(name, int64(blocks)*block.Size); return err }, func(m map[string]*modelReplica) {
		m[name] = &modelReplica{name: name, blocks: make([]modelBlock, blocks)}
	})
	if err == nil {
		s.synced()
	}
	return err
}

func (s *sweep) destroy(name string) error {
	err := s.event(func() error { return s.p.DestroyReplica(name) }, func(m map[string]*modelReplica) { delete(m, name) })
	if err == nil {
		s.synced()
	}
	return err
}

func (s *sweep) ops(name string, ops ...Op) error {
	for i := range ops {
		s.version++
		ops[i].Version = ver(s.version)
		if ops[i].Kind == OpWrite {
			ops[i].Data = fill(int(ops[i].Count), s.rng.Uint64())
		}
	}
	return s.event(func() error { return s.p.Replica(name).Apply(ops) }, func(m map[string]*modelReplica) { m[name].apply(ops) })
}

func (s *sweep) state(name, state string) error {
	s.version++
	v := ver(s.version)
	err := s.event(func() error { return s.p.Replica(name).SetState([]byte(state), v) }, func(m map[string]*modelReplica) {
		m[name].state, m[name].applied = state, v
	})
	if err == nil {
		s.synced()
	}
	return err
}

func (s *sweep) sync() error {
	err := s.p.Sync()
	if err == nil {
		s.synced()
	}
	return err
}

// run is the workload: enough for several segments of the log, two checkpoints, segments that become free, and state
// records. It ends with the first error.
func (s *sweep) run() error {
	w := func(b uint64, n uint32) Op { return Op{Kind: OpWrite, Block: b, Count: n} }
	for i, step := range []func() error{
		func() error { return s.create("a", 1500) },
		func() error { return s.ops("a", w(0, 1), w(7, 3), w(600, 20)) },
		func() error { return s.ops("a", w(20, 1)) },
		s.sync,
		func() error { return s.ops("a", w(21, 1)) },
		func() error { return s.ops("a", w(100, 60)) },
		func() error { return s.state("a", "first") },
		func() error { return s.ops("a", w(0, 2), w(620, 1), Op{Kind: OpDiscard, Block: 105, Count: 20}) },
		func() error { return s.p.cycle() },
		func() error { return s.ops("a", w(1, 1)) },
		func() error { return s.ops("a", w(2, 1)) },
		s.sync,
		func() error { return s.create("b", 700) },
		func() error { return s.ops("b", w(0, 130)) },
		func() error { return s.ops("a", w(3, 2), w(1000, 1)) },
		func() error { return s.state("b", "second, which is longer than the first") },
		func() error { return s.ops("b", w(0, 100)) },
		func() error { return s.ops("a", w(20, 130)) }, // segments that the next checkpoint needs and that no flush has covered
		func() error { return s.p.cycle() },
		func() error { return s.ops("b", w(400, 130)) },
		func() error { return s.destroy("a") },
		func() error { return s.ops("b", w(5, 1)) },
		func() error { return s.p.cycle() },
		func() error { return s.ops("b", w(300, 70)) },
		s.sync,
		func() error { return s.ops("b", w(301, 1), Op{Kind: OpDiscard, Block: 0, Count: 512}) },
		func() error { return s.ops("b", w(302, 1)) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
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

// forOps calls f with operation numbers from 1 on until it returns false, with every one or with some.
func forOps(rng *rand.Rand, some int, f func(n int) bool) {
	for n := 1; f(n); n++ {
		if !*everyOp {
			n += rng.IntN(2*some - 1)
		}
	}
}

func sweepSeed(t *testing.T) *rand.Rand {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1e9
	}
	t.Log("seed", seed)
	return rand.New(rand.NewPCG(seed, 5))
}

// TestPowerCutAnywhere cuts the power of all devices at an operation of any of them, each device with its own fate, and
// opens the pool with all devices, or without as many as may be missing: what was flushed is there.
func TestPowerCutAnywhere(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		rng := sweepSeed(t)
		cuts := 0
		forOps(rng, 12, func(n int) bool {
			s := newSweep(t, l, rng)
			sw, mems := s.begin()
			sw.set(n)
			err := s.run()
			s.note("power cut at operation %d: %v", n, err)
			over := err == nil
			s.mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }, rng)
			if rng.IntN(2) == 0 {
				for _, v := range l.victims() {
					s.away[v] = true
				}
				s.note("without devices %v", l.victims())
			}
			s.crashed()
			if len(s.away) > 0 { // the others go on without them, and then they are back
				must(t, s.goOn(rng.IntN(3)))
				s.mems = disk.PowerCutAll(s.mems, func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }, rng)
				clear(s.away)
				s.crashed()
			}
			must(t, s.p.Close())
			cuts++
			return !over
		})
		t.Logf("%d cuts", cuts)
	})
}

// TestDeviceLostAnywhere lets the devices that may be lost fail from one of their operations on, for good. The workload
// goes on. Then the power is cut, and the devices are back, or stay away for one more mount: nothing old is ever seen.
func TestDeviceLostAnywhere(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		rng := sweepSeed(t)
		losses := 0
		forOps(rng, 8, func(n int) bool {
			s := newSweep(t, l, rng)
			sw, mems := s.begin()
			for _, v := range l.victims() {
				mems[v].Inject(disk.Faults{FailFrom: int64(n)})
			}
			cut := rng.IntN(2) * (1 + rng.IntN(200))
			sw.set(cut)
			if err := s.run(); err != nil && cut == 0 {
				s.fatalf("with devices %v failing from operation %d on: %v", l.victims(), n, err)
			}
			lost := s.p.Stats().Health != HealthOnline
			s.note("devices %v lost at operation %d: %t", l.victims(), n, lost)
			s.mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }, rng)
			switch rng.IntN(3) {
			case 0: // away for a while, and back after another crash
				for _, v := range l.victims() {
					s.away[v] = true
				}
				s.crashed()
				must(t, s.goOn(rng.IntN(3)))
				s.mems = disk.PowerCutAll(s.mems, func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }, rng)
				clear(s.away)
				fallthrough
			case 1: // back
				s.crashed()
				must(t, s.goOn(rng.IntN(3))) // with a checkpoint, the labels trust the device again, as far as that says
				s.mems = disk.PowerCutAll(s.mems, func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }, rng)
				s.crashed()
			default:
				s.crashed()
			}
			must(t, s.p.Close())
			losses++
			return lost
		})
		t.Logf("%d losses", losses)
	})
}

// crashed opens the pool and looks at everything in it.
func (s *sweep) crashed() {
	s.t.Helper()
	s.crash(false)
	s.copies()
}

// copies looks at every stored block on the devices themselves: one that is online has the block, unless the unit is
// known to be stale.
func (s *sweep) copies() {
	s.t.Helper()
	p := s.p
	var scratch readScratch
	b, content := disk.Buffer(block.Size), make([]byte, block.Size)
	for _, r := range p.Replicas() {
		for first := uint64(0); first < r.blocks(); first += block.ChunkBlocks {
			n := int(min(block.ChunkBlocks, r.blocks()-first))
			must(s.t, r.find(&scratch, first, n))
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
					must(s.t, d.Disk().ReadAt(b, at))
					if !x.content(content, b[x.loc.Addr()-from:x.loc.End()-from]) {
						s.fatalf("replica %s block %d at %#x: device %s, column %d, has something else, and nobody knows", r.name, first+uint64(i), x.loc.Addr(), d.Name(), c)
					}
				}
			}
		}
	}
}
