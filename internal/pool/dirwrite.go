package pool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// placedDir is a directory block or node in the writer's buffer.
type placedDir struct {
	it   *dirItem
	slot dirSlot
}

// writeDirectory writes the changed directory blocks of all replicas, then the changed nodes. drain.mu is held.
func (p *Pool) writeDirectory() error {
	for level := range p.idx.dirs.changed {
		if err := p.writeChanged(level, math.MaxInt); err != nil {
			return err
		}
	}
	if n := len(p.idx.dirs.changed[1]); n > 0 {
		return fmt.Errorf("%d nodes of the directory cannot be written: blocks of them are unwritten and unknown", n)
	}
	return nil
}

// relieve writes some of what changed in the directory, in the middle of a drain: first what changed first, which the drain
// is past. A step of the drain changes no more than that. drain.mu is held.
func (p *Pool) relieve() error {
	if err := p.writeChanged(0, drainGroup); err != nil {
		return err
	}
	return p.writeChanged(1, drainGroup)
}

// writeChanged writes the changed directory blocks (level 0), or the nodes of which no block is to be written, at most so
// many.
func (p *Pool) writeChanged(level, most int) error {
	x := &p.idx.dirs
	p.idx.mu.Lock()
	var all []*dirItem
	x.changed[level] = slices.DeleteFunc(x.changed[level], func(it *dirItem) bool {
		take := len(all) < most && (it.gone || !it.node || it.r.dir[it.number].node.unwritten == 0)
		if take {
			all = append(all, it)
		}
		return take
	})
	p.idx.mu.Unlock()
	slices.SortFunc(all, func(a, b *dirItem) int {
		return cmp.Or(cmp.Compare(a.r.slot, b.r.slot), cmp.Compare(a.number, b.number))
	})
	return p.writeDirItems(all)
}

func (p *Pool) writeDirItems(all []*dirItem) error {
	w := &p.drain.writer
	var placed []placedDir
	settle := func() error {
		if err := p.writeGroup(w); err != nil {
			return err
		}
		p.idx.mu.Lock()
		for i := range placed {
			p.settleDir(placed[i].it, placed[i].slot)
		}
		p.idx.mu.Unlock()
		placed = placed[:0]
		p.yield()
		return nil
	}
	for _, it := range all {
		if it.gone {
			continue
		}
		if !w.room(maxDir) {
			if err := settle(); err != nil {
				return err
			}
		}
		addr, err := p.place(w, maxDir)
		if err != nil {
			return err
		}
		from := len(w.buf)
		s := dirSlot{addr: addr}
		p.idx.mu.RLock() // the holder of drain.mu is the only one to change it
		if it.node {
			w.buf = encodeNode(w.buf, it.r.dir[it.number].node, &s)
		} else {
			n, j := nodeOf(it.number)
			w.buf = p.encodeDir(w.buf, it.r.dir[n].node.blocks[j], &s)
		}
		p.idx.mu.RUnlock()
		s.size, s.sum = uint32(len(w.buf)-from), block.Sum(w.buf[from:])
		placed = append(placed, placedDir{it, s})
		for len(w.buf)%index.Granule != 0 {
			w.buf = append(w.buf, 0)
		}
	}
	return settle()
}

// settleDir notes where an item has been written to. The index lock is held for writing.
func (p *Pool) settleDir(it *dirItem, s dirSlot) {
	x := &p.idx.dirs
	x.written(it)
	n, j := it.number, 0
	if !it.node {
		n, j = nodeOf(it.number)
	}
	root := &it.r.dir[n]
	slot := &root.dirSlot
	if !it.node {
		slot = &root.node.slots[j]
	}
	p.accountDir(it.r, slot, -1, it.node)
	*slot = s
	p.accountDir(it.r, slot, 1, it.node)
}

// accountDir adds a directory block or node to live bytes or takes it away. The index lock is held for writing.
func (p *Pool) accountDir(r *Replica, s *dirSlot, sign int, node bool) {
	if s.size == 0 {
		return
	}
	n := int(granules(s.size)) * sign
	p.seg.pageLive[s.addr>>p.seg.shift] += uint32(n)
	r.meta += int64(n)
	r.dirs += int64(sign)
	if node {
		p.idx.nodes += int64(n)
	}
}

func granules(n uint32) uint32 { return (n + index.Granule - 1) &^ (index.Granule - 1) }

const (
	dirHasPage = 1 << iota
	dirFull
	dirBitmap
	dirOlder
	dirDeep

	dirHeader = 16
	slotBytes = 8 + 4 + 4 + 16 + 4 + 1
	maxDir    = max(dirHeader+dirSpan*(2+16+16+6+64), dirHeader+nodeSpan*(1+slotBytes)) + index.Granule
)

var (
	magicDir  = [4]byte{'C', 'G', 'D', 'B'}
	magicNode = [4]byte{'C', 'G', 'D', 'N'}
)

func appendDirHeader(b []byte, magic [4]byte, slot uint32, number uint64) []byte {
	b = append(b, magic[:]...)
	b = binary.LittleEndian.AppendUint32(b, slot)
	return binary.LittleEndian.AppendUint64(b, number)
}

