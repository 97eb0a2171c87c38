package pool

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// piece is a range of a segment of which it is known what must be there.
type piece struct {
	at       uint64 // address
	n        uint32 // bytes
	kind     pieceKind
	lost     bool // it cannot be had
	reported bool
	sum      uint32
	slot     uint32        // replica
	number   uint64        // block; (first) chunk of a page and of a part of the directory; number of a batch
	ver      block.Version // of a block, if known
	id       uint64        // page
	hist     *index.HistRef
	known    []byte // the content itself
}

type pieceKind uint8

const (
	pieceBlock   pieceKind = iota // of a replica, raw or compressed
	pieceState                    // a replica's state record
	pieceHeader                   // of a batch
	pieceZero                     // padding
	piecePage                     // index page
	pieceHistory                  // history page
	pieceDir                      // directory block or node
	pieceRoot                     // part of the root of the newest checkpoint
)

func (k pieceKind) String() string {
	return [...]string{"data", "state record", "batch header", "padding", "index page", "history page", "directory block", "checkpoint"}[k]
}

// ofReplica reports whether slot says whose it is.
func (k pieceKind) ofReplica() bool {
	return k == pieceBlock || k == piecePage || k == pieceHistory || k == pieceDir
}

func (x *piece) end() uint64 { return x.at + uint64(x.n) }

// same reports whether two pieces are the same content of the same block: a table and a page may agree.
func (x *piece) same(y *piece) bool {
	return x.kind == pieceBlock && y.kind == pieceBlock && x.at == y.at && x.n == y.n && x.slot == y.slot && x.number == y.number && x.sum == y.sum
}

// loc returns the location of a block.
func (x *piece) loc() index.Loc { return index.MakeLoc(x.at, int(x.n)) }

// blockPiece returns the piece that a block of a replica is.
func blockPiece(loc index.Loc, sum, slot uint32, b uint64) piece {
	return piece{at: loc.Addr(), n: uint32(loc.Len()), sum: sum, slot: slot, number: b}
}

// pagePiece returns the piece that the page of a chunk is.
func pagePiece(r *Replica, chunk uint64, d *chunkRef) piece {
	return piece{at: d.pageAddr(), n: uint32(d.pageLen()), kind: piecePage, slot: r.slot, number: chunk, id: d.id}
}

// historyPiece returns the piece that a history page of a chunk is.
func historyPiece(r *Replica, chunk uint64, h *index.HistRef) piece {
	return piece{at: h.Addr(), n: uint32(h.Len()), kind: pieceHistory, slot: r.slot, number: chunk, id: h.ID, hist: new(*h)}
}

// dirPiece returns the piece that a directory block or node is, which begins with a chunk.
func dirPiece(r *Replica, s *dirSlot, first uint64) piece {
	return piece{at: s.addr, n: s.size, kind: pieceDir, sum: s.sum, slot: r.slot, number: first}
}

// rootPiece returns the piece that a part of the root is.
func rootPiece(e extent) piece {
	return piece{at: e.Addr, n: e.Len, kind: pieceRoot, sum: e.Sum}
}

// block returns the block of a replica that x is, or the first one of what it describes.
func (x *piece) block() uint64 {
	switch x.kind {
	case pieceBlock:
		return x.number
	case piecePage, pieceHistory, pieceDir:
		return x.number * block.ChunkBlocks
	}
	return 0
}

// headerPiece returns the piece that the header of the batch at start is, of which raw is the content.
func headerPiece(start uint64, h *wal.Header, raw []byte) piece {
	known := bytes.Clone(raw[:h.HeaderBlocks*block.Size])
	return piece{at: start, n: uint32(len(known)), kind: pieceHeader, number: h.Seq, known: known}
}

// statePiece returns the piece that a state record at an address is.
func statePiece(at uint64, rec *wal.Record) piece {
	return piece{at: at, n: rec.Count, kind: pieceState, sum: rec.Sums[0], slot: rec.Slot}
}

// right reports whether b is the content of x, which is not padding. buf has room for a block.
func (x *piece) right(b, buf []byte) bool {
	switch {
	case x.known != nil:
		return bytes.Equal(b, x.known)
	case x.kind == pieceBlock:
		at := place{loc: x.loc(), sum: x.sum}
		return at.content(buf, b)
	case x.kind == piecePage:
		var v index.View
		return v.Open(b, x.id, x.slot, x.number, false) == nil
	case x.kind == pieceHistory:
		var v index.OldView
		return index.OpenHistory(&v, b, x.hist, x.slot, x.number, false) == nil
	}
	return block.Sum(b) == x.sum
}

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroRow))
		if !bytes.Equal(b[:n], zeroRow[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// batchPieces appends what the batch at start, with rows of that many blocks, consists of: everything up to the end of
// its last row, ascending. h and raw are its header.
func batchPieces(dst []piece, start uint64, h *wal.Header, raw []byte, row uint32) []piece {
	header := headerPiece(start, h, raw)
	dst = append(dst, header)
	first := len(dst)
	area := wal.MakeArea(header.end(), h.RawBlocks)
	var it wal.Records
	var rec wal.Record
	for it.Reset(raw, h); it.Next(&rec); area.Skip(rec.Kind, rec.Count, rec.Lens) {
		if rec.Kind == wal.State {
			if rec.Count > 0 {
				dst = append(dst, statePiece(area.Raw, &rec))
			}
			continue
		}
		next := area
		for i, sum := range rec.Sums {
			length := rec.Granules(i)
			if at := next.Next(length); length > 0 {
				dst = append(dst, blockPiece(index.MakeLoc(at, int(length)*wal.Granule), sum, rec.Slot, rec.Block+uint64(i)))
			}
		}
	}
	slices.SortFunc(dst[first:], func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	return pad(dst, first, start+uint64(padded(h, row))<<block.Shift)
}

// pad adds the gaps between pieces from number first on, and up to an end, as zeroes.
func pad(dst []piece, first int, end uint64) []piece {
	at := dst[first-1].end()
	n := len(dst)
	for i := first; i <= n; i++ {
		next := end
		if i < n {
			next = dst[i].at
		}
		if next > at {
			dst = append(dst, piece{at: at, n: uint32(next - at), kind: pieceZero})
		}
		if i < n {
			at = dst[i].end()
		}
	}
	if len(dst) > n {
		slices.SortFunc(dst[first:], func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	}
	return dst
}
