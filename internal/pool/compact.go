package pool

import (
	"cmp"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// compactBytes is how much of the index one cycle moves at most to empty sparse segments of it, and compactDirs how
// many directory blocks it looks at for that.
const (
	compactBytes = 16 << 20
	compactDirs  = 4096
	compactLeast = 256 // of them, even if the active table waits
	compactAlone = 3   // cycles in a row without cleaning
)

// compaction is a walk through the directories of all replicas that empties index segments; it may take many cycles.
type compaction struct {
	victims map[uint32]bool // nil: there is no walk
	tight   bool            // they were chosen when there was little room
	alone   int             // cycles in a row that the cleaner has left to it
	slot    int             // where it goes on
	next    uint64          // directory block
}

// compactIndex rewrites what is left in sparse index segments when the index takes more than twice its size, so that
// copy-on-write pages do not scatter over the pool: the emptiest segments first, and no more of them than a walk can do
// and has free segments for.
func (p *Pool) compactIndex() error {
	s := &p.drain
	c := &s.compaction
	victims, gain, tight := p.sparseIndex()
	if c.victims == nil || tight && !c.tight && len(victims) > 1 {
		if len(victims) < 2 || gain <= 0 {
			return nil
		}
		*c = compaction{victims: victims, tight: tight, alone: c.alone}
	}
	p.idx.mu.RLock()
	p.seg.mu.Lock()
	for seg := range c.victims {
		if p.seg.kind[seg] != segIndex || p.seg.pinned[seg] || p.seg.pageLive[seg] == 0 { // emptied, perhaps used again
			delete(c.victims, seg)
		}
	}
	p.seg.mu.Unlock()
	p.idx.mu.RUnlock()
	s.victims = c.victims
	defer func() { s.work, s.next, s.victims = s.work[:0], 0, nil }()
	from := *c // of what is in the work
	for left := compactDirs; left > 0 && (tight || left > compactDirs-compactLeast || !p.busy()); left-- {
		p.idx.mu.RLock()
		var r *Replica
		if c.slot < len(p.idx.bySlot) {
			r = p.idx.bySlot[c.slot]
		}
		over := c.slot >= len(p.idx.bySlot)
		p.idx.mu.RUnlock()
		if over {
			c.victims = nil
			break
		}
		more := false
		if r != nil {
			more = p.inSegments(r)
		}
		if !more {
			c.slot, c.next = c.slot+1, 0
		}
		if len(s.work) >= drainGroup {
			if p.pagesFit() != nil {
				break
			}
			if err := p.drainWork(); err != nil {
				return err
			}
			from = *c
		}
	}
	if p.pagesFit() != nil { // there would be no room for what the updates in the tables take
		c.slot, c.next = from.slot, from.next
		return nil
	}
	return p.drainWork()
}

// drainWork rewrites all chunks of the work.
func (p *Pool) drainWork() error {
	s := &p.drain
	for s.next < len(s.work) {
		if err := p.drainStep(); err != nil {
			return err
		}
	}
	s.work, s.next = s.work[:0], 0
	return nil
}

// sparseIndex returns the index segments to empty, what that makes room for in bytes, and whether it is urgent.
func (p *Pool) sparseIndex() (victims map[uint32]bool, gain int64, tight bool) {
	need := p.keep(forUser) + 2
	updates, _ := p.indexNeed()
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	p.seg.mu.Lock()
	defer p.seg.mu.Unlock()
	tight = p.seg.nFree < need
	sparse := p.seg.bytes() / 3
	if tight {
		sparse *= 2
	}
	var live, used, moved int64
	var all []victim
	for i, k := range p.seg.kind {
		if n := p.seg.pageLive[i]; k == segIndex && n > 0 && !p.seg.pinned[i] {
			live += int64(n)
			used += p.seg.bytes()
			if int64(n) < sparse {
				all = append(all, victim{seg: uint32(i), live: n})
			}
		}
	}
	if !tight && used < 2*live+4*p.seg.bytes() {
		return nil, 0, false
	}
	slices.SortFunc(all, func(a, b victim) int { return cmp.Or(cmp.Compare(a.live, b.live), cmp.Compare(a.seg, b.seg)) })
	_, _, dirs := p.meta()
	walk := 1 + dirs/compactDirs // cycles that it takes
	most := min(walk*compactBytes, int64(p.seg.nFree-updates)*p.seg.bytes())
	victims = map[uint32]bool{}
	for _, v := range all {
		moved += int64(v.live)
		cost := p.moveCost(moved)
		if cost > most && len(victims) >= 2 {
			break
		}
		victims[v.seg] = true
		gain = int64(len(victims))*p.seg.bytes() - cost
	}
	return victims, gain, tight
}

// moveCost returns about how much is written when so many bytes of the index are moved: the directory of the pages among
// them is written again, and half of a row is lost with each step. The index lock is held.
func (p *Pool) moveCost(n int64) int64 {
	meta, pages, dirs := p.meta()
	moved := n / max((meta-p.idx.nodes)/(pages+1), index.MinPage)
	all := p.directory()
	return n + min(moved*(all/(dirs+1)), all) + p.idx.nodes + p.metaLive + (moved/drainGroup+4)*int64(p.seg.maxRow())*block.Size/2
}

// compacts reports whether this cycle is to leave the segments of data alone, since users wait and more is gained by
// bringing the index closer together: moving data scatters it, and takes the room that this takes. It is not many times in
// a row, so that whatever keeps the index from being moved keeps nobody else.
func (p *Pool) compacts() bool {
	c := &p.drain.compaction
	if _, gain, tight := p.sparseIndex(); tight && gain >= p.seg.bytes() && c.alone < compactAlone {
		c.alone++
		return true
	}
	c.alone = 0
	return false
}

// inSegments looks at the next directory block of a replica: it adds to the work the chunks whose pages are in segments
// to be emptied, or history pages may be, and has the block and its node written again if they are there. What cannot be
// read stays where it is, with all that it leads to. more is false at the end.
func (p *Pool) inSegments(r *Replica) (more bool) {
	s := &p.drain
	c := &s.compaction
	i, node, ok := r.nextDir(c.next, nil)
	if c.next = i; !ok {
		return false
	}
	if node {
		n, _ := nodeOf(i)
		if r.warmNode(n) != nil {
			c.next = (n + 1) << nodeShift
		}
		return true
	}
	r.walkAhead(i, nil)
	c.next++
	b, err := r.pin(i)
	if err != nil {
		return true
	}
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	defer func() { b.pins-- }()
	inVictim := func(addr uint64) bool { return s.victims[uint32(addr>>p.seg.shift)] }
	n, j := nodeOf(i)
	root := &r.dir[n]
	if root.size > 0 && inVictim(root.addr) {
		s.cost.nodes += int64(root.size)
		p.idx.dirs.change(&root.node.dirItem)
	}
	if x := &root.node.slots[j]; x.size > 0 && inVictim(x.addr) {
		s.cost.nodes, s.cost.dirs = s.cost.nodes+int64(root.size), s.cost.dirs+int64(x.size)
		p.idx.dirs.change(&b.dirItem)
	}
	for k := range b.refs {
		if d := &b.refs[k]; d.page != 0 && !r.dying && (d.deep || inVictim(d.pageAddr())) {
			s.work = append(s.work, index.Key(r.slot, 0)/block.ChunkBlocks|i<<dirShift|uint64(k))
			cost := r.costOf(i<<dirShift|uint64(k), d, !r.neighbour(s.work))
			cost.pages, cost.more = cost.pages-pageCost, 0 // the page moves as it is
			s.cost.add(cost)
		}
	}
	return true
}
