package pool

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/label"
)

func newGroup() []byte { return disk.Buffer(indexGroup + block.Size)[:0] }

// extent is a piece of the checkpoint's root.
type extent = label.Extent

// checkpoint writes the directory, the replicas as of drain.from and the segment table, and makes them the state that
// the next Open begins with. The frozen table is drained. cycle and mu are held; mu is let go once all is written, so
// that the slow flushes hold nobody up.
func (p *Pool) checkpoint() error {
	s := &p.drain
	for i := range s.images {
		if err := p.writeDirectory(s.images[i].r); err != nil {
			return err
		}
	}
	if err := p.writeGroup(&s.writer); err != nil {
		return err
	}
	var marks []mark
	for again := true; again; again = !slices.Equal(marks, p.missed()) { // the root must list all that is stale
		marks = p.missed()
		root := p.encodeRoot()
		extents, err := p.writeRoot(root)
		if err != nil {
			return err
		}
		p.root = extents
		if err := p.flushDevices(); err != nil {
			return err
		}
	}
	p.generation++
	if err := p.writeRing(&label.Ring{Pool: p.cfg.GUID, Generation: p.generation, Root: p.root}); err != nil {
		return p.fail(fmt.Errorf("checkpoint %d: %w", p.generation, err))
	}
	if err := p.flushDevices(); err != nil {
		return err
	}
	p.count.checkpoints.Add(1)
	if err := p.committed(marks); err != nil {
		return p.fail(fmt.Errorf("labels: %w", err))
	}
	return nil
}

// placedDir is a directory block in the writer's buffer.
type placedDir struct {
	b    *dirBlock
	addr uint64
	size uint32
	sum  uint32
}

// writeDirectory writes the changed directory blocks of a replica.
func (p *Pool) writeDirectory(r *Replica) error {
	w := &p.drain.writer
	var placed []placedDir
	settle := func() error {
		if err := p.writeGroup(w); err != nil {
			return err
		}
		p.idx.mu.Lock()
		for _, d := range placed {
			p.accountDir(r, d.b, -1)
			d.b.addr, d.b.size, d.b.sum = d.addr, d.size, d.sum
			p.accountDir(r, d.b, 1)
		}
		p.idx.mu.Unlock()
		placed = placed[:0]
		return nil
	}
	p.idx.mu.RLock()
	n := len(r.dir)
	p.idx.mu.RUnlock()
	for i := range n {
		p.idx.mu.RLock()
		b := r.dir[i]
		dirty := b != nil && b.dirty
		p.idx.mu.RUnlock()
		if !dirty {
			continue
		}
		if !w.room(maxDirBlock) {
			if err := settle(); err != nil {
				return err
			}
		}
		addr, err := p.place(w)
		if err != nil {
			return err
		}
		from := len(w.buf)
		p.idx.mu.Lock()
		w.buf = p.encodeDir(w.buf, b)
		b.dirty = false
		p.idx.mu.Unlock()
		placed = append(placed, placedDir{b: b, addr: addr, size: uint32(len(w.buf) - from), sum: block.Sum(w.buf[from:])})
		for len(w.buf)%index.Granule != 0 {
			w.buf = append(w.buf, 0)
		}
	}
	return settle()
}

// accountDir adds a directory block to live bytes or takes it away. The index lock is held for writing.
func (p *Pool) accountDir(r *Replica, b *dirBlock, sign int) {
	if b.size == 0 {
		return
	}
	n := int(granules(b.size)) * sign
	p.seg.pageLive[b.addr>>p.seg.shift] += uint32(n)
	r.meta += int64(n)
}

func granules(n uint32) uint32 { return (n + index.Granule - 1) &^ (index.Granule - 1) }

const (
	dirHasPage = 1 << iota
	dirFull
	dirBitmap
	dirOlder
	dirDeep

	maxDirBlock = dirSpan*(2+16+16+16+64) + index.Granule
)

// encodeDir appends a directory block. The index lock is held.
func (p *Pool) encodeDir(b []byte, d *dirBlock) []byte {
	le := binary.LittleEndian
	for i := range d.refs {
		c := &d.refs[i]
		if c.page == 0 && c.tomb.IsZero() && c.newest.IsZero() && c.bitmap == 0 && !c.full {
			continue
		}
		flags := byte(0)
		if c.page != 0 {
			flags |= dirHasPage
		}
		if c.full {
			flags |= dirFull
		}
		if c.bitmap != 0 {
			flags |= dirBitmap
		}
		if c.older {
			flags |= dirOlder
		}
		if c.deep {
			flags |= dirDeep
		}
		b = append(b, byte(i), flags)
		b = le.AppendUint64(b, c.newest.Epoch)
		b = le.AppendUint64(b, c.newest.N)
		if c.page != 0 {
			b = le.AppendUint64(b, c.page)
			b = le.AppendUint64(b, c.id)
			b = le.AppendUint16(b, c.count)
			b = le.AppendUint32(b, c.data)
		} else {
			b = le.AppendUint64(b, c.tomb.Epoch)
			b = le.AppendUint64(b, c.tomb.N)
		}
		if c.bitmap != 0 {
			for _, w := range p.idx.bitmaps.all[c.bitmap] {
				b = le.AppendUint64(b, w)
			}
		}
	}
	return b
}

