package pool

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// flusher makes concurrent callers of Sync share device flushes.
type flusher struct {
	device  seizable // one flush of the devices at a time
	due     []*groupState
	mu      sync.Mutex
	cond    *sync.Cond
	running bool
	waiting int            // callers of Sync
	shared  atomic.Bool    // the last flush released several
	own     atomic.Bool    // the pool flushes by itself
	others  sync.WaitGroup // goroutines that do
	stable  atomic.Uint64  // every batch up to this number is on stable storage
}

// Sync makes everything stable that was applied before the call. Callers that wait at the same time share one device
// flush. After an error the pool has failed: what was not flushed may be lost, however often one tries again.
func (p *Pool) Sync() error {
	if err := p.usable(); err != nil {
		return p.wrap("sync", err)
	}
	return p.syncTo(p.appended.Load(), true)
}

// syncTo makes everything up to that batch stable. inline is as for flushDirty.
func (p *Pool) syncTo(want uint64, inline bool) error {
	f := &p.flush
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting++
	defer func() { f.waiting-- }()
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
		if f.shared.Load() { // whom it released are about to write: what they write now is flushed with the rest
			p.yield()
		}
		err := p.flushDirty(inline)
		f.mu.Lock()
		f.running = false
		f.shared.Store(f.waiting > 1)
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

// flushDevices flushes every raid group with unflushed writes and moves the stable mark to what was appended before. A
// device that was taken out, then or before, is recorded as out on all others first.
func (p *Pool) flushDevices() error { return p.flushDirty(false) }

// flushDirty is flushDevices. inline says that the caller prefers to be kept by a device without redundancy that hangs to
// being slower.
func (p *Pool) flushDirty(inline bool) error {
	f := &p.flush
	f.device.Lock()
	defer f.device.Unlock()
	if err := p.failure(); err != nil {
		return err
	}
	if p.offline != nil {
		return ErrOffline
	}
	upTo := p.appended.Load()
	f.due = f.due[:0]
	for _, g := range p.seg.where.Load().groups {
		if g.dirty.Swap(false) {
			f.due = append(f.due, g)
		}
	}
	if err := f.device.away(p, func() error { return p.flushGroups(f.due, inline) }); err != nil {
		return p.fail(fmt.Errorf("flush: %w", err))
	}
	if err := p.recordOut(); err != nil {
		return p.fail(fmt.Errorf("flush: %w", err))
	}
	if len(f.due) > 0 {
		p.count.flushes.Add(1)
	}
	if f.stable.Load() < upTo {
		f.stable.Store(upTo)
	}
	return nil
}

// flushGroups flushes groups at the same time, one of them in the caller's goroutine.
func (p *Pool) flushGroups(groups []*groupState, inline bool) error {
	if len(groups) == 0 {
		return nil
	}
	flush := groups[0].Flush
	if inline {
		flush = groups[0].FlushInline
	}
	if len(groups) == 1 { // as a small write leaves it
		return flush()
	}
	if p.opt.Manual {
		return errors.Join(flush(), p.flushGroups(groups[1:], inline))
	}
	rest := make(chan error, 1)
	go func() { rest <- p.flushGroups(groups[1:], inline) }()
	err := flush()
	select {
	case e := <-rest:
		return errors.Join(err, e)
	case <-p.broken:
		return errors.Join(err, p.failure())
	}
}

// fail puts the pool into the failed state for good and returns the error to report. Whoever waits goes on and finds out,
// but for those who are in a device.
func (p *Pool) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	if p.failed.CompareAndSwap(nil, &err) {
		if p.opt.Log != nil {
			p.opt.Log.Error("pool failed; it takes no more writes until it is opened again", "pool", p.cfg.Name, "err", cause)
		}
		if p.opt.Failed != nil {
			go p.opt.Failed(err)
		}
		close(p.broken)
		p.log.mu.seize()
		p.flush.device.seize()
		p.flush.mu.Lock()
		p.flush.cond.Broadcast()
		p.flush.mu.Unlock()
		p.idx.mu.Lock()
		p.idx.room.Broadcast()
		p.idx.mu.Unlock()
		p.cycles.mu.Lock()
		p.cycles.cond.Broadcast()
		p.cycles.mu.Unlock()
		p.pace.end()
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
	if p.offline != nil {
		return ErrOffline
	}
	return p.failure()
}

func (p *Pool) wrap(what string, err error) error {
	return fmt.Errorf("pool %s: %s: %w", p.cfg.Name, what, err)
}
