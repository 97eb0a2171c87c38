package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// Free segments are shared in steps, so that whoever gives space back always finds the little that this takes: pages
// and checkpoint may take the last one; records of state, of discards and of replicas leave what the next pages and
// checkpoint need; the cleaner leaves that; users leave some for the cleaner.
//
// Whether a user's write is refused is not decided by free segments but by live data: what is not live can be freed.
// The reserve, which capacity leaves out, is for what the count of live data does not show: headers, pages that are
// being replaced, segments being filled, and sparse segments for the cleaner to choose from.

// purpose says who asks for a segment.
type purpose int

const (
	forUser    purpose = iota // data of users
	forRecords                // what gives back or records state
	forCleaner
)

// keep returns the number of segments that must remain free when one is taken for that purpose: what the next cycle is
// likely to take, as far as the reserve goes, and in any case what the updates in the tables take.
func (p *Pool) keep(what purpose) int {
	all, updates := p.indexNeed()
	if what != forCleaner { // what this cycle has taken for its index already need not be kept, if it will free as much
		all -= int(min(p.drain.spent.Load(), p.cleaner.pledged.Load()))
	}
	more, most := 0, p.seg.reserve()
	switch what { // steps, however large the index is
	case forUser:
		more = 3
	case forRecords:
		more, most = 1, most-most/8
	case forCleaner: // what a cycle moves at most needs less than that for its pages
		most /= 2
	}
	return max(min(all+more, most), updates+more)
}

// indexNeed returns bounds of the segments that the cycles to come take for pages, directory and checkpoint. updates is
// for what is in the tables; all is for all of the index once more besides, since the cleaner touches any chunk.
func (p *Pool) indexNeed() (all, updates int) {
	p.idx.mu.RLock()
	whole, pages := p.metaLive, int64(1)
	for _, r := range p.idx.bySlot {
		if r != nil {
			whole += r.meta
			pages += r.pages
		}
	}
	need := func(t *index.Table) int64 { return int64(t.Len())*24 + int64(len(t.Chunks))*(256+whole/pages) }
	active := p.idx.tables[p.idx.active]
	fresh := int64(active.Len())*24 + int64(len(active.Chunks))*256
	tables := need(active)
	if total := p.drain.total.Load(); total > 0 {
		tables += need(p.idx.tables[1-p.idx.active]) * int64(p.drain.left()) / total
	}
	p.idx.mu.RUnlock()
	usable := p.seg.bytes() - indexGroup // a group is not split
	segments := func(n int64) int { return int((n+n/8+usable-1)/usable) + 2 }
	return segments(whole + fresh), segments(tables)
}

// full returns ErrNoSpace when so many more blocks of data are more than the pool is for, errWait when a drain may show
// that they are not: only that knows what snapshots keep of what has been overwritten since the last one.
func (p *Pool) full(blocks int) error {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	over := p.allocated() + int64(blocks)*block.Size - p.capacity()
	if over <= 0 {
		return nil
	}
	for _, r := range p.idx.byName {
		if len(r.snaps) > 0 {
			over -= r.pending + r.hidden
		}
	}
	if over <= 0 {
		return errWait
	}
	return ErrNoSpace
}

// cleanStart returns the number of free segments below which the cleaner works: as few as it can do with, since
// whatever is free is missing from the garbage that it may leave in segments until more of it has gathered.
func (p *Pool) cleanStart() int {
	least := p.keep(forUser) + 6
	most := least + int(int64(p.cleaner.maxMoves())*block.Size*3/2>>p.seg.shift)
	return min(max(p.seg.dataCount()/32, leastReserve, least), p.seg.reserve(), most)
}
