package pool

import (
	"cmp"
	"errors"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// candidate is a block that a header says is in a victim.
type candidate struct {
	key uint64
	loc index.Loc
	sum uint32
	ver block.Version
}

// gather notes the blocks that the headers of a segment name. again says that they did not name all, so that the other
// copies of a header are asked when one is missing where it should be.
func (c *cleaner) gather(seg uint32, again bool) error {
	p := c.p
	row := p.seg.row(seg)
	expected := true
	for b := uint32(0); b < p.seg.blocks(); {
		h, raw, err := c.headers.header(seg, b)
		if again && expected && errors.Is(err, wal.ErrDamaged) {
			h, raw, err = c.headers.wanted(seg, b, func(*wal.Header) bool { return true })
		}
		if expected = err == nil; errors.Is(err, wal.ErrDamaged) { // behind the end, or what a torn write left
			b += row
			continue
		}
		if err != nil {
			return err
		}
		area := wal.MakeArea(uint64(seg)<<p.seg.shift+uint64(int(b)+h.HeaderBlocks)*block.Size, h.RawBlocks)
		var it wal.Records
		var rec wal.Record
		for it.Reset(raw, &h); it.Next(&rec); {
			if rec.Kind == wal.State || len(rec.Sums) == 0 {
				area.Skip(rec.Kind, rec.Count, rec.Lens)
				continue
			}
			for i := range rec.Sums {
				length := uint8(wal.MaxLen)
				if rec.Lens != nil {
					length = rec.Lens[i]
				}
				if at := area.Next(length); length > 0 {
					loc := index.MakeLoc(at, int(length)*wal.Granule)
					c.found = append(c.found, candidate{key: index.Key(rec.Slot, rec.Block+uint64(i)), loc: loc})
				}
			}
		}
		b += padded(&h, row)
	}
	return nil
}

// chunks returns the chunks of what was found, by key.
func (c *cleaner) chunks() []uint64 {
	c.keys = c.keys[:0]
	for i := range c.found {
		c.keys = append(c.keys, c.found[i].key/block.ChunkBlocks)
	}
	c.keys = slices.Compact(c.keys)
	return c.keys
}

// inUse keeps of the candidates those that a page refers to and no later update supersedes, with checksum and version.
// It returns the segments of which pages refer to more than was named. step is told of each share of the work that is done.
func (c *cleaner) inUse(group []victim, step func(share float64)) (missing []victim, err error) {
	clear(c.costs)
	slices.SortFunc(c.found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.loc, b.loc))
	})
	c.found = slices.Compact(c.found)
	named := map[uint32]uint64{}
	kept := c.found[:0]
	keys := c.chunks()
	defer c.ahead.drop(c.p)
	for from, chunks := 0, 0; from < len(c.found); chunks++ {
		to := from + 1
		for to < len(c.found) && c.found[to].key/block.ChunkBlocks == c.found[from].key/block.ChunkBlocks {
			to++
		}
		if chunks%cleanLookups == cleanLookups-1 {
			if err := c.breathe(); err != nil {
				return nil, err
			}
		}
		c.ahead.reach(c.p, keys[chunks:], false)
		live, err := c.inChunk(c.found[from:to], named)
		if err != nil {
			return nil, err
		}
		kept = append(kept, live...)
		step(float64(to-from) / float64(len(c.found)))
		from = to
	}
	c.found = kept
	for _, v := range group {
		if named[v.seg] < uint64(v.live) && c.damaged[v.seg] == 0 {
			missing = append(missing, v)
		}
	}
	return missing, nil
}

// inChunk keeps the candidates of one chunk that are in use, and counts in named the bytes of those that the page
// refers to, superseded or not.
func (c *cleaner) inChunk(found []candidate, named map[uint32]uint64) ([]candidate, error) {
	p := c.p
	slot, first := uint32(found[0].key>>40), found[0].key&(1<<40-1)
	chunk := first / block.ChunkBlocks
	lost := func(err error) ([]candidate, error) { // nothing of the chunk can be moved
		for _, x := range found {
			c.unreadable(p.seg.of(x.loc), uint64(x.loc.Len()), err)
		}
		return nil, nil
	}
	p.idx.mu.RLock()
	var r *Replica
	if int(slot) < len(p.idx.bySlot) {
		r = p.idx.bySlot[slot]
	}
	p.idx.mu.RUnlock()
	if r == nil {
		return nil, nil
	}
	d, err := r.rlock(chunk)
	if err != nil {
		return lost(err)
	}
	var ref chunkRef
	gone := true
	if d != nil {
		ref, gone = *d, r.destroyed
	}
	p.idx.mu.RUnlock()
	if ref.page == 0 {
		return nil, nil
	}
	page, err := p.loadPage(r, chunk, &ref, &c.view)
	if err != nil {
		return lost(err)
	}
	defer p.cache.release(page)
	kept := found[:0]
	for _, x := range found {
		o, ok, err := p.findPlace(r, chunk, &ref, &c.view, int(x.key%block.ChunkBlocks), x.loc)
		if err != nil {
			c.unreadable(p.seg.of(x.loc), uint64(x.loc.Len()), err)
		}
		if ok {
			named[p.seg.of(o.Loc)] += uint64(o.Loc.Len())
			kept = append(kept, candidate{key: x.key, loc: o.Loc, sum: o.Sum, ver: o.Ver})
		}
	}
	if gone {
		return nil, nil
	}
	found, kept = kept, kept[:0]
	if d, err = r.rlock(chunk); err != nil {
		return lost(err)
	}
	defer p.idx.mu.RUnlock()
	for _, x := range found {
		if p.needed(r, d, x.key&(1<<40-1), x.ver) {
			kept = append(kept, x)
		}
	}
	if len(kept) > 0 {
		c.price(r, chunk, &ref, len(kept))
	}
	return kept, nil
}

// price notes what it takes to write a chunk again of which n blocks move. Its page is open. The index lock is held.
func (c *cleaner) price(r *Replica, chunk uint64, d *chunkRef, n int) {
	x := r.costOf(chunk, d, true)
	x.pages += int64(min(n, c.view.Histories())) * int64(c.p.opt.historyBytes)
	c.costs[index.Key(r.slot, 0)/block.ChunkBlocks|chunk] = x
}

// charge takes what it takes to write the chunk of a block again from what others may use, when it is the first one of it
// that moves. It returns errNoRoom when there is not so much.
func (c *cleaner) charge(key uint64) error {
	p := c.p
	x, ok := c.costs[key/block.ChunkBlocks]
	if !ok {
		return nil
	}
	delete(c.costs, key/block.ChunkBlocks)
	p.idx.mu.Lock()
	c.cost.add(x)
	p.idx.mu.Unlock()
	if c.unchecked += x.pages + x.dirs + x.nodes + x.more; c.unchecked > p.seg.bytes()/4 {
		c.unchecked = 0
		if p.seg.freeCount() < p.keep(forCleaner) {
			return errNoRoom
		}
	}
	return nil
}
