package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/pool/wal"
)

// behindMost is how many free segments in a row, lowest first on each group as they are taken, are looked at for the rest
// of a log that seems to end.
const behindMost = 64

// lookBehind searches for batches of the log that were written when what is missing at its end was stable already. Finding
// one means that the log is damaged, not at its end. They may be in the rest of the segment and wherever links there lead.
// And since the link to them may be what is missing, in free segments: whatever was taken since the checkpoint is free by
// what is known now. When it is the link with which a later mount began, they say that theirs comes after the one that the
// log ends in. So start-up takes longer by a number of reads that does not depend on the size of the pool.
//
// A newest batch that is damaged cannot be told from one that power loss has torn: nobody has written down yet that it was
// stable.
func (p *Pool) lookBehind(end logPos) error {
	b := behind{p: p, l: p.newLogReader().readAhead(), end: end, seen: map[uint64]uint64{}}
	defer func() { b.l.release() }()
	for blk := end.block; blk < p.seg.blocks(); blk += p.seg.row(end.seg) {
		if _, err := b.follow(end.seg, blk); err != nil {
			return err
		}
	}
	b.l.release()
	b.l = p.newLogReader()
	b.l.window = 1
	w := p.seg.where.Load()
	for i := range w.spans {
		sp := &w.spans[i]
		for seg, misses := sp.first, 0; seg < sp.first+sp.count && misses < behindMost; seg++ {
			if !p.seg.isFree(seg) {
				continue
			}
			found, err := b.follow(seg, 0)
			if err != nil {
				return err
			}
			if misses++; found {
				misses = 0
			}
		}
	}
	return nil
}

// behind is a search for what follows the end of the log.
type behind struct {
	p    *Pool
	l    *logReader
	end  logPos
	seen map[uint64]uint64 // by incarnation: batches up to this one were looked at
}

// follow looks at the batch at a place, if it is one from behind the end, and at those that follow it.
func (b *behind) follow(seg, blk uint32) (found bool, err error) {
	h, _, err := b.l.header(seg, blk)
	if err != nil || h.Flags&wal.FlagCold != 0 || !b.end.precedes(&h) || h.Seq <= max(b.end.seq, b.seen[h.Incarnation]) {
		return false, nil
	}
	pos := logPos{seg: seg, block: blk, seq: h.Seq, prev: h.Prev, incarnation: h.Incarnation}
	for err == nil && pos.follows(&h) {
		if h.Stable >= b.end.seq {
			return true, fmt.Errorf("segment %d block %d: batch %d is unreadable, but batch %d at segment %d block %d says that it was on stable storage: %w",
				b.end.seg, b.end.block, b.end.seq, h.Seq, h.Segment, h.Block, ErrDamaged)
		}
		b.seen[h.Incarnation] = max(b.seen[h.Incarnation], h.Seq)
		if !b.p.leads(&h) {
			break
		}
		pos.advance(&h, b.p.seg.row(pos.seg))
		if pos.block >= b.p.seg.blocks() {
			break
		}
		h, _, err = b.l.header(pos.seg, pos.block)
	}
	return true, nil
}

// precedes reports whether h is of the same incarnation as what is expected at pos, or of the one after.
func (pos *logPos) precedes(h *wal.Header) bool {
	return h.Incarnation == pos.incarnation || h.Before == pos.incarnation
}
