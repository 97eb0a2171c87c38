package pool

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// pausing is a device that stops behind every flush and before every ring, when it is told to: pause is called then.
type pausing struct {
	disk.Device
	pause atomic.Pointer[func()]
}

func (d *pausing) stop() {
	if f := d.pause.Load(); f != nil {
		(*f)()
	}
}

func (d *pausing) WritevAt(bufs [][]byte, off int64) error {
	if off < label.HeadBytes {
		d.stop()
	}
	return d.Device.WritevAt(bufs, off)
}

func (d *pausing) Flush() error {
	err := d.Device.Flush()
	d.stop()
	return err
}

// duringCommit makes a checkpoint and calls f each time that its commit has come one step further.
func (d *pausing) duringCommit(p *Pool, f func()) error {
	p.drain.cycle.Lock()
	p.commits.wait() // those of the background do not stop
	p.drain.mu.Lock()
	p.freeze()
	p.drain.mu.Unlock()
	err := p.drainAll()
	if err == nil {
		err = p.drained()
	}
	if err != nil {
		return err
	}
	p.drain.mu.Lock()
	c, err := p.prepareCheckpoint()
	if err != nil {
		return err
	}
	at, on := make(chan struct{}), make(chan struct{})
	stop := func() { at <- struct{}{}; <-on }
	d.pause.Store(&stop)
	c.over = func() { d.pause.Store(nil) }
	p.startCommit(c)
	p.drain.mu.Unlock()
	p.drain.cycle.Unlock()
	for {
		select {
		case <-at:
			f()
			on <- struct{}{}
		case <-c.done:
			return c.err
		}
	}
}

// drainedOnce runs a cycle while a checkpoint is being committed, up to the end of the drain.
func drainedOnce(p *Pool) {
	drains := p.Stats().Drains
	go p.runCycle(false)
	waitUntil(p, func() bool { return p.Stats().Drains > drains })
}

// TestDrainsDuringCommit holds up the flush of a checkpoint: writers fill the tables several times meanwhile, none of them
// waits, and no other checkpoint is begun. The next cycle after the flush makes one.
func TestDrainsDuringCommit(t *testing.T) {
	d := &pausing{Device: disk.NewMem("mem0", 128<<20)}
	p, err := Create(Stripe(d), Config{Name: "test"}, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, FlushBytes: 1 << 40})
	must(t, err)
	defer p.Close()
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 30, 1)}))
	before := p.Stats()
	n, pauses := uint64(1), 0
	must(t, d.duringCommit(p, func() {
		if pauses++; pauses > 1 {
			return
		}
		for range 3 * 4096 / 16 {
			n++
			must(t, r.Apply([]Op{write(n*16%16000, 16, n)}))
		}
		s := p.Stats()
		if s.Drains < before.Drains+3 || s.Checkpoints != before.Checkpoints {
			t.Errorf("%d drains and %d checkpoints during a flush", s.Drains-before.Drains, s.Checkpoints-before.Checkpoints)
		}
	}))
	if pauses < 3 {
		t.Fatalf("stopped %d times, instead of behind the flush, before the ring, and behind its flush", pauses)
	}
	waitUntil(p, func() bool { return p.Stats().Checkpoints >= before.Checkpoints+2 })
	must(t, p.Check())
}

