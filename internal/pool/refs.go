package pool

import "fmt"

// eachRef calls f for everything that the index of a pool at rest refers to, destroyed replicas included. broken is
// told of parts of the index that cannot be had, which hide what they refer to.
//
// It is not eachChunk, which is for a pool in use: that one leaves pages and directory to gather, which reads only pages
// that have history pages.
func (p *Pool) eachRef(f func(x piece), broken func(r *Replica, chunk uint64, err error)) {
	for _, r := range p.idx.bySlot {
		if r == nil {
			continue
		}
		p.replicaRefs(r, f, broken)
	}
	for _, e := range p.root {
		f(rootPiece(e))
	}
}

// replicaRefs is eachRef for one replica.
func (p *Pool) replicaRefs(r *Replica, f func(x piece), broken func(r *Replica, chunk uint64, err error)) {
	err := p.eachDir(r, func(s *dirSlot, first uint64) { f(dirPiece(r, s, first)) })
	if err != nil {
		broken(r, 0, err)
	}
	c := &chunkPieces{r: r}
	for n := uint64(0); ; {
		number, next, ok, err := r.next(n, nil, &c.ref)
		switch n = next; {
		case err != nil:
			broken(r, number, err)
			continue
		case !ok:
			return
		}
		c.number, c.data, c.err = number, c.data[:0], nil
		c.page.Hist = c.page.Hist[:0]
		p.addUpdates(c)
		if err := p.addPages(c); err != nil {
			c.err = err
		}
		if c.ref.page != 0 {
			f(pagePiece(r, number, &c.ref))
		}
		for i := range c.page.Hist {
			f(historyPiece(r, number, &c.page.Hist[i]))
		}
		for i := range c.data {
			f(c.piece(&c.data[i]))
		}
		if c.err != nil {
			broken(r, number, c.err)
		}
	}
}

// describe says what x is, for people.
func (p *Pool) describe(x *piece) string {
	r := "replica of slot " + fmt.Sprint(x.slot)
	if int(x.slot) < len(p.idx.bySlot) && p.idx.bySlot[x.slot] != nil {
		r = "replica " + p.idx.bySlot[x.slot].name
	}
	switch x.kind {
	case pieceBlock:
		return fmt.Sprintf("%s block %d version %v", r, x.number, x.ver)
	case piecePage:
		return fmt.Sprintf("%s index page of chunk %d", r, x.number)
	case pieceHistory:
		return fmt.Sprintf("%s history page of chunk %d", r, x.number)
	case pieceDir:
		return fmt.Sprintf("%s part of the directory from chunk %d on", r, x.number)
	case pieceState:
		return r + " state record"
	case pieceHeader:
		return fmt.Sprintf("header of batch %d", x.number)
	}
	return "root of the newest checkpoint"
}
