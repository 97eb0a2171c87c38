package pool

import (
	"bytes"
	"fmt"
	"sort"

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
	before      uint64 // the incarnation before, zero when it is not known
}

// logWriter appends batches. Everything is guarded by mu, which is held from the start of a unit until its records are
// in the index, so that log order is index order.
type logWriter struct {
	mu    seizable
	pos   logPos
	chain []uint32 // segments from where a replay would begin to pos.seg
	since uint64   // bytes appended since where a replay would begin
	read  bool     // a replay is under way: nothing may be appended before it is over
	dirty uint64   // bytes appended since the last flush that the background made
	last  uint64   // newest batch with records that this mount has written
	told  uint64   // the stable mark of the newest batch
	full  int      // see fullBelow, as of when a segment was taken last

	spare   []uint32 // segments taken for the unit under way
	hdr     []byte   // header of the open batch
	records int
	raw     int      // data of the open batch: whole blocks
	packed  int      // and bytes of compressed ones
	iov     [][]byte // header, then whole blocks
	pieces  [][]byte // compressed blocks
	gather  []byte   // memory for pieces that are not whole blocks as they are
	parts   []part   // of the unit
	opened  int      // first part of the open batch
}

// part says where consecutive blocks of a record of a unit went.
type part struct {
	rec   int // index of the record, as counted by the caller
	first int // first of the record's blocks
	count int
	area  wal.Area // where the first is; while the batch is open: offsets within its two kinds of data
	lens  []uint8  // as in wal.Record
}

// errWait says that there will be room when a cycle has freed segments.
var errWait = fmt.Errorf("segments must be freed first: %w", ErrNoSpace)

// zeroRow is what batches are padded with: to whole blocks and rows.
var zeroRow = disk.Buffer(indexGroup)

// maxGather is the largest memory for compressed blocks that is kept for the next batch.
const maxGather = 4 << 20

func (w *logWriter) init() {
	w.hdr = disk.Buffer(wal.MaxHeaderBlocks * block.Size)[:wal.FixedLen]
	w.iov = make([][]byte, 1, 256)
}

// reserveLog takes the segments that a unit of the given number of data blocks and header bytes may need; data must
// not be split finer than unsplit blocks. It returns ErrNoSpace, with nothing taken, when a user's data is more than the
// pool is for, errWait when segments must be freed first. replaced is as for begin. last says that waiting is of no use
// any more: then everybody takes what is left for the next step.
func (p *Pool) reserveLog(data, header int, replaced func() int64, last bool) error {
	w := &p.log
	what := forRecords
	switch {
	case replaced != nil && !last:
		what = forUser
	case replaced == nil && last:
		what = forPages
	}
	free := p.seg.freeCount()
	asked := replaced != nil && free < max(p.seg.reserve(), w.full)
	if asked { // even if there is room in the open segment, which a record may have opened
		if err := p.full(data, replaced); err != nil {
			return err
		}
	}
	segBlocks, row := int(p.seg.blocks()), int(p.seg.row(w.pos.seg))
	left := segBlocks - row - int(w.pos.block)
	split := header / (wal.MaxHeaderBlocks*block.Size - 4096) // times that a header is full
	// Each split takes another header, and leaves another block of compressed data that is filled in part.
	need := data + blocksFor(header+wal.FixedLen) + 4*(data/(segBlocks/2)) + 2*split
	if need+split*(row-1) <= left { // the padding of the last batch is there: left is whole rows
		return p.pagesFit()
	}
	// What is left of the open segment may not be used when a record does not fit. A further segment loses one row to
	// the link, at most 17 blocks (a state record) to what does not fit, one to compressed data that ends within a block, and
	// the padding of its batches to whole rows; its headers take their share.
	row = p.seg.maxRow()
	headers := blocksFor(min(header, segBlocks*44))
	usable := segBlocks - row - 1 - headers - min(16, segBlocks/4) - row*(1+headers/(wal.MaxHeaderBlocks-1))
	n := (need+usable-1)/usable - len(w.spare)
	if n <= 0 {
		return p.pagesFit()
	}
	w.full = p.fullBelow()
	if replaced != nil && !asked && (free-n < w.full || p.seg.hasCache()) { // a cache has room, but the capacity is that of the others
		if err := p.full(data, replaced); err != nil {
			return err
		}
	}
	if start := p.cleanStart(); free-n < start {
		if what == forUser && p.low() {
			p.pace.hold(p.count.logBytes.Load(), uint64(max(start-p.keep(forUser), 4)/2*int(p.seg.bytes())))
		}
		p.wake()
	}
	var ok bool
	if w.spare, ok = p.seg.alloc(w.spare, n, segLog, p.keep(what)); !ok {
		return errWait
	}
	p.count.logSegs.Add(int64(n))
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
	p.count.logSegs.Add(int64(-len(w.spare)))
	w.spare = w.spare[:0]
}

