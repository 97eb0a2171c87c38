package pool

import (
	"fmt"
	"slices"
	"sync"

	"github.com/cstor-go/cstor/internal/pool/label"
)

// A checkpoint is made in two parts. It is prepared between two drains: what it consists of is written, and it is noted
// what may go once it counts. Then it is committed, which takes as long as the devices take to flush, while the next
// table is drained. No page of that drain is in the place of something that the checkpoint before or this one needs, since
// segments are freed by commits only, each those that were dead when it was prepared. One is committed at a time; a
// cycle that ends meanwhile leaves the checkpoint to the next one.

// committer commits checkpoints.
type committer struct {
	from logPos // where a replay from the newest checkpoint begins; guarded by log.mu

	mu      sync.Mutex
	newest  *pending // the last one that was prepared
	running bool     // it is being committed
	owed    bool     // a cycle ended without a checkpoint
	inline  bool     // the last attempt was in vain: the next one holds the next drain up
}

// pending is a checkpoint that is prepared.
type pending struct {
	from     logPos
	root     []extent
	marks    []mark     // the root lists what is stale up to these
	dead     []uint32   // segments that neither this checkpoint nor what follows it in the log needs
	released []*Replica // whose slots a replay from the checkpoint before would meet in use

	run   func()        // with Options.Manual: commits it, for whoever waits first
	over  func()        // if not nil, called at the end
	done  chan struct{} // closed after that
	freed int           // segments
	void  bool          // it was not announced, since its root did not list all that was stale by then
	err   error
}

// wait returns when the checkpoint is committed. ok is false when it turned out to be void.
func (c *pending) wait() (ok bool, err error) {
	if c.run != nil {
		c.run()
	}
	<-c.done
	return !c.void, c.err
}

// due reports whether a checkpoint was left to the next cycle, and that can make it.
func (w *committer) due() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.owed && !w.running
}

// leave leaves the checkpoint to the next cycle, if one is being committed.
func (w *committer) leave() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owed = w.owed || w.running
	return w.running
}

// wait returns when nothing is being committed. Somebody who holds drain.cycle knows then that it stays like that.
func (w *committer) wait() {
	w.mu.Lock()
	c := w.newest
	w.mu.Unlock()
	if c != nil {
		_, _ = c.wait() // an error is the pool's failure
	}
}

// commitsAlone reports whether the next commit has to hold the next drain up: when devices are out, every segment that is
// begun is one more that the root must list for them.
func (p *Pool) commitsAlone() bool {
	p.commits.mu.Lock()
	defer p.commits.mu.Unlock()
	return p.commits.inline || slices.ContainsFunc(p.members(), func(m *member) bool { return !m.online() })
}

// startCommit begins to commit c. drain.cycle is held and no other is being committed.
func (p *Pool) startCommit(c *pending) {
	w := &p.commits
	w.mu.Lock()
	w.newest, w.running, w.owed = c, true, false
	w.mu.Unlock()
	run := func() {
		c.freed, c.err = p.commit(c)
		w.mu.Lock()
		w.running, w.inline = false, c.void
		w.owed = w.owed || c.void
		w.mu.Unlock()
		if c.over != nil {
			c.over()
		}
		close(c.done)
		p.wake()
	}
	if p.opt.Manual {
		c.run = func() {
			c.run = nil
			run()
		}
	} else {
		go run()
	}
}

// commit makes a checkpoint the state that the next Open begins with, and gives back what only the one before needed.
// No lock is held.
func (p *Pool) commit(c *pending) (freed int, err error) {
	if err := p.flushDevices(); err != nil {
		return 0, err
	}
	if c.void = !slices.Equal(c.marks, p.missed()); c.void { // the root must list all that is stale
		return 0, nil
	}
	p.generation++
	if err := p.writeRing(&label.Ring{Pool: p.cfg.GUID, Generation: p.generation, Root: c.root}); err != nil {
		return 0, p.fail(fmt.Errorf("checkpoint %d: %w", p.generation, err))
	}
	if err := p.flushDevices(); err != nil {
		return 0, err
	}
	p.count.checkpoints.Add(1)
	if err := p.committed(c.marks); err != nil {
		return 0, p.fail(fmt.Errorf("labels: %w", err))
	}
	p.idx.mu.Lock()
	for _, r := range c.released {
		p.idx.bySlot[r.slot] = nil
		r.weighs(0)
	}
	p.idx.mu.Unlock()
	p.trimChain(c.from)
	return p.freeSegments(c.dead)
}

