package pool

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// Check recomputes every counter that the engine keeps from the index itself and reports all that differ: presence
// and newest version of every chunk, what replicas use, older versions and their history, live bytes of every segment,
// free segments, blocks that two places refer to. It holds up everything else while it runs. It reads index pages but
// no data.
func (p *Pool) Check() error {
	p.drain.cycle.Lock()
	defer p.drain.cycle.Unlock()
	p.commits.wait()
	p.drain.mu.Lock()
	defer p.drain.mu.Unlock()
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	c := &checker{p: p, page: make([]uint64, p.seg.count()), delta: make([]uint64, p.seg.count()), owner: map[index.Loc]string{}}
	for _, r := range p.idx.bySlot {
		if r != nil {
			c.replica(r)
		}
	}
	for _, e := range p.root {
		c.page[e.Addr>>p.seg.shift] += uint64(granules(e.Len))
		c.meta += int64(granules(e.Len))
	}
	c.segments()
	if len(c.errs) > 0 {
		return p.wrap("check", errors.Join(c.errs...))
	}
	return nil
}

type checker struct {
	p     *Pool
	page  []uint64 // live bytes by segment
	delta []uint64
	owner map[index.Loc]string
	meta  int64
	errs  []error
	pg    index.Page
}

func (c *checker) errorf(format string, a ...any) {
	if len(c.errs) < 20 {
		c.errs = append(c.errs, fmt.Errorf(format, a...))
	}
}

// refer notes that who refers to a data block. A page and a table may agree on one.
func (c *checker) refer(loc index.Loc, who string, live []uint64) {
	if loc.End() > c.p.seg.limit() {
		c.errorf("%s: location %#x is outside the pool", who, loc)
		return
	}
	if o, ok := c.owner[loc]; ok && o != who {
		c.errorf("location %#x belongs to %s and %s", loc, o, who)
	}
	if c.p.offline == nil { // the audit finds that without so much memory
		c.owner[loc] = who
	}
	live[c.p.seg.of(loc)] += uint64(loc.Len())
}

func (c *checker) replica(r *Replica) {
	p := c.p
	var stored, meta, pages, held, history int64
	var sum accounts
	v := new(chunkView)
	dirs := int64(0)
	err := p.eachDir(r, func(s *dirSlot, _ uint64) {
		c.page[s.addr>>p.seg.shift] += uint64(granules(s.size))
		meta += int64(granules(s.size))
		dirs++
	})
	if err != nil {
		c.errorf("replica %s: %v", r.name, err)
	}
	c.directory(r)
	var ref chunkRef
	for n := uint64(0); ; {
		chunk, next, ok, err := r.next(n, nil, &ref)
		if n = next; err != nil {
			c.errorf("replica %s: %v", r.name, err)
			continue
		}
		if !ok {
			break
		}
		d := &ref
		if d.page != 0 {
			c.page[d.pageAddr()>>p.seg.shift] += uint64(d.pageLen())
			meta += int64(d.pageLen())
			pages++
			var view index.View
			e, err := p.loadPage(r, chunk, d, &view)
			if err != nil {
				c.errorf("replica %s: %v", r.name, err)
				continue
			}
			view.Decode(&c.pg)
			p.cache.release(e)
			h, m := c.pageOf(r, chunk, d)
			held, meta, history = held+h, meta+m, history+m
		} else {
			c.pg.Reset(d.tomb)
			if d.older || d.deep {
				c.errorf("replica %s chunk %d: older versions without a page", r.name, chunk)
			}
		}
		c.chunk(r, d, chunk, &c.pg, &sum)
		for t := range p.idx.tables {
			for n := d.heads[t]; n != 0; n = p.idx.tables[t].At(n).Next {
				if e := p.idx.tables[t].At(n); e.State() == index.Stored {
					c.refer(e.Loc(), fmt.Sprintf("%s block %d version %v", r.guid, e.Block(), e.Version()), c.delta)
					sum.delta += int64(e.Loc().Len())
				}
			}
		}
		if r.destroyed {
			continue
		}
		if err := r.listOwn(v, chunk); err != nil {
			c.errorf("replica %s: %v", r.name, err)
			continue
		}
		n := v.page.Stored.Count()
		stored += int64(n)
		if p.idx.bitmaps.of(d) != v.page.Stored {
			c.errorf("replica %s chunk %d: presence is wrong: %d stored, %d known", r.name, chunk, n, p.idx.bitmaps.count(d))
		}
		var newest block.Version
		for _, x := range v.page.Ver {
			if newest.Less(x) {
				newest = x
			}
		}
		if d.newest.Less(newest) { // higher is possible, when a rebuild's source is ahead of the live writes
			c.errorf("replica %s chunk %d: has a block of %v, newest is said to be %v", r.name, chunk, newest, d.newest)
		}
	}
	if !r.destroyed && stored != r.stored {
		c.errorf("replica %s: %d blocks stored, %d known", r.name, stored, r.stored)
	}
	if known := (accounts{r.data, r.delta, r.hidden, r.pending}); sum != known {
		c.errorf("replica %s: data, delta, hidden, pending are %d bytes, %d known", r.name, sum, known)
	}
	if held != r.held || history != r.history {
		c.errorf("replica %s: %d bytes of older versions, %d known; %d bytes of history, %d known", r.name, held, r.held, history, r.history)
	}
	if meta != r.meta || pages != r.pages || dirs != r.dirs {
		c.errorf("replica %s: %d bytes in %d pages and %d parts of the directory, %d in %d and %d known", r.name, meta, pages, dirs, r.meta, r.pages, r.dirs)
	}
}

