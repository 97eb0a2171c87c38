package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// logPos is a place in the log: the next batch to read or write, and what it must say.
type logPos struct {
	seg         uint32
	block       uint32 // within seg
	seq         uint64 // of the next batch
	prev        uint32 // checksum of the batch before
	incarnation uint64
}

// logWriter appends batches. Everything is guarded by mu, which is held from the start of a unit until its records are
// in the index, so that log order is index order.
type logWriter struct {
	mu    sync.Mutex
	pos   logPos
	chain []uint32 // segments from where a replay would begin to pos.seg
	since uint64   // bytes appended since where a replay would begin
	dirty uint64   // bytes appended since the last flush that the background made

	spare   []uint32 // segments taken for the unit under way
	hdr     []byte   // header of the open batch
	records int
	data    int      // data blocks of the open batch
	iov     [][]byte // header, then data
	parts   []part   // of the unit
	opened  int      // first part of the open batch
}

// part says where consecutive blocks of a record of a unit went.
type part struct {
	rec   int // index of the record, as counted by the caller
	first int // first of the record's blocks
	count int
	at    uint64 // address of the first; while the batch is open: offset within its data
}

// zeroRow is what batches are padded with: to whole blocks and rows.
var zeroRow = disk.Buffer(indexGroup)

func (w *logWriter) init() {
	w.hdr = disk.Buffer(wal.MaxHeaderBlocks * block.Size)[:wal.FixedLen]
	w.iov = make([][]byte, 1, 256)
}

// reserveLog takes the segments that a unit of the given number of data blocks and header bytes may need; data must
// not be split finer than unsplit blocks. It returns ErrNoSpace, with nothing taken, unless keep segments remain free.
func (p *Pool) reserveLog(data, header int, keep int) error {
	w := &p.log
	segBlocks, row := int(p.seg.blocks()), int(p.seg.row(w.pos.seg))
	left := segBlocks - row - int(w.pos.block)
	split := header / (wal.MaxHeaderBlocks*block.Size - 4096) // times that a header is full
	need := data + blocksFor(header+wal.FixedLen) + 2*(data/(segBlocks/2)) + split
	if need+split*(row-1) <= left { // the padding of the last batch is there: left is whole rows
		return nil
	}
	// What is left of the open segment may not be used when a record does not fit. A further segment loses one row to
	// the link, at most 17 blocks (a state record) to what does not fit, and the padding of its batches to whole rows;
	// its headers take their share.
	row = p.seg.maxRow()
	headers := blocksFor(min(header, segBlocks*44))
	usable := segBlocks - row - 1 - headers - min(16, segBlocks/4) - (row-1)*(1+headers/(wal.MaxHeaderBlocks-1))
	n := (need + usable - 1) / usable
	var ok bool
	if w.spare, ok = p.seg.alloc(w.spare, n-len(w.spare), segLog, keep); n > len(w.spare) && !ok {
		return ErrNoSpace
	}
	return nil
}

// releaseSpare gives back what a unit did not need.
func (p *Pool) releaseSpare() {
	w := &p.log
	if len(w.spare) == 0 {
		return
	}
	p.seg.mu.Lock()
	for _, seg := range w.spare {
		p.seg.pinned[seg] = false
		p.seg.setFree(seg)
	}
	p.seg.mu.Unlock()
	w.spare = w.spare[:0]
}

func blocksFor(bytes int) int { return (bytes + block.Size - 1) / block.Size }

// add puts a record into the unit. data is the record's data: whole blocks, borrowed until finish. Records of data
// kinds other than State are split where a segment or header ends. rec numbers the record for w.parts.
func (p *Pool) add(r *wal.Record, data []byte, rec int) error {
	w := &p.log
	blocks := wal.DataBlocks(r.Kind, r.Count)
	splittable := blocks > 0 && r.Kind != wal.State
	sums := r.Sums
	for done := 0; ; {
		left := blocks - done
		space := p.room() - w.data // for header and this record's data
		n := left
		fits := func(n int) bool {
			count := r.Count
			if splittable {
				count = uint32(n)
			}
			hb := blocksFor(len(w.hdr) + wal.Len(r.Kind, count, len(r.Name)))
			return hb <= wal.MaxHeaderBlocks && hb+n <= space
		}
		if !fits(n) && splittable {
			for n = min(n, max(space-1, 0)); n > 0 && !fits(n); n-- {
			}
		}
		if (blocks > 0 && n == 0) || !fits(n) {
			if err := p.makeRoom(); err != nil {
				return err
			}
			continue
		}
		part_ := *r
		if splittable {
			part_.Block, part_.Count, part_.Sums = r.Block+uint64(done), uint32(n), sums[done:done+n]
		}
		w.hdr = wal.Append(w.hdr, &part_)
		w.records++
		if n > 0 {
			w.parts = append(w.parts, part{rec: rec, first: done, count: n, at: uint64(w.data) * block.Size})
			from, to := done*block.Size, min((done+n)*block.Size, len(data))
			w.iov = append(w.iov, data[from:to])
			if pad := n*block.Size - (to - from); pad > 0 {
				w.iov = append(w.iov, zeroRow[:pad])
			}
			w.data += n
		}
		if done += n; done == blocks {
			return nil
		}
	}
}

