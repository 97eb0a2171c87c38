package pool

import (
	"github.com/cstor-go/cstor/internal/block"
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

// keep returns the number of segments that must remain free when one is taken for that purpose.
func (p *Pool) keep(what purpose) int {
	n := p.indexNeed()
	if what != forCleaner { // what this cycle has taken for its index already need not be kept, if it will free as much
		n -= int(min(p.drain.spent.Load(), p.cleaner.pledged.Load()))
	}
	switch what {
	case forUser:
		n += 3
	case forRecords:
		n++
	}
	return min(n, p.seg.reserve())
}

// indexNeed returns a bound of the segments that the next cycle takes for pages, directory and checkpoint: all of the
// index once more, since the cleaner touches any chunk, and what the updates in the active table add.
func (p *Pool) indexNeed() int {
	p.idx.mu.RLock()
	t := p.idx.tables[p.idx.active]
	n := p.metaLive + int64(t.Len())*24 + int64(len(t.Chunks))*256
	for _, r := range p.idx.bySlot {
		if r != nil {
			n += r.meta
		}
	}
	p.idx.mu.RUnlock()
	usable := p.seg.bytes() - indexGroup // a group is not split
	return int((n+n/8+usable-1)/usable) + 2
}

// full reports whether so many more blocks of data are more than the pool is for.
func (p *Pool) full(blocks int) bool {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	return p.allocated()+int64(blocks)*block.Size > p.capacity()
}

// cleanStart returns the number of free segments below which the cleaner works: as few as it can do with, since
// whatever is free is missing from the garbage that it may leave in segments until more of it has gathered.
func (p *Pool) cleanStart() int {
	least := p.keep(forUser) + 6
	most := least + int(int64(p.cleaner.maxMoves())*block.Size*3/2>>p.seg.shift)
	return min(max(p.seg.reserve()*13/20, least), p.seg.reserve(), most)
}
