package pool

import (
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// cycleSignal lets writers that need space wait for cycles.
type cycleSignal struct {
	mu        sync.Mutex
	cond      *sync.Cond
	asked     uint64 // cycles that must have begun
	waiting   int    // callers of reclaim
	begun     uint64
	done      uint64
	gained    uint64 // cycles that made room
	fruitless int    // cycles since the last one that did
	at        uint64 // log position (batch number) when the last cycle began, plus one
	stop      bool
}

// idleAfter is how long what was given back may wait for a cycle when nothing else asks for one.
const idleAfter = time.Second

// quietTicks is after how many times idleAfter without an append the delta is drained, so that what a pool at rest
// shows is exact and little is left to replay.
const quietTicks = 3

// background runs cycles until Close: when the delta is half full, when the log has grown, when free segments become
// few, when somebody waits for space, a second after something was given back, and when the pool has come to rest.
func (p *Pool) background() {
	defer close(p.stopped)
	timer := time.NewTimer(idleAfter)
	defer timer.Stop()
	ticks, last := 0, uint64(0)
	for {
		idle, quiet := false, false
		select {
		case <-p.quit:
			return
		case <-p.kick:
		case <-timer.C:
			idle = true
			if ticks++; last != p.appended.Load() {
				ticks, last = 0, p.appended.Load()
			}
			quiet = ticks >= quietTicks
			timer.Reset(idleAfter)
			p.idle.Store(ticks > 0)
		}
		if p.failure() != nil {
			p.cycles.finish(0, false, false, 0, true)
			<-p.quit
			return
		}
		if p.due(idle, quiet) {
			if c, err := p.runCycle(false); err != nil {
				continue // the pool has failed and has said so
			} else if c != nil {
				<-c.done
			}
		}
		if !p.low() {
			p.pace.end()
		}
		p.flushIfDue()
		if idle {
			p.discardFree()
		}
	}
}

// keepTold has it written down how far the log is stable, until Close. A cycle, which may take long, does not delay that.
func (p *Pool) keepTold() {
	ticker := time.NewTicker(idleAfter)
	defer ticker.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-ticker.C:
			p.tellStable()
		}
	}
}

// flushIfDue begins a flush when the log has grown by Options.FlushBytes.
func (p *Pool) flushIfDue() {
	p.log.mu.Lock()
	flush := p.log.dirty >= uint64(p.opt.FlushBytes) && !p.flush.own.Load()
	if flush {
		p.log.dirty = 0
	}
	p.log.mu.Unlock()
	if flush && p.flush.own.CompareAndSwap(false, true) {
		p.flush.others.Go(func() {
			_ = p.syncTo(p.appended.Load(), false) // an error is the pool's failure, which everybody sees
			p.flush.own.Store(false)
			p.wake()
		})
	}
}

// due reports whether a cycle is to run now.
func (p *Pool) due(idle, quiet bool) bool {
	p.log.mu.Lock()
	since := p.log.since
	p.log.mu.Unlock()
	p.idx.mu.RLock()
	n := p.idx.tables[p.idx.active].Len() + p.idx.reserved
	dying := p.anyDying()
	p.idx.mu.RUnlock()
	return p.cycles.wanted() || p.low() || p.destageDue() && p.mayClean() || p.relabelDue.Load() || n > p.idx.soft ||
		since >= uint64(p.opt.CheckpointBytes) || dying || p.commits.due() || idle && p.freeable.Load() || quiet && n > 0
}

// low reports whether there are so few free segments that the cleaner has work, and that it may find some.
func (p *Pool) low() bool { return p.mayClean() && p.seg.freeCount() < p.cleanStart() }

// mayClean is false when the cleaner found nothing to do and little has been written since.
func (p *Pool) mayClean() bool { return p.count.logBytes.Load() >= p.cleaner.idleUntil.Load() }

// busy reports whether the active table waits for the next cycle: what can wait is then left to that one.
func (p *Pool) busy() bool {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	return p.idx.tables[p.idx.active].Len() > p.idx.soft
}