// makeRoom closes the open batch, which does not end the unit, and goes to another segment when this one is the
// reason that nothing more fits.
func (p *Pool) makeRoom() error {
	w := &p.log
	if w.records > 0 {
		if err := p.finish(wal.FlagMore); err != nil {
			return err
		}
		if p.room() > 64 {
			return nil
		}
	}
	return p.nextSegment()
}

// room returns the number of blocks of the open segment in front of the row that is kept for the link.
func (p *Pool) room() int {
	w := &p.log
	return int(p.seg.blocks()) - int(p.seg.row(w.pos.seg)) - int(w.pos.block)
}

// finish writes the open batch. On return the locations of its parts are final.
func (p *Pool) finish(flags uint16) error {
	w := &p.log
	h := wal.Header{
		Flags: flags, DataBlocks: w.data, Records: w.records, Prev: w.pos.prev, Incarnation: w.pos.incarnation, Seq: w.pos.seq,
		Stable: p.flush.stable.Load(), Segment: w.pos.seg, Block: w.pos.block,
	}
	return p.writeBatch(&h)
}

func (p *Pool) writeBatch(h *wal.Header) error {
	w := &p.log
	hdr, sum := wal.Finish(w.hdr, h)
	w.iov[0] = hdr
	blocks := len(hdr)/block.Size + w.data
	if pad := -blocks & (int(p.seg.row(w.pos.seg)) - 1); pad > 0 {
		w.iov = append(w.iov, zeroRow[:pad*block.Size])
		blocks += pad
	}
	base := uint64(w.pos.seg)<<p.seg.shift + uint64(w.pos.block)<<block.Shift
	err := p.seg.writevAt(w.iov, base)
	clear(w.iov) // the caller's memory is borrowed only
	for i := w.opened; i < len(w.parts); i++ {
		w.parts[i].at += base + uint64(len(hdr))
	}
	w.opened = len(w.parts)
	w.hdr, w.iov, w.records, w.data = w.hdr[:wal.FixedLen], w.iov[:1], 0, 0
	if err != nil {
		return p.fail(fmt.Errorf("log: %w", err))
	}
	w.pos.block += uint32(blocks)
	w.pos.seq++
	w.pos.prev = sum
	n := uint64(blocks) * block.Size
	w.since += n
	w.dirty += n
	p.count.logBytes.Add(n)
	p.count.batches.Add(1)
	return nil
}

// nextSegment writes the link to a spare segment and goes there. No batch is open.
func (p *Pool) nextSegment() error {
	w := &p.log
	if len(w.spare) == 0 {
		var ok bool
		if w.spare, ok = p.seg.alloc(w.spare, 1, segLog, 0); !ok {
			return p.fail(fmt.Errorf("log: no segment left within a unit: %w", ErrNoSpace))
		}
	}
	seg := w.spare[0]
	w.spare = append(w.spare[:0], w.spare[1:]...)
	return p.link(seg, 0, w.pos.incarnation)
}

// link ends the log here and continues it elsewhere. The last row of a segment is kept for it.
func (p *Pool) link(seg, blk uint32, incarnation uint64) error {
	w := &p.log
	h := wal.Header{
		Flags: wal.FlagLink, Prev: w.pos.prev, Incarnation: w.pos.incarnation, Seq: w.pos.seq, Stable: p.flush.stable.Load(),
		Segment: w.pos.seg, Block: w.pos.block, NextSegment: seg, NextBlock: blk, NextIncarnation: incarnation,
	}
	if err := p.writeBatch(&h); err != nil {
		return err
	}
	if seg != w.pos.seg {
		w.chain = append(w.chain, seg)
	}
	w.pos.seg, w.pos.block, w.pos.incarnation = seg, blk, incarnation
	return nil
}

// beginUnit forgets the parts of the unit before. abortUnit forgets what was added but not written.
func (w *logWriter) beginUnit() { w.parts, w.opened = w.parts[:0], 0 }

// endUnit writes what is open as the end of the unit and publishes its number for Sync.
func (p *Pool) endUnit() error {
	if err := p.finish(0); err != nil {
		return err
	}
	p.releaseSpare()
	p.appended.Store(p.log.pos.seq - 1)
	return nil
}