// TestGainIsCountedOnce: what a commit frees is the gain of its cycle, not also of one that runs meanwhile; that one has not
// gained either what the directory takes that it leaves to the next one.
func TestGainIsCountedOnce(t *testing.T) {
	for _, left := range []bool{false, true} {
		t.Run(fmt.Sprint("left=", left), func(t *testing.T) {
			d := &pausing{Device: disk.NewMem("mem0", 128<<20)}
			p, err := Create(Stripe(d), Config{Name: "test"}, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, FlushBytes: 1 << 40, Compression: compress.Off})
			must(t, err)
			atRest(p)
			r, err := p.CreateReplica("v", roomBlocks*block.Size)
			must(t, err)
			const sparse = 40
			n := uint64(0)
			put := func(b uint64, count int) {
				n++
				must(t, r.Apply([]Op{write(b, count, n)}))
			}
			for range 2 {
				for k := range uint64(sparse) {
					put((k+1)*dirSpan*block.ChunkBlocks, 1)
				}
				for b := uint64(0); b < 1024; b += 32 {
					put(b, 32)
				}
				must(t, p.cycle())
			}
			for b := uint64(0); b < 1024; b += 32 {
				put(b, 32)
			}
			before, freed, over := p.cycles.gained, p.Stats().SegmentsFreed, make(chan error)
			begun := false
			must(t, d.duringCommit(p, func() {
				if begun {
					return
				}
				begun = true
				if left {
					for k := range uint64(sparse) {
						put((k+1)*dirSpan*block.ChunkBlocks, 1)
					}
				}
				drains := p.Stats().Drains
				go func() {
					_, err := p.runCycle(!left)
					over <- err
				}()
				for p.Stats().Drains == drains {
					runtime.Gosched()
				}
				if left {
					must(t, <-over)
				}
			}))
			if !left {
				must(t, <-over)
			}
			p.commits.wait()
			if p.Stats().SegmentsFreed == freed {
				t.Error("nothing was freed")
			}
			if n := p.cycles.gained - before; n > 0 {
				t.Errorf("%d cycles gained", n)
			}
		})
	}
}

// TestPowerCutDuringCommit cuts the power at every operation of the devices while checkpoints are committed and the next
// tables are drained, with changes in between, at each step of the commit.
func TestPowerCutDuringCommit(t *testing.T) {
	seed := *cutSeed
	if seed == 0 {
		seed = rand.Uint64N(1e9)
	}
	forLayouts(t, func(t *testing.T, l layout) {
		if l.name != "stripe" && l.name != "raidz-3" && !*everyOp {
			return
		}
		t.Parallel()
		w := recordCommits(t, l, seed)
		c := newCutTest(t, l, w)
		rng := rand.New(rand.NewPCG(seed, 8))
		for r := w.rec.Replay(); !t.Failed(); {
			c.settle(r.At())
			if *cutAt == r.At() || *cutAt < 0 && r.At() >= w.created && (!testing.Short() || *everyOp || rng.IntN(2*l.devices()) == 0) {
				c.cuts(r)
			}
			if !r.Next() {
				break
			}
		}
		if n := w.cover["drains during a commit"]; n < 10 {
			t.Errorf("%d drains during a commit", n)
		}
	})
}

// recordCommits is a workload of changes during commits.
func recordCommits(t *testing.T, l layout, seed uint64) *recordedWorkload {
	w := &recordedWorkload{seed: seed, guid: block.NewGUID()}
	w.opt = Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10, Deadline: 20 * time.Second, inlineBytes: 200, historyBytes: 600}
	mems := l.blank(24 << 20)
	w.rec = disk.Record(mems...)
	groups := l.arrange(mems)
	d := &pausing{Device: mems[0]}
	groups[0].Devices[0] = d
	p, err := Create(groups, Config{Name: "cut", GUID: w.guid}, w.opt)
	must(t, err)
	w.created = w.rec.Len()
	a := newActor(t, seed, p)
	a.maxSize, a.maxCount, a.place = 300, 2, w.rec.Len
	a.create()
	a.create()
	changes := []act{{"apply", 60, nil, (*actor).apply}, {"merge", 10, nil, (*actor).merge}}
	for range 8 {
		for range 3 {
			a.step(changes)
		}
		a.must(d.duringCommit(p, func() {
			if p.seg.freeCount() < p.cleanStart()+16 { // changes might wait for space, and so for the commit
				return
			}
			a.step(changes)
			drainedOnce(p)
			a.step(changes)
			a.cover["drains during a commit"]++
		}))
	}
	a.compare()
	a.check()
	must(t, p.Close())
	w.log, w.cover = a.log, a.cover
	return w
}
