package pool

import (
	"github.com/cstor-go/cstor/internal/block"
)

// liveChunk is the reference of a chunk that has something in the tables, or is about to have: all of it, the drained
// part included. Writers change it without touching the directory, which takes it over when it is drained. So there
// are at most as many as the tables have entries and appends under way touch.
type liveChunk struct {
	chunkRef
	number uint64
	pins   int       // appends under way that may add to it
	cost   indexCost // in indexState.held while there are any
}

// hold makes the chunks of n blocks from b on live, and adds them to held. They stay so until unhold. It comes before
// the append, since what is known about a chunk may have to be read, together with what is missing for the operations
// that come next. After an error nothing is held.
func (r *Replica) hold(held []*liveChunk, b, n uint64, next []Op) ([]*liveChunk, error) {
	p := r.p
	last := lastChunk(b, n)
	p.idx.mu.Lock()
	for c, steps := b/block.ChunkBlocks, 0; c <= last; c++ {
		for r.live[c] == nil {
			d, cold := r.chunk(c)
			if !cold {
				r.enliven(c, d)
				break
			}
			p.idx.mu.Unlock()
			r.warmAhead(chunksOf(c, last, next))
			if err := r.warm(c >> dirShift); err != nil {
				r.unhold(held)
				return nil, err
			}
			p.idx.mu.Lock()
		}
		x := r.live[c]
		if x.pins++; x.pins == 1 { // the table that it is in may be frozen before the append comes to it
			x.cost = r.costOf(c, &x.chunkRef, true)
			p.idx.held.add(x.cost)
		}
		held = append(held, x)
		if steps++; steps%lockStep == 0 {
			p.idx.mu.Unlock()
			p.idx.mu.Lock()
		}
	}
	p.idx.mu.Unlock()
	return held, nil
}

// unhold ends what hold began.
func (r *Replica) unhold(held []*liveChunk) {
	if len(held) == 0 {
		return
	}
	r.p.idx.mu.Lock()
	for _, x := range held {
		if x.pins--; x.pins == 0 {
			r.p.idx.held.sub(x.cost)
			x.cost = indexCost{}
		}
		if x.pins == 0 && x.heads == [2]uint32{} { // nothing came, or it is drained already
			m := x.bitmap
			r.forget(x)
			r.p.idx.bitmaps.put(m)
		}
	}
	r.p.idx.mu.Unlock()
}

// enliven makes a chunk live, of which the directory says d. The index lock is held for writing.
func (r *Replica) enliven(c uint64, d *chunkRef) *liveChunk {
	x := &r.p.idx
	var l *liveChunk
	if n := len(x.spare); n > 0 {
		l, x.spare = x.spare[n-1], x.spare[:n-1]
	} else {
		l = new(liveChunk)
	}
	l.number = c
	if d != nil {
		if l.chunkRef = *d; d.bitmap != nil {
			l.bitmap = x.bitmaps.get()
			*l.bitmap = *d.bitmap
		}
	}
	if r.live == nil {
		r.live = map[uint64]*liveChunk{}
	}
	r.live[c] = l
	n, j := nodeOf(c >> dirShift)
	for uint64(len(r.dir)) <= n {
		r.dir = append(r.dir, dirRoot{})
	}
	root := &r.dir[n]
	if root.lives == nil {
		root.lives = new([nodeSpan]uint8)
	}
	root.lives[j]++
	root.live++
	x.live++
	r.pending += r.p.pendingOf(&l.chunkRef)
	return l
}

// forget ends that a chunk is live, whose bitmap is the caller's from then on. The index lock is held for writing.
func (r *Replica) forget(l *liveChunk) {
	x := &r.p.idx
	r.pending -= r.p.pendingOf(&l.chunkRef)
	delete(r.live, l.number)
	x.live--
	if n, j := nodeOf(l.number >> dirShift); n < uint64(len(r.dir)) {
		root := &r.dir[n]
		root.lives[j]--
		if root.live--; root.live == 0 {
			root.lives = nil
		}
	}
	*l = liveChunk{}
	if len(x.spare) < spareLive {
		x.spare = append(x.spare, l)
	}
}

const spareLive = 4096

// touch returns the reference of a chunk, which is held, for a change. The index lock is held for writing.
func (r *Replica) touch(c uint64) *chunkRef { return &r.live[c].chunkRef }

// drained puts what is known about a live chunk, apart from the tables, into its directory block, and ends that it is
// live if there is nothing else. The index lock is held for writing, and drain.mu.
func (r *Replica) drained(b *dirBlock, l *liveChunk) {
	x := &r.p.idx
	d := &b.refs[l.number&(dirSpan-1)]
	old := d.bitmap
	*d = l.chunkRef
	d.heads, d.disc, d.fresh = [2]uint32{}, [2]uint32{}, 0
	if l.pins == 0 && l.heads == [2]uint32{} {
		r.forget(l)
	} else if l.bitmap != nil {
		if d.bitmap = old; old == nil {
			d.bitmap = x.bitmaps.get()
		}
		*d.bitmap, old = *l.bitmap, nil
	}
	x.bitmaps.put(old)
	x.dirs.change(&b.dirItem)
}