func blocksFor(bytes int) int { return (bytes + block.Size - 1) / block.Size }

// add puts a record without lengths into the unit. data is the record's data: whole blocks, borrowed until finish.
// Records of data kinds other than State are split where a segment or header ends. rec numbers the record for w.parts.
func (p *Pool) add(r *wal.Record, data []byte, rec int) error { return p.addPacked(r, data, nil, rec) }

// addPacked is add for a record with lengths: packed has its compressed blocks one after the other, and data, of which
// only the others are used, all of its blocks.
func (p *Pool) addPacked(r *wal.Record, data, packed []byte, rec int) error {
	w := &p.log
	blocks := wal.DataBlocks(r.Kind, r.Count)
	splittable := blocks > 0 && r.Kind != wal.State
	part_ := *r
	cut := func(done, n int) { // part_ becomes n of the record's blocks
		if splittable {
			part_.Block, part_.Count, part_.Sums = r.Block+uint64(done), uint32(n), r.Sums[done:done+n]
			if r.Lens != nil {
				part_.Lens = r.Lens[done : done+n]
			}
		}
	}
	for done := 0; ; {
		space := p.room() // for header and data
		fits := func(n int) bool {
			cut(done, n)
			raw, pk := wal.DataLen(part_.Kind, part_.Count, part_.Lens)
			hb := blocksFor(len(w.hdr) + wal.Len(part_.Kind, part_.Count, len(part_.Name)+len(part_.From)) + len(part_.Lens))
			return hb <= wal.MaxHeaderBlocks && hb+wal.AreaBlocks(w.raw+raw, w.packed+pk) <= space
		}
		n := blocks - done
		if !fits(n) && splittable {
			n = sort.Search(n, func(k int) bool { return !fits(k + 1) })
		}
		if (blocks > 0 && n == 0) || !fits(n) {
			if err := p.makeRoom(); err != nil {
				return err
			}
			continue
		}
		w.hdr = wal.Append(w.hdr, &part_)
		w.records++
		if n > 0 {
			w.parts = append(w.parts, part{
				rec: rec, first: done, count: n, lens: part_.Lens, area: wal.Area{Raw: uint64(w.raw) * block.Size, Packed: uint64(w.packed)},
			})
			packed = packed[w.carry(&part_, data[min(done*block.Size, len(data)):], packed):]
		}
		if done += n; done == blocks {
			return nil
		}
	}
}

// carry puts the data of a record into the open batch and returns how many bytes of packed it has.
func (w *logWriter) carry(r *wal.Record, data, packed []byte) int {
	raw, pk := wal.DataLen(r.Kind, r.Count, r.Lens)
	w.raw += raw
	w.packed += pk
	if pk > 0 {
		w.pieces = appendPiece(w.pieces, packed[:pk])
	}
	if r.Lens == nil {
		n := raw * block.Size
		w.iov = append(w.iov, data[:min(n, len(data))])
		if pad := n - len(data); pad > 0 { // a state record
			w.iov = append(w.iov, zeroRow[:pad])
		}
		return 0
	}
	for i := 0; i < len(r.Lens); {
		n := 0
		for i+n < len(r.Lens) && r.Lens[i+n] == wal.MaxLen {
			n++
		}
		if n > 0 {
			w.iov = append(w.iov, data[i*block.Size:(i+n)*block.Size])
		}
		i += max(n, 1)
	}
	return pk
}

// appendPiece appends b to pieces, or makes the last piece longer when b follows it in memory.
func appendPiece(pieces [][]byte, b []byte) [][]byte {
	if k := len(pieces) - 1; k >= 0 {
		if l := pieces[k]; cap(l)-len(l) >= len(b) && &l[:len(l)+1][len(l)] == &b[0] {
			pieces[k] = l[:len(l)+len(b)]
			return pieces
		}
	}
	return append(pieces, b)
}

// packedBlocks returns the compressed part of the open batch as whole blocks: the memory that it is in, when that goes
// on with zeroes, or a copy.
func (w *logWriter) packedBlocks() []byte {
	full := blocksFor(w.packed) * block.Size
	if b := w.pieces[0]; len(w.pieces) == 1 && cap(b) >= full && bytes.Equal(b[len(b):full], zeroRow[:full-len(b)]) {
		return b[:full]
	}
	if cap(w.gather) < full {
		w.gather = disk.Buffer(full)
	}
	b := w.gather[:0]
	for _, x := range w.pieces {
		b = append(b, x...)
	}
	b = b[:full]
	clear(b[w.packed:])
	return b
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
		Flags: flags, DataBlocks: wal.AreaBlocks(w.raw, w.packed), Records: w.records, Prev: w.pos.prev, Incarnation: w.pos.incarnation, Before: w.pos.before,
		Seq: w.pos.seq, Stable: p.flush.stable.Load(), Segment: w.pos.seg, Block: w.pos.block,
	}
	return p.writeBatch(&h)
}

