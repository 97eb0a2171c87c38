package pool

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// logSegment heals the batches of a segment that hold live blocks. Batches without live blocks cannot be proved and
// need not be; when their lengths lead to where nothing can be proved either, some device has told of old times, and
// the rows since then are looked at one by one.
func (w *walk) logSegment(seg uint32) error {
	row := w.p.seg.row(seg)
	w.gap = 0
	last := w.live.last(seg)
	if end, open := w.ends[seg]; open && (w.stale || last >= int(end)) { // where more will be written, headers must lead there
		last = int(end) - 1
	}
	w.headers.end = uint32(last+int(row)) &^ (row - 1) // what is behind may be written meanwhile, and must not be repaired
	var pos logPos                                     // where the next header is, if one was proved before
	back, slow := -1, uint32(0)                        // where the rows to look at again begin; where they end
	for b := uint32(0); int(b) <= last; {
		n, what, err := w.batch(seg, b, row, &pos, b < slow)
		if err != nil {
			return err
		}
		switch {
		case what == batchProved:
			back, w.gap = -1, 0
			b += n
		case what == batchDead && b >= slow:
			if back < 0 {
				back = int(b)
			}
			b += n
		case what != batchDead && back >= 0 && b >= slow:
			b, slow, back = uint32(back), b+row, -1
		default:
			if start := uint64(seg)<<w.p.seg.shift + uint64(b)<<block.Shift; what != batchDead {
				if what == batchNone && w.gap == 0 {
					w.gap = start + 1
				}
				w.orphaned(start, row)
			}
			b += row
		}
	}
	return w.flush()
}

// verdict is what is known of what is at a place.
type verdict uint8

const (
	batchNone   verdict = iota // there is no header
	batchOld                   // there is a header, but another one should be there
	batchDead                  // a batch without live blocks; it need not be the last one written there
	batchProved                // a batch
)

// batch looks at the batch at a place and heals it if it is proved. It returns how many blocks to go on.
func (w *walk) batch(seg, b, row uint32, pos *logPos, careful bool) (n uint32, what verdict, err error) {
	p := w.p
	ticket, err := w.enter(seg)
	if err != nil {
		return 0, 0, err
	}
	h, raw, proved, err := w.header(seg, b, pos, careful)
	p.read.leave(ticket)
	if err != nil {
		pos.seq = 0
		if errors.Is(err, wal.ErrDamaged) {
			return row, batchNone, nil
		}
		return 0, 0, err
	}
	start := uint64(seg)<<p.seg.shift + uint64(b)<<block.Shift
	n = padded(&h, row)
	end := start + uint64(n)<<block.Shift
	live := w.live.any(start, end)
	switch {
	case live && !proved:
		pos.seq = 0 // of what the header says nothing is believed, its length neither
		if w.stale && !w.live.any(start, start+uint64(row)<<block.Shift) {
			err = w.add(start, start+uint64(row)<<block.Shift, nil)
		}
		return row, batchOld, err
	case live:
		err = w.add(start, end, batchPieces(nil, start, &h, raw, row))
	case w.stale: // only the header, so that whoever goes through the segment comes by
		length := (uint32(h.HeaderBlocks) + row - 1) &^ (row - 1)
		err = w.add(start, min(start+uint64(length)<<block.Shift, w.end(seg)), nil)
	}
	if !proved {
		pos.seq = 0
		return n, batchDead, err
	}
	if h.Flags&wal.FlagLink != 0 && h.NextSegment != seg {
		pos.seq = 0
		return n, batchProved, err
	}
	*pos = logPos{seg: seg, block: b, seq: h.Seq, incarnation: h.Incarnation}
	pos.advance(&h, row)
	return max(n, pos.block-min(pos.block, b)), batchProved, err // a link may lead over a hole
}

// header returns the header at a place, and whether it is certain that it is the one that was written there last.
// Unless it is to be careful it does not ask all devices about a batch without live blocks.
func (w *walk) header(seg, b uint32, pos *logPos, careful bool) (h wal.Header, raw []byte, proved bool, err error) {
	p := w.p
	ok := func(h *wal.Header, raw []byte) bool {
		return pos.seq > 0 && pos.block == b && pos.follows(h) || w.confirmed(seg, b, h, raw)
	}
	h, raw, err = w.headers.header(seg, b)
	if err == nil && ok(&h, raw) {
		return h, raw, true, nil
	}
	if err != nil && !errors.Is(err, wal.ErrDamaged) {
		return h, nil, false, err
	}
	start := uint64(seg)<<p.seg.shift + uint64(b)<<block.Shift
	if g, _ := p.seg.locate(start); !g.Redundant() || !careful && err == nil && !w.live.any(start, start+uint64(padded(&h, g.row))<<block.Shift) {
		return h, raw, false, err // nothing else to ask, or nothing to ask for
	}
	// What was read is damaged or old; others may have what is right. Nothing is repaired before it is proved.
	for _, raw := range w.others(seg, b) {
		if h, err := wal.Decode(raw); err == nil && ok(&h, raw) {
			return h, raw, true, nil
		}
	}
	return h, raw, false, err
}