// directory compares what slots say of directory blocks and nodes with what is in them.
func (c *checker) directory(r *Replica) {
	p := c.p
	same := func(s, sum *dirSlot) bool {
		return s.newest == sum.newest && s.stored == sum.stored && s.older == sum.older
	}
	for i := uint64(0); ; {
		var node, ok bool
		if i, node, ok = r.nextDir(i, nil); !ok {
			return
		}
		n, j := nodeOf(i)
		if err := r.warm(i); err != nil {
			if i++; node {
				i = (n + 1) << nodeShift
			}
			continue // whoever looks at the chunks says so
		}
		p.idx.mu.RLock()
		if x := &r.dir[n]; x.node != nil {
			var inBlock, inNode dirSlot
			if b := x.node.blocks[j]; b != nil && !b.dirty && x.node.slots[j].size > 0 {
				if p.encodeDir(nil, b, &inBlock); !same(&x.node.slots[j], &inBlock) {
					c.errorf("replica %s: directory block %d has %+v, is said to have %+v", r.name, i, inBlock, x.node.slots[j])
				}
			}
			if encodeNode(nil, x.node, &inNode); !x.node.dirty && x.size > 0 && j == 0 && !same(&x.dirSlot, &inNode) {
				c.errorf("replica %s: directory node %d has %+v, is said to have %+v", r.name, n, inNode, x.dirSlot)
			}
		}
		p.idx.mu.RUnlock()
		i++
	}
}

// overlaps reports locations that share bytes without being the same.
func (c *checker) overlaps() {
	all := slices.Sorted(maps.Keys(c.owner))
	for i := 1; i < len(all); i++ {
		if all[i-1].End() > all[i].Addr() {
			c.errorf("%#x with %d bytes of %s and %#x of %s overlap", all[i-1].Addr(), all[i-1].Len(), c.owner[all[i-1]], all[i].Addr(), c.owner[all[i]])
		}
	}
}

// accounts are the four sums of account.go.
type accounts struct{ data, delta, hidden, pending int64 }

// chunk adds what a chunk takes, as its page and the tables have it, to sum.
func (c *checker) chunk(r *Replica, d *chunkRef, chunk uint64, pg *index.Page, sum *accounts) {
	p := c.p
	active := p.idx.active
	count, data := sizeOf(pg)
	fresh, replaced := 0, 0
	for i := range block.ChunkBlocks {
		key := index.Key(r.slot, chunk*block.ChunkBlocks+uint64(i))
		visible := true // what is below the tables looked at so far
		for _, t := range [2]int{active, 1 - active} {
			if d.heads[t] == 0 {
				continue
			}
			e := p.idx.tables[t].Find(key)
			known := e != nil && e.State() != index.Dead
			if known && e.Visible() && e.State() == index.Stored {
				if visible {
					fresh++
				} else {
					sum.hidden += int64(e.Loc().Len())
				}
			}
			visible = visible && !known && d.disc[t] == 0
		}
		if !visible && pg.Stored.Has(i) {
			replaced++
		}
	}
	if count != int(d.count) || data != d.data || fresh != int(d.fresh) {
		c.errorf("replica %s chunk %d: page has %d blocks in %d bytes, tables have %d; %d in %d and %d known", r.name, chunk, count, data, fresh, d.count, d.data, d.fresh)
	}
	sum.data += int64(data)
	if count > 0 {
		sum.pending += int64(replaced) * int64(data) / int64(count)
	}
}

