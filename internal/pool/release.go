package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// releaseStep is the number of chunks that one cycle takes apart: what they held is free with its checkpoint, and
// others who wait for the cycle do not wait long.
var releaseStep = 4096

// releaseDying takes destroyed replicas apart, a step of it, and as far as it can before the active table asks for
// attention. The rest is for the next cycle. Only replicas that were destroyed before the freeze are touched: nothing
// in the active table belongs to them.
func (p *Pool) releaseDying() error {
	left := releaseStep
	for i := 0; i < len(p.drain.images); i++ {
		m := &p.drain.images[i]
		if !m.dying {
			continue
		}
		done, err := p.release(m.r, &left)
		if err != nil {
			return err
		}
		if done {
			p.idx.mu.Lock()
			m.r.released = true
			p.idx.mu.Unlock()
			p.drain.released = append(p.drain.released, m.r)
			p.drain.images = append(p.drain.images[:i], p.drain.images[i+1:]...)
			i--
		} else {
			p.wake()
		}
	}
	return nil
}

// release gives back what the directory of r refers to, at most so many chunks, and reports whether all is gone.
func (p *Pool) release(r *Replica, left *int) (done bool, err error) {
	p.idx.mu.Lock()
	p.drain.cost.more += 2 * maxDir // of what is left in the end
	p.idx.mu.Unlock()
	for i := uint64(0); ; {
		var node, ok bool
		i, node, ok = r.nextDir(i, nil)
		switch {
		case !ok:
			p.idx.mu.Lock()
			for n := range r.dir {
				p.dropNode(r, n)
			}
			r.dir = nil
			p.idx.mu.Unlock()
			return true, nil
		case node:
			n, _ := nodeOf(i)
			err = r.warmNode(n)
		default:
			done, err = p.releaseBlock(r, i, left)
			if !done {
				return false, err
			}
		}
		if err != nil {
			return false, err
		}
	}
}

// releaseBlock is release for a directory block.
func (p *Pool) releaseBlock(r *Replica, i uint64, left *int) (done bool, err error) {
	b, err := r.pin(i)
	if err != nil {
		return false, err
	}
	defer r.unpin(b)
	var v index.View
	pg := &p.drain.page
	for c := range b.refs {
		d := &b.refs[c]
		p.idx.mu.RLock()
		old := *d
		busy := p.idx.tables[p.idx.active].Len() > p.idx.soft
		p.idx.mu.RUnlock()
		if !old.known() {
			continue
		}
		if busy || *left == 0 {
			return false, nil
		}
		*left--
		pg.Reset(block.Version{})
		if old.page != 0 {
			chunk := i<<dirShift + uint64(c)
			e, err := p.loadPage(r, chunk, &old, &v)
			if err != nil {
				return false, err
			}
			v.Decode(pg)
			p.cache.release(e)
			if err := p.allHistory(r, chunk, pg); err != nil {
				return false, err
			}
			p.cache.drop(old.id)
		}
		p.idx.mu.Lock()
		p.idx.dirs.change(&b.dirItem)
		for j := range pg.Hist {
			p.accountHistory(r, &pg.Hist[j], -1)
			p.cache.drop(pg.Hist[j].ID)
		}
		for j := range pg.Old {
			if o := &pg.Old[j]; o.Stored {
				p.seg.pageLive[p.seg.of(o.Loc)] -= uint32(o.Loc.Len())
				r.held -= int64(o.Loc.Len())
			}
		}
		for j := range pg.Ver {
			if pg.Stored.Has(j) {
				p.seg.pageLive[p.seg.of(pg.Loc[j])] -= uint32(pg.Loc[j].Len())
			}
		}
		p.accountPage(r, old.page, -1)
		r.data -= int64(d.data)
		r.stored -= int64(p.idx.bitmaps.count(d))
		p.idx.bitmaps.drop(d, false)
		*d = chunkRef{}
		p.idx.mu.Unlock()
	}
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	n, j := nodeOf(i)
	node := r.dir[n].node
	p.accountDir(r, &node.slots[j], -1, false)
	node.slots[j] = dirSlot{}
	p.idx.dirs.change(&node.dirItem)
	p.idx.dirs.discard(&b.dirItem)
	if node.loaded == 0 && node.slots == [nodeSpan]dirSlot{} {
		p.dropNode(r, int(n))
	}
	return true, nil
}

// dropNode takes node n, which is empty, out of the directory. The index lock is held for writing.
func (p *Pool) dropNode(r *Replica, n int) {
	x := &r.dir[n]
	p.accountDir(r, &x.dirSlot, -1, true)
	x.dirSlot = dirSlot{}
	if x.node != nil {
		for _, b := range x.node.blocks {
			if b != nil {
				p.idx.dirs.discard(&b.dirItem)
			}
		}
		p.idx.dirs.discard(&x.node.dirItem)
	}
}