// trimChain forgets the part of the log that no replay will read.
func (p *Pool) trimChain(from logPos) {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	w := &p.log
	n := w.before(from)
	for _, seg := range w.chain[:n] {
		p.seg.unpin(seg)
	}
	w.chain = append(w.chain[:0], w.chain[n:]...)
	p.commits.from = from
	if n > 0 {
		p.cleaner.idleUntil.Store(0)
	}
}

// before returns how many segments of the chain are in front of a place. mu is held.
func (w *logWriter) before(from logPos) int { return max(slices.Index(w.chain, from.seg), 0) }

// deadSegments returns the segments without live data that neither the checkpoint being prepared nor a replay from it
// needs. drain.mu is held.
func (p *Pool) deadSegments() (dead []uint32) {
	p.log.mu.Lock()
	old := slices.Clone(p.log.chain[:p.log.before(p.drain.from)]) // pinned until the checkpoint counts
	p.log.mu.Unlock()
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	p.seg.mu.Lock()
	defer p.seg.mu.Unlock()
	look := func(i uint32) {
		if p.seg.kind[i] != segFree && p.seg.pageLive[i] == 0 && p.seg.deltaLive[i] == 0 {
			dead = append(dead, i)
			delete(p.cleaner.damaged, i)
		}
	}
	for _, i := range old {
		look(i)
	}
	for i, pinned := range p.seg.pinned {
		if !pinned {
			look(uint32(i))
		}
	}
	return dead
}

// freeSegments gives segments to the free list, once no reader can be in them.
func (p *Pool) freeSegments(dead []uint32) (int, error) {
	if len(dead) == 0 || !p.read.drain(p.quit, p.broken) {
		return 0, nil
	}
	// Devices and file systems hold up writes while they discard: when there are any, or somebody waits, the space is left
	// until the pool is at rest.
	written := p.flush.stable.Load()
	kept := 0 // first of those of which it is left
	for whole := true; kept < len(dead) && whole; {
		var err error
		if whole, err = p.discard(dead[kept], written); err != nil {
			return 0, p.fail(err)
		}
		if whole {
			kept++
		}
	}
	p.seg.mu.Lock()
	for k, i := range dead {
		p.seg.setFree(i)
		if k >= kept && !p.opt.NoDiscard {
			p.seg.undiscarded[i/64] |= 1 << (i % 64)
		}
	}
	p.count.segsFreed.Add(uint64(len(dead))) // before somebody counts what is free
	p.seg.mu.Unlock()
	return len(dead), nil
}

// discardPiece is how much is discarded at once.
const discardPiece = 1 << 20

// discard gives the space of a segment back to the devices, while the newest batch is that number and nobody waits.
func (p *Pool) discard(seg uint32, written uint64) (whole bool, err error) {
	piece := min(p.seg.bytes(), discardPiece)
	for off := int64(0); off < p.seg.bytes(); off += piece {
		if p.opt.NoDiscard || p.appended.Load() != written || p.closed.Load() || p.cycles.wanted() || p.pace.limit.Load() > 0 {
			return false, nil
		}
		if err := p.seg.discard(seg, off, piece); err != nil {
			return false, err
		}
	}
	return true, nil
}

// discardTurn is how much discardFree discards at a time: a pool that was opened discards all that is free.
const discardTurn = 1 << 30

// discardFree discards free segments that were not when they became free, or before the pool was opened, until something
// is written or is to be done.
func (p *Pool) discardFree() {
	written := p.appended.Load()
	for n, whole := int64(0), true; n < discardTurn && whole && p.idle.Load() && len(p.kick) == 0; n += p.seg.bytes() {
		seg, ok := p.seg.takeUndiscarded(p.cleanStart())
		if !ok {
			return
		}
		var err error
		if whole, err = p.discard(seg, written); err != nil {
			p.fail(err)
		}
		p.seg.mu.Lock()
		p.seg.pinned[seg] = false
		p.seg.setFree(seg)
		if !whole {
			p.seg.undiscarded[seg/64] |= 1 << (seg % 64)
		}
		p.seg.mu.Unlock()
	}
}