// checkDirHeader returns what is behind the header of a directory block or node, of which its checksum is right.
func checkDirHeader(b []byte, magic [4]byte, slot uint32, number uint64) ([]byte, error) {
	want := appendDirHeader(nil, magic, slot, number)
	if !bytes.HasPrefix(b, want) {
		return nil, fmt.Errorf("header %x instead of %x: %w", b[:min(len(b), dirHeader)], want, ErrDamaged)
	}
	return b[dirHeader:], nil
}

// appendSlot appends a slot as it is in nodes and in the root.
func appendSlot(b []byte, s *dirSlot) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, s.addr)
	b = le.AppendUint32(b, s.size)
	b = le.AppendUint32(b, s.sum)
	b = le.AppendUint64(b, s.newest.Epoch)
	b = le.AppendUint64(b, s.newest.N)
	b = le.AppendUint32(b, s.stored)
	if s.older {
		return append(b, 1)
	}
	return append(b, 0)
}

// decodeSlot reads what appendSlot wrote, of a pool with addresses below limit.
func decodeSlot(b []byte, limit uint64) (s dirSlot, ok bool) {
	le := binary.LittleEndian
	s.addr, s.size, s.sum = le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])
	s.newest = block.Version{Epoch: le.Uint64(b[16:]), N: le.Uint64(b[24:])}
	s.stored, s.older = le.Uint32(b[32:]), b[36] == 1
	return s, s.size > 0 && s.size <= maxDir && s.addr < limit && s.addr+uint64(s.size) <= limit && b[36] <= 1
}

// include makes s cover what t covers.
func (s *dirSlot) include(t *dirSlot) {
	if s.newest.Less(t.newest) {
		s.newest = t.newest
	}
	s.stored += t.stored
	s.older = s.older || t.older
}

// encodeNode appends a node and sums up its slots in s. The index lock is held.
func encodeNode(b []byte, n *dirNode, s *dirSlot) []byte {
	b = appendDirHeader(b, magicNode, n.r.slot, n.number)
	for i := range n.slots {
		if x := &n.slots[i]; x.size > 0 {
			s.include(x)
			b = appendSlot(append(b, byte(i)), x)
		}
	}
	return b
}

// decodeNode reads what encodeNode wrote.
func decodeNode(b []byte, slot uint32, number, limit uint64, slots *[nodeSpan]dirSlot) error {
	b, err := checkDirHeader(b, magicNode, slot, number)
	if err != nil {
		return err
	}
	for last := -1; len(b) > 0; b = b[1+slotBytes:] {
		if len(b) < 1+slotBytes || int(b[0]) <= last {
			return fmt.Errorf("%d bytes left over behind place %d: %w", len(b), last, ErrDamaged)
		}
		last = int(b[0])
		var ok bool
		if slots[last], ok = decodeSlot(b[1:], limit); !ok {
			return fmt.Errorf("place %d: %w", last, ErrDamaged)
		}
	}
	return nil
}

// encodeDir appends a directory block and sums up its chunks in s. The index lock is held.
func (p *Pool) encodeDir(b []byte, d *dirBlock, s *dirSlot) []byte {
	le := binary.LittleEndian
	b = appendDirHeader(b, magicDir, d.r.slot, d.number)
	for i := range d.refs {
		c := &d.refs[i]
		if !c.known() {
			continue
		}
		s.include(&dirSlot{newest: c.newest, stored: uint32(p.idx.bitmaps.count(c)), older: c.older})
		flags := byte(0)
		if c.page != 0 {
			flags |= dirHasPage
		}
		if c.full {
			flags |= dirFull
		}
		if c.bitmap != nil {
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
		if c.bitmap != nil {
			for _, w := range c.bitmap {
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

// decodeDir reads what encodeDir wrote.
func decodeDir(b []byte, slot uint32, number, limit uint64, segShift uint) (dst []decodedRef, err error) {
	le := binary.LittleEndian
	if b, err = checkDirHeader(b, magicDir, slot, number); err != nil {
		return nil, err
	}
	dst = make([]decodedRef, 0, dirSpan)
	last := -1
	for len(b) > 0 {
		if len(b) < 34 {
			return nil, fmt.Errorf("%d bytes left over: %w", len(b), ErrDamaged)
		}
		d := decodedRef{i: int(b[0])}
		flags := b[1]
		if d.i <= last || d.i >= dirSpan || flags&^31 != 0 || flags&(dirFull|dirBitmap) == dirFull|dirBitmap ||
			flags&dirOlder != 0 && flags&dirHasPage == 0 || flags&(dirOlder|dirDeep) == dirDeep {
			return nil, fmt.Errorf("chunk %d flags %#x: %w", d.i, flags, ErrDamaged)
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
				return nil, fmt.Errorf("page at %#x+%d: %w", a, n, ErrDamaged)
			}
			if len(b) < 6 {
				return nil, fmt.Errorf("size of the data of a page: %w", ErrDamaged)
			}
			d.ref.count, d.ref.data = le.Uint16(b), le.Uint32(b[2:])
			if c := uint32(d.ref.count); c > block.ChunkBlocks || d.ref.data > c*block.Size || d.ref.data < c*index.Granule || d.ref.data%index.Granule != 0 {
				return nil, fmt.Errorf("page of %d blocks in %d bytes: %w", c, d.ref.data, ErrDamaged)
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
				return nil, fmt.Errorf("bitmap: %w", ErrDamaged)
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
