package pool

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// cleaner empties sparse segments: it copies what is live in them into segments of its own, and the drain that follows
// puts the new locations into the pages. No other trace is needed: until the checkpoint after that drain the old copies
// are what counts, and segments are freed only by a checkpoint, so that a crash at any moment leaves the blocks where
// they were and the copies are nobody's.
//
// It finds blocks through the batch headers of the segments and asks the pages whether each is still in use there.
// Everything is guarded by drain.cycle: no page changes while the cleaner looks. What is overwritten meanwhile is found
// out by the drain, which changes a location only if the page has the old one.
type cleaner struct {
	p     *Pool
	warm  coldWriter
	cold  coldWriter
	moves []movedBlock // since the last freeze
	full  []uint32     // segments to which moves lead that no drain has put into pages yet

	incarnation uint64
	headers     *logReader
	view        index.View
	found       []candidate
	keys        []uint64 // of their chunks
	ahead       pagesAhead
	window      []byte
	content     []byte // of one block

	damaged map[uint32]uint64 // bytes in these segments that cannot be read: what is left of them is not worth a visit
	lost    lostSegments

	costs     map[uint64]indexCost // of the chunks of what was found, by key, before anything of them is moved
	cost      indexCost            // of the moves since the last freeze; guarded by idx.mu
	unchecked int64                // of that, bytes for which it is not known that there is room
	idleUntil atomic.Uint64        // Stats.LogBytes from which on there may be something worth cleaning again
}

// movedBlock is a block that was copied: where its page says old it is to say new.
type movedBlock struct {
	key      uint64 // index.Key
	ver      block.Version
	old, new index.Loc
}

const (
	cleanWindow  = 512 << 10 // bytes read at once
	cleanGap     = 64 << 10  // dead bytes that are read rather than skipped
	cleanBatch   = 1 << 16   // candidates looked up together
	cleanLookups = 32        // chunks looked up between two looks at what else there is to do
)

var (
	errNoRoom  = errors.New("no room to clean")
	errHurried = errors.New("the cycle is wanted")
)

func (c *cleaner) init(p *Pool) {
	c.p, c.incarnation, c.damaged, c.costs = p, p.opt.Rand(), map[uint32]uint64{}, map[uint64]indexCost{}
	c.warm.kind, c.cold.kind = segWarm, segCold
}

// clean moves what is live in the segments that are worth most, as many as there is room for. urgent says that somebody
// waits for space, so that little gain is better than none. drain.cycle is held; the segments become free with the cycle
// that follows.
func (c *cleaner) clean(urgent bool) error {
	p := c.p
	if c.headers == nil {
		c.headers = p.newLogReader()
		c.window, c.content = disk.Buffer(cleanWindow), make([]byte, block.Size)
	}
	plan := c.plan(urgent)
	if len(plan.victims) == 0 && c.lost.none() {
		c.idleUntil.Store(p.count.logBytes.Load() + uint64(p.seg.bytes()))
		return nil
	}
	if plan.pace {
		p.pace.begin(p.count.logBytes.Load(), uint64(plan.room))
	}
	err := c.lookForLost()
	for err == nil && len(plan.victims) > 0 {
		err = c.some(plan)
	}
	if e := c.flush(); e != nil {
		return e
	}
	switch {
	case errors.Is(err, errNoRoom), errors.Is(err, errHurried):
		return nil
	case err != nil:
		return p.fail(fmt.Errorf("clean: %w", err))
	}
	return nil
}

// some cleans the next victims of the plan.
func (c *cleaner) some(plan *cleanPlan) error {
	c.found = c.found[:0]
	n, live := 0, 0.0
	for n < len(plan.victims) && len(c.found) < cleanBatch {
		v := &plan.victims[n]
		if err := c.gather(v.seg, false); err != nil {
			c.unreadable(v.seg, uint64(v.live), err)
		}
		n++
		live += float64(v.live)
		c.advance(plan, float64(v.live)/4)
		if err := c.breathe(); err != nil {
			return err
		}
	}
	group := plan.victims[:n]
	plan.victims = plan.victims[n:]
	missing, err := c.inUse(group, func(share float64) { c.advance(plan, share*live/4) })
	if err == nil {
		err = c.copy(plan)
	}
	for i := 0; i < len(missing) && err == nil; i++ {
		err = c.someAgain(missing[i], plan)
	}
	return err
}

// someAgain cleans a segment whose headers did not name all that is in use there.
func (c *cleaner) someAgain(v victim, plan *cleanPlan) error {
	p := c.p
	c.found = c.found[:0]
	if g, _ := p.seg.locate(uint64(v.seg) << p.seg.shift); g.Redundant() {
		if err := c.gather(v.seg, true); err != nil {
			return err
		}
		missing, err := c.inUse([]victim{v}, func(float64) {})
		if err != nil {
			return err
		}
		if err := c.copy(plan); err != nil || len(missing) == 0 {
			return err
		}
	}
	c.lost.add(v.seg)
	if p.opt.Log != nil {
		p.opt.Log.Warn("segment has damaged headers; its blocks are looked up in the index", "pool", p.cfg.Name, "segment", v.seg)
	}
	return nil
}

