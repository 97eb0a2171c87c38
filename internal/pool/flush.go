package pool

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// dirtyFlag says that a device has writes that no flush has covered. Padded: writers of different devices must not
// share a cache line.
type dirtyFlag struct {
	v atomic.Bool
	_ [60]byte
}

// flusher makes concurrent callers of Sync share device flushes.
type flusher struct {
	device  sync.Mutex // one flush of the devices at a time
	mu      sync.Mutex
	cond    *sync.Cond
	running bool
	stable  atomic.Uint64 // every batch up to this number is on stable storage
}

// Sync makes everything stable that was applied before the call. Callers that wait at the same time share one device
// flush. After an error the pool has failed: what was not flushed may be lost, however often one tries again.
func (p *Pool) Sync() error {
	if err := p.usable(); err != nil {
		return p.wrap("sync", err)
	}
	return p.syncTo(p.appended.Load())
}

func (p *Pool) syncTo(want uint64) error {
	f := &p.flush
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.stable.Load() < want {
		if err := p.failure(); err != nil {
			return p.wrap("sync", err)
		}
		if f.running {
			f.cond.Wait()
			continue
		}
		f.running = true
		f.mu.Unlock()
		err := p.flushDevices()
		f.mu.Lock()
		f.running = false
		f.cond.Broadcast()
		if err != nil {
			return p.wrap("sync", err)
		}
	}
	if err := p.failure(); err != nil {
		return p.wrap("sync", err)
	}
	return nil
}

// flushDevices flushes every device with unflushed writes and moves the stable mark to what was appended before.
func (p *Pool) flushDevices() error {
	f := &p.flush
	f.device.Lock()
	defer f.device.Unlock()
	if err := p.failure(); err != nil {
		return err
	}
	upTo := p.appended.Load()
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	flush := func(d int) {
		if err := p.seg.devs[d].Flush(); err != nil {
			failed.Store(&err)
		}
	}
	dirty := 0
	for d := range p.seg.devs {
		if !p.seg.dirty[d].v.Swap(false) {
			continue
		}
		dirty++
		if len(p.seg.devs) == 1 {
			flush(d)
			continue
		}
		wg.Go(func() { flush(d) })
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return p.fail(fmt.Errorf("flush: %w", *e))
	}
	if dirty > 0 {
		p.count.flushes.Add(1)
	}
	if f.stable.Load() < upTo {
		f.stable.Store(upTo)
	}
	return nil
}

// fail puts the pool into the failed state for good and returns the error to report.
func (p *Pool) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	if p.failed.CompareAndSwap(nil, &err) {
		if p.opt.Log != nil {
			p.opt.Log.Error("pool failed; it takes no more writes until it is opened again", "pool", p.cfg.Name, "err", cause)
		}
		p.idx.mu.Lock()
		p.idx.room.Broadcast()
		p.idx.mu.Unlock()
		return err
	}
	return *p.failed.Load()
}

// failure returns why the pool has failed, nil if it has not.
func (p *Pool) failure() error {
	if e := p.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// usable returns ErrClosed or the failure, nil if the pool takes changes.
func (p *Pool) usable() error {
	if p.closed.Load() {
		return ErrClosed
	}
	return p.failure()
}

func (p *Pool) wrap(what string, err error) error {
	return fmt.Errorf("pool %s: %s: %w", p.cfg.Name, what, err)
}
