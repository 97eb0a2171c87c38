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
// in the active table belongs to them. What cannot be read, and with it what that refers to, stays until the pool is opened
// again: the replica is stuck then.
func (p *Pool) releaseDying() error {
	left := releaseStep
	for i := 0; i < len(p.drain.images); i++ {
		m := &p.drain.images[i]
		if !m.dying || m.r.stuck {
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
		} else if !m.r.stuck {
			p.wake()
		}
	}
	return nil
}

// release gives back what the directory of r refers to, at most so many chunks, and reports whether all is gone. When only
// what cannot be read is left, r is stuck.
func (p *Pool) release(r *Replica, left *int) (done bool, err error) {
	p.idx.mu.Lock()
	p.drain.cost.more += 2 * maxDir // of what is left in the end
	p.idx.mu.Unlock()
	var unreadable error
	for i := uint64(0); ; {
		var node, ok bool
		i, node, ok = r.nextDir(i, nil)
		switch {
		case !ok && unreadable != nil:
			p.idx.mu.Lock()
			r.stuck = true
			p.idx.mu.Unlock()
			if p.opt.Log != nil {
				p.opt.Log.Warn("what is left of a destroyed replica cannot be read; its space is not given back", "pool", p.cfg.Name, "replica", r.name, "err", unreadable)
			}
			return false, nil
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
			if err = r.warmNode(n); err != nil {
				i = (n + 1) << nodeShift
			}
		default:
			done, err = p.releaseBlock(r, i, left)
			if !done {
				return false, nil
			}
			if err != nil {
				i++
			}
		}
		if e := p.failure(); e != nil {
			return false, e
		}
		if unreadable == nil {
			unreadable = err
		}
	}
}

// releaseBlock is release for a directory block. The error says that something of it cannot be read, which stays.
func (p *Pool) releaseBlock(r *Replica, i uint64, left *int) (done bool, err error) {
	b, err := r.pin(i)
	if err != nil {
		return true, err
	}
	defer r.unpin(b)
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
		pg.Reset(block.Version{})
		if old.page != 0 {
			if e := p.wholePage(r, i<<dirShift+uint64(c), &old, pg); e != nil {
				err = e
				continue
			}
			p.cache.drop(old.id)
		}
		*left--
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
	if err != nil {
		return true, err
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

// wholePage fills pg with the page of a chunk and what its history pages have.
func (p *Pool) wholePage(r *Replica, chunk uint64, d *chunkRef, pg *index.Page) error {
	var v index.View
	e, err := p.loadPage(r, chunk, d, &v)
	if err != nil {
		return err
	}
	v.Decode(pg)
	p.cache.release(e)
	return p.allHistory(r, chunk, pg)
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
