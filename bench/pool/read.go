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

// reads is small reads all over a volume whose data is in no cache: with the index in memory, and with an index that is
// read for every request.
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
	for _, warm := range []bool{true, false} {
		opt, index := options(), "index in memory"
		opt.PageCacheBytes = 256 << 20
		if !warm {
			opt.PageCacheBytes, index = 1, "index cold"
		}
		if err := e.reopen(opt); err != nil {
			return err
		}
		r = e.p.Replica("v")
		if warm { // one block of each chunk brings its page into memory
			one := disk.Buffer(block.Size)
			for first := uint64(0); first < uint64(r.Size())/block.Size; first += block.ChunkBlocks {
				if err := r.Read(first, one, nil); err != nil {
					return err
				}
			}
		}
		for _, depth := range []int{1, 32} {
			what := fmt.Sprintf("4 KiB random read, depth %d, %s", depth, index)
			j := job{mode: m, bytes: 4 * kib, depth: depth, random: true, seed: b.seed}
			out, err := b.compare(fmt.Sprintf("read, %s, %v", what, m),
				side{"ours", e.reading(r, depth, b.seed)}, side{"raw", j.turn(raw)}, side{"files", j.turn(dir)})
			if err != nil {
				return err
			}
			l := makeLine("read", what, m.String(), iops, block.Size, out)
			l.amp = 0
			b.table.add(l.aimRatio(0.85, "≥ %.2f raw"))
		}
	}
	return nil
}

// reading returns a function in which readers read single blocks at random, from a device of which nothing is cached.
func (e *engine) reading(r *pool.Replica, depth int, seed uint64) func(time.Duration) (sample, error) {
	turns := uint64(0)
	return func(d time.Duration) (sample, error) {
		turns++
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
