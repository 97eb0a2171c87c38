package pool

import (
	"cmp"
	"iter"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// Who is to look at many chunks one after the other, and knows which, reads what is not in memory of the directory and
// the pages of the next ones together first. That changes nothing but how long it takes: what cannot be read is left to
// the read that follows, which reports it, and so is what has left memory before it was needed.
const (
	readsAtOnce = 16 // of the index, for one caller
	aheadChunks = 64 // chunks whose pages are read together
)

// together calls do for 0 to n-1, in this order, readsAtOnce at a time, and returns when all have returned.
func (p *Pool) together(n int, do func(i int)) {
	if n <= 1 || p.opt.Manual {
		for i := range n {
			do(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, readsAtOnce) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && p.failure() == nil; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	wg.Wait()
}

// coldDirs are directory blocks that are to be read together.
type coldDirs struct {
	p    *Pool
	list []dirAt
	left int64 // bytes of memory that more of them may take
}

// dirAt says where a directory block, or its node, is.
type dirAt struct {
	r    *Replica
	i    uint64 // number of the block
	addr uint64
}

func (p *Pool) coldDirs() coldDirs { return coldDirs{p: p, left: p.idx.dirs.limit / 4} }

// add adds directory block i, unless it is in memory or nowhere, and reports whether there is room for more of them.
// The index lock is held.
func (c *coldDirs) add(r *Replica, i uint64) bool {
	var last dirAt
	if n := len(c.list); n > 0 {
		last = c.list[n-1]
	}
	if last.r == r && last.i == i {
		return true
	}
	if _, cold := r.loaded(i); !cold {
		return true
	}
	if c.left < blockBytes+nodeBytes {
		return false
	}
	c.left -= blockBytes
	if _, node := r.missing(i); node && (last.r != r || last.i>>nodeShift != i>>nodeShift) {
		c.left -= nodeBytes
	}
	c.list = append(c.list, dirAt{r: r, i: i})
	return true
}

// addChunk adds what there is to be read of the directory so that a chunk can be made live.
func (c *coldDirs) addChunk(r *Replica, chunk uint64) bool {
	return r.live[chunk] != nil || c.add(r, chunk>>dirShift)
}

// read reads the nodes that are missing, and then the blocks. No lock behind the log's is held.
func (c *coldDirs) read() {
	if len(c.list) == 0 {
		return
	}
	var todo []dirAt
	for _, nodes := range []bool{true, false} {
		todo = todo[:0]
		c.p.idx.mu.RLock()
		for _, x := range c.list {
			if s, node := x.r.missing(x.i); s.size > 0 && node == nodes {
				x.addr = s.addr
				todo = append(todo, x)
			}
		}
		c.p.idx.mu.RUnlock()
		slices.SortFunc(todo, func(a, b dirAt) int { return cmp.Compare(a.addr, b.addr) })
		todo = slices.CompactFunc(todo, func(a, b dirAt) bool { return a.addr == b.addr })
		c.p.together(len(todo), func(i int) {
			if nodes {
				_ = todo[i].r.warmNode(todo[i].i >> nodeShift)
			} else {
				_ = todo[i].r.warm(todo[i].i)
			}
		})
	}
}

// pagesAhead are the pages of the next chunks that somebody is to look at, in memory until it comes to each.
type pagesAhead struct {
	list []pageAhead // those that are to be looked at, part of all
	all  []pageAhead // kept for its memory, as is todo
	todo []*pageAhead
}

// pageAhead is a chunk of pagesAhead.
type pageAhead struct {
	key     uint64 // slot and number of the chunk
	r       *Replica
	ref     chunkRef    // as of when it was read; without page: there is nothing to read
	page    *cachedPage // nil: it is not in memory
	fetched bool        // it was not before
}

// reach is called for each of the chunks before it is looked at; work begins with it. It reads what is missing of the
// next ones when it has come to the end of those that were read before, and reports whether the page of this one was
// read for that. Directory blocks are read for all of them, or only for chunks that are not live. The caller holds drain.cycle.
func (a *pagesAhead) reach(p *Pool, work []uint64, all bool) (fetched bool) {
	if len(a.list) == 0 || a.list[0].key != work[0] {
		a.drop(p)
		a.read(p, work[:min(len(work), aheadChunks)], all)
	}
	x := &a.list[0]
	if x.page != nil {
		p.cache.release(x.page) // whoever looks at it takes it from the cache now
	}
	fetched = x.fetched
	a.list = a.list[1:]
	return fetched
}

// drop lets go of all pages.
func (a *pagesAhead) drop(p *Pool) {
	for i := range a.list {
		if e := a.list[i].page; e != nil {
			p.cache.release(e)
		}
	}
	a.list = nil
}

// read reads ahead for as many of the chunks as there is memory for, at least one.
func (a *pagesAhead) read(p *Pool, work []uint64, all bool) {
	a.all = a.all[:0]
	dirs := p.coldDirs()
	p.idx.mu.RLock()
	for _, key := range work {
		x := pageAhead{key: key}
		if slot := key >> 31; slot < uint64(len(p.idx.bySlot)) {
			x.r = p.idx.bySlot[slot]
		}
		if x.r != nil && !x.r.dying {
			chunk := key & (1<<31 - 1)
			if ok := all && dirs.add(x.r, chunk>>dirShift) || !all && dirs.addChunk(x.r, chunk); !ok && len(a.all) > 0 {
				break
			}
		}
		a.all = append(a.all, x)
	}
	a.list = a.all
	p.idx.mu.RUnlock()
	dirs.read()
	p.idx.mu.RLock()
	for i := range a.list {
		if x := &a.list[i]; x.r != nil && !x.r.dying {
			if d, _ := x.r.chunk(x.key & (1<<31 - 1)); d != nil {
				x.ref = *d
			}
		}
	}
	p.idx.mu.RUnlock()
	a.todo = a.todo[:0]
	left := p.cache.half()
	for i := range a.list {
		x := &a.list[i]
		if x.ref.page == 0 {
			continue
		}
		if left -= int64(x.ref.pageLen()) + bufferStep; left < 0 && i > 0 {
			a.list = a.list[:i]
			break
		}
		if x.page = p.cache.hold(x.ref.id); x.page == nil {
			a.todo = append(a.todo, x)
		}
	}
	slices.SortFunc(a.todo, func(x, y *pageAhead) int { return cmp.Compare(x.ref.page, y.ref.page) })
	p.together(len(a.todo), func(i int) {
		x := a.todo[i]
		x.page = p.readPage(x.r, x.key&(1<<31-1), &x.ref)
		x.fetched = x.page != nil
	})
}

// readPage is loadPage that gives up with nil where there is anything wrong.
func (p *Pool) readPage(r *Replica, chunk uint64, d *chunkRef) *cachedPage {
	n := d.pageLen()
	if n == 0 || n > index.MaxPage {
		return nil
	}
	var v index.View
	e := p.cache.buffer(n)
	if p.readPacked(e.b, d.pageAddr()) != nil || v.Open(e.b, d.id, r.slot, chunk, false) != nil || v.End() > p.seg.limit() {
		p.cache.release(e)
		return nil
	}
	p.cache.put(e, d.id)
	return e
}

// half returns how many bytes of pages may be kept from leaving memory.
func (c *pageCache) half() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return (c.limit - c.taken) / 2
}

// hold is get for who does not look at the page yet.
func (c *pageCache) hold(id uint64) *cachedPage {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e != nil {
		e.refs++
	}
	return e
}

// warmAhead reads what is missing of the directory for ranges of chunks, from one to another, as many as there is memory
// for.
func (r *Replica) warmAhead(ranges iter.Seq2[uint64, uint64]) {
	dirs := r.p.coldDirs()
	steps := 0
	r.p.idx.mu.RLock()
	for c, last := range ranges {
		for ; c <= last && dirs.addChunk(r, c); c++ {
			if steps++; steps%lockStep == 0 {
				r.p.idx.mu.RUnlock()
				r.p.idx.mu.RLock()
			}
		}
		if c <= last {
			break
		}
	}
	r.p.idx.mu.RUnlock()
	dirs.read()
}

// chunksOf yields chunks first to last, and those of the operations.
func chunksOf(first, last uint64, ops []Op) iter.Seq2[uint64, uint64] {
	return func(yield func(uint64, uint64) bool) {
		more := yield(first, last)
		for i := 0; more && i < len(ops); i++ {
			if o := &ops[i]; o.Kind != OpMark {
				more = yield(o.Block/block.ChunkBlocks, lastChunk(o.Block, uint64(o.Count)))
			}
		}
	}
}

// walkAhead is for who goes through the directory blocks of which want, if not nil, is true, before it looks at block i:
// if that is to be read, some of the next ones are, too.
func (r *Replica) walkAhead(i uint64, want func(s *dirSlot) bool) {
	r.p.idx.mu.RLock()
	_, cold := r.loaded(i)
	r.p.idx.mu.RUnlock()
	if !cold {
		return
	}
	dirs := r.p.coldDirs()
	for range aheadChunks {
		next, node, ok := r.nextDir(i, want)
		if !ok || node {
			break
		}
		r.p.idx.mu.RLock()
		ok = dirs.add(r, next)
		r.p.idx.mu.RUnlock()
		if !ok {
			break
		}
		i = next + 1
	}
	dirs.read()
}

// lastChunk returns the last chunk of n blocks from b on, of the first if there are none.
func lastChunk(b, n uint64) uint64 { return (b + max(n, 1) - 1) / block.ChunkBlocks }
