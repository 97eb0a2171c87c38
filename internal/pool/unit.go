package pool

import (
	"sync"
	"time"
)

var sumScratch = sync.Pool{New: func() any { s := make([]uint32, 0, 1024); return &s }}

// begin starts a unit of the log for r (nil: for the pool): it waits for room in the delta for that many entries,
// takes the log's lock and makes sure that data blocks and header bytes fit, freeing space if that takes nothing but
// waiting for the background. It returns with the lock held, or with an error and nothing held. replaced
// is for a unit that stores data of a user, which must leave the reserve alone: it returns how many bytes of data this
// replaces, with the index lock held.
func (p *Pool) begin(r *Replica, entries, data, header int, replaced func() int64) error {
	if err := p.ready(entries, replaced != nil); err != nil {
		return err
	}
	return p.enter(r, entries, data, header, replaced, nil)
}

// ready is the first part of begin, before it takes the lock.
func (p *Pool) ready(entries int, user bool) error {
	if p.offline != nil {
		return ErrOffline
	}
	if user {
		p.paceUser()
	}
	return p.makeEntries(entries)
}

// enter is the rest of begin. stuck, if not nil, is called before it waits for space.
func (p *Pool) enter(r *Replica, entries, data, header int, replaced func() int64, stuck *joint) error {
	last, fruitless := false, 0
	for try := 0; ; try++ {
		p.log.mu.Lock()
		err := p.usable()
		if err == nil && r != nil && r.isDestroyed() {
			err = ErrNotFound
		}
		if err == nil {
			if err = p.reserveLog(data, header, replaced, last); err == nil {
				p.log.beginUnit()
				return nil
			}
			p.log.mu.Unlock()
			if err == errWait && !last {
				if stuck != nil {
					stuck.pass()
				}
				last = !(try < maxReclaims && p.reclaim(&fruitless))
				continue
			}
			err = ErrNoSpace
			p.unreserve(entries)
			return err
		}
		p.log.mu.Unlock()
		p.unreserve(entries)
		return err
	}
}

// maxReclaims bounds the cycles that one unit waits for, each of which made some room.
const maxReclaims = 256

// end ends what begin started.
func (p *Pool) end(entries int) {
	w := &p.log
	kick := w.since >= uint64(p.opt.CheckpointBytes) || w.dirty >= uint64(p.opt.FlushBytes)
	w.mu.Unlock()
	p.unreserve(entries)
	if kick {
		p.wake()
	}
}

// unit appends one unit that stores no data of users: add puts the records in, index makes them visible under the index
// lock.
func (p *Pool) unit(r *Replica, entries, data, header int, add func() error, index func()) error {
	if err := p.begin(r, entries, data, header, nil); err != nil {
		return err
	}
	defer p.end(entries)
	if err := add(); err != nil {
		return err
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	p.idx.mu.Lock()
	index()
	p.idx.mu.Unlock()
	return nil
}

func (r *Replica) isDestroyed() bool {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	return r.destroyed
}

// makeEntries reserves room for n entries in the active table. While the other one is drained it slows writers down in
// proportion to how far they are ahead of that, so that each waits a little instead of all of them for the rest of the drain
// when both tables are full.
func (p *Pool) makeEntries(n int) error {
	if p.opt.Manual {
		if err := p.drainFor(n); err != nil {
			return err
		}
	}
	x := &p.idx
	x.mu.Lock()
	defer x.mu.Unlock()
	for slowed := false; ; {
		t := x.tables[x.active]
		used := t.Len() + x.reserved + n
		if used > x.soft {
			p.wake()
		}
		behind := p.drain.behind(used, t.Cap())
		if behind > 0 && behind < 1 && !slowed && !p.opt.Manual {
			slowed = true
			x.slow += time.Duration(min(4*behind*float64(n)*p.drain.pace(t.Cap()), float64(mostSlow)))
			if x.slow >= leastSlow {
				d := min(x.slow, mostSlow)
				x.slow = 0
				x.mu.Unlock()
				time.Sleep(d)
				x.mu.Lock()
				continue
			}
		}
		if n == 0 || used <= t.Cap() && behind < 1 {
			x.reserved += n
			return nil
		}
		if err := p.usable(); err != nil {
			return err
		}
		x.room.Wait()
	}
}

const (
	leastSlow = time.Millisecond // what is waited at once
	mostSlow  = 4 * time.Millisecond
)

func (p *Pool) unreserve(n int) {
	if n == 0 {
		return
	}
	p.idx.mu.Lock()
	p.idx.reserved -= n
	p.idx.room.Broadcast()
	p.idx.mu.Unlock()
}

// wake tells the background that there is work.
func (p *Pool) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}
