package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// Free segments are shared in steps, so that whoever gives space back always finds the little that this takes. What
// the updates in the tables and the moves of the cleaner take for their pages is never used for anything else. The
// cleaner leaves that; records of state, of discards and of replicas leave some for the cleaner to work with, and users
// leave some for records.
//
// Whether a user's write is refused is not decided by free segments but by live data and index: what is not live can be
// freed. The reserve, which capacity leaves out, is for what the count of live data does not show: headers, pages that
// are being replaced, segments being filled, and sparse segments for the cleaner to choose from.

// purpose says who asks for a segment.
type purpose int

const (
	forUser    purpose = iota // data of users
	forRecords                // what gives back or records state
	forCleaner
	forPages
)

// indexCost is what pages and directory that are to be written take at most, in bytes.
type indexCost struct {
	pages int64
	dirs  int64 // of directory blocks as they are, some counted more than once
	nodes int64 // of nodes of the directory, likewise
	more  int64 // that these grow
	root  int64
	steps int64 // writes of pages of which each may be padded to a row, in 64ths
	early int64 // writes of the directory ahead of the checkpoint, likewise
	grown int64 // what the index has more of when all is written
}

func (c *indexCost) add(o indexCost) {
	c.pages, c.dirs, c.nodes = c.pages+o.pages, c.dirs+o.dirs, c.nodes+o.nodes
	c.more, c.root, c.steps, c.early, c.grown = c.more+o.more, c.root+o.root, c.steps+o.steps, c.early+o.early, c.grown+o.grown
}

func (c *indexCost) sub(o indexCost) {
	c.pages, c.dirs, c.nodes = c.pages-o.pages, c.dirs-o.dirs, c.nodes-o.nodes
	c.more, c.root, c.steps, c.early, c.grown = c.more-o.more, c.root-o.root, c.steps-o.steps, c.early-o.early, c.grown-o.grown
}

// directory returns the part of the cost that remains when a checkpoint is left to the next cycle.
func (c *indexCost) directory() indexCost {
	return indexCost{dirs: c.dirs, nodes: c.nodes, more: c.more, grown: c.grown}
}

const (
	entryCost = 32  // bytes of a page for one update
	pageCost  = 256 // for the first one of a chunk
	dirCost   = 192 // of directory block and node for a chunk
)

// costOf returns what it takes to write chunk c again, of which d is known, with its directory block, if alone, without
// the entries for its updates. The index lock is held.
func (r *Replica) costOf(c uint64, d *chunkRef, alone bool) indexCost {
	p := r.p
	x := indexCost{pages: int64(d.pageLen()) + pageCost, more: dirCost, steps: 1, early: 2} // directory blocks, nodes
	if d.page == 0 {
		x.grown = pageCost + dirCost
	}
	// What is replaced stays, and may become a history page, together with the newest of these.
	if d.older || len(r.snaps) > 0 {
		x.pages += int64(d.pageLen())
		x.steps += 2
		if d.deep {
			x.pages += int64(p.opt.historyBytes)
		}
	}
	if !alone {
		return x
	}
	n, j := nodeOf(c >> dirShift)
	if n >= uint64(len(r.dir)) {
		return x
	}
	root := &r.dir[n]
	x.nodes = int64(root.size)
	switch {
	case root.node != nil:
		x.dirs = int64(root.node.slots[j].size)
	case root.size > 0:
		x.dirs = maxDir
	}
	return x
}

// neighbour reports whether the last two of the chunks are of the same directory block.
func (r *Replica) neighbour(chunks []uint64) bool {
	n := len(chunks)
	return n > 1 && chunks[n-1]>>dirShift == chunks[n-2]>>dirShift
}

// rootCost returns what a checkpoint's root takes. The index lock is held.
func (p *Pool) rootCost() int64 {
	n := p.metaLive + 4096
	for _, r := range p.idx.bySlot {
		if r != nil {
			n += int64(len(r.state)) + 64
		}
	}
	return n
}

// meta returns the bytes of the index without the checkpoint's root, and how many pages it has. The index lock is held.
func (p *Pool) meta() (bytes, pages, dirs int64) {
	for _, r := range p.idx.bySlot {
		if r != nil {
			bytes, pages, dirs = bytes+r.meta, pages+r.pages, dirs+r.dirs
		}
	}
	return bytes, pages, dirs
}

// directory returns the bytes that directory blocks take at most. The index lock is held.
func (p *Pool) directory() int64 {
	meta, pages, dirs := p.meta()
	return max(min(meta-p.idx.nodes-pages*index.MinPage, dirs*maxDir), 0)
}

// bytesOf returns what a cost amounts to: the directory is written once at most, but for what is written ahead of the
// checkpoint because it takes too much memory. The index lock is held.
func (p *Pool) bytesOf(c *indexCost) int64 {
	x := &p.idx
	dirs := min(c.dirs, p.directory()) + min(c.nodes, x.nodes) + c.more
	steps := c.steps
	if x.dirs.dirty+c.early/2*(blockBytes+nodeBytes) > x.dirs.limit/2 { // see crowded
		dirs += dirs * 4 * maxDir / max(x.dirs.limit, 1)
		steps += c.early
	}
	row := int64(p.seg.maxRow()) * block.Size
	return c.pages + dirs + c.root + (steps/64+(c.pages+dirs)/(indexGroup-index.MaxHeads))*row
}