// others returns all headers that the devices of a group have at a place, or that follow from what they have.
func (w *walk) others(seg, b uint32) (all [][]byte) {
	p := w.p
	g, off := p.seg.locate(uint64(seg)<<p.seg.shift + uint64(b)<<block.Shift)
	look := func(n int, f func(b []byte)) {
		_ = g.Recover(make([]byte, n*block.Size), off, func(b []byte) bool { f(b); return false })
	}
	var lengths []int
	look(1, func(first []byte) {
		if n := wal.Size(first); n > 0 && uint32(n) <= p.seg.blocks()-b && !slices.Contains(lengths, n) {
			lengths = append(lengths, n)
		}
	})
	for _, n := range lengths {
		look(n, func(raw []byte) {
			h, err := wal.Decode(raw)
			if err == nil && h.HeaderBlocks == n && w.headers.fits(&h, seg, b) && !slices.ContainsFunc(all, func(x []byte) bool { return bytes.Equal(x, raw) }) {
				all = append(all, bytes.Clone(raw))
			}
		})
	}
	return all
}

// confirmTries is how many chunks the index is asked for to prove one header.
const confirmTries = 64

// confirmed reports whether the index knows a block of the batch by the place and the checksum that the header gives
// it.
func (w *walk) confirmed(seg, b uint32, h *wal.Header, raw []byte) bool {
	start := uint64(seg)<<w.p.seg.shift + uint64(b)<<block.Shift
	asked := 0
	w.chunk.r = nil // what it was may have changed
	for _, x := range batchPieces(nil, start, h, raw, 1) {
		if x.kind == pieceBlock && w.live.any(x.at, x.end()) {
			if refers, _ := w.indexed(&x, &asked); refers {
				return true
			}
		}
		if asked > confirmTries {
			break
		}
	}
	return false
}

// indexed reports whether the index refers to a block where x says that it is; sure is false when that cannot be told.
// asked counts the chunks that were looked up, of which the last one is remembered.
func (w *walk) indexed(x *piece, asked *int) (refers, sure bool) {
	p, c := w.p, &w.chunk
	p.idx.mu.RLock()
	var r *Replica
	if int(x.slot) < len(p.idx.bySlot) {
		r = p.idx.bySlot[x.slot]
	}
	p.idx.mu.RUnlock()
	if r == nil {
		return false, true
	}
	if number := x.number / block.ChunkBlocks; c.r != r || c.number != number {
		c.r, c.number = r, number
		*asked++
		if p.fillChunk(c) != nil {
			c.r = nil
			return false, false
		}
	}
	refers = slices.ContainsFunc(c.data, func(y blockAt) bool {
		return y.block == int(x.number%block.ChunkBlocks) && y.loc == x.loc() && y.sum == x.sum
	})
	return refers, c.err == nil
}

// orphaned notes the live blocks of a row of which no header says what they are.
func (w *walk) orphaned(start uint64, row uint32) {
	for i := range uint64(row) {
		if at := start + i<<block.Shift; w.live.any(at, at+block.Size) {
			w.orphans[at>>block.Shift] = w.gap
		}
	}
}

// adopt heals the orphans, which takes another look at the whole index.
func (w *walk) adopt() error {
	if len(w.orphans) == 0 {
		return nil
	}
	var all []piece
	gaps := map[uint64]bool{}
	err := w.p.eachChunk(func(c *chunkPieces) error {
		for i := range c.data {
			x := &c.data[i]
			for at := x.loc.Addr() &^ (block.Size - 1); c.err == nil && at < x.loc.End(); at += block.Size {
				if gap, ok := w.orphans[at>>block.Shift]; ok {
					gaps[gap] = gap > 0
					all = append(all, c.piece(x))
					break
				}
			}
		}
		return w.pace(0)
	})
	clear(w.orphans)
	if err != nil {
		return err
	}
	if err := w.p.cycle(); err != nil {
		return err
	}
	for gap, damaged := range gaps {
		if damaged && !w.skipped(uint32((gap-1)>>w.p.seg.shift)) { // else it is others that are there now
			w.damaged(&piece{at: gap - 1, kind: pieceHeader})
		}
	}
	return w.scattered(all)
}