// pageOf refers to what the page c.pg of a chunk refers to, and returns the bytes of older versions and of history
// pages.
func (c *checker) pageOf(r *Replica, chunk uint64, d *chunkRef) (held, history int64) {
	p, pg := c.p, &c.pg
	who := func(o *index.Old) string {
		return fmt.Sprintf("%s block %d version %v", r.guid, chunk*block.ChunkBlocks+uint64(o.Block), o.Ver)
	}
	for n := range block.ChunkBlocks {
		if o := pg.At(n); o.Stored {
			c.refer(o.Loc, who(&o), c.page)
		}
	}
	if d.older != (len(pg.Old)+len(pg.Hist) > 0) || d.deep != (len(pg.Hist) > 0) {
		c.errorf("replica %s chunk %d: %d older versions, %d history pages, flags %t %t", r.name, chunk, len(pg.Old), len(pg.Hist), d.older, d.deep)
	}
	next := pg.Ver
	older := func(old []index.Old) {
		for i := range old {
			o := &old[i]
			if !o.Ver.Less(next[o.Block]) || i > 0 && index.CompareOld(old[i-1], *o) >= 0 {
				c.errorf("replica %s chunk %d: version %v of block %d is not in order", r.name, chunk, o.Ver, o.Block)
			}
			if !r.purge.wanted && !r.destroyed && !r.snaps.show(o.Ver, next[o.Block]) {
				c.errorf("replica %s chunk %d: version %v of block %d is kept for no snapshot, before %v", r.name, chunk, o.Ver, o.Block, next[o.Block])
			}
			next[o.Block] = o.Ver
			if o.Stored {
				c.refer(o.Loc, who(o), c.page)
				held += int64(o.Loc.Len())
			}
		}
	}
	older(pg.Old)
	for i := range pg.Hist {
		h := &pg.Hist[i]
		c.page[h.Addr()>>p.seg.shift] += uint64(h.Len())
		history += int64(h.Len())
		old, err := p.history(r, chunk, h, nil)
		if err != nil {
			c.errorf("replica %s: %v", r.name, err)
			continue
		}
		if g := index.Describe(old); g.Lo != h.Lo || g.Hi != h.Hi || g.First != h.First || g.Last != h.Last || g.Count != h.Count {
			c.errorf("replica %s chunk %d: history page %d is not what its reference says", r.name, chunk, i)
		}
		older(old)
	}
	return held, history
}

func (c *checker) segments() {
	p := c.p
	p.seg.mu.Lock()
	defer p.seg.mu.Unlock()
	if c.meta != p.metaLive {
		c.errorf("root: %d bytes, %d known", c.meta, p.metaLive)
	}
	c.overlaps()
	free := map[*groupState]int{}
	for i := range p.seg.kind {
		if uint64(p.seg.pageLive[i]) != c.page[i] || uint64(p.seg.deltaLive[i]) != c.delta[i] {
			c.errorf("segment %d: live %d+%d bytes, %d+%d known", i, c.page[i], c.delta[i], p.seg.pageLive[i], p.seg.deltaLive[i])
		}
		isFree := p.seg.free[i/64]>>(i%64)&1 != 0
		if isFree {
			free[p.seg.where.Load().span(uint32(i)).group]++
		}
		if isFree != (p.seg.kind[i] == segFree) || isFree && (c.page[i]+c.delta[i] > 0 || p.seg.pinned[i]) {
			c.errorf("segment %d: free %t, kind %d, live %d, pinned %t", i, isFree, p.seg.kind[i], c.page[i]+c.delta[i], p.seg.pinned[i])
		}
	}
	data, cache := 0, 0
	for _, g := range p.seg.where.Load().groups {
		if g.free != free[g] {
			c.errorf("%s: %d segments are free, %d known", g.name(), free[g], g.free)
		}
		if g.cache {
			cache += free[g]
		} else {
			data += free[g]
		}
	}
	if data != p.seg.nFree || cache != p.seg.nCache {
		c.errorf("%d+%d segments are free, %d+%d known", data, cache, p.seg.nFree, p.seg.nCache)
	}
	if p.log.chain[0] != p.commits.from.seg {
		c.errorf("the log is kept from segment %d on, a replay begins in %d", p.log.chain[0], p.commits.from.seg)
	}
	for _, s := range p.log.chain {
		if !p.seg.pinned[s] || p.seg.kind[s] != segLog {
			c.errorf("segment %d of the log: kind %d, pinned %t", s, p.seg.kind[s], p.seg.pinned[s])
		}
	}
}
