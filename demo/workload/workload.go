// Package workload is an application that trusts nobody: it writes, reads, discards and flushes a volume the way a busy
// database would, stamps every 4 KiB block with its address, the number of the operation that wrote it and a checksum,
// and compares every block it reads with a model of what the volume may hold at that moment, taking into account what
// is still in flight. It records the latency of every I/O, by phase, and the longest time in which nothing completed
// although something was outstanding.
//
// It relies on nothing but block.Device, and promises that any lost, stale, torn or misdirected block that it reads is
// reported as a Mismatch with what was found and what would have been right.
package workload

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Extent is a part of the volume that the application uses, in bytes; both are multiples of the piece size of Fill.
type Extent struct {
	Offset, Length int64
}

// Spread returns n extents of length bytes each, evenly spread over a volume of size bytes.
func Spread(size, length int64, n int) []Extent {
	step := size / int64(n) / pieceBytes * pieceBytes
	extents := make([]Extent, n)
	for i := range extents {
		extents[i] = Extent{Offset: int64(i) * step, Length: length}
	}
	return extents
}

// pieceBytes is the size of the I/Os of Fill and Verify.
const pieceBytes = 1 << 20

// Config says what the application runs on.
type Config struct {
	Device  block.Device
	Extents []Extent // what Fill writes, and the steady load uses
	Seed    uint64   // of the choice of operations; the same seed makes the same choices
	Phase   string   // name of the first phase
}

// App is an application over one volume. Its methods may be called concurrently.
type App struct {
	cfg    Config
	model  *model
	stamps *stamper
	meter  *meter
	bufs   *block.BufferPool

	mu         sync.Mutex
	mismatches []Mismatch
	errors     []error
	failed     chan struct{} // closed at the first error or mismatch
	verified   atomic.Int64  // blocks compared with the model
}

// New returns an application that has not done anything yet. The whole volume has to read as zeroes.
func New(cfg Config) *App {
	if cfg.Phase == "" {
		cfg.Phase = "all"
	}
	return &App{
		cfg:    cfg,
		model:  newModel(uint64(cfg.Device.Size()) / block.Size),
		stamps: newStamper(cfg.Seed),
		meter:  newMeter(cfg.Phase),
		bufs:   block.NewBufferPool(pieceBytes),
		failed: make(chan struct{}),
	}
}

// Phase begins a new phase: what completes from now on is recorded there.
func (a *App) Phase(name string) { a.meter.phase(name) }

// Failed is closed at the first I/O error or mismatch.
func (a *App) Failed() <-chan struct{} { return a.failed }

// Err describes the first failures, or is nil if there was none.
func (a *App) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []error
	for i := range min(3, len(a.errors)) {
		all = append(all, a.errors[i])
	}
	for i := range min(3, len(a.mismatches)) {
		all = append(all, &a.mismatches[i])
	}
	if n := len(a.errors) + len(a.mismatches) - len(all); n > 0 {
		all = append(all, fmt.Errorf("and %d more", n))
	}
	return errors.Join(all...)
}

// Report tells what has been done so far.
func (a *App) Report() Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Report{
		Phases:     a.meter.report(),
		Errors:     len(a.errors),
		Mismatches: len(a.mismatches),
		Verified:   a.verified.Load(),
	}
}

func (a *App) note(err error, bad []Mismatch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := len(a.errors)+len(a.mismatches) == 0
	if err != nil {
		a.errors = append(a.errors, err)
	}
	a.mismatches = append(a.mismatches, bad...)
	if first && (err != nil || len(bad) > 0) {
		close(a.failed)
	}
}

// waiter completes one request at a time.
type waiter struct{ done chan struct{} }

// Complete implements block.Client.
func (w *waiter) Complete(batch []*block.Request) {
	for range batch {
		w.done <- struct{}{}
	}
}

// worker does one operation after the other.
type worker struct {
	app    *App
	waiter waiter
}

func (a *App) newWorker() *worker {
	return &worker{app: a, waiter: waiter{done: make(chan struct{}, 1)}}
}

// operation is what a worker is asked to do: count blocks from first on; a flush has none.
type operation struct {
	op           block.Op
	first, count uint64
}

// do carries out one operation and checks its result. It returns ctx's error when ctx ends before the device has
// answered; the request is then lost to the worker, which must not be used again.
func (w *worker) do(ctx context.Context, o operation) error {
	a := w.app
	r := &block.Request{Op: o.op, Offset: int64(o.first) * block.Size, Length: int64(o.count) * block.Size, Client: &w.waiter}
	token := a.model.begin(o)
	if o.op == block.Write {
		r.Buf = a.bufs.Get()
		r.Data = r.Buf.B[:r.Length]
		for i := range o.count {
			a.stamps.stamp(r.Data[i*block.Size:][:block.Size], o.first+i, token.id)
		}
	}
	start := time.Now()
	a.meter.submitted(start)
	a.cfg.Device.Submit([]*block.Request{r})
	select {
	case <-w.waiter.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	a.meter.completed(start, time.Now(), r)
	a.settle(o, token, r)
	return nil
}

// settle compares the result of an operation with the model, and brings the model up to date.
func (a *App) settle(o operation, token token, r *block.Request) {
	if r.Err != nil {
		a.model.abandon(o)
		a.note(fmt.Errorf("%s of %d bytes at %d: %w", o.op, r.Length, r.Offset, r.Err), nil)
		return
	}
	if o.op != block.Read {
		a.model.finish(o, token)
		return
	}
	var bad []Mismatch
	if int64(len(r.Data)) != r.Length {
		a.model.abandon(o)
		a.note(fmt.Errorf("read of %d bytes at %d returned %d bytes", r.Length, r.Offset, len(r.Data)), nil)
		return
	}
	seen := make([]content, o.count)
	for i := range seen {
		seen[i] = a.stamps.inspect(r.Data[i*block.Size:][:block.Size], o.first+uint64(i))
	}
	r.Buf.Release()
	bad = a.model.finishRead(o, token, seen)
	a.verified.Add(int64(o.count))
	if len(bad) > 0 {
		a.note(nil, bad)
	}
}
