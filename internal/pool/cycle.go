package pool

import (
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// cycleSignal lets writers that need space wait for a whole cycle.
type cycleSignal struct {
	mu        sync.Mutex
	cond      *sync.Cond
	asked     uint64 // cycles that must have begun
	begun     uint64
	done      uint64
	freed     uint64 // segments that cycles freed
	fruitless uint64 // log position (batch number) at which a cycle freed nothing, plus one
	stop      bool
}

// idleAfter is how long what was given back may wait for a cycle when nothing else asks for one.
const idleAfter = time.Second

// background runs cycles until Close: when the delta is half full, when the log has grown, when somebody waits for
// space, and a second after something was given back.
func (p *Pool) background() {
	defer close(p.stopped)
	timer := time.NewTimer(idleAfter)
	defer timer.Stop()
	for {
		idle := false
		select {
		case <-p.quit:
			return
		case <-p.kick:
		case <-timer.C:
			idle = true
			timer.Reset(idleAfter)
		}
		if p.failure() != nil {
			p.cycles.finish(0, 0, true)
			<-p.quit
			return
		}
		if p.due(idle) {
			if err := p.cycle(); err != nil {
				continue // the pool has failed and has said so
			}
		}
		p.log.mu.Lock()
		flush := p.log.dirty >= uint64(p.opt.FlushBytes)
		if flush {
			p.log.dirty = 0
		}
		p.log.mu.Unlock()
		if flush {
			_ = p.syncTo(p.appended.Load()) // an error is the pool's failure, which everybody sees
		}
	}
}

// due reports whether a cycle is to run now.
func (p *Pool) due(idle bool) bool {
	p.cycles.mu.Lock()
	asked := p.cycles.asked > p.cycles.begun
	p.cycles.mu.Unlock()
	p.log.mu.Lock()
	since := p.log.since
	p.log.mu.Unlock()
	p.idx.mu.RLock()
	n := p.idx.tables[p.idx.active].Len() + p.idx.reserved
	dying := len(p.idx.bySlot) > 0 && p.anyDying()
	p.idx.mu.RUnlock()
	low := p.seg.freeCount() < p.lowWater() && idle
	return asked || low || p.relabelDue.Load() || n > p.idx.soft || since >= uint64(p.opt.CheckpointBytes) || dying || idle && p.freeable.Load()
}

func (p *Pool) anyDying() bool {
	for _, r := range p.idx.bySlot {
		if r != nil && r.destroyed {
			return true
		}
	}
	return false
}

// reclaim waits for a whole cycle and reports whether it freed anything, or may yet.
func (p *Pool) reclaim() bool {
	c := &p.cycles
	seq := p.appended.Load() + 1
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fruitless == seq && !p.freeable.Load() {
		return false
	}
	target, freed := c.begun+1, c.freed
	c.asked = max(c.asked, target)
	p.wake()
	for c.done < target {
		if p.usable() != nil || c.stop {
			return true // whoever asks finds out
		}
		c.cond.Wait()
	}
	if c.freed > freed {
		return true
	}
	p.idx.mu.RLock()
	dying := p.anyDying()
	p.idx.mu.RUnlock()
	return dying
}

func (c *cycleSignal) begin() {
	c.mu.Lock()
	c.begun++
	c.mu.Unlock()
}

func (c *cycleSignal) finish(freed int, seq uint64, stop bool) {
	c.mu.Lock()
	c.done = c.begun
	c.freed += uint64(freed)
	c.fruitless = 0
	if freed == 0 {
		c.fruitless = seq
	}
	c.stop = c.stop || stop
	c.cond.Broadcast()
	c.mu.Unlock()
}

// cycle drains the delta into pages, releases destroyed replicas, makes a checkpoint and frees the segments that
// nothing refers to any more.
func (p *Pool) cycle() error {
	s := &p.drain
	s.cycle.Lock()
	defer s.cycle.Unlock()
	p.cycles.begin()
	p.freeable.Store(false)
	p.relabelDue.Store(false)
	freed := 0
	seq := p.appended.Load() + 1
	defer func() { p.cycles.finish(freed, seq, p.failure() != nil) }()

	if err := p.clean(); err != nil {
		return err
	}
	s.mu.Lock()
	p.freeze()
	s.mu.Unlock()
	if err := p.drainAll(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.thaw()
	p.count.drains.Add(1)
	if err := p.releaseDying(); err != nil {
		return p.fail(err)
	}
	if err := p.compactIndex(); err != nil {
		return p.fail(err)
	}
	if err := p.checkpoint(); err != nil {
		return err
	}
	p.idx.mu.Lock()
	for _, r := range s.released { // only now: a replay from the checkpoint before would meet the slot in use
		p.idx.bySlot[r.slot] = nil
	}
	p.idx.mu.Unlock()
	s.released = s.released[:0]
	p.trimChain()
	n, err := p.freeSegments()
	freed = n
	return err
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
		s.mu.Unlock()
		if err != nil || over {
			return err
		}
	}
}

// trimChain forgets the part of the log that no replay will read.
func (p *Pool) trimChain() {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	w := &p.log
	n := 0
	for n < len(w.chain) && w.chain[n] != p.drain.from.seg {
		p.seg.unpin(w.chain[n])
		n++
	}
	w.chain = append(w.chain[:0], w.chain[n:]...)
}

// freeSegments gives the segments without live data to the free list, once no reader can be in them.
func (p *Pool) freeSegments() (int, error) {
	var dead []uint32
	p.idx.mu.RLock()
	p.seg.mu.Lock()
	for i, k := range p.seg.kind {
		if k != segFree && !p.seg.pinned[i] && p.seg.pageLive[i] == 0 && p.seg.deltaLive[i] == 0 {
			dead = append(dead, uint32(i))
		}
	}
	p.seg.mu.Unlock()
	p.idx.mu.RUnlock()
	if len(dead) == 0 || !p.read.drain(p.quit) {
		return 0, nil
	}
	for _, i := range dead {
		p.idx.mu.RLock()
		busy := p.idx.tables[p.idx.active].Len() > p.idx.soft // discarding much takes long, and writers come first
		p.idx.mu.RUnlock()
		if !p.opt.NoDiscard && !busy {
			if err := p.seg.discard(i); err != nil {
				return 0, p.fail(err)
			}
		}
	}
	p.seg.mu.Lock()
	for _, i := range dead {
		p.seg.setFree(i)
	}
	p.seg.mu.Unlock()
	p.count.segsFreed.Add(uint64(len(dead)))
	return len(dead), nil
}

// releaseDying takes destroyed replicas apart, as far as it can before the active table asks for attention. The rest
// is for the next cycle. Only replicas that were destroyed before the freeze are touched: nothing in the active table
// belongs to them.
func (p *Pool) releaseDying() error {
	for i := 0; i < len(p.drain.images); i++ {
		m := &p.drain.images[i]
		if !m.dying {
			continue
		}
		done, err := p.release(m.r)
		if err != nil {
			return err
		}
		if done {
			p.drain.released = append(p.drain.released, m.r)
			p.drain.images = append(p.drain.images[:i], p.drain.images[i+1:]...)
			i--
		} else {
			p.wake()
		}
	}
	return nil
}

// release gives back what the directory of r refers to and reports whether all is gone.
func (p *Pool) release(r *Replica) (done bool, err error) {
	var v index.View
	pg := &p.drain.page
	for i, b := range r.dir {
		if b == nil {
			continue
		}
		for c := range b.refs {
			d := &b.refs[c]
			p.idx.mu.RLock()
			old := *d
			busy := p.idx.tables[p.idx.active].Len() > p.idx.soft
			p.idx.mu.RUnlock()
			if busy {
				return false, nil
			}
			if old.page == 0 && old.bitmap == 0 && !old.full && old.tomb.IsZero() && old.newest.IsZero() {
				continue
			}
			pg.Reset(block.Version{})
			if old.page != 0 {
				e, err := p.loadPage(r, uint64(i*dirSpan+c), &old, &v)
				if err != nil {
					return false, err
				}
				v.Decode(pg)
				p.cache.release(e)
				p.cache.drop(old.id)
			}
			p.idx.mu.Lock()
			b.dirty = true
			for j := range pg.Ver {
				if pg.Stored.Has(j) {
					p.seg.pageLive[p.seg.of(pg.Loc[j])] -= uint32(pg.Loc[j].Len())
				}
			}
			p.accountPage(r, old.page, -1)
			p.idx.bitmaps.drop(d, false)
			*d = chunkRef{}
			p.idx.mu.Unlock()
		}
		p.idx.mu.Lock()
		p.accountDir(r, b, -1)
		r.dir[i] = nil
		p.idx.mu.Unlock()
	}
	p.idx.mu.Lock()
	r.dir, r.stored = nil, 0
	p.idx.mu.Unlock()
	return true, nil
}

// compactIndex rewrites what is left in sparse index segments when the index takes more than twice its size, so that
// copy-on-write pages do not scatter over the pool.
func (p *Pool) compactIndex() error {
	s := &p.drain
	p.idx.mu.RLock()
	var live, used int64
	victims := map[uint32]bool{}
	p.seg.mu.Lock()
	tight := p.seg.nFree < p.seg.reserve()
	sparse := p.seg.bytes() / 3
	if tight {
		sparse = p.seg.bytes() * 2 / 3
	}
	for i, k := range p.seg.kind {
		if k == segIndex && p.seg.pageLive[i] > 0 && !p.seg.pinned[i] {
			live += int64(p.seg.pageLive[i])
			used += p.seg.bytes()
			if int64(p.seg.pageLive[i]) < sparse {
				victims[uint32(i)] = true
			}
		}
	}
	p.seg.mu.Unlock()
	if !tight && used < 2*live+4*p.seg.bytes() || len(victims) < 2 {
		p.idx.mu.RUnlock()
		return nil
	}
	var work []uint64
	for i := range s.images {
		r := s.images[i].r
		for bi, b := range r.dir {
			if b == nil {
				continue
			}
			if b.size > 0 && victims[uint32(b.addr>>p.seg.shift)] {
				b.dirty = true
			}
			for c := range b.refs {
				if d := &b.refs[c]; d.page != 0 && !r.dying && victims[uint32(d.pageAddr()>>p.seg.shift)] {
					work = append(work, index.Key(r.slot, 0)/block.ChunkBlocks|uint64(bi*dirSpan+c))
				}
			}
		}
	}
	p.idx.mu.RUnlock()
	s.work, s.next = work, 0
	defer func() { s.work, s.next = nil, 0 }()
	for s.next < len(s.work) {
		if err := p.drainStep(); err != nil {
			return err
		}
	}
	return nil
}