// copy moves what is in use, in the order in which it is on the devices.
func (c *cleaner) copy(plan *cleanPlan) error {
	p := c.p
	slices.SortFunc(c.found, func(a, b candidate) int { return cmp.Compare(a.loc, b.loc) })
	for i := 0; i < len(c.found); {
		first := c.found[i].loc
		from := first.Addr() &^ (block.Size - 1)
		end := first.End()
		n := 1
		for ; i+n < len(c.found); n++ {
			next := c.found[i+n].loc
			if p.seg.of(next) != p.seg.of(first) || next.End()-from > cleanWindow || next.Addr() > end+cleanGap {
				break
			}
			end = next.End()
		}
		b := c.window[:(end+block.Size-1)&^(block.Size-1)-from]
		bytes := uint64(0)
		for _, x := range c.found[i : i+n] {
			bytes += uint64(x.loc.Len())
		}
		if err := p.seg.readAt(b, from); err != nil {
			c.unreadable(p.seg.of(first), bytes, err)
			i += n
			continue
		}
		for _, x := range c.found[i : i+n] {
			stored := b[x.loc.Addr()-from:][:x.loc.Len()]
			if !p.content(&place{loc: x.loc, sum: x.sum}, c.content, stored) {
				p.count.sumErrors.Add(1)
				c.unreadable(p.seg.of(x.loc), uint64(x.loc.Len()), ErrChecksum)
				continue
			}
			if err := c.move(&x, stored); err != nil {
				return err
			}
		}
		i += n
		c.advance(plan, float64(bytes)/2)
		if err := c.breathe(); err != nil {
			return err
		}
	}
	return nil
}

// advance notes that so many bytes of the plan are done: half of each is to find out that it is in use.
func (c *cleaner) advance(plan *cleanPlan, bytes float64) {
	plan.done += bytes
	c.p.pace.advance(paceClean, plan.done/max(float64(plan.live), plan.done))
}

// move copies one block.
func (c *cleaner) move(x *candidate, stored []byte) error {
	p := c.p
	w := &c.warm
	p.seg.mu.Lock()
	from := p.seg.of(x.loc)
	if p.seg.kind[from] != segLog {
		w = &c.cold
	}
	birth := p.seg.birth[from]
	p.seg.mu.Unlock()
	if c.waiting() >= c.maxMoves() {
		return errNoRoom
	}
	if err := c.charge(x.key); err != nil {
		return err
	}
	if err := c.append(w, x, stored, birth); err != nil {
		return err
	}
	p.count.moved.Add(1)
	return nil
}

// maxMoves bounds the moves that wait for a drain.
func (c *cleaner) maxMoves() int { return 2 * c.p.opt.DeltaEntries }

// unreadable notes that bytes of a segment stay where they are: reads of them report the damage.
func (c *cleaner) unreadable(seg uint32, bytes uint64, err error) {
	if c.damaged[seg] == 0 && c.p.opt.Log != nil {
		c.p.opt.Log.Warn("segment has damaged blocks, which the cleaner leaves where they are", "pool", c.p.cfg.Name, "segment", seg, "err", err)
	}
	c.damaged[seg] += bytes
}

// frozen hands what was copied since the last freeze, by key, to the drain that begins, in exchange for the memory of
// the moves before.
func (c *cleaner) frozen(old []movedBlock) (moves []movedBlock) {
	moves, c.moves = c.moves, old[:0]
	slices.SortFunc(moves, func(a, b movedBlock) int { return cmp.Compare(a.key, b.key) })
	return moves
}

// drained lets go of the segments to which the moves led that are in pages now.
func (c *cleaner) drained() {
	for _, seg := range c.full {
		c.p.seg.unpin(seg)
	}
	c.full = c.full[:0]
}

// breathe lets others have their turn between two pieces of the cleaner's work, and keeps the background's promise of
// regular flushes. It returns errHurried when the cycle is to go on with what has been copied.
func (c *cleaner) breathe() error {
	p := c.p
	if err := p.failure(); err != nil {
		return err
	}
	if !p.running.Load() { // before the background begins
		return nil
	}
	if p.closed.Load() || p.deltaFills() {
		return errHurried
	}
	p.yield()
	p.flushIfDue()
	if p.hurry.Load() == 0 && !p.cycles.wanted() && p.pace.ahead(p.count.logBytes.Load()) {
		select {
		case <-p.quit:
		case <-time.After(cleanPause):
		}
		p.pace.rested(cleanPause)
	}
	return nil
}

// cleanPause is how long the cleaner rests after a piece of work while it is ahead of the writers.
const cleanPause = 2 * time.Millisecond
