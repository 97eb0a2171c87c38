package main

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// reads is small reads all over a volume whose data is in no cache: with the index in memory; cold, the pool just opened and
// nothing of it in memory; and where index pages are read for nearly every request, as of a volume whose index is much larger
// than the memory for it.
func (b *bench) reads() error {
	for _, m := range b.modes() {
		if err := b.readMode(m); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) readMode(m mode) error {
	e, err := b.create(m, options())
	if err != nil {
		return err
	}
	defer func() { e.p.Close() }()
	r, err := e.p.CreateReplica("v", b.volume)
	if err != nil {
		return err
	}
	if err := e.fill(r); err != nil {
		return err
	}
	w := newWriter(r, 32, 1, uint64(b.volume/block.Size), true, b.seed)
	for range b.volume / block.Size / 32 / 4 { // a quarter of it written at random afterwards
		if err := r.Apply(w.next()); err != nil {
			return err
		}
	}
	b.prepared["raw.img"] = false // what was written recently may be cached below this machine: all sides are
	raw, err := b.rawDevice(m)
	if err != nil {
		return err
	}
	defer raw.Close()
	dir, err := b.directory(m)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, k := range []struct {
		index string
		cache int64 // Options.PageCacheBytes; 0: the default
		cold  bool  // each turn begins with opening the pool
	}{
		{"index in memory", 256 << 20, false},
		{"cold", 0, true},
		{"index pages not in memory", b.volume / 4096, false}, // the directory is, which takes less than half of that
	} {
		opt := options()
		opt.PageCacheBytes = k.cache
		if err := e.reopen(opt); err != nil {
			return err
		}
		if err := readChunks(e.p.Replica("v")); err != nil {
			return err
		}
		for _, depth := range []int{1, 32} {
			what := fmt.Sprintf("4 KiB random read, depth %d, %s", depth, k.index)
			j := job{mode: m, bytes: 4 * kib, depth: depth, random: true, seed: b.seed}
			ours := e.reading("v", depth, b.seed)
			if k.cold {
				ours = e.opening(opt, ours)
			}
			out, err := b.compare(fmt.Sprintf("read, %s, %v", what, m), side{"ours", ours}, side{"raw", j.turn(raw)}, side{"files", j.turn(dir)})
			if err != nil {
				return err
			}
			l := makeLine("read", what, m.String(), iops, block.Size, out)
			l.amp = 0
			if l = l.aimRatio(0.85, "≥ %.2f raw"); l.requests > 1.5 { // as many requests one after the other as there are of the device
				l.note = fmt.Sprintf("%.2f raw in requests", l.ratio*l.requests)
			}
			b.table.add(l)
		}
	}
	return nil
}

// readChunks reads one block of each chunk, which brings the index into memory as far as that goes.
func readChunks(r *pool.Replica) error {
	one := disk.Buffer(block.Size)
	for first := uint64(0); first < uint64(r.Size())/block.Size; first += block.ChunkBlocks {
		if err := r.Read(first, one, nil); err != nil {
			return err
		}
	}
	return nil
}

// opening returns turn behind closing and opening the pool.
func (e *engine) opening(opt pool.Options, turn func(time.Duration) (sample, error)) func(time.Duration) (sample, error) {
	return func(d time.Duration) (sample, error) {
		if err := e.reopen(opt); err != nil {
			return sample{}, err
		}
		return turn(d)
	}
}

// reading returns a function in which readers read single blocks at random, from a device of which nothing is cached.
func (e *engine) reading(name string, depth int, seed uint64) func(time.Duration) (sample, error) {
	turns := uint64(0)
	return func(d time.Duration) (sample, error) {
		turns++
		r := e.p.Replica(name)
		for _, path := range e.paths {
			if err := forgetPath(path); err != nil {
				return sample{}, err
			}
		}
		return e.counting(readRequests, func() (total sample, failed error) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			begin := time.Now()
			for i := range depth {
				wg.Go(func() {
					s, err := e.readFor(r, rand.New(rand.NewPCG(seed+turns, uint64(i))), begin.Add(d))
					mu.Lock()
					defer mu.Unlock()
					total.add(s)
					if failed == nil {
						failed = err
					}
				})
			}
			wg.Wait()
			total.took = time.Since(begin)
			return total, failed
		})
	}
}

func (e *engine) readFor(r *pool.Replica, rng *rand.Rand, end time.Time) (s sample, err error) {
	dst := disk.Buffer(block.Size)
	got := make([]uint32, 1)
	blocks := uint64(r.Size()) / block.Size
	for at := time.Now(); at.Before(end); {
		if err := r.Read(rng.Uint64N(blocks), dst, got); err != nil {
			return s, err
		}
		now := time.Now()
		s.longest = max(s.longest, now.Sub(at))
		at = now
		s.ops++
		s.bytes += block.Size
	}
	return s, nil
}
