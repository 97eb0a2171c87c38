package pool

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// loadHistory opens a history page of a chunk into v. The caller releases the page when done with v.
func (p *Pool) loadHistory(r *Replica, chunk uint64, h *index.HistRef, v *index.OldView) (*cachedPage, error) {
	d := chunkRef{page: h.Page, id: h.ID}
	if e := p.cache.get(h.ID); e != nil {
		if err := index.OpenHistory(v, e.b, h, r.slot, chunk, true); err != nil {
			p.cache.release(e)
			return nil, p.pageError(r, chunk, &d, err)
		}
		return e, nil
	}
	n := h.Len()
	if n == 0 || n > index.MaxHistory {
		return nil, p.pageError(r, chunk, &d, ErrDamaged)
	}
	e := p.cache.buffer(n)
	err := p.readPacked(e.b, h.Addr())
	if err == nil {
		open := func(b []byte) bool { return index.OpenHistory(v, b, h, r.slot, chunk, false) == nil }
		if open(e.b) || p.recoverPacked(e.b, h.Addr(), open) {
			err = index.OpenHistory(v, e.b, h, r.slot, chunk, true)
		} else {
			err = ErrDamaged
		}
		if err == nil && v.HistEnd() > p.seg.limit() {
			err = ErrDamaged
		}
		if err != nil {
			err = p.pageError(r, chunk, &d, err)
		}
	}
	if err != nil {
		p.cache.release(e)
		return nil, err
	}
	p.cache.put(e, h.ID)
	return e, nil
}

// history appends what a history page has to dst.
func (p *Pool) history(r *Replica, chunk uint64, h *index.HistRef, dst []index.Old) ([]index.Old, error) {
	var v index.OldView
	e, err := p.loadHistory(r, chunk, h, &v)
	if err != nil {
		return dst, err
	}
	dst = v.Append(dst)
	p.cache.release(e)
	return dst, nil
}

// historyToChange is history for the holder of drain.mu, who may have written the page only just now.
func (p *Pool) historyToChange(r *Replica, chunk uint64, h *index.HistRef, dst []index.Old) ([]index.Old, error) {
	w := &p.drain.cold
	if uint32(h.Addr()>>p.seg.shift) == w.seg && uint32(h.Addr()&(1<<p.seg.shift-1)) >= w.at {
		if err := p.writeGroup(w); err != nil {
			return dst, err
		}
	}
	return p.history(r, chunk, h, dst)
}

// allHistory brings what the history pages of pg have into pg.Old; the references stay.
func (p *Pool) allHistory(r *Replica, chunk uint64, pg *index.Page) (err error) {
	if len(pg.Hist) == 0 {
		return nil
	}
	for i := range pg.Hist {
		if pg.Old, err = p.history(r, chunk, &pg.Hist[i], pg.Old); err != nil {
			return err
		}
	}
	slices.SortFunc(pg.Old, index.CompareOld)
	return nil
}

// inlineHistory replaces the history pages of pg by their content. drain.mu is held.
func (p *Pool) inlineHistory(r *Replica, chunk uint64, pg *index.Page) error {
	for i := range pg.Hist {
		var err error
		if pg.Old, err = p.historyToChange(r, chunk, &pg.Hist[i], pg.Old); err != nil {
			return err
		}
	}
	slices.SortFunc(pg.Old, index.CompareOld)
	p.dropHistory(pg.Hist)
	pg.Hist = pg.Hist[:0]
	return nil
}

func (p *Pool) dropHistory(refs []index.HistRef) {
	for i := range refs {
		p.drain.hist = append(p.drain.hist, histChange{refs[i], -1})
	}
}

// writeHistory puts older versions into history pages and appends the references to refs.
func (p *Pool) writeHistory(r *Replica, chunk uint64, old []index.Old, refs []index.HistRef) ([]index.HistRef, error) {
	w := &p.drain.cold
	for len(old) > 0 {
		n := index.HistFit(old, p.opt.historyBytes)
		if !w.room(index.MaxHistory) {
			if err := p.writeGroup(w); err != nil {
				return refs, err
			}
		}
		addr, err := p.place(w, index.MaxHistory)
		if err != nil {
			return refs, err
		}
		p.nextPageID++
		h := index.HistRef{ID: p.nextPageID}
		from := len(w.buf)
		w.buf = index.EncodeHistory(w.buf, old[:n], &h, r.slot, chunk)
		h.Page = packPage(addr, len(w.buf)-from)
		p.drain.hist = append(p.drain.hist, histChange{h, 1})
		refs, old = append(refs, h), old[n:]
	}
	return refs, nil
}