// deltaFills reports whether the active table will soon have no room.
func (p *Pool) deltaFills() bool {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	t := p.idx.tables[p.idx.active]
	return t.Len()+p.idx.reserved > t.Cap()/8*7
}

// anyDying reports whether a replica is to be taken apart or older versions are to be given back.
func (p *Pool) anyDying() bool {
	for _, r := range p.idx.bySlot {
		if r != nil && !r.released && !r.stuck && (r.destroyed || r.purge.wanted) {
			return true
		}
	}
	return false
}

// maxFruitless is how many cycles in a row may make no room before who waits gives up: what one prepares, as moving the
// index closer together, the next may free.
const maxFruitless = 8

// reclaim waits for a cycle to end and reports whether it made room, or a later one may. fruitless counts those in a row
// that the caller has waited for in vain.
func (p *Pool) reclaim(fruitless *int) bool {
	c := &p.cycles
	seq := p.appended.Load() + 1
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fruitless >= maxFruitless && c.at == seq && !p.freeable.Load() {
		return false
	}
	fresh, gained, done := c.begun+1, c.gained, c.done
	c.asked = max(c.asked, fresh)
	c.waiting++
	defer func() {
		if c.waiting--; c.waiting == 0 { // nobody needs another one
			c.asked = min(c.asked, c.begun)
		}
	}()
	p.count.reclaims.Add(1)
	if p.opt.Manual {
		c.mu.Unlock()
		_ = p.cycle() // an error is the pool's failure
		c.mu.Lock()
	}
	p.wake()
	for c.done == done {
		if p.usable() != nil || c.stop {
			return true // whoever asks finds out
		}
		c.cond.Wait()
	}
	switch {
	case c.gained > gained:
		*fruitless = 0
	case c.done >= fresh:
		*fruitless++
	}
	if *fruitless < maxFruitless {
		return true
	}
	p.idx.mu.RLock()
	dying := p.anyDying()
	p.idx.mu.RUnlock()
	return dying
}

// wanted reports whether somebody waits for a cycle that has not begun.
func (c *cycleSignal) wanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked > c.begun
}

func (c *cycleSignal) begin() (n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun++
	return c.begun
}

// finish ends cycle n, which somebody who needs space waited for if it was urgent. The one before may end after it.
func (c *cycleSignal) finish(n uint64, gained, urgent bool, seq uint64, stop bool) {
	c.mu.Lock()
	if n >= c.done {
		c.done, c.at = n, seq
	}
	if gained {
		c.gained, c.fruitless = c.gained+1, 0
	} else if urgent {
		c.fruitless++
	}
	c.stop = c.stop || stop
	c.cond.Broadcast()
	c.mu.Unlock()
}

// cycle runs a cycle now, for a caller that waits for it and for its checkpoint.
func (p *Pool) cycle() error {
	p.hurry.Add(1)
	defer p.hurry.Add(-1)
	for {
		c, err := p.runCycle(true)
		if err != nil || c == nil {
			return err
		}
		if ok, err := c.wait(); ok || err != nil {
			return err
		}
	}
}

