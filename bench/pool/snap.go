package main

import (
	"errors"
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

// manySnapshots is how many a volume may have without being slower for it.
const manySnapshots = 300

func (b *bench) many() int {
	if b.quick {
		return manySnapshots / 10
	}
	return manySnapshots
}

// snapshots is small writes over a volume that is full, and reads of it, without and with snapshots that keep what was there, and
// how long writers wait while snapshots come and go.
func (b *bench) snapshots() error {
	var none [2]line
	for _, held := range []int{0, 1, b.many()} {
		lines, err := b.withSnapshots(held)
		if err != nil {
			b.failed("snap", fmt.Sprintf("%d snapshots held", held), err)
			continue
		}
		for i, l := range lines {
			if none[i].rate == 0 {
				none[i] = l
			} else {
				l.aim, l.met = "≥ 0.90 × none", l.rate >= 0.9*none[i].rate
				l.note = fmt.Sprintf("%.2f × none, its CPU %.2f × none's", l.rate/none[i].rate, float64(l.cpu)/float64(none[i].cpu))
			}
			b.table.add(l)
		}
	}
	if err := b.besideNone(b.many()); err != nil {
		b.failed("snap", "beside none", err)
	}
	l, err := b.snapshotStalls()
	if err == nil {
		b.table.add(l)
	}
	return err
}

// besideNone measures overwrites and reads of a volume that has so many snapshots in turns with one that has none, on devices in
// memory: there is nothing but the engine's work, which no device hides.
func (b *bench) besideNone(held int) error {
	var es [2]*engine
	var ws [2]*writer
	for i, n := range []int{held, 0} {
		dev, err := newThin(b.path("thin.img"), 4*b.cleaned, true)
		if err != nil {
			return err
		}
		e := &engine{c: new(counters), opt: options()}
		if e.p, err = pool.Create(pool.Stripe(counted{dev, e.c}), pool.Config{Name: "bench"}, e.opt); err != nil {
			dev.Close()
			return err
		}
		defer e.p.Close()
		r, err := e.p.CreateReplica("v", b.cleaned/2)
		if err != nil {
			return err
		}
		blocks := uint64(r.Size()) / block.Size
		fill := newWriter(r, 1, 32, blocks, false, 1)
		fill.data, fill.sums = patternData, patternSums
		for range blocks / 32 {
			if err := r.Apply(fill.next()); err != nil {
				return err
			}
		}
		w := newWriter(r, 32, 1, blocks, true, b.seed)
		w.data, w.sums = patternData, patternSums
		if err := b.history(w, n); err != nil {
			return err
		}
		es[i], ws[i] = e, w
	}
	for _, k := range []struct {
		what string
		turn func(i int) func(time.Duration) (sample, error)
	}{
		{"overwrite", func(i int) func(time.Duration) (sample, error) { return es[i].turn(ws[i]) }},
		{"read", func(i int) func(time.Duration) (sample, error) { return es[i].reading("v", 32, b.seed) }},
	} {
		what := fmt.Sprintf("4 KiB random %s, depth 32, %d snapshots held, beside the same with none", k.what, held)
		out, err := b.compare("snap, "+what, side{"held", k.turn(0)}, side{"none", k.turn(1)})
		if err != nil {
			return err
		}
		l := makeLine("snap", what, "thin", iops, block.Size, out)
		if k.what == "read" {
			l.amp = 0
		}
		l.note = "as raw: none"
		b.table.add(l)
	}
	return nil
}

// withSnapshots measures overwrites, and afterwards reads, of a volume that has so many snapshots.
func (b *bench) withSnapshots(held int) (lines [2]line, err error) {
	what := map[int]string{0: "no snapshot", 1: "one snapshot held"}[held]
	if what == "" {
		what = fmt.Sprintf("%d snapshots held", held)
	}
	k := small("snap", "4 KiB random overwrite, depth 32, "+what)
	k.filled, k.held, k.volume = true, held, b.volume/2
	k.then = func(e *engine, raw *rawDevice) error {
		if err := e.reopen(options()); err != nil {
			return err
		}
		if err := readChunks(e.p.Replica("v")); err != nil {
			return err
		}
		j := job{mode: buffered, bytes: 4 * kib, depth: 32, random: true, seed: b.seed}
		what := "4 KiB random read, depth 32, " + what
		out, err := b.compare("snap, "+what, side{"ours", e.reading("v", 32, b.seed)}, side{"raw", j.turn(raw)})
		if err == nil {
			lines[1] = makeLine("snap", what, buffered.String(), iops, block.Size, out)
			lines[1].amp = 0
		}
		return err
	}
	lines[0], err = b.writes(buffered, k)
	return lines, err
}

// history overwrites some of a replica at random in many steps, and takes a snapshot after each of the last held ones.
func (b *bench) history(w *writer, held int) error {
	for i := range b.many() {
		for range max(1, w.of>>16) {
			if err := w.r.Apply(w.next()); err != nil {
				return err
			}
		}
		if i >= b.many()-held {
			w.n++
			o := pool.Op{Kind: pool.OpSnapshot, Name: fmt.Sprintf("s%d", i), Version: block.Version{Epoch: 1, N: w.n}}
			if err := w.r.Apply([]pool.Op{o}); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshotsKept is how many snapshots there are at a time while writers' waits are measured.
const snapshotsKept = 8

// snapshotStalls takes a snapshot every hundred batches and deletes the oldest, and does the same on another pool without
// snapshots. The devices take no time, so that what writers wait for is the engine.
func (b *bench) snapshotStalls() (l line, err error) {
	with, err := b.stalling(100)
	if err != nil {
		return l, err
	}
	defer with.e.p.Close()
	without, err := b.stalling(0)
	if err != nil {
		return l, err
	}
	defer without.e.p.Close()
	beside, err := b.startProbe()
	if err != nil {
		return l, err
	}
	out, err := b.compare("snap, stalls", side{"snapshots", with.turn}, side{"none", without.turn})
	probed, e2 := beside.stop()
	if err = errors.Join(err, e2); err != nil {
		return l, err
	}
	l = makeLine("snap", "4 KiB random write, depth 32, a snapshot every 100 batches", "thin", iops, block.Size, out)
	longest := max(l.longest, with.point)
	l.aim, l.met = "longest ≤ 5 ms", longest <= mostStall
	l.note = fmt.Sprintf("less what the writer waited for a CPU: %s ms; beside it, as raw, the same without snapshots, longest %s ms, less waits %s ms; longest snapshot and deletion %s ms; %s",
		milliseconds(out[0].total.own), milliseconds(out[1].total.longest), milliseconds(out[1].total.own), milliseconds(with.point), probed)
	return l, nil
}

// stalling is a pool in which a snapshot is taken after so many batches, 0: never.
type stalling struct {
	e     *engine
	w     *writer
	every int
	point time.Duration // the longest of these
}

func (b *bench) stalling(every int) (*stalling, error) {
	dev, err := newThin(b.path("thin.img"), b.cleaned, true)
	if err != nil {
		return nil, err
	}
	s := &stalling{e: &engine{c: new(counters), opt: b.cleanOptions()}, every: every}
	s.e.opt.DeltaEntries = 0 // the default
	if s.e.p, err = pool.Create(pool.Stripe(counted{dev, s.e.c}), pool.Config{Name: "bench"}, s.e.opt); err != nil {
		dev.Close()
		return nil, err
	}
	r, err := s.e.p.CreateReplica("v", b.cleaned/8)
	if err != nil {
		return nil, err
	}
	s.w = newWriter(r, 32, 1, uint64(b.cleaned/8/block.Size), true, b.seed)
	s.w.data, s.w.sums = patternData, patternSums
	return s, nil
}

func (s *stalling) turn(d time.Duration) (sample, error) {
	return s.e.counting(writeRequests, func() (x sample, err error) {
		var unlock func()
		s.w.delay, unlock = lockThread()
		defer unlock()
		begin := time.Now()
		for n := 1; time.Since(begin) < d && err == nil; n++ {
			if err = s.w.apply(s.e.p, &x, false); err == nil && s.every > 0 && n%s.every == 0 {
				at := time.Now()
				err = s.w.snapshot()
				s.point = max(s.point, time.Since(at))
			}
		}
		x.took = time.Since(begin)
		return x, err
	})
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