// spill moves the older versions of pg into history pages when they are too many for a page, together with those of the
// newest history page if both fit into one. drain.mu is held.
func (p *Pool) spill(r *Replica, chunk uint64, pg *index.Page) error {
	s := &p.drain
	n := index.OldLen(pg.Old)
	if n <= p.opt.inlineBytes {
		return nil
	}
	hist := pg.Hist
	if len(hist) >= index.MaxHistories-8 { // cannot be, with MaxSnapshots, unless pages are small
		if err := p.inlineHistory(r, chunk, pg); err != nil {
			return err
		}
		hist = nil
	} else if len(hist) > 0 && hist[0].Len()+n <= p.opt.historyBytes {
		var err error
		if pg.Old, err = p.historyToChange(r, chunk, &hist[0], pg.Old); err != nil {
			return err
		}
		slices.SortFunc(pg.Old, index.CompareOld)
		p.dropHistory(hist[:1])
		hist = hist[1:]
	}
	refs, err := p.writeHistory(r, chunk, pg.Old, nil)
	if err != nil {
		return err
	}
	pg.Hist = append(refs, hist...)
	s.old, pg.Old = pg.Old[:0], s.old[:0]
	return nil
}

// prune takes the older versions that no snapshot shows any more out of pg and its history pages, and reports whether
// there were any. drain.mu is held.
func (p *Pool) prune(r *Replica, chunk uint64, pg *index.Page, snaps snapshots) (changed bool, err error) {
	s := &p.drain
	next := pg.Ver // the version that follows, by block
	kept, changed := pruneList(pg.Old, pg.Old[:0], &next, snaps, &s.data)
	pg.Old = kept
	if len(pg.Hist) == 0 || !s.purging { // history is looked at in the way through all chunks only
		return changed, nil
	}
	var refs []index.HistRef
	var open []index.Old    // versions to be written, newer than those of the history pages that follow
	var same *index.HistRef // what open is the unchanged content of
	flush := func() {
		if same != nil {
			refs = append(refs, *same)
		} else if err == nil {
			refs, err = p.writeHistory(r, chunk, open, refs)
		}
		open, same = open[:0], nil
	}
	for i := range pg.Hist {
		h := &pg.Hist[i]
		list, e := p.historyToChange(r, chunk, h, s.old[:0])
		if e != nil {
			return false, e
		}
		s.old = list
		list, less := pruneList(list, list[:0], &next, snaps, &s.data)
		if len(list) == 0 {
			p.dropHistory(pg.Hist[i : i+1])
			changed = true
			continue
		}
		if len(open) > 0 {
			if index.OldLen(open)+index.OldLen(list) < p.opt.historyBytes*3/4 {
				if same != nil {
					p.dropHistory([]index.HistRef{*same})
					same = nil
				}
				p.dropHistory(pg.Hist[i : i+1])
				open = append(open, list...)
				slices.SortFunc(open, index.CompareOld)
				changed = true
				continue
			}
			flush()
		}
		if open = append(open, list...); less {
			p.dropHistory(pg.Hist[i : i+1])
			changed = true
		} else {
			same = h
		}
	}
	if len(refs) == 0 && len(open) > 0 && index.OldLen(open)+index.OldLen(pg.Old) <= p.opt.inlineBytes/2 {
		if same != nil {
			p.dropHistory([]index.HistRef{*same})
		}
		pg.Old = append(pg.Old, open...)
		slices.SortFunc(pg.Old, index.CompareOld)
		open, same, changed = nil, nil, true
	}
	if len(open) > 0 {
		flush()
	}
	pg.Hist = append(pg.Hist[:0], refs...)
	return changed, err
}

// pruneList appends to dst, which may share memory with old, the versions of old that snapshots show. next is the
// version that follows the first of each block in the list, and then that which precedes the last.
func pruneList(old, dst []index.Old, next *[block.ChunkBlocks]block.Version, snaps snapshots, c *changes) (kept []index.Old, less bool) {
	n := len(old)
	for i := range old {
		o := old[i]
		show := snaps.show(o.Ver, next[o.Block])
		next[o.Block] = o.Ver
		if show {
			dst = append(dst, o)
			continue
		}
		c.left(&o)
		if o.Stored {
			c.held -= int64(o.Loc.Len())
		}
	}
	return dst, len(dst) < n
}

// moveHistory writes those history pages of pg again that are in segments to be emptied. drain.mu is held.
func (p *Pool) moveHistory(r *Replica, chunk uint64, pg *index.Page) error {
	for i := 0; i < len(pg.Hist); i++ {
		h := pg.Hist[i]
		if !p.drain.victims[uint32(h.Addr()>>p.seg.shift)] {
			continue
		}
		old, err := p.historyToChange(r, chunk, &h, p.drain.old[:0])
		if err != nil {
			return err
		}
		p.drain.old = old
		if i, err = p.rewriteHistory(r, chunk, pg, i, old); err != nil {
			return err
		}
	}
	return nil
}

