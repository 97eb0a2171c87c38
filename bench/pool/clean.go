package main

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
)

// skew is how overwrites are spread over the blocks.
type skew struct {
	name string
	// picker returns a function that picks one of n blocks.
	picker func(rng *rand.Rand, n uint64) func() uint64
}

var skews = []skew{
	{"uniform", func(rng *rand.Rand, n uint64) func() uint64 {
		return func() uint64 { return rng.Uint64N(n) }
	}},
	{"90 % of writes to 10 % of blocks", func(rng *rand.Rand, n uint64) func() uint64 {
		return func() uint64 {
			b := rng.Uint64N(n / 10)
			if rng.IntN(10) == 0 {
				b = n/10 + rng.Uint64N(n-n/10)
			}
			return scatter(b, n)
		}
	}},
	{"zipf, s 1.1", func(rng *rand.Rand, n uint64) func() uint64 {
		z := rand.NewZipf(rng, 1.1, 1, n-1)
		return func() uint64 { return scatter(z.Uint64(), n) }
	}},
}

// scatter puts the b-th most popular of n blocks somewhere: a permutation, so that popular blocks are no neighbours.
func scatter(b, n uint64) uint64 {
	step := uint64(0x9e3779b1) % n
	for gcd(step, n) != 1 {
		step++
	}
	hi := b * step // n and step are below 2^32
	return hi % n
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// analytic returns the write amplification of data that is overwritten uniformly at random, when the segment that is
// cleaned is always the emptiest (with large segments: the one written longest ago) and utilization is live data as a
// share of the space that data can take. A segment keeps the share v of its blocks until it is cleaned, where
// utilization = (1-v) / -ln v (Menon and Stockmeyer; Bux and Iliadis for greedy), and each block freed costs 1/(1-v)
// blocks written.
func analytic(utilization float64) float64 {
	lo, hi := 0.0, 1.0
	for range 100 {
		v := (lo + hi) / 2
		if (1-v)/-math.Log(v) < utilization {
			lo = v
		} else {
			hi = v
		}
	}
	return 1 / (1 - lo)
}

// cleaning is small random overwrites of a pool of which a given share is full, until its state is steady.
func (b *bench) cleaning() error {
	for _, full := range []int{50, 80, 90} {
		uniform := 0.0
		for _, s := range skews {
			l, amp, err := b.cleanedAt(full, s)
			if err != nil {
				b.failed("clean", fmt.Sprintf("%d %% full, %s", full, s.name), err)
				continue
			}
			if s.name == "uniform" {
				uniform = amp
			} else {
				l.aim, l.met = "< uniform", amp < uniform || uniform == 0
			}
			b.table.add(l)
		}
	}
	return nil
}

// cleanOptions keep the proportions of a large pool: what the delta and the log since the last checkpoint hold back is a
// small share of the pool, as 1 GiB is of 1 TiB.
func (b *bench) cleanOptions() pool.Options {
	delta := max(4096, int(b.cleaned/block.Size/64)) // half of it is drained at a time
	return pool.Options{SegmentBytes: max(256<<10, b.cleaned>>12), DeltaEntries: delta, CheckpointBytes: b.cleaned / 64, FlushBytes: 1 << 40}
}

func (b *bench) cleanedAt(full int, s skew) (l line, amp float64, err error) {
	dev, err := newThin(b.path("thin.img"), b.cleaned, true)
	if err != nil {
		return l, 0, err
	}
	e := &engine{c: new(counters), opt: b.cleanOptions()}
	if e.p, err = pool.Create(pool.Stripe(counted{dev, e.c}), pool.Config{Name: "bench"}, e.opt); err != nil {
		dev.Close()
		return l, 0, err
	}
	defer e.p.Close()
	live := e.p.Stats().Capacity / 100 * int64(full) &^ (1<<20 - 1)
	r, err := e.p.CreateReplica("v", live)
	if err != nil {
		return l, 0, err
	}
	fill := newWriter(r, 1, 16, uint64(live/block.Size), false, 1)
	fill.data, fill.sums = patternData, patternSums
	for range live / block.Size / 16 {
		if err := r.Apply(fill.next()); err != nil {
			return l, 0, fmt.Errorf("fill: %w", err)
		}
	}
	w := newWriter(r, 32, 1, uint64(live/block.Size), true, b.seed)
	w.data, w.sums = patternData, patternSums
	w.pick = s.picker(w.rng, w.of)
	batches := func(passes float64) int64 { return int64(float64(live/block.Size) * passes / 32) }
	for range batches(b.passes) {
		if err := r.Apply(w.next()); err != nil {
			return l, 0, err
		}
	}
	before := e.p.Stats()
	x, err := metered(func() (sample, error) {
		return e.counting(writeRequests, func() (x sample, err error) {
			for range batches(b.passes / 2) {
				if err := w.apply(e.p, &x, false); err != nil {
					return x, err
				}
			}
			x.took = 1
			return x, nil
		})
	})
	if err != nil {
		return l, 0, err
	}
	after := e.p.Stats()
	amp = 1 + float64(after.BlocksMoved-before.BlocksMoved)/float64(after.BlocksWritten-before.BlocksWritten)
	util := float64(live) / float64(before.Capacity)
	l = makeLine("clean", fmt.Sprintf("%d %% full, %s", full, s.name), "thin", func(float64) string { return "" }, 1, []outcome{{total: x}})
	l.ours = fmt.Sprintf("×%.2f", amp)
	want := analytic(util)
	l.raw, l.ratio = fmt.Sprintf("analytic ×%.2f", want), amp/want
	l.aim, l.met = "≤ 1.15 × analytic", amp <= 1.15*want
	b.say("clean, %d %% full, %s: data ×%.3f, analytic ×%.3f", full, s.name, amp, want)
	return l, amp, nil
}