// indexSegments returns how many segments take so many bytes of pages at most: what is left of one is smaller than a
// page.
func (p *Pool) indexSegments(n int64) int {
	usable := p.seg.bytes() - int64(2*index.MaxHeads)
	return int((n + usable - 1) / usable)
}

// indexNeed returns bounds of the segments that pages, directory and checkpoint take: updates for what is in the tables
// and what the cleaner has moved; work for emptying one or two segments more, of data or of the index.
func (p *Pool) indexNeed() (updates, work int) {
	x := &p.idx
	x.mu.RLock()
	defer x.mu.RUnlock()
	meta, pages, dirs := p.meta()
	due := max(p.bytesOf(&p.drain.cost)-p.drain.wrote.Load(), p.drain.cost.root)
	next := x.cost[x.active]
	next.add(x.held)
	next.add(p.cleaner.cost)
	next.root = p.rootCost()
	next.pages += int64(x.tables[x.active].Len()+x.reserved) * entryCost
	due += p.bytesOf(&next)
	page := pageCost + meta/(pages+1)
	n := max(min(2*int64(p.seg.blocks()), 512), min(p.seg.bytes(), 1<<20)/page)
	all := min(n*maxDir, dirs*maxDir, meta) + min(n*maxDir, x.nodes)
	return p.indexSegments(due) + 2, p.indexSegments(min(n*page+all, meta+meta/8)) + 2
}

// keep returns the number of segments that must remain free when one is taken for that purpose.
//
// Moving data scatters the index. What is garbage in it is had back by bringing it together, which takes free segments for
// what moves, and gains something only when much does, since pages take their directory blocks along. So the cleaner
// leaves room for writing about all of the index: that much users leave for certain, of a small index a third of the
// reserve, of a large one twice its size. Otherwise free segments could become garbage of the index one by one, until too
// few would be left for having any of them back.
func (p *Pool) keep(what purpose) int {
	updates, work := p.indexNeed()
	p.idx.mu.RLock()
	spare := int(p.spare(0) >> p.seg.shift)
	p.idx.mu.RUnlock()
	small := p.seg.reserve() / 3
	work = min(work, small+spare)
	switch what {
	case forUser:
		return updates + work + 2
	case forRecords:
		return updates + work
	case forCleaner:
		return updates + work - (min(work, small)+1)/2
	}
	return updates
}

// fullBelow returns the number of free segments from which on the pool is not full: those are more than users have to
// leave, garbage included.
func (p *Pool) fullBelow() int {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	return p.seg.reserve() + int(p.spare(p.growing())>>p.seg.shift) + 1
}

// pagesFit returns errWait when what the updates in the tables and of the appends under way take for their pages is not
// free.
func (p *Pool) pagesFit() error {
	x := &p.idx
	free := p.seg.freeCount()
	x.mu.RLock()
	c := x.cost[x.active]
	c.add(x.held)
	c.add(p.drain.cost)
	few := c.pages+c.dirs+c.nodes+c.more+int64(x.tables[x.active].Len()+x.reserved)*entryCost < int64(free-p.seg.reserve())<<p.seg.shift
	x.mu.RUnlock()
	if few || free >= p.keep(forPages) {
		return nil
	}
	return errWait
}

// full returns ErrNoSpace when so many more blocks of data, some of which replace others, are more than the pool is
// for, errWait when a drain may show that they are not: only that knows how large the index becomes, what snapshots keep
// of what has been overwritten since the last one, and what deleted ones do not keep any more. So the answer does not
// depend on how much has been drained.
func (p *Pool) full(blocks int, replaced func() int64) error {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	more := int64(blocks) * block.Size
	grown := p.growing()
	most := p.allocated() + grown + p.spare(grown) - p.capacity()
	if most+more <= 0 {
		return nil
	}
	if more -= replaced(); more <= 0 || most+more <= 0 {
		return nil
	}
	over := p.allocated() + p.spare(0) - p.capacity() + more
	for _, r := range p.idx.byName {
		if len(r.snaps) > 0 {
			over -= r.pending + r.hidden
		}
		if r.purge.wanted {
			over -= r.held
		}
	}
	if over <= 0 {
		return errWait
	}
	return ErrNoSpace
}

// growing returns a bound of what the index has more of when all updates in the tables are in pages. The index lock is
// held.
func (p *Pool) growing() int64 {
	x := &p.idx
	return x.cost[x.active].grown + int64(x.tables[x.active].Len())*entryCost + p.drain.cost.grown
}

// spare returns what users have to leave for an index so large that the reserve is too small for writing it again, as
// overwriting blocks here and there does, when it has grown by so many bytes. The index lock is held.
func (p *Pool) spare(grown int64) int64 {
	meta := p.metaLive + grown
	for _, r := range p.idx.byName {
		meta += r.meta
	}
	return max(0, 2*meta-int64(p.seg.reserve()/3)<<p.seg.shift)
}

// cleanStart returns the number of free segments below which the cleaner works: as few as it can do with, since
// whatever is free is missing from the garbage that it may leave in segments until more of it has gathered.
func (p *Pool) cleanStart() int {
	least := p.keep(forUser) + 6
	most := least + int(int64(p.cleaner.maxMoves())*block.Size*3/2>>p.seg.shift)
	return max(min(max(p.seg.dataCount()/32, leastReserve), p.seg.reserve(), most), least)
}
