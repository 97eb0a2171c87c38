package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// place is where the content of block at of a chunk is: nowhere (it reads as zeroes), or at loc with a checksum.
type place struct {
	loc    index.Loc
	sum    uint32
	at     uint16
	stored bool
}

// readScratch is what one read needs besides its destination.
type readScratch struct {
	places [block.ChunkBlocks]place
	known  index.Bitmap
	view   index.View
	old    index.OldView
}

var readScratches = sync.Pool{New: func() any { return new(readScratch) }}

// Read fills dst, whole blocks, from block first on, and sums (nil, or one per block) with their checksums, which are
// verified; holes have block.ZeroSum. It sees everything applied before the call; of what is applied during the call
// it may see some, but each block as one of its versions. Damage is reported as *ChecksumError, and then dst is
// undefined. It may be called concurrently with everything.
func (r *Replica) Read(first uint64, dst []byte, sums []uint32) error {
	if err := r.read(first, dst, sums, nil); err != nil {
		return r.wrap("read", err)
	}
	return nil
}

// read fills dst from the replica as it is, or as the snapshot at shows it.
func (r *Replica) read(first uint64, dst []byte, sums []uint32, at *snapshot) error {
	n, blocks := uint64(len(dst)/block.Size), r.blocks()
	if at != nil {
		blocks = blocksOf(at.size)
	}
	switch {
	case len(dst)%block.Size != 0 || first > blocks || n > blocks-first:
		return fmt.Errorf("blocks %d+%d of %d are outside the replica", first, n, blocks)
	case sums != nil && uint64(len(sums)) != n:
		return fmt.Errorf("%d blocks with %d checksums", n, len(sums))
	}
	s := readScratches.Get().(*readScratch)
	defer readScratches.Put(s)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	for n > 0 {
		in := int(first % block.ChunkBlocks)
		k := int(min(n, uint64(block.ChunkBlocks-in)))
		var err error
		if at == nil {
			err = r.find(s, first, k)
		} else {
			clear(s.places[:k])
			s.known = index.Bitmap{}
			err = r.findAt(s, first, k, at.ver)
		}
		if err == nil {
			err = r.fetch(s.places[:k], first/block.ChunkBlocks, dst[:k*block.Size], true)
		}
		if err != nil {
			return err
		}
		if sums != nil {
			for i := range k {
				if sums[i] = block.ZeroSum; s.places[i].stored {
					sums[i] = s.places[i].sum
				}
			}
			sums = sums[k:]
		}
		r.p.count.blocksRead.Add(uint64(k))
		first, n, dst = first+uint64(k), n-uint64(k), dst[k*block.Size:]
	}
	if r.origin != nil { // what is read through may go once the clone is gone
		r.p.idx.mu.RLock()
		defer r.p.idx.mu.RUnlock()
		return r.readable()
	}
	return nil
}

// find looks up n blocks of one chunk. The caller is entered as a reader.
func (r *Replica) find(s *readScratch, first uint64, n int) error {
	p := r.p
	chunk := first / block.ChunkBlocks
	d, err := r.rlockReadable(chunk)
	if err != nil {
		return err
	}
	if d == nil {
		p.idx.mu.RUnlock()
		clear(s.places[:n])
		if r.origin != nil {
			s.known = index.Bitmap{}
			return r.origin.findAt(s, first, n, r.from.ver)
		}
		return nil
	}
	ref, clone := *d, r.origin != nil
	s.known = index.Bitmap{}
	missing := 0
	in := int(first % block.ChunkBlocks)
	for i := range n {
		s.places[i] = place{at: uint16(in + i)}
		if e, ok := p.lookup(r, d, first+uint64(i)); ok {
			s.known.Set(i)
			if e.State() == index.Stored {
				s.places[i] = place{loc: e.Loc(), sum: e.Sum, at: uint16(in + i), stored: true}
			}
			continue
		}
		missing++
	}
	p.idx.mu.RUnlock()
	if missing == 0 || ref.page == 0 && (!clone || !ref.tomb.IsZero()) {
		return nil
	}
	if ref.page == 0 {
		return r.origin.findAt(s, first, n, r.from.ver)
	}
	page, err := p.loadPage(r, chunk, &ref, &s.view)
	if err != nil {
		return err
	}
	for i := range n {
		if !s.known.Has(i) {
			x := &s.places[i]
			x.loc, x.sum, x.stored = s.view.Data(in + i)
			if clone && s.view.Known(in+i) {
				s.known.Set(i)
				missing--
			}
		}
	}
	p.cache.release(page)
	if clone && missing > 0 {
		return r.origin.findAt(s, first, n, r.from.ver)
	}
	return nil
}

