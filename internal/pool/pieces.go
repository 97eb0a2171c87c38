package pool

import (
	"cmp"
	"errors"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// chunkPieces is what the index says of one chunk.
type chunkPieces struct {
	r      *Replica
	number uint64
	ref    chunkRef
	data   []blockAt // every version of every block that is stored
	err    error     // the page or a history page is damaged: data is not all
	page   index.Page
	view   index.View
}

// blockAt is where a block of a chunk is.
type blockAt struct {
	block int
	loc   index.Loc
	sum   uint32
	ver   block.Version
}

// piece returns the piece that a block of the chunk is.
func (c *chunkPieces) piece(x *blockAt) piece {
	y := blockPiece(x.loc, x.sum, c.r.slot, c.number*block.ChunkBlocks+uint64(x.block))
	y.ver = x.ver
	return y
}

// eachChunk calls f, without locks, for every chunk of every replica that has data, with all that its page and the
// tables refer to. What is destroyed counts until it is taken apart: a checkpoint refers to it as long, and who takes it
// apart, maybe after a restart, reads it. What f gets is valid during the call.
func (p *Pool) eachChunk(f func(c *chunkPieces) error) error {
	c := new(chunkPieces)
	for slot := 0; ; slot++ {
		p.idx.mu.RLock()
		if slot >= len(p.idx.bySlot) {
			p.idx.mu.RUnlock()
			return nil
		}
		c.r = p.idx.bySlot[slot]
		p.idx.mu.RUnlock()
		if c.r == nil {
			continue
		}
		for c.number = 0; ; c.number++ {
			if more, err := p.nextChunk(c); err != nil {
				return err
			} else if !more {
				break
			}
			if len(c.data) == 0 && c.err == nil {
				continue
			}
			if err := f(c); err != nil {
				return err
			}
		}
	}
}

// nextChunk fills c for the first chunk that may have data from number on; false: there is none. A part of the directory
// that is damaged counts as its last chunk, of which nothing is known but the error.
func (p *Pool) nextChunk(c *chunkPieces) (more bool, err error) {
	var d chunkRef
	for {
		number, next, ok, err := c.r.next(c.number, nil, &d)
		switch {
		case err != nil && !isDamage(err):
			return false, err
		case err != nil:
			c.number, c.data, c.err = next-1, c.data[:0], err
			return true, nil
		case !ok:
			return false, nil
		case d.page == 0 && d.heads == [2]uint32{}:
			c.number = next
		default:
			c.number = number
			return true, p.fillChunk(c)
		}
	}
}

// fillChunk fills c with all that the index refers to for chunk number of r.
func (p *Pool) fillChunk(c *chunkPieces) error {
	c.data, c.err = c.data[:0], nil
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	d, err := c.r.rlock(c.number)
	if err != nil {
		return err
	}
	if d == nil {
		p.idx.mu.RUnlock()
		return nil
	}
	c.ref = *d
	p.addUpdates(c)
	p.idx.mu.RUnlock()
	return p.addPages(c)
}

// addUpdates adds what the tables have of c. The index lock is held.
func (p *Pool) addUpdates(c *chunkPieces) {
	for t := range p.idx.tables {
		for n := c.ref.heads[t]; n != 0; n = p.idx.tables[t].At(n).Next {
			if e := p.idx.tables[t].At(n); e.State() == index.Stored {
				c.data = append(c.data, blockAt{int(e.Block() % block.ChunkBlocks), e.Loc(), e.Sum, e.Version()})
			}
		}
	}
}

// addPages adds what the page and the history pages of c refer to. The caller is entered as a reader.
func (p *Pool) addPages(c *chunkPieces) error {
	if c.ref.page == 0 {
		return nil
	}
	e, err := p.loadPage(c.r, c.number, &c.ref, &c.view)
	if err != nil {
		return c.damaged(err)
	}
	c.view.Decode(&c.page)
	p.cache.release(e)
	for i := range c.page.Ver {
		if x := c.page.At(i); x.Stored {
			c.data = append(c.data, blockAt{i, x.Loc, x.Sum, x.Ver})
		}
	}
	for i := range c.page.Hist {
		c.page.Old, err = p.history(c.r, c.number, &c.page.Hist[i], c.page.Old)
		if err := c.damaged(err); err != nil {
			return err
		}
	}
	for i := range c.page.Old {
		if x := &c.page.Old[i]; x.Stored {
			c.data = append(c.data, blockAt{int(x.Block), x.Loc, x.Sum, x.Ver})
		}
	}
	return nil
}

// damaged notes an error that says that something is damaged, and returns any other.
func (c *chunkPieces) damaged(err error) error {
	if !isDamage(err) {
		return err
	}
	if c.err == nil {
		c.err = err
	}
	return nil
}

// histories returns what the page of a chunk says of its history pages.
func (p *Pool) histories(r *Replica, number uint64) ([]index.HistRef, error) {
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	d, err := r.rlock(number)
	if err != nil {
		return nil, err
	}
	if d == nil || d.page == 0 {
		p.idx.mu.RUnlock()
		return nil, nil
	}
	ref := *d
	p.idx.mu.RUnlock()
	var v index.View
	e, err := p.loadPage(r, number, &ref, &v)
	if err != nil {
		return nil, err
	}
	var pg index.Page
	v.Decode(&pg)
	p.cache.release(e)
	return pg.Hist, nil
}

// maxRefs bounds the bytes of the index whose places are in memory at a time.
const maxRefs = 256 << 20

// gather finds what the index says of some index segments, the first of which is seg.
func (w *walk) gather(seg uint32) error {
	p := w.p
	w.refs, w.refsOf = w.refs[:0], map[uint32]bool{}
	p.idx.mu.RLock()
	p.seg.mu.Lock()
	for n, i := int64(0), seg; i < w.live.hi && n < maxRefs; i++ {
		if p.seg.kind[i] == segIndex && p.seg.freed[i/64]>>(i%64)&1 == 0 && (i == seg || w.live.want(i)) {
			w.refsOf[i] = true
			n += int64(p.seg.pageLive[i])
		}
	}
	p.seg.mu.Unlock()
	slots := len(p.idx.bySlot)
	p.idx.mu.RUnlock()
	add := func(x piece) {
		if s := uint32(x.at >> p.seg.shift); w.refsOf[s] && x.at < w.end(s) {
			w.refs = append(w.refs, x)
		}
	}
	for slot := range slots {
		p.idx.mu.RLock()
		r := p.idx.bySlot[slot]
		p.idx.mu.RUnlock()
		if r == nil {
			continue
		}
		if err := w.gatherReplica(r, add); err != nil {
			return err
		}
	}
	for _, e := range w.root {
		add(rootPiece(e))
	}
	slices.SortFunc(w.refs, func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	return p.cycle()
}

// gatherReplica is gather for one replica.
func (w *walk) gatherReplica(r *Replica, add func(x piece)) error {
	err := w.p.eachDir(r, func(s *dirSlot, first uint64) {
		add(dirPiece(r, s, first))
	})
	if err != nil {
		return err
	}
	var d chunkRef
	for n := uint64(0); ; {
		number, next, ok, err := r.next(n, nil, &d)
		if n = next; err != nil && isDamage(err) {
			continue // it is found by itself
		}
		if err != nil || !ok {
			return err
		}
		if d.page != 0 {
			add(pagePiece(r, number, &d))
		}
		if d.deep {
			refs, err := w.p.histories(r, number)
			if err != nil && !isDamage(err) { // a damaged page is found by itself
				return err
			}
			for k := range refs {
				add(historyPiece(r, number, &refs[k]))
			}
		}
		if err := w.pace(0); err != nil {
			return err
		}
	}
}

// eachDir calls f, without locks, for every directory block and node of a replica that is on the devices, with its
// first chunk. Nodes that cannot be had are passed over with what is below them.
func (p *Pool) eachDir(r *Replica, f func(s *dirSlot, first uint64)) error {
	var slots [nodeSpan]dirSlot
	for n := uint64(0); ; n++ {
		var root dirSlot
		var node *dirNode
		for again := true; again; { // others may take the node out of memory at once
			err := r.warmNode(n)
			if err != nil && !isDamage(err) {
				return err
			}
			p.idx.mu.RLock()
			if n >= uint64(len(r.dir)) {
				p.idx.mu.RUnlock()
				return nil
			}
			root, node = r.dir[n].dirSlot, r.dir[n].node
			if node != nil {
				slots = node.slots
			}
			p.idx.mu.RUnlock()
			again = err == nil && node == nil && root.size > 0
		}
		if root.size > 0 {
			f(&root, n<<(nodeShift+dirShift))
		}
		for j := range slots {
			if node != nil && slots[j].size > 0 {
				f(&slots[j], (n<<nodeShift|uint64(j))<<dirShift)
			}
		}
	}
}

// isDamage reports whether an error says that what is stored is damaged, rather than that it cannot be read now.
func isDamage(err error) bool { return errors.Is(err, ErrChecksum) || errors.Is(err, ErrDamaged) }
