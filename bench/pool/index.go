package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
)

// indexMemory is the aim of the row index, and what the garbage collector is told to keep to.
const indexMemory = 512 << 20

// mostStall is the aim for what writers wait at most.
const mostStall = 5 * time.Millisecond

// indexed is a volume of the row index.
type indexed struct {
	size    int64
	updates uint64
	delta   int
	lazy    bool // the device is in memory: stalls are the engine's own, and the machine's
}

// index is random updates of a large volume all of which is written: what the index takes in memory and on the device,
// and how long writers wait while it drains.
func (b *bench) index() error {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(indexMemory))
	deltas := []int{1 << 18, 1 << 20} // the default, and one in proportion to the volume
	if b.quick {
		deltas = []int{1 << 12, 1 << 14}
	}
	for _, x := range []indexed{
		{b.indexed / 4, b.updates / 8, deltas[0], true},
		{b.indexed / 4, b.updates / 8, 2 * deltas[0], true}, // a part in 32 of the blocks, as in the prototype of the index
		{b.indexed, b.updates, deltas[0], false},
		{b.indexed, b.updates, deltas[1], false},
	} {
		if err := b.indexWith(x); err != nil {
			b.failed("index", fmt.Sprintf("delta of %d, in memory: %v", x.delta, x.lazy), err)
		}
	}
	return nil
}

func (b *bench) indexWith(v indexed) error {
	// A fifth of the device stays free of what is written in all: what writers wait for is the index, not the cleaner.
	dev, err := newThin(b.path("thin.img"), (v.size+2*int64(v.updates)*block.Size)/5*6, v.lazy)
	if err != nil {
		return err
	}
	debug.FreeOSMemory()
	base := memory()
	e := &engine{c: new(counters), opt: pool.Options{DeltaEntries: v.delta, SegmentBytes: 16 << 20}}
	if b.quick {
		e.opt.SegmentBytes = 256 << 10
	}
	if e.p, err = pool.Create(pool.Stripe(counted{dev, e.c}), pool.Config{Name: "bench"}, e.opt); err != nil {
		dev.Close()
		return err
	}
	defer e.p.Close()
	r, err := e.p.CreateReplica("v", v.size)
	if err != nil {
		return err
	}
	blocks := uint64(v.size / block.Size)
	fill := newWriter(r, 16, 32, blocks, false, 1)
	fill.data, fill.sums = patternData, patternSums
	begin := time.Now()
	for range blocks / 32 / 16 {
		if err := r.Apply(fill.next()); err != nil {
			return fmt.Errorf("fill: %w", err)
		}
	}
	b.say("index: %d blocks written in %v", blocks, time.Since(begin).Round(time.Second))
	w := newWriter(r, 32, 1, blocks, true, b.seed)
	w.data, w.sums = patternData, patternSums
	for _, held := range []bool{false, true} {
		what := "no snapshot"
		if held {
			what = "one snapshot held"
			if err := w.snapshot(); err != nil {
				return err
			}
		}
		if v.lazy {
			what += ", device in memory"
		}
		l, err := b.updateIndex(e, w, v.updates, base, fmt.Sprintf("%.0f M blocks, %d updates, delta of %d, %s", float64(blocks)/1e6, v.updates, v.delta, what))
		if err != nil {
			return err
		}
		b.table.add(l)
	}
	return nil
}

// updateIndex measures so many updates. base is what memory took before the pool.
func (b *bench) updateIndex(e *engine, w *writer, updates uint64, base int64, what string) (l line, err error) {
	var peak peakMemory
	peak.start()
	defer peak.stop()
	drains := e.p.Stats().Drains
	beside, err := b.startProbe()
	if err != nil {
		return l, err
	}
	var stalls, own []time.Duration
	var unlock func()
	w.delay, unlock = lockThread()
	defer unlock()
	x, err := metered(func() (sample, error) {
		return e.counting(writeRequests, func() (x sample, err error) {
			begin := time.Now()
			for range updates / 32 {
				at := x
				x.longest, x.own = 0, 0
				if err := w.apply(e.p, &x, false); err != nil {
					return x, err
				}
				stalls, own = append(stalls, x.longest), append(own, x.own)
				x.longest, x.own = max(x.longest, at.longest), max(x.own, at.own)
			}
			x.took = time.Since(begin)
			return x, nil
		})
	})
	probed, e2 := beside.stop()
	if err = errors.Join(err, e2); err != nil {
		return l, err
	}
	slices.Sort(stalls)
	slices.Sort(own)
	over := func(took []time.Duration) int {
		n, _ := slices.BinarySearch(took, mostStall)
		return len(took) - n
	}
	used := peak.stop() - base
	s := w.r.Stats()
	onDisk := float64(s.Allocated-s.Data) / float64(s.Data)
	l = makeLine("index", what, "thin", iops, block.Size, []outcome{{rate: x.rate(), total: x}})
	l.aim, l.met = "≤ 512 MiB, ≤ 1 %, ≤ 5 ms", used <= indexMemory && onDisk <= 0.01 && x.longest <= mostStall
	l.note = fmt.Sprintf("%s of memory, index %.2f %% of the data, %d of %d batches over 5 ms (99.9 %%: %s ms), %d drains; less what the writer waited for a CPU: longest %s ms, %d over 5 ms (99.9 %%: %s ms); %s",
		size(used), 100*onDisk, over(stalls), len(stalls), milliseconds(stalls[len(stalls)*999/1000]), e.p.Stats().Drains-drains,
		milliseconds(x.own), over(own), milliseconds(own[len(own)*999/1000]), probed)
	b.say("index: %s: longest %s ms, %s", what, milliseconds(x.longest), l.note)
	return l, nil
}

// memory returns the bytes of memory that only this process uses: without files that it maps.
func memory() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	var n int64
	fmt.Sscan(rest, &n)
	return n << 10
}

// peakMemory looks at memory from time to time.
type peakMemory struct {
	quit, done chan struct{}
	once       sync.Once
	most       int64
}

func (p *peakMemory) start() {
	p.quit, p.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(p.done)
		for t := time.NewTicker(20 * time.Millisecond); ; {
			p.most = max(p.most, memory())
			select {
			case <-p.quit:
				t.Stop()
				return
			case <-t.C:
			}
		}
	}()
}

// stop returns the most memory seen. It may be called again.
func (p *peakMemory) stop() int64 {
	p.once.Do(func() { close(p.quit) })
	<-p.done
	return p.most
}
