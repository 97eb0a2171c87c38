package main

import (
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

// compressing is writes of data that compression makes smaller, in the mode that pools use.
func (b *bench) compressing() error {
	for _, algorithm := range []compress.Algorithm{compress.LZ4, compress.Zstd, compress.Off} {
		for _, k := range []writing{
			small("comp", fmt.Sprintf("4 KiB random write, depth 32, %v", algorithm)),
			wide("comp", fmt.Sprintf("128 KiB sequential write, %v", algorithm), 8, false),
		} {
			k.compressible, k.compression = true, algorithm
			l, err := b.writes(buffered, k)
			if err != nil {
				return err
			}
			b.table.add(l)
		}
	}
	return nil
}

// snapshots is small writes over a volume that is full, without and with a snapshot that keeps what they replace, and how
// long writers wait while snapshots come and go.
func (b *bench) snapshots() error {
	for _, held := range []bool{false, true} {
		k := small("snap", "4 KiB random overwrite, depth 32, no snapshot")
		if held {
			k.what = "4 KiB random overwrite, depth 32, one snapshot held"
		}
		k.filled, k.snapshot, k.volume = true, held, b.volume/2
		l, err := b.writes(buffered, k)
		if err != nil {
			return err
		}
		b.table.add(l)
	}
	l, err := b.snapshotStalls()
	if err == nil {
		b.table.add(l)
	}
	return err
}

// snapshotsKept is how many snapshots there are at a time while writers' waits are measured.
const snapshotsKept = 8

// snapshotStalls takes a snapshot every hundred batches and deletes the oldest. The device takes no time, so that what
// writers wait for is the engine; beside it, the same without snapshots.
func (b *bench) snapshotStalls() (l line, err error) {
	dev, err := newThin(b.path("thin.img"), b.cleaned)
	if err != nil {
		return l, err
	}
	dev.lazy = true
	e := &engine{c: new(counters)}
	if e.p, err = pool.Create(pool.Stripe(counted{dev, e.c}), pool.Config{Name: "bench"}, pool.Options{SegmentBytes: max(256<<10, b.cleaned>>10)}); err != nil {
		dev.Close()
		return l, err
	}
	defer e.p.Close()
	r, err := e.p.CreateReplica("v", b.cleaned/8)
	if err != nil {
		return l, err
	}
	w := newWriter(r, 32, 1, uint64(b.cleaned/8/block.Size), true, b.seed)
	w.data, w.sums = patternData, patternSums
	var point time.Duration
	turn := func(every int) func(time.Duration) (sample, error) {
		return func(d time.Duration) (sample, error) {
			return e.counting(writeRequests, func() (x sample, err error) {
				begin := time.Now()
				for n := 1; time.Since(begin) < d && err == nil; n++ {
					if err = w.apply(e.p, &x, false); err == nil && every > 0 && n%every == 0 {
						at := time.Now()
						err = w.snapshot()
						point = max(point, time.Since(at))
					}
				}
				x.took = time.Since(begin)
				return x, err
			})
		}
	}
	out, err := b.compare("snap, stalls", side{"snapshots", turn(100)}, side{"none", turn(0)})
	if err != nil {
		return l, err
	}
	l = makeLine("snap", "4 KiB random write, depth 32, a snapshot every 100 batches", "thin", iops, block.Size, out)
	longest := max(l.longest, point)
	l.aim, l.met = "longest ≤ 5 ms", longest <= 5*time.Millisecond
	l.note = fmt.Sprintf("raw: the same without snapshots, longest %v; longest snapshot and deletion %v",
		out[1].total.longest.Round(10*time.Microsecond), point.Round(10*time.Microsecond))
	return l, nil
}

// snapshot takes a snapshot and deletes the oldest when there are enough.
func (w *writer) snapshot() error {
	w.n++
	ops := []pool.Op{{Kind: pool.OpSnapshot, Name: fmt.Sprintf("s%d", w.n), Version: block.Version{Epoch: 1, N: w.n}}}
	if all := w.r.Snapshots(); len(all) >= snapshotsKept {
		w.n++
		ops = append(ops, pool.Op{Kind: pool.OpDeleteSnapshot, Name: all[0].Name, Version: block.Version{Epoch: 1, N: w.n}})
	}
	return w.r.Apply(ops)
}
