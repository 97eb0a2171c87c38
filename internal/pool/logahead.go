package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// replayWindow are the headers of the next batches to be replayed, for which the directory is read together before the
// first of them is.
type replayWindow struct {
	p     *Pool
	l     *logReader
	left  []batchAt // behind the window
	pos   logPos    // likewise
	heads []replayHead
	all   []replayHead // kept for its memory, as is bytes
	bytes []byte
	dirs  coldDirs
}

type replayHead struct {
	h        wal.Header
	from, to int // in bytes
}

// replayWindowBytes bounds the headers in a window, with the last of them not counted.
const replayWindowBytes = 1 << 20

// next returns the header of the next batch and its bytes, valid until the next call.
func (w *replayWindow) next() (h wal.Header, b []byte, err error) {
	if len(w.heads) == 0 {
		if err := w.fill(); err != nil {
			return h, nil, err
		}
	}
	x := &w.heads[0]
	w.heads = w.heads[1:]
	return x.h, w.bytes[x.from:x.to], nil
}

// fill reads headers until their chunks take as much of the directory as is read together, or the headers as much memory
// as they may. An error counts if there is none before it.
func (w *replayWindow) fill() error {
	p := w.p
	w.all, w.bytes, w.dirs.list = w.all[:0], w.bytes[:0], w.dirs.list[:0]
	w.dirs.left = p.coldDirs().left
	limit := int(min(replayWindowBytes, p.opt.PageCacheBytes/16))
	for more := true; more && len(w.left) > 0 && len(w.bytes) <= limit; {
		at := w.left[0]
		h, b, err := w.l.wanted(at.seg, at.block, w.pos.follows)
		if err != nil {
			if len(w.all) == 0 {
				return err
			}
			break
		}
		w.left = w.left[1:]
		w.pos.advance(&h, p.seg.row(at.seg))
		from := len(w.bytes)
		w.bytes = append(w.bytes, b...)
		w.all = append(w.all, replayHead{h: h, from: from, to: len(w.bytes)})
		more = w.gather(&h, b)
	}
	w.heads = w.all
	w.dirs.read()
	return nil
}

// gather notes what is to be read of the directory for a batch, and reports whether there is room for more. What its
// records say has not been checked.
func (w *replayWindow) gather(h *wal.Header, b []byte) bool {
	if h.Flags&wal.FlagLink != 0 {
		return true
	}
	p := w.p
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	var it wal.Records
	var rec wal.Record
	for it.Reset(b, h); it.Next(&rec); {
		switch rec.Kind {
		case wal.Create, wal.Clone, wal.Destroy, wal.Mark, wal.State, wal.Snapshot, wal.DeleteSnapshot, wal.TakeSnapshot,
			wal.DropSnapshot, wal.Resize:
			continue
		}
		if rec.Slot >= uint32(len(p.idx.bySlot)) || p.idx.bySlot[rec.Slot] == nil || rec.Block >= blocksOf(MaxReplicaSize) {
			continue
		}
		r := p.idx.bySlot[rec.Slot]
		last := min(lastChunk(rec.Block, uint64(rec.Count)), uint64(len(r.dir))<<(nodeShift+dirShift)) // there is nothing behind
		for c := rec.Block / block.ChunkBlocks; c <= last; c++ {
			if !w.dirs.addChunk(r, c) {
				return false
			}
		}
	}
	return true
}
