package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// releaseStep is the number of chunks that one cycle takes apart: what they held is free with its checkpoint, and others
// who wait for the cycle do not wait long.
var releaseStep = 4096

// releaseDying takes destroyed replicas apart, a step of it, and as far as it can before the active table asks for
// attention. The rest is for the next cycle. Only replicas that were destroyed before the freeze are touched: nothing in the active table
// belongs to them.
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
	var v index.View
	pg := &p.drain.page
	for i, b := range r.dir {
		if b == nil {
			continue
		}
		for c := range b.refs {
			d := &b.refs[c]
			p.idx.mu.RLock()
			old := *d
			busy := p.idx.tables[p.idx.active].Len() > p.idx.soft
			p.idx.mu.RUnlock()
			if old.page == 0 && old.bitmap == 0 && !old.full && old.tomb.IsZero() && old.newest.IsZero() {
				continue
			}
			if busy || *left == 0 {
				return false, nil
			}
			*left--
			pg.Reset(block.Version{})
			if old.page != 0 {
				e, err := p.loadPage(r, uint64(i*dirSpan+c), &old, &v)
				if err != nil {
					return false, err
				}
				v.Decode(pg)
				p.cache.release(e)
				if err := p.allHistory(r, uint64(i*dirSpan+c), pg); err != nil {
					return false, err
				}
				p.cache.drop(old.id)
			}
			p.idx.mu.Lock()
			b.dirty = true
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
			r.pending -= p.pendingOf(d)
			r.stored -= int64(p.idx.bitmaps.count(d))
			p.idx.bitmaps.drop(d, false)
			*d = chunkRef{}
			p.idx.mu.Unlock()
		}
		p.idx.mu.Lock()
		p.accountDir(r, b, -1)
		r.dir[i] = nil
		p.idx.mu.Unlock()
	}
	p.idx.mu.Lock()
	r.dir = nil
	p.idx.mu.Unlock()
	return true, nil
}