// findAt looks up, as they were at a version, those of n blocks of one chunk that are not in s.known, in the replica
// and in what it is a clone of. The caller is entered as a reader.
func (r *Replica) findAt(s *readScratch, first uint64, n int, at block.Version) error {
	p := r.p
	chunk := first / block.ChunkBlocks
	in := int(first % block.ChunkBlocks)
	d, err := r.rlockReadable(chunk)
	if err != nil {
		return err
	}
	var ref chunkRef
	if d != nil {
		ref = *d
	}
	p.idx.mu.RUnlock()
	switch {
	case ref.heads != [2]uint32{}:
		v := chunkViews.Get().(*chunkView)
		defer chunkViews.Put(v)
		if err := r.listOwn(v, chunk); err != nil {
			return err
		}
		for i := range n {
			if s.known.Has(i) {
				continue
			}
			if o, ok := v.page.Find(in+i, at); ok {
				s.known.Set(i)
				s.places[i] = place{loc: o.Loc, sum: o.Sum, at: uint16(in + i), stored: o.Stored}
			}
		}
	case ref.page != 0:
		err = r.findInPage(s, chunk, in, n, &ref, at)
	case !ref.tomb.IsZero() && !at.Less(ref.tomb):
		return nil
	}
	if err != nil || r.origin == nil {
		return err
	}
	for i := range n {
		if !s.known.Has(i) {
			if r.from.ver.Less(at) {
				at = r.from.ver
			}
			return r.origin.findAt(s, first, n, at)
		}
	}
	return nil
}

// findInPage looks up what s.known lacks in a page and its history pages.
func (r *Replica) findInPage(s *readScratch, chunk uint64, in, n int, ref *chunkRef, at block.Version) error {
	p := r.p
	page, err := p.loadPage(r, chunk, ref, &s.view)
	if err != nil {
		return err
	}
	defer p.cache.release(page)
	if err := s.view.Old(&s.old); err != nil {
		return p.pageError(r, chunk, ref, err)
	}
	missing := 0
	for i := range n {
		if s.known.Has(i) {
			continue
		}
		x := &s.places[i]
		if s.view.Known(in+i) && !at.Less(s.view.Version(in+i)) {
			s.known.Set(i)
			x.loc, x.sum, x.stored = s.view.Data(in + i)
		} else if o, ok := s.old.Find(in+i, at); ok {
			s.known.Set(i)
			x.loc, x.sum, x.stored = o.Loc, o.Sum, o.Stored
		} else {
			missing++
		}
	}
	for k := 0; missing > 0 && k < s.view.Histories(); k++ {
		h := s.view.History(k)
		var e *cachedPage
		for i := range n {
			if s.known.Has(i) || !h.May(in+i, at) {
				continue
			}
			if e == nil {
				if e, err = p.loadHistory(r, chunk, &h, &s.old); err != nil {
					return err
				}
			}
			if o, ok := s.old.Find(in+i, at); ok {
				s.known.Set(i)
				s.places[i] = place{loc: o.Loc, sum: o.Sum, at: uint16(in + i), stored: o.Stored}
				missing--
			}
		}
		if e != nil {
			p.cache.release(e)
		}
	}
	return nil
}

// readable returns why the replica cannot be read. The index lock is held.
func (r *Replica) readable() error {
	if r.p.closed.Load() {
		return ErrClosed
	}
	if r.destroyed {
		return ErrNotFound
	}
	return nil
}

// rlockReadable is rlock for a replica that can be read; after an error the lock is not held.
func (r *Replica) rlockReadable(chunk uint64) (*chunkRef, error) {
	d, err := r.rlock(chunk)
	if err != nil {
		return nil, err
	}
	if err := r.readable(); err != nil {
		r.p.idx.mu.RUnlock()
		return nil, err
	}
	return d, nil
}

func (r *Replica) damaged(b uint64, loc index.Loc) error {
	p := r.p
	p.count.sumErrors.Add(1)
	device, off := p.where(loc.Addr())
	return &ChecksumError{Replica: r.name, Block: b, Device: device, Offset: off, What: "data"}
}
