package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// lostSegments are segments whose headers do not name all that is in use there. Their blocks are found by walking the
// whole index, some of it with every cycle, and are moved as they are met.
type lostSegments struct {
	next  map[uint32]bool // to be looked for from the next walk on
	now   map[uint32]bool // the walk under way looks for these
	slot  int             // where it goes on
	chunk uint64
}

// lostStep is the number of chunks that are looked at in one cycle.
const lostStep = 4096

func (l *lostSegments) none() bool { return len(l.next) == 0 && len(l.now) == 0 }

func (l *lostSegments) has(seg uint32) bool { return l.next[seg] || l.now[seg] }

func (l *lostSegments) add(seg uint32) {
	if l.next == nil {
		l.next = map[uint32]bool{}
	}
	l.next[seg] = true
}

// lookForLost goes on with the walk and moves what it finds.
func (c *cleaner) lookForLost() error {
	l := &c.lost
	if len(l.now) == 0 {
		if len(l.next) == 0 {
			return nil
		}
		l.now, l.next, l.slot, l.chunk = l.next, nil, 0, 0
	}
	c.found = c.found[:0]
	clear(c.costs)
	for n := 0; n < lostStep && len(c.found) < cleanBatch; n++ {
		if n%cleanLookups == 0 {
			if err := c.breathe(); err != nil {
				return err
			}
		}
		if c.lookAtNext() {
			l.now = nil
			break
		}
	}
	return c.copy(&cleanPlan{})
}

// lookAtNext looks at one chunk and notes what is in use in lost segments.
func (c *cleaner) lookAtNext() (over bool) {
	p, l := c.p, &c.lost
	p.idx.mu.RLock()
	if l.slot >= len(p.idx.bySlot) {
		p.idx.mu.RUnlock()
		return true
	}
	r := p.idx.bySlot[l.slot]
	gone := r == nil || r.destroyed
	p.idx.mu.RUnlock()
	var ref chunkRef
	var chunk uint64
	ok := false
	if !gone {
		var err error
		if chunk, l.chunk, ok, err = r.next(l.chunk, nil, &ref); err != nil {
			return false // what it refers to stays where it is
		}
	}
	if !ok {
		l.slot, l.chunk = l.slot+1, 0
		return false
	}
	if ref.page == 0 {
		return false
	}
	page, err := p.loadPage(r, chunk, &ref, &c.view)
	if err != nil {
		return false // what it refers to stays where it is
	}
	defer p.cache.release(page)
	old, err := p.olderVersions(r, chunk, &ref, &c.view)
	if err != nil {
		return false
	}
	d, err := r.rlock(chunk)
	if err != nil {
		return false
	}
	defer p.idx.mu.RUnlock()
	look := func(o index.Old) {
		b := chunk*block.ChunkBlocks + uint64(o.Block)
		if o.Stored && l.now[p.seg.of(o.Loc)] && p.needed(r, d, b, o.Ver) {
			c.found = append(c.found, candidate{key: index.Key(r.slot, b), loc: o.Loc, sum: o.Sum, ver: o.Ver})
			c.price(r, chunk, &ref, block.ChunkBlocks)
		}
	}
	for i := range block.ChunkBlocks {
		if loc, sum, ok := c.view.Data(i); ok {
			look(index.Old{Block: uint16(i), Ver: c.view.Version(i), Loc: loc, Sum: sum, Stored: true})
		}
	}
	for i := range old {
		look(old[i])
	}
	return false
}
