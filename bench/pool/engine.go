package main

import (
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// counted counts what goes to a device.
type counted struct {
	disk.Device
	c *counters
}

type counters struct {
	written, writes, reads, flushes atomic.Int64
}

func (d counted) WritevAt(bufs [][]byte, off int64) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	d.c.written.Add(n)
	d.c.writes.Add(1)
	return d.Device.WritevAt(bufs, off)
}

func (d counted) ReadAt(b []byte, off int64) error {
	d.c.reads.Add(1)
	return d.Device.ReadAt(b, off)
}

func (d counted) Flush() error {
	d.c.flushes.Add(1)
	return d.Device.Flush()
}

// engine is a pool under measurement.
type engine struct {
	p     *pool.Pool
	c     *counters
	paths []string
	mode  mode
	opt   pool.Options
}

// options are the engine's defaults, except that freed space is not discarded: the device is a file all of which is
// written, and a hole in it would make later writes slower than a device's are.
func options() pool.Options { return pool.Options{NoDiscard: true} }

// create makes a pool on the prepared device.
func (b *bench) create(m mode, opt pool.Options) (*engine, error) {
	path, err := b.prepare("device.img", b.device)
	if err != nil {
		return nil, err
	}
	return createOn(m, raid.Stripe, opt, path)
}

// createOn makes a pool of one raid group, or of one for each device of a stripe.
func createOn(m mode, kind raid.Kind, opt pool.Options, paths ...string) (*engine, error) {
	for _, path := range paths {
		if err := wipe(path); err != nil {
			return nil, err
		}
	}
	e := &engine{c: new(counters), paths: paths, mode: m, opt: opt}
	devs, err := e.devices()
	if err != nil {
		return nil, err
	}
	groups := []pool.Group{{Kind: kind, Devices: devs}}
	if kind == raid.Stripe {
		groups = pool.Stripe(devs...)
	}
	if e.p, err = pool.Create(groups, pool.Config{Name: "bench"}, opt); err != nil {
		return nil, err
	}
	return e, nil
}

// wipe makes a device blank: both of its ends.
func wipe(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	zero := make([]byte, 1<<20)
	for _, off := range []int64{0, st.Size() - int64(len(zero))} {
		if _, err := f.WriteAt(zero, off); err != nil {
			return err
		}
	}
	return forget(f)
}

func (e *engine) devices() (devs []disk.Device, err error) {
	for _, path := range e.paths {
		d, err := disk.Open(path, disk.Options{Direct: bool(e.mode)})
		if err != nil {
			for _, d := range devs {
				d.Close()
			}
			return nil, err
		}
		devs = append(devs, counted{d, e.c})
	}
	return devs, nil
}

// reopen closes the pool, drops what is cached of its devices, and opens it.
func (e *engine) reopen(opt pool.Options) error {
	if err := e.p.Close(); err != nil {
		return err
	}
	for _, path := range e.paths {
		if err := forgetPath(path); err != nil {
			return err
		}
	}
	devs, err := e.devices()
	if err == nil {
		e.opt = opt
		e.p, err = pool.Open(devs, opt)
	}
	return err
}

// settle waits until the background has nothing to do, so that the next side has the machine to itself.
func (e *engine) settle() {
	for still, last := 0, e.p.Stats(); still < 3; {
		time.Sleep(20 * time.Millisecond)
		now := e.p.Stats()
		still++
		if now.LogBytes != last.LogBytes || now.IndexBytes != last.IndexBytes {
			still = 0
		}
		last = now
	}
}

// counting adds to what work returns what the devices were asked for meanwhile and until the background is done.
// requests selects what counts as a request.
func (e *engine) counting(requests func(*counters) int64, work func() (sample, error)) (sample, error) {
	before, index := e.c.written.Load(), e.p.Stats().IndexBytes
	n := requests(e.c)
	s, err := work()
	e.settle()
	s.written, s.requests = e.c.written.Load()-before, requests(e.c)-n
	s.index = int64(e.p.Stats().IndexBytes - index)
	return s, err
}

func writeRequests(c *counters) int64 { return c.writes.Load() }
func readRequests(c *counters) int64  { return c.reads.Load() }

// sums are the checksums of the blocks of incompressible; whoever received the data has verified them already.
var sums = func() []uint32 {
	s := make([]uint32, len(incompressible)/block.Size)
	for i := range s {
		s[i] = block.Sum(incompressible[i*block.Size : (i+1)*block.Size])
	}
	return s
}()

// writer makes batches of writes to a replica.
type writer struct {
	r      *pool.Replica
	data   []byte   // what is written is somewhere in here
	sums   []uint32 // of the blocks of data
	ops    []pool.Op
	blocks uint64 // per operation
	of     uint64 // blocks to write to
	pick   func() uint64
	rng    *rand.Rand
	n      uint64
	delay  *runDelay // of the thread that writes, if it is locked
}

// newWriter returns a writer of batches of ops writes of blocks blocks each, to the first of blocks of the replica, at
// random or one after the other.
func newWriter(r *pool.Replica, ops int, blocks, of uint64, random bool, seed uint64) *writer {
	w := &writer{r: r, data: incompressible, sums: sums, ops: make([]pool.Op, ops), blocks: blocks, of: of, rng: rand.New(rand.NewPCG(seed, 1))}
	slots := of / blocks
	if random {
		w.pick = func() uint64 { return w.rng.Uint64N(slots) }
	} else {
		at := uint64(0)
		w.pick = func() uint64 { at++; return (at - 1) % slots }
	}
	w.n = r.Applied().N
	return w
}

// next returns the next batch.
func (w *writer) next() []pool.Op {
	for i := range w.ops {
		w.n++
		at := w.rng.IntN(len(w.sums) - int(w.blocks) + 1)
		w.ops[i] = pool.Op{
			Kind: pool.OpWrite, Block: w.pick() * w.blocks, Count: uint32(w.blocks), Version: block.Version{Epoch: 1, N: w.n},
			Data: w.data[at*block.Size : (at+int(w.blocks))*block.Size], Sums: w.sums[at : at+int(w.blocks)],
		}
	}
	return w.ops
}

// apply applies one batch, flushes if asked to, and counts.
func (w *writer) apply(p *pool.Pool, s *sample, flush bool) error {
	ops := w.next()
	kept, begin := w.delay.now(), time.Now()
	err := w.r.Apply(ops)
	if err == nil && flush {
		err = p.Sync()
	}
	took := time.Since(begin)
	s.longest, s.own = max(s.longest, took), max(s.own, took-(w.delay.now()-kept))
	s.ops += int64(len(ops))
	s.bytes += int64(len(ops)) * int64(w.blocks) * block.Size
	return err
}

// turn returns a function that applies batches for a while; what it wrote is stable when it returns.
func (e *engine) turn(w *writer) func(time.Duration) (sample, error) {
	return func(d time.Duration) (sample, error) {
		return e.counting(writeRequests, func() (s sample, err error) {
			begin := time.Now()
			for time.Since(begin) < d && err == nil {
				err = w.apply(e.p, &s, false)
			}
			if err == nil {
				err = e.p.Sync()
			}
			s.took = time.Since(begin)
			return s, err
		})
	}
}

// fill writes all of the replica once.
func (e *engine) fill(r *pool.Replica) error {
	const blocks = 256
	w := newWriter(r, 1, blocks, uint64(r.Size())/block.Size, false, 1)
	for range uint64(r.Size()) / block.Size / blocks {
		if err := r.Apply(w.next()); err != nil {
			return err
		}
	}
	return e.p.Sync()
}
