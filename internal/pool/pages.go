package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// alignedRead recycles memory for reads of whole blocks around something packed closer.
var alignedRead = sync.Pool{New: func() any { b := disk.Buffer(indexGroup + 2*block.Size); return &b }}

// readPacked fills dst from addr, which need not be aligned.
func (p *Pool) readPacked(dst []byte, addr uint64) error {
	if err := p.seg.checkRange(addr, len(dst)); err != nil {
		return err
	}
	if len(dst) > indexGroup {
		return fmt.Errorf("%d bytes at %#x: %w", len(dst), addr, ErrDamaged)
	}
	from := addr &^ (block.Size - 1)
	to := (addr + uint64(len(dst)) + block.Size - 1) &^ (block.Size - 1)
	buf := alignedRead.Get().(*[]byte)
	defer alignedRead.Put(buf)
	b := (*buf)[:to-from]
	if err := p.seg.readAt(b, from); err != nil {
		return err
	}
	copy(dst, b[addr-from:])
	return nil
}

// loadPage opens the index page that d says into v. The caller releases the page when done with v. d is a copy taken
// under the index lock by somebody who is entered as a reader, or by the holder of drain.mu.
func (p *Pool) loadPage(r *Replica, chunk uint64, d *chunkRef, v *index.View) (*cachedPage, error) {
	if e := p.cache.get(d.id); e != nil {
		if err := v.Open(e.b, d.id, r.slot, chunk, true); err != nil {
			p.cache.release(e)
			return nil, p.pageError(r, chunk, d, err)
		}
		return e, nil
	}
	n := d.pageLen()
	if n == 0 || n > index.MaxPage {
		return nil, p.pageError(r, chunk, d, ErrDamaged)
	}
	e := p.cache.buffer(n)
	if err := p.readPacked(e.b, d.pageAddr()); err != nil {
		p.cache.release(e)
		return nil, fmt.Errorf("index page of chunk %d: %w", chunk, err)
	}
	if err := v.Open(e.b, d.id, r.slot, chunk, false); err != nil {
		if !p.recoverPacked(e.b, d.pageAddr(), func(b []byte) bool { return v.Open(b, d.id, r.slot, chunk, false) == nil }) {
			p.cache.release(e)
			return nil, p.pageError(r, chunk, d, err)
		}
		if err := v.Open(e.b, d.id, r.slot, chunk, true); err != nil {
			p.cache.release(e)
			return nil, p.pageError(r, chunk, d, err)
		}
	}
	if v.End() > p.seg.limit() {
		p.cache.release(e)
		return nil, p.pageError(r, chunk, d, ErrDamaged)
	}
	p.cache.put(e, d.id)
	return e, nil
}

func (p *Pool) pageError(r *Replica, chunk uint64, d *chunkRef, err error) error {
	p.count.sumErrors.Add(1)
	device, off := p.where(d.pageAddr())
	return fmt.Errorf("%w: %w", &ChecksumError{
		Replica: r.name, Block: chunk * block.ChunkBlocks, Device: device, Offset: off, What: "index page",
	}, err)
}

// indexGroup is the number of bytes of pages, directory or checkpoint that are written at once.
const indexGroup = 128 << 10

// indexWriter appends pages, directory blocks and checkpoints to index segments. The holder of drain.mu uses it.
type indexWriter struct {
	buf  []byte // what is to be written next; its first byte goes to addr()
	seg  uint32
	open bool
	at   uint32 // bytes of seg that are written
	most int    // bytes that the buffer takes before it must be written
}

// room reports whether n more bytes fit into the buffer; when they do not it must be written first.
func (w *indexWriter) room(n int) bool { return len(w.buf) == 0 || len(w.buf)+n <= w.most }

// place returns the address at which the next n bytes, for which there is room, will be, after going to another segment
// if they do not fit into this one.
func (p *Pool) place(w *indexWriter, n int) (uint64, error) {
	if len(w.buf) == 0 && (!w.open || int64(w.at)+int64(n) > p.seg.bytes()) {
		segs, ok := p.seg.alloc(nil, 1, segIndex, 0)
		if !ok {
			return 0, p.fail(fmt.Errorf("index: no segment left for pages: %w", ErrNoSpace))
		}
		if w.open {
			p.seg.unpin(w.seg)
		}
		w.seg, w.open, w.at = segs[0], true, 0
	}
	if len(w.buf) == 0 {
		w.most = int(min(indexGroup, p.seg.bytes()-int64(w.at)))
	}
	return uint64(w.seg)<<p.seg.shift + uint64(w.at) + uint64(len(w.buf)), nil
}

// write appends the buffer, padded to whole rows, to the segment and empties it.
func (p *Pool) writeGroup(w *indexWriter) error {
	n := len(w.buf)
	if n == 0 {
		return nil
	}
	row := int(p.seg.row(w.seg)) * block.Size
	full := (n + row - 1) / row * row
	b := w.buf[:full]
	clear(b[n:])
	err := p.seg.writevAt([][]byte{b}, uint64(w.seg)<<p.seg.shift+uint64(w.at))
	w.buf = w.buf[:0]
	if err != nil {
		return p.fail(fmt.Errorf("index: %w", err))
	}
	w.at += uint32(full)
	p.count.indexBytes.Add(uint64(full))
	p.drain.wrote.Add(int64(full))
	return nil
}
