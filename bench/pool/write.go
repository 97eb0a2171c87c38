package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
)

const kib = 1 << 10

// writes measures one kind of writes: batches of ops requests of bytes each. The raw device and the directory get as
// many requests at a time.
func (b *bench) writes(m mode, row, what string, ops, bytes int, random bool, unit func(float64) string, perOp float64) (l line, err error) {
	e, err := b.create(m, options())
	if err != nil {
		return l, err
	}
	defer e.p.Close()
	r, err := e.p.CreateReplica("v", b.volume)
	if err != nil {
		return l, err
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
	w := newWriter(r, ops, uint64(bytes/block.Size), uint64(b.volume/block.Size), random, b.seed)
	j := job{mode: m, bytes: bytes, depth: ops, write: true, random: random, seed: b.seed}
	if m == buffered {
		j.limit = b.volume / 4
	}
	out, err := b.compare(fmt.Sprintf("%s, %s, %v", row, what, m),
		side{"ours", e.turn(w)}, side{"raw", j.turn(raw)}, side{"files", j.turn(dir)})
	if err != nil {
		return l, err
	}
	return makeLine(row, what, m.String(), unit, perOp, out), nil
}

// sequential is large writes one behind the other: one at a time, and eight, as a connection delivers them under load.
func (b *bench) sequential() error {
	for _, m := range b.modes() {
		for _, depth := range []int{1, 8} {
			l, err := b.writes(m, "seq", fmt.Sprintf("128 KiB sequential write, depth %d", depth), depth, 128*kib, false, megabytes, 1)
			if err != nil {
				return err
			}
			b.table.add(l.aimRatio(0.85, "≥ %.2f raw"))
		}
	}
	return nil
}

// random is small writes all over the volume, in batches of 32, drains, checkpoints and cleaning included.
func (b *bench) random() error {
	defer func(d time.Duration) { b.slice = d }(b.slice)
	b.slice *= 3
	for _, m := range b.modes() {
		l, err := b.writes(m, "rand", "4 KiB random write, depth 32", 32, 4*kib, true, iops, block.Size)
		if err != nil {
			return err
		}
		l.aim, l.met = "≥ 3.00 raw, ≤ 6 µs, 0 allocs", l.ratio >= 3 && l.cpu <= 6*time.Microsecond && l.allocs < 0.05
		b.table.add(l)
	}
	return nil
}

// large is what 4 KiB cost within large writes.
func (b *bench) large() error {
	for _, m := range b.modes() {
		for _, depth := range []int{1, 8} {
			l, err := b.writes(m, "large", fmt.Sprintf("128 KiB random write, depth %d", depth), depth, 128*kib, true, megabytes, 1)
			if err != nil {
				return err
			}
			l.aim, l.met = "≤ 3 µs", l.cpu <= 3*time.Microsecond
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
