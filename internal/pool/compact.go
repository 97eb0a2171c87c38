package pool

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// compactBytes is how much of the index one cycle moves at most to empty sparse segments of it.
const compactBytes = 16 << 20

// compactStep is the number of chunks that one cycle looks at to do so.
const compactStep = 4096

// compactIndex rewrites what is left in sparse index segments when the index takes more than twice its size, so that
// copy-on-write pages do not scatter over the pool: the emptiest segments first, and no more of them than a cycle can do
// in a short time and has free segments for.
func (p *Pool) compactIndex() error {
	s := &p.drain
	victims, tight := p.sparseIndex()
	if len(victims) < 2 {
		return nil
	}
	var work []uint64
	for i := range s.images {
		work = p.inSegments(s.images[i].r, victims, work)
	}
	slices.Sort(work)
	from, _ := slices.BinarySearch(work, s.compacted) // go on where the last cycle stopped
	if from == len(work) {
		from = 0
	}
	s.work, s.next, s.victims = append(s.work[:0], work[from:]...), 0, victims
	defer func() { s.work, s.next, s.victims = s.work[:0], 0, nil }()
	for s.next < min(len(s.work), compactStep) && (tight || !p.busy()) {
		if err := p.drainStep(drainGroup); err != nil {
			return err
		}
		s.compacted = s.work[s.next-1] + 1
	}
	return nil
}

// sparseIndex returns the index segments to empty, and whether that is urgent.
func (p *Pool) sparseIndex() (victims map[uint32]bool, tight bool) {
	need := p.keep(forUser)
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	p.seg.mu.Lock()
	defer p.seg.mu.Unlock()
	tight = p.seg.nFree < need
	sparse := p.seg.bytes() / 3
	if tight {
		sparse *= 2
	}
	var live, used int64
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
		return nil, false
	}
	slices.SortFunc(all, func(a, b victim) int { return int(a.live) - int(b.live) })
	most := min(compactBytes, int64(p.seg.nFree-2)*p.seg.bytes()/2)
	victims = map[uint32]bool{}
	for _, v := range all {
		if most -= int64(v.live); most < 0 && len(victims) >= 2 {
			break
		}
		victims[v.seg] = true
	}
	return victims, tight
}

// inSegments adds to work the chunks of a replica whose pages are in the given segments, or history pages may be, and
// has directory blocks that are there written again.
func (p *Pool) inSegments(r *Replica, victims map[uint32]bool, work []uint64) []uint64 {
	const step = 64 // directory blocks looked at in one critical section
	for from := 0; ; from += step {
		p.idx.mu.Lock()
		end := min(len(r.dir), from+step)
		for i := from; i < end; i++ {
			b := r.dir[i]
			if b == nil {
				continue
			}
			if b.size > 0 && victims[uint32(b.addr>>p.seg.shift)] {
				b.dirty = true
			}
			for c := range b.refs {
				if d := &b.refs[c]; d.page != 0 && !r.dying && (d.deep || victims[uint32(d.pageAddr()>>p.seg.shift)]) {
					work = append(work, index.Key(r.slot, 0)/block.ChunkBlocks|uint64(i*dirSpan+c))
				}
			}
		}
		over := end == len(r.dir)
		p.idx.mu.Unlock()
		if over {
			return work
		}
	}
}
