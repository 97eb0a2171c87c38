package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// coldWriter appends batches of moved blocks to segments of its own. Data that is moved for the first time and data
// that was moved before go to different ones: what has survived longer lives longer, and segments whose blocks are
// alike are emptied by overwriting either soon or hardly ever, both of which spares the cleaner work.
type coldWriter struct {
	kind   uint8
	open   bool
	seg    uint32
	at     uint32 // block of seg where the next batch goes
	births uint64 // sum over the blocks in seg
	blocks uint64

	// the open batch
	hdr     []byte
	raw     []byte     // blocks that are stored as they are
	packed  []byte     // and compressed ones
	rec     wal.Record // the last one, without its checksums and lengths
	sums    []uint32
	lens    []uint8
	records int
	moves   []movedBlock // without the new locations
}

const (
	coldBatch = 256  // blocks of data that the cleaner writes with one append
	coldMoves = 1024 // blocks of replicas in them, when they are compressed
)

// append puts a block into the open batch: the bytes that are stored of it, as they are. It returns errNoRoom, with
// nothing done, when there is no segment for it.
func (c *cleaner) append(w *coldWriter, x *candidate, stored []byte, birth uint64) error {
	p := c.p
	if w.hdr == nil {
		w.hdr = disk.Buffer(wal.MaxHeaderBlocks * block.Size)[:wal.FixedLen]
		w.raw = disk.Buffer(coldBatch * block.Size)[:0]
		w.packed = disk.Buffer(coldBatch * block.Size)[:0]
	}
	if len(w.raw)+len(w.packed)+len(stored) > coldBatch*block.Size || len(w.moves) == coldMoves || w.open && !w.fits(p.seg.blocks(), len(stored)) {
		if err := c.write(w); err != nil {
			return err
		}
	}
	if w.open && !w.fits(p.seg.blocks(), len(stored)) {
		c.seal(w)
	}
	if !w.open {
		what := forCleaner
		if p.seg.onCache(p.seg.of(x.loc)) { // nothing is gained on the groups for data
			what = forUser
		}
		segs, ok := p.seg.allocData(nil, 1, w.kind, p.keep(what))
		if !ok {
			return errNoRoom
		}
		w.seg, w.open, w.at, w.births, w.blocks = segs[0], true, 0, 0, 0
	}
	slot, b := uint32(x.key>>40), x.key&(1<<40-1)
	if r := &w.rec; r.Count == 0 || r.Slot != slot || r.Block+uint64(r.Count) != b || r.Version != x.ver {
		w.endRecord()
		w.rec = wal.Record{Kind: wal.Move, Slot: slot, Block: b, Version: x.ver}
	}
	w.rec.Count++
	w.sums = append(w.sums, x.sum)
	w.lens = append(w.lens, uint8(x.loc.Len()/wal.Granule))
	if x.loc.Raw() {
		w.raw = append(w.raw, stored...)
	} else {
		w.packed = append(w.packed, stored...)
	}
	w.moves = append(w.moves, movedBlock{key: x.key, ver: x.ver, old: x.loc})
	w.births += birth
	w.blocks++
	if row := int(p.seg.row(w.seg)); row > 1 && len(w.raw)+len(w.packed) > (coldBatch-2*row)*block.Size && w.size()%row == 0 {
		return c.write(w) // nothing is lost to padding
	}
	return nil
}

// size returns the number of blocks that the open batch takes.
func (w *coldWriter) size() int {
	header := len(w.hdr) + wal.Len(wal.Move, w.rec.Count, 0) + len(w.lens)
	return blocksFor(header) + wal.AreaBlocks(len(w.raw)/block.Size, len(w.packed))
}

// fits reports whether the segment, of so many blocks, has room for the open batch and one more block of so many bytes.
func (w *coldWriter) fits(blocks uint32, stored int) bool {
	header := len(w.hdr) + wal.Len(wal.Move, w.rec.Count, 0) + len(w.lens) + wal.Len(wal.Move, 1, 0) + 1
	raw, packed := len(w.raw)/block.Size, len(w.packed)
	if stored == block.Size {
		raw++
	} else {
		packed += stored
	}
	return int(w.at)+blocksFor(header)+wal.AreaBlocks(raw, packed) <= int(blocks)
}

func (w *coldWriter) endRecord() {
	if w.rec.Count == 0 {
		return
	}
	w.rec.Sums = w.sums
	for _, l := range w.lens {
		if l != wal.MaxLen {
			w.rec.Lens = w.lens
			break
		}
	}
	w.hdr = wal.Append(w.hdr, &w.rec)
	w.rec, w.sums, w.lens = wal.Record{}, w.sums[:0], w.lens[:0]
	w.records++
}

// write writes the open batch and notes where its blocks are now.
func (c *cleaner) write(w *coldWriter) error {
	p := c.p
	if len(w.moves) == 0 {
		return nil
	}
	w.endRecord()
	rawBlocks := len(w.raw) / block.Size
	data := wal.AreaBlocks(rawBlocks, len(w.packed))
	hdr, _ := wal.Finish(w.hdr, &wal.Header{
		Flags: wal.FlagCold, DataBlocks: data, Records: w.records, Incarnation: c.incarnation, Seq: p.appended.Load(), Segment: w.seg, Block: w.at,
	})
	base := uint64(w.seg)<<p.seg.shift + uint64(w.at)<<block.Shift
	row := int(p.seg.row(w.seg))
	n := (len(hdr)/block.Size + data + row - 1) &^ (row - 1)
	w.packed = append(w.packed, zeroRow[:-len(w.packed)&(block.Size-1)]...) // devices want whole blocks in each buffer
	pad := n*block.Size - len(hdr) - len(w.raw) - len(w.packed)
	if err := p.seg.writevAt([][]byte{hdr, w.raw, w.packed, zeroRow[:pad]}, base); err != nil {
		return p.fail(fmt.Errorf("clean: %w", err))
	}
	area := wal.MakeArea(base+uint64(len(hdr)), rawBlocks)
	for i := range w.moves {
		m := &w.moves[i]
		m.new = index.MakeLoc(area.Next(uint8(m.old.Len()/wal.Granule)), m.old.Len())
	}
	c.moves = append(c.moves, w.moves...)
	w.at += uint32(n)
	p.count.coldBytes.Add(uint64(n) * block.Size)
	w.hdr, w.raw, w.packed, w.moves, w.records = w.hdr[:wal.FixedLen], w.raw[:0], w.packed[:0], w.moves[:0], 0
	return nil
}

// seal ends the segment of w. It stays pinned until a drain has put the moves to it into pages.
func (c *cleaner) seal(w *coldWriter) {
	c.p.seg.mu.Lock()
	if w.blocks > 0 {
		c.p.seg.birth[w.seg] = w.births / w.blocks
	}
	c.p.seg.mu.Unlock()
	c.full = append(c.full, w.seg)
	w.open = false
}

// flush writes what is open.
func (c *cleaner) flush() error {
	if err := c.write(&c.warm); err != nil {
		return err
	}
	return c.write(&c.cold)
}

// waiting returns the number of moves that are not in pages.
func (c *cleaner) waiting() int { return len(c.moves) + len(c.warm.moves) + len(c.cold.moves) }