func (p *Pool) writeBatch(h *wal.Header) error {
	w := &p.log
	hdr, sum := wal.Finish(w.hdr, h)
	w.iov[0] = hdr
	if w.packed > 0 {
		w.iov = append(w.iov, w.packedBlocks())
	}
	blocks := len(hdr)/block.Size + h.DataBlocks
	if pad := -blocks & (int(p.seg.row(w.pos.seg)) - 1); pad > 0 {
		w.iov = append(w.iov, zeroRow[:pad*block.Size])
		blocks += pad
	}
	base := uint64(w.pos.seg)<<p.seg.shift + uint64(w.pos.block)<<block.Shift
	write := p.seg.writeInline
	if !p.running.Load() { // Open and Close do not return from a device that hangs
		write = p.seg.writevAt
	}
	err := w.mu.away(p, func() error { return write(w.iov, base) })
	clear(w.iov) // the caller's memory is borrowed only
	clear(w.pieces)
	if cap(w.gather) > maxGather {
		w.gather = nil
	}
	area := wal.MakeArea(base+uint64(len(hdr)), w.raw)
	for i := w.opened; i < len(w.parts); i++ {
		w.parts[i].area.Raw += area.Raw
		w.parts[i].area.Packed += area.Packed
	}
	w.opened = len(w.parts)
	w.hdr, w.iov, w.pieces, w.records, w.raw, w.packed = w.hdr[:wal.FixedLen], w.iov[:1], w.pieces[:0], 0, 0, 0
	if err != nil {
		return p.fail(fmt.Errorf("log: %w", err))
	}
	if h.Records > 0 {
		w.last = h.Seq
	}
	w.told = h.Stable
	w.pos.block += uint32(blocks)
	w.pos.seq++
	w.pos.prev = sum
	n := uint64(blocks) * block.Size
	w.since += n
	w.dirty += n
	p.count.logBytes.Add(n)
	p.seg.clock.Add(uint64(blocks))
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
		p.count.logSegs.Add(1)
	}
	seg := w.spare[0]
	w.spare = append(w.spare[:0], w.spare[1:]...)
	return p.link(seg, 0, w.pos.incarnation)
}

// link ends the log here and continues it elsewhere. The last row of a segment is kept for it.
func (p *Pool) link(seg, blk uint32, incarnation uint64) error {
	w := &p.log
	h := wal.Header{
		Flags: wal.FlagLink, Prev: w.pos.prev, Incarnation: w.pos.incarnation, Before: w.pos.before, Seq: w.pos.seq, Stable: p.flush.stable.Load(),
		Segment: w.pos.seg, Block: w.pos.block, NextSegment: seg, NextBlock: blk, NextIncarnation: incarnation,
	}
	if err := p.writeBatch(&h); err != nil {
		return err
	}
	if seg != w.pos.seg {
		w.chain = append(w.chain, seg)
	}
	w.pos.follow(&h)
	return nil
}

// beginUnit forgets the parts of the unit before. abortUnit forgets what was added but not written.
func (w *logWriter) beginUnit() { w.parts, w.opened = w.parts[:0], 0 }

// tellStable writes down how far the log is stable, when a flush has moved that and no batch says so: in a batch without
// records, or in the link to another segment when this one is full. It is not flushed itself, since nothing depends on it
// but that damage to what it is about can be told from the end of the log. It reports whether it wrote.
func (p *Pool) tellStable() bool {
	w := &p.log
	w.mu.Lock()
	defer w.mu.Unlock()
	told := max(w.told, p.commits.from.seq-1) // what is in front of a checkpoint is not replayed
	if min(w.last, p.flush.stable.Load()) <= told || p.usable() != nil {
		return false
	}
	if p.room() > 0 {
		return p.finish(0) == nil // else the pool has failed, and everybody sees that
	}
	return p.reserveLog(0, 0, nil, false) == nil && p.nextSegment() == nil // there may be no segment now
}

// endUnit writes what is open as the end of the unit and publishes its number for Sync.
func (p *Pool) endUnit() error {
	if err := p.finish(0); err != nil {
		return err
	}
	p.releaseSpare()
	p.appended.Store(p.log.pos.seq - 1)
	return nil
}
