package main

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

const kib = 1 << 10

// writing is one kind of writes: batches of ops requests of bytes each.
type writing struct {
	row, what  string
	ops, bytes int
	random     bool
	unit       func(float64) string
	perOp      float64

	volume       int64 // 0: as configured
	filled       bool  // all of the volume is written before, and some of it again
	held         int   // snapshots taken meanwhile, which are held
	compression  compress.Algorithm
	compressible bool
	then         func(*engine, *rawDevice) error // called at the end, if not nil
}

// writes measures one kind of writes. The raw device and the directory get as many requests at a time.
func (b *bench) writes(m mode, k writing) (l line, err error) {
	opt := options()
	opt.Compression = k.compression
	e, err := b.create(m, opt)
	if err != nil {
		return l, err
	}
	defer func() { e.p.Close() }()
	volume := cmp.Or(k.volume, b.volume)
	r, err := e.p.CreateReplica("v", volume)
	if err != nil {
		return l, err
	}
	if k.filled {
		if err := e.fill(r); err != nil {
			return l, err
		}
		if err := b.history(newWriter(r, 32, 1, uint64(volume/block.Size), true, b.seed), k.held); err != nil {
			return l, err
		}
	}
	raw, err := b.rawDevice(m)
	if err != nil {
		return l, err
	}
	defer raw.Close()
	dir, err := b.directory(m)
	if err != nil {
		return l, err
	}
	defer dir.Close()
	w := newWriter(r, k.ops, uint64(k.bytes/block.Size), uint64(volume/block.Size), k.random, b.seed)
	if k.compressible {
		w.data, w.sums = compressible, compressibleSums
	}
	j := job{mode: m, bytes: k.bytes, depth: k.ops, write: true, random: k.random, seed: b.seed}
	if m == buffered {
		j.limit = b.volume / 4
	}
	out, err := b.compare(fmt.Sprintf("%s, %s, %v", k.row, k.what, m),
		side{"ours", e.turn(w)}, side{"raw", j.turn(raw)}, side{"files", j.turn(dir)})
	if err == nil && k.then != nil {
		err = k.then(e, raw)
	}
	if err != nil {
		return l, err
	}
	return makeLine(k.row, k.what, m.String(), k.unit, k.perOp, out), nil
}

// small is 4 KiB writes at random, in batches of 32.
func small(row, what string) writing {
	return writing{row: row, what: what, ops: 32, bytes: 4 * kib, random: true, unit: iops, perOp: block.Size}
}

// wide is 128 KiB writes.
func wide(row, what string, depth int, random bool) writing {
	return writing{row: row, what: fmt.Sprintf("%s, depth %d", what, depth), ops: depth, bytes: 128 * kib, random: random, unit: megabytes, perOp: 1}
}

// sequential is large writes one behind the other: one at a time, and eight, as a connection delivers them under load.
func (b *bench) sequential() error {
	for _, m := range b.modes() {
		for _, depth := range []int{1, 8} {
			l, err := b.writes(m, wide("seq", "128 KiB sequential write", depth, false))
			if err != nil {
				return err
			}
			b.table.add(l.aimRatio(0.85, "≥ %.2f raw"))
		}
	}
	return nil
}

// random is small writes all over the volume, in batches of 32, drains, checkpoints and cleaning included. The aim is a
// multiple of what the raw device does with O_DIRECT, whatever the mode.
func (b *bench) random() error {
	defer func(d time.Duration) { b.slice = d }(b.slice)
	b.slice *= 3
	var raw float64
	for _, m := range b.modes() {
		l, err := b.writes(m, small("rand", "4 KiB random write, depth 32"))
		if err != nil {
			return err
		}
		rate := l.rate
		if m == direct {
			raw = rate / l.ratio
		}
		if l.aim = "≤ 6 µs" + of(m) + ", 0 allocs"; raw > 0 {
			l.aim = "≥ 3.00 raw O_DIRECT, " + l.aim
			l.note = fmt.Sprintf("%.2f × raw O_DIRECT", rate/raw)
		}
		l.met = (raw == 0 || rate >= 3*raw) && l.cost() <= 6*time.Microsecond && l.allocs < 0.05
		b.table.add(l)
	}
	return nil
}

// of says whose CPU time line.cost is.
func of(m mode) string {
	if m == buffered {
		return " of the system"
	}
	return ""
}

// large is what 4 KiB cost within large writes.
func (b *bench) large() error {
	for _, m := range b.modes() {
		for _, depth := range []int{1, 8} {
			l, err := b.writes(m, wide("large", "128 KiB random write", depth, true))
			if err != nil {
				return err
			}
			l.aim, l.met = "≤ 3 µs"+of(m), l.cost() <= 3*time.Microsecond
			b.table.add(l)
		}
	}
	return nil
}

// flushes is writes each of which is flushed, by one writer and by 32 at a time.
func (b *bench) flushes() error {
	for _, m := range b.modes() {
		var single float64
		for _, writers := range []int{1, 32} {
			l, rate, err := b.flushed(m, writers)
			if err != nil {
				return err
			}
			if writers == 1 {
				single = rate
				l = l.aimRatio(0.80, "≥ %.2f raw")
			} else {
				l.aim, l.met = "≥ 8 × depth 1", rate >= 8*single
				l.note = fmt.Sprintf("%.1f × depth 1", rate/single)
			}
			b.table.add(l)
		}
	}
	return nil
}

func (b *bench) flushed(m mode, writers int) (l line, rate float64, err error) {
	e, err := b.create(m, options())
	if err != nil {
		return l, 0, err
	}
	defer e.p.Close()
	each := max(b.volume/int64(writers), 1<<20)
	ws := make([]*writer, writers)
	for i := range ws {
		r, err := e.p.CreateReplica(fmt.Sprintf("v%d", i), each)
		if err != nil {
			return l, 0, err
		}
		ws[i] = newWriter(r, 1, 1, uint64(each/block.Size), true, b.seed+uint64(i))
	}
	raw, err := b.rawDevice(m)
	if err != nil {
		return l, 0, err
	}
	defer raw.Close()
	dir, err := b.directory(m)
	if err != nil {
		return l, 0, err
	}
	defer dir.Close()
	what := fmt.Sprintf("4 KiB write + flush, depth %d", writers)
	j := job{mode: m, bytes: 4 * kib, depth: writers, write: true, random: true, flush: true, seed: b.seed}
	out, err := b.compare(fmt.Sprintf("flush, %s, %v", what, m),
		side{"ours", e.flushing(ws)}, side{"raw", j.turn(raw)}, side{"files", j.turn(dir)})
	if err != nil {
		return l, 0, err
	}
	return makeLine("flush", what, m.String(), iops, block.Size, out), out[0].rate, nil
}

// flushing returns a function in which each writer writes a block and flushes, again and again.
func (e *engine) flushing(ws []*writer) func(time.Duration) (sample, error) {
	return func(d time.Duration) (sample, error) {
		return e.counting(writeRequests, func() (sample, error) { return together(d, ws, e.p, true) })
	}
}

// together lets writers work at the same time.
func together(d time.Duration, ws []*writer, p *pool.Pool, flush bool) (total sample, failed error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for _, w := range ws {
		wg.Go(func() {
			var s sample
			var err error
			for time.Since(begin) < d && err == nil {
				err = w.apply(p, &s, flush)
			}
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
}
