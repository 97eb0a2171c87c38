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
}

var readScratches = sync.Pool{New: func() any { return new(readScratch) }}

// Read fills dst, whole blocks, from block first on, and sums (nil, or one per block) with their checksums, which are
// verified; holes have block.ZeroSum. It sees everything applied before the call; of what is applied during the call
// it may see some, but each block as one of its versions. Damage is reported as *ChecksumError, and then dst is
// undefined. It may be called concurrently with everything.
func (r *Replica) Read(first uint64, dst []byte, sums []uint32) error {
	n := uint64(len(dst) / block.Size)
	switch {
	case len(dst)%block.Size != 0 || first > r.blocks() || n > r.blocks()-first:
		return r.wrap("read", fmt.Errorf("blocks %d+%d of %d are outside the replica", first, n, r.blocks()))
	case sums != nil && uint64(len(sums)) != n:
		return r.wrap("read", fmt.Errorf("%d blocks with %d checksums", n, len(sums)))
	}
	s := readScratches.Get().(*readScratch)
	defer readScratches.Put(s)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	for n > 0 {
		in := int(first % block.ChunkBlocks)
		k := int(min(n, uint64(block.ChunkBlocks-in)))
		if err := r.find(s, first, k); err != nil {
			return r.wrap("read", err)
		}
		if err := r.fetch(s.places[:k], first/block.ChunkBlocks, dst[:k*block.Size]); err != nil {
			return r.wrap("read", err)
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
	return nil
}

// find looks up n blocks of one chunk. The caller is entered as a reader.
func (r *Replica) find(s *readScratch, first uint64, n int) error {
	p := r.p
	chunk := first / block.ChunkBlocks
	p.idx.mu.RLock()
	if err := r.readable(); err != nil {
		p.idx.mu.RUnlock()
		return err
	}
	d := r.chunk(chunk)
	if d == nil {
		p.idx.mu.RUnlock()
		clear(s.places[:n])
		return nil
	}
	ref := *d
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
	if missing == 0 || ref.page == 0 {
		return nil
	}
	page, err := p.loadPage(r, chunk, &ref, &s.view)
	if err != nil {
		return err
	}
	for i := range n {
		if !s.known.Has(i) {
			x := &s.places[i]
			x.loc, x.sum, x.stored = s.view.Data(in + i)
		}
	}
	p.cache.release(page)
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

func (r *Replica) damaged(b uint64, loc index.Loc) error {
	p := r.p
	p.count.sumErrors.Add(1)
	device, off := p.where(loc.Addr())
	return &ChecksumError{Replica: r.name, Block: b, Device: device, Offset: off, What: "data"}
}