// relocateInHistory writes those history pages of pg again that have versions that the cleaner copied. drain.mu is
// held.
func (p *Pool) relocateInHistory(r *Replica, chunk uint64, pg *index.Page, moves []movedBlock) error {
	s := &p.drain
	for i := 0; i < len(pg.Hist); i++ {
		h := pg.Hist[i]
		may := func(m *movedBlock) bool { return h.May(int(m.key%block.ChunkBlocks), m.ver) && !h.Hi.Less(m.ver) }
		if !slices.ContainsFunc(moves, func(m movedBlock) bool { return may(&m) }) {
			continue
		}
		old, err := p.historyToChange(r, chunk, &h, s.old[:0])
		if err != nil {
			return err
		}
		s.old = old
		changed := false
		for k := range moves {
			m := &moves[k]
			if !may(m) {
				continue
			}
			b := uint16(m.key % block.ChunkBlocks)
			at, _ := slices.BinarySearchFunc(old, index.Old{Block: b, Ver: m.ver}, index.CompareOld)
			if at < len(old) && old[at].Block == b && old[at].Stored && old[at].Loc == m.old {
				old[at].Loc = m.new
				s.data.move(m)
				changed = true
			}
		}
		if !changed {
			continue
		}
		if i, err = p.rewriteHistory(r, chunk, pg, i, old); err != nil {
			return err
		}
	}
	return nil
}

// rewriteHistory replaces history page i of pg by pages of the versions in old and returns the number of the last one.
func (p *Pool) rewriteHistory(r *Replica, chunk uint64, pg *index.Page, i int, old []index.Old) (last int, err error) {
	refs, err := p.writeHistory(r, chunk, old, nil)
	if err != nil {
		return i, err
	}
	p.dropHistory(pg.Hist[i : i+1])
	pg.Hist = slices.Replace(pg.Hist, i, i+1, refs...)
	return i + len(refs) - 1, nil
}

// purgeStep is the number of chunks with older versions that one cycle looks at after snapshots were deleted, like
// releaseStep.
const purgeStep = 4096

// purgeOld takes deleted snapshots' versions out of the chunks that have older ones, a step of it, and as far as it can
// before the active table asks for attention. The frozen table is empty. drain.mu is held.
func (p *Pool) purgeOld() error {
	s := &p.drain
	s.purging = true
	defer func() { s.purging, s.work, s.next = false, s.work[:0], 0 }()
	var work []uint64
	left := purgeStep
	for i := range s.images {
		r := s.images[i].r
		for !r.dying {
			p.idx.mu.Lock()
			busy := p.idx.tables[p.idx.active].Len() > p.idx.soft || left <= 0 || p.closed.Load()
			next := r.purge.next
			wanted := r.purge.wanted
			if wanted && !busy {
				r.purge.begun = true
				r.purge.again = r.purge.again || len(r.kept) > len(r.snaps) // what they show is kept by this cycle
			}
			p.idx.mu.Unlock()
			if wanted && !busy {
				var err error
				if work, next, err = r.olderChunks(work[:0], next); err != nil {
					return err
				}
				if len(work) == 0 {
					p.idx.mu.Lock()
					r.purge.over()
					wanted = r.purge.wanted && len(r.kept) == len(r.snaps)
					p.idx.mu.Unlock()
				}
			}
			if busy && wanted {
				p.wake()
				return nil
			}
			if wanted && p.pagesFit() != nil { // there would be no room for what the updates in the tables take
				return nil
			}
			if !wanted {
				break
			}
			left -= len(work)
			for s.work, s.next = append(s.work[:0], work...), 0; s.next < len(s.work); {
				if err := p.drainStep(); err != nil {
					return err
				}
			}
			p.idx.mu.Lock()
			if len(work) > 0 {
				r.purge.next = next
			}
			p.idx.mu.Unlock()
		}
	}
	return nil
}

// olderChunks appends the work for the next few chunks from number from on that have older versions, and returns where
// to go on.
func (r *Replica) olderChunks(work []uint64, from uint64) ([]uint64, uint64, error) {
	var d chunkRef
	for len(work) < 64 {
		c, next, ok, err := r.next(from, hasOlder, &d)
		if err != nil || !ok {
			return work, from, err
		}
		if from = next; d.older {
			work = append(work, index.Key(r.slot, 0)/block.ChunkBlocks|c)
			r.p.idx.mu.Lock()
			r.p.drain.cost.add(r.costOf(c, &d, !r.neighbour(work)))
			r.p.idx.mu.Unlock()
		}
	}
	return work, from, nil
}

func hasOlder(s *dirSlot) bool { return s.older }