// runCycle cleans when free segments are few, drains the delta into pages, releases destroyed replicas and what deleted
// snapshots held, makes a checkpoint and frees the segments that nothing refers to any more. It returns the checkpoint, if
// that is still being committed and the caller is to wait for it: because the cycle is to be whole, or since free segments are
// few. Otherwise the checkpoint is left to a later cycle while the one before is being committed.
func (p *Pool) runCycle(whole bool) (*pending, error) {
	s := &p.drain
	s.cycle.Lock()
	defer s.cycle.Unlock()
	if s.ended {
		return nil, ErrClosed
	}
	urgent := p.cycles.wanted()
	n := p.cycles.begin()
	p.freeable.Store(false)
	p.relabelDue.Store(false)
	s.mu.Lock()
	before, low := p.measure(), false
	s.mu.Unlock()
	seq := p.appended.Load() + 1
	over := func(gain int64) {
		if gain <= 0 && low {
			p.cleaner.idleUntil.Store(max(p.cleaner.idleUntil.Load(), p.count.logBytes.Load()+uint64(p.seg.bytes())/4))
		}
		if p.low() && p.running.Load() && !p.closed.Load() && p.failure() == nil {
			p.wake() // the next cycle sets the pace
		} else {
			p.pace.end()
		}
		p.cycles.finish(n, gain >= p.seg.bytes()/16, urgent, seq, p.failure() != nil)
	}
	committing, gain := false, int64(0)
	defer func() {
		if !committing {
			over(gain)
		}
	}()

	free := p.seg.freeCount()
	low = free < p.cleanStart() || urgent && free < p.seg.reserve()
	if (low && urgent || (low || p.destageDue()) && p.mayClean()) && !p.closed.Load() && !p.log.read && !p.compacts() {
		if err := p.cleaner.clean(urgent); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	p.freeze()
	s.mu.Unlock()
	if err := p.drainAll(); err != nil {
		return nil, err
	}
	p.pace.rest()
	if err := p.drained(); err != nil {
		return nil, err
	}
	wait := whole || urgent || low || p.seg.freeCount() < p.cleanStart()
	left := !wait && p.commits.leave()
	if !left {
		p.commits.wait()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	made := func() int64 { return p.measure() - before + s.settled }
	if left {
		gain = made() - p.unwritten()
		return nil, nil
	}
	if p.commitsAlone() {
		freed, err := p.checkpoint()
		gain = made() + int64(freed)<<p.seg.shift
		return nil, err
	}
	c, err := p.prepareCheckpoint()
	if err != nil {
		return nil, err
	}
	gain, committing = made(), true
	c.over = func() { over(gain + int64(c.freed)<<p.seg.shift) }
	p.startCommit(c)
	if !wait {
		return nil, nil
	}
	return c, nil
}

// drained does what is to be done between the drain of a table and the checkpoint.
func (p *Pool) drained() error {
	p.drain.mu.Lock()
	defer p.drain.mu.Unlock()
	p.thaw()
	p.count.drains.Add(1)
	if err := p.releaseDying(); err != nil {
		return p.fail(err)
	}
	if err := p.purgeOld(); err != nil {
		return p.fail(err)
	}
	if err := p.compactIndex(); err != nil {
		return p.fail(err)
	}
	return nil
}

// measure returns how much there is to be written to: bytes of free segments and of what is left of those that the index
// and the cleaner fill, and what the log has taken since the pool was opened, without what commits have freed. What a cycle
// adds to that, together with what its own commit frees, is what it has gained, whatever others took or freed meanwhile. No
// step of a drain is under way.
func (p *Pool) measure() int64 {
	p.seg.mu.Lock()
	n := int64(p.seg.nFree+p.seg.nCache+int(p.count.logSegs.Load())-int(p.count.segsFreed.Load())) << p.seg.shift
	p.seg.mu.Unlock()
	for _, w := range []*indexWriter{&p.drain.writer, &p.drain.cold} {
		if w.open {
			n += p.seg.bytes() - int64(w.at)
		}
	}
	for _, w := range []*coldWriter{&p.cleaner.warm, &p.cleaner.cold} {
		if w.open {
			n += p.seg.bytes() - int64(w.at)*block.Size
		}
	}
	return n
}

// unwritten returns what the drain under way counts as settled although it is still to be written: the directory of a
// checkpoint that is left to the next cycle, which will count it.
func (p *Pool) unwritten() int64 {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	left := p.drain.cost.directory()
	return p.bytesOf(&left)
}

// drainAll drains the whole frozen table, letting go of the lock between steps.
func (p *Pool) drainAll() error {
	s := &p.drain
	for {
		s.mu.Lock()
		if err := p.failure(); err != nil {
			s.mu.Unlock()
			return err
		}
		err := p.drainStep()
		over := s.next >= len(s.work)
		p.pace.advance(paceDrain, float64(s.next)/float64(len(s.work)+1))
		s.mu.Unlock()
		if err != nil || over {
			return err
		}
	}
}
