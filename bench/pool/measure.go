package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/metrics"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

// sample is what one side did in one turn, or in several.
type sample struct {
	ops, bytes     int64 // bytes of data
	took           time.Duration
	longest, own   time.Duration // of one operation; of one less what its thread waited for a CPU
	cpu, system    time.Duration
	allocs         uint64
	written, index int64 // bytes that went to the pool's devices, and how many of them were index
	requests       int64
}

func (s *sample) add(o sample) {
	s.ops, s.bytes, s.took, s.longest = s.ops+o.ops, s.bytes+o.bytes, s.took+o.took, max(s.longest, o.longest)
	s.own = max(s.own, o.own)
	s.cpu, s.system, s.allocs = s.cpu+o.cpu, s.system+o.system, s.allocs+o.allocs
	s.written, s.index, s.requests = s.written+o.written, s.index+o.index, s.requests+o.requests
}

// rate returns bytes per second.
func (s *sample) rate() float64 { return float64(s.bytes) / s.took.Seconds() }

// side is one of those that are compared.
type side struct {
	name string
	// turn works for about d and waits for what that leaves to do, flushes included. It sets ops, bytes, took, longest
	// and what devices counted.
	turn func(d time.Duration) (sample, error)
}

// outcome is what a side did in all of its turns: rate is the median of bytes per second, total the sum of everything.
type outcome struct {
	rate  float64
	total sample
}

// compare lets the sides work in turns.
func (b *bench) compare(name string, sides ...side) ([]outcome, error) {
	out := make([]outcome, len(sides))
	rates := make([][]float64, len(sides))
	for range b.rounds {
		for i, s := range sides {
			if s.turn == nil {
				continue
			}
			stop := func() {}
			if i == 0 && b.profile != "" {
				var err error
				if stop, err = b.startProfile(name); err != nil {
					return nil, err
				}
			}
			x, err := metered(func() (sample, error) { return s.turn(b.slice) })
			stop()
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", name, s.name, err)
			}
			rates[i] = append(rates[i], x.rate())
			out[i].total.add(x)
		}
	}
	for i := range sides {
		if len(rates[i]) > 0 {
			slices.Sort(rates[i])
			out[i].rate = rates[i][len(rates[i])/2]
			b.say("%-40s %-12s %8.0f MB/s %9.0f ops/s", name, sides[i].name, out[i].rate/1e6, float64(out[i].total.ops)/out[i].total.took.Seconds())
		}
	}
	return out, nil
}

// metered adds the CPU time and the allocations of work to what it returns.
func metered(work func() (sample, error)) (sample, error) {
	sys, cpu, allocs := readSystem(), cpuTime(), allocations()
	s, err := work()
	s.allocs, s.cpu = allocations()-allocs, cpuTime()-cpu
	now := readSystem()
	s.system = max(s.cpu, now.busy-sys.busy-max(0, now.others-sys.others))
	return s, err
}

// cpuTime returns the CPU time of this process so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func allocations() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// startProfile writes a CPU profile until the function that it returns is called; of several turns the last one stays.
func (b *bench) startProfile(name string) (stop func(), err error) {
	f, err := os.Create(filepath.Join(b.profile, strings.Map(func(r rune) rune {
		if strings.ContainsRune(" /,()", r) {
			return '-'
		}
		return r
	}, name)+".prof"))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}

// line puts the outcome of ours, raw and files, any but the first of which may be missing, into a line.
func makeLine(row, what, mode string, unit func(float64) string, perOp float64, out []outcome) line {
	o := &out[0]
	blocks := time.Duration(max(1, o.total.bytes>>12))
	l := line{
		row: row, what: what, mode: mode, rate: o.rate, ours: unit(o.rate / perOp), cpu: o.total.cpu / blocks, system: o.total.system / blocks,
		allocs: float64(o.total.allocs) / float64(o.total.ops), amp: float64(o.total.written) / float64(o.total.bytes),
		index: float64(o.total.index) / float64(blocks), requests: float64(o.total.requests) / float64(o.total.ops), longest: o.total.longest,
	}
	if len(out) > 1 && out[1].rate > 0 {
		l.raw, l.ratio = unit(out[1].rate/perOp), o.rate/out[1].rate
		l.rawSystem = out[1].total.system / time.Duration(max(1, out[1].total.bytes>>12))
	}
	if len(out) > 2 && out[2].rate > 0 {
		l.files, l.toFiles = unit(out[2].rate/perOp), o.rate/out[2].rate
	}
	return l
}

// cost is the CPU time per 4 KiB that aims are about: of the process, and of the system where the kernel's threads do some
// of the work, which is for buffered I/O.
func (l *line) cost() time.Duration {
	if l.mode == buffered.String() {
		return l.system
	}
	return l.cpu
}

// aimRatio says what the ratio to the raw device is to be.
func (l line) aimRatio(at float64, format string) line {
	l.aim, l.met = fmt.Sprintf(format, at), l.ratio >= at
	return l
}
