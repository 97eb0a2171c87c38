package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// incompressible is what writes write, from random places.
var incompressible = func() []byte {
	b := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{42}).Read(b)
	return b
}()

// sparse is compressed to next to nothing.
var sparse = func() []byte {
	b := make([]byte, 1<<20)
	for i := 0; i < len(b); i += block.Size {
		copy(b[i:], incompressible[i:i+32])
	}
	return b
}()

// latencies gathers how long operations took.
type latencies struct {
	mu      sync.Mutex
	samples []time.Duration
}

func (l *latencies) add(d ...time.Duration) {
	l.mu.Lock()
	l.samples = append(l.samples, d...)
	l.mu.Unlock()
}

// take returns the number of samples, percentiles and the maximum, and starts again.
func (l *latencies) take() (n int, p50, p99, longest time.Duration) {
	l.mu.Lock()
	s := l.samples
	l.samples = nil
	l.mu.Unlock()
	if len(s) == 0 {
		return 0, 0, 0, 0
	}
	slices.Sort(s)
	return len(s), s[len(s)/2], s[len(s)*99/100], s[len(s)-1]
}

// generator keeps depth requests of a workload under way on a device. Whoever completes requests submits the next ones,
// as many at a time as were completed.
type generator struct {
	device block.Device
	bytes  []byte  // what writes write, from random places; default incompressible
	rate   float64 // requests a second, whatever becomes of those before; 0: as soon as others complete
	w      workload
	size   int64
	lat    latencies

	mu      sync.Mutex
	rnd     *rand.Rand
	next    int64
	stopped bool
	left    int // requests under way
	idle    chan struct{}
	err     error
	limit   int64 // bytes after which it ends by itself, 0: none
}

type slot struct{ start time.Time }

func newGenerator(d block.Device, w workload, size int64) *generator {
	return &generator{
		device: d, w: w, size: size, bytes: incompressible, rnd: rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano()))),
		idle: make(chan struct{}),
	}
}

// start submits the first requests.
func (g *generator) start() {
	if g.rate > 0 {
		go g.offer()
		return
	}
	var batch []*block.Request
	g.mu.Lock()
	for range g.w.depth {
		r := &block.Request{Client: g, Tag: new(slot)}
		g.prepare(r)
		batch = append(batch, r)
		g.left++
	}
	g.mu.Unlock()
	g.device.Submit(batch)
}

// offer submits requests at a steady rate until the generator is stopped. Latency counts from when a request was due.
func (g *generator) offer() {
	begin := time.Now()
	g.mu.Lock()
	g.left++ // this
	g.mu.Unlock()
	for n := 0.0; ; {
		var batch []*block.Request
		g.mu.Lock()
		stopped := g.stopped || g.err != nil
		for ; !stopped && n < time.Since(begin).Seconds()*g.rate; n++ {
			r := &block.Request{Tag: new(slot)}
			g.prepare(r)
			r.Tag.(*slot).start = begin.Add(time.Duration(n / g.rate * float64(time.Second)))
			batch = append(batch, r)
			g.left++
		}
		if stopped {
			if g.left--; g.left == 0 {
				close(g.idle)
			}
		}
		g.mu.Unlock()
		if stopped {
			return
		}
		g.device.Submit(batch)
		time.Sleep(500 * time.Microsecond)
	}
}

// prepare makes the next request. g.mu is held.
func (g *generator) prepare(r *block.Request) {
	n := int64(g.w.bytes)
	off := g.next
	if g.w.sequential {
		g.next += n
		if g.next+n > g.size {
			g.next = 0
		}
	} else {
		off = g.rnd.Int64N(g.size/n) * n
	}
	*r = block.Request{Op: block.Read, Offset: off, Length: n, Client: g, Tag: r.Tag}
	if g.w.write {
		at := g.rnd.IntN((len(g.bytes)-int(n))/block.Size) * block.Size
		r.Op, r.Data, r.Buf = block.Write, g.bytes[at:at+int(n)], block.WrapBuffer(g.bytes)
	}
	r.Tag.(*slot).start = time.Now()
}

// Complete implements block.Client.
func (g *generator) Complete(batch []*block.Request) {
	now := time.Now()
	again := make([]*block.Request, 0, len(batch))
	took := make([]time.Duration, 0, len(batch))
	g.mu.Lock()
	for _, r := range batch {
		took = append(took, now.Sub(r.Tag.(*slot).start))
		if r.Err != nil && g.err == nil {
			g.err = r.Err
		}
		if r.Op == block.Read {
			r.Buf.Release()
		}
		if g.limit > 0 {
			if g.limit -= r.Length; g.limit <= 0 {
				g.stopped = true
			}
		}
		if g.stopped || g.err != nil || g.rate > 0 {
			if g.left--; g.left == 0 {
				close(g.idle)
			}
			continue
		}
		g.prepare(r)
		again = append(again, r)
	}
	g.mu.Unlock()
	g.lat.add(took...)
	if len(again) > 0 {
		g.device.Submit(again)
	}
}

// stop waits for what is under way.
func (g *generator) stop() error {
	g.mu.Lock()
	g.stopped = true
	g.mu.Unlock()
	<-g.idle
	return g.err
}

// fillDevice writes everything once.
func fillDevice(d block.Device, size int64) error {
	g := newGenerator(d, workload{write: true, sequential: true, bytes: 1 << 20, depth: 4}, size)
	g.limit = size
	g.start()
	<-g.idle
	if g.err != nil {
		return fmt.Errorf("fill: %w", g.err)
	}
	return nil
}

// measure runs a workload for a while.
func measure(c *config, d block.Device, row string, w workload, u *usage) (result, error) {
	g := newGenerator(d, w, c.size)
	g.start()
	time.Sleep(300 * time.Millisecond)
	before, err := u.read()
	if err != nil {
		return result{}, err
	}
	g.lat.take()
	start := time.Now()
	time.Sleep(time.Duration(c.seconds * float64(time.Second)))
	n, p50, p99, longest := g.lat.take()
	took := time.Since(start)
	after, err := u.read()
	if err != nil {
		return result{}, err
	}
	if err := g.stop(); err != nil {
		return result{}, fmt.Errorf("%s, %s: %w", row, w.name, err)
	}
	r := result{row: row, w: w, iops: float64(n) / took.Seconds(), p50: p50, p99: p99, max: longest}
	per := func(d time.Duration) time.Duration {
		if n == 0 {
			return -1
		}
		return d / time.Duration(n)
	}
	r.target, r.pools, r.system = per(after.target-before.target), per(after.pools-before.pools), per(after.system-before.system)
	if u.target == nil {
		r.target = -1
		if u.pools == nil {
			r.pools = -1
		} else {
			r.target = 0
		}
	}
	return r, nil
}