// decodedRef is a chunk as a directory block lists it.
type decodedRef struct {
	i      int
	ref    chunkRef
	bitmap index.Bitmap
}

// decodeDir reads what encodeDir wrote, into dst.
func decodeDir(b []byte, limit uint64, segShift uint, dst []decodedRef) ([]decodedRef, error) {
	le := binary.LittleEndian
	last := -1
	for len(b) > 0 {
		if len(b) < 34 {
			return nil, fmt.Errorf("directory block: %d bytes left over: %w", len(b), ErrDamaged)
		}
		d := decodedRef{i: int(b[0])}
		flags := b[1]
		if d.i <= last || d.i >= dirSpan || flags&^31 != 0 || flags&(dirFull|dirBitmap) == dirFull|dirBitmap ||
			flags&dirOlder != 0 && flags&dirHasPage == 0 || flags&(dirOlder|dirDeep) == dirDeep {
			return nil, fmt.Errorf("directory block: chunk %d flags %#x: %w", d.i, flags, ErrDamaged)
		}
		last = d.i
		d.ref.older, d.ref.deep = flags&dirOlder != 0, flags&dirDeep != 0
		d.ref.newest = block.Version{Epoch: le.Uint64(b[2:]), N: le.Uint64(b[10:])}
		x, y := le.Uint64(b[18:]), le.Uint64(b[26:])
		b = b[34:]
		if flags&dirHasPage != 0 {
			d.ref.page, d.ref.id = x, y
			n := uint64(d.ref.pageLen())
			if a := d.ref.pageAddr(); n == 0 || n > index.MaxPage || a >= limit || a>>segShift != (a+n-1)>>segShift {
				return nil, fmt.Errorf("directory block: page at %#x+%d: %w", a, n, ErrDamaged)
			}
			if len(b) < 6 {
				return nil, fmt.Errorf("directory block: size of the data of a page: %w", ErrDamaged)
			}
			d.ref.count, d.ref.data = le.Uint16(b), le.Uint32(b[2:])
			if c := uint32(d.ref.count); c > block.ChunkBlocks || d.ref.data > c*block.Size || d.ref.data < c*index.Granule || d.ref.data%index.Granule != 0 {
				return nil, fmt.Errorf("directory block: page of %d blocks in %d bytes: %w", c, d.ref.data, ErrDamaged)
			}
			b = b[6:]
		} else {
			d.ref.tomb = block.Version{Epoch: x, N: y}
		}
		if flags&dirFull != 0 {
			d.bitmap = fullBitmap
		}
		if flags&dirBitmap != 0 {
			if len(b) < 64 {
				return nil, fmt.Errorf("directory block: bitmap: %w", ErrDamaged)
			}
			for w := range d.bitmap {
				d.bitmap[w] = le.Uint64(b[8*w:])
			}
			b = b[64:]
		}
		dst = append(dst, d)
	}
	return dst, nil
}

// writeRoot writes the root in pieces and replaces the accounting of the one before, whose space the table in the root
// already leaves out.
func (p *Pool) writeRoot(root []byte) ([]extent, error) {
	w := &p.drain.writer
	var out []extent
	for at := 0; at < len(root); at += indexGroup {
		piece := root[at:min(at+indexGroup, len(root))]
		addr, err := p.place(w)
		if err != nil {
			return nil, err
		}
		w.buf = append(w.buf, piece...)
		if err := p.writeGroup(w); err != nil {
			return nil, err
		}
		out = append(out, extent{Addr: addr, Len: uint32(len(piece)), Sum: block.Sum(piece)})
	}
	if len(out) > label.MaxExtents {
		return nil, p.fail(fmt.Errorf("checkpoint of %d bytes: %w", len(root), ErrTooLarge))
	}
	p.idx.mu.Lock()
	for _, e := range out {
		p.accountRoot(e, 1)
	}
	p.idx.mu.Unlock()
	return out, nil
}

func (p *Pool) accountRoot(e extent, sign int) {
	n := int(granules(e.Len)) * sign
	p.seg.pageLive[e.Addr>>p.seg.shift] += uint32(n)
	p.metaLive += int64(n)
}
