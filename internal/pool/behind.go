package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// behindMost is how many free segments of a group in a row, lowest first as they are taken, are looked at for the rest of
// a log that seems to end.
const behindMost = 64

// lookBehind searches for batches of the log that were written when what is missing at its end was stable already. Finding
// one means that the log is damaged, not at its end. They may be in the rest of the segment and wherever links there lead.
// And since the link to them may be what is missing, in free segments: whatever was taken since the checkpoint is free by
// what is known now. When it is the link with which a later mount began, they say that theirs comes after the one that the
// log ends in. So start-up takes longer by a number of reads of each group that does not depend on its size.
//
// What is damaged of the batches after the last stable mark cannot be told from what power loss has torn: nobody has written
// down yet that it was stable. See tellStable.
func (p *Pool) lookBehind(end logPos) error {
	if err := p.newBehind(end).inSegment(); err != nil {
		return err
	}
	groups := p.seg.where.Load().groups
	errs := make([]error, len(groups))
	var wg sync.WaitGroup
	for i, g := range groups {
		look := func() { errs[i] = p.newBehind(end).inFree(g) }
		if p.opt.Manual {
			look()
		} else {
			wg.Go(look)
		}
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
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

func (p *Pool) newBehind(end logPos) *behind {
	return &behind{p: p, l: p.newLogReader(), end: end, seen: map[uint64]uint64{}}
}

// inSegment looks at the rest of the segment in which the log ends.
func (b *behind) inSegment() error {
	b.l.readAhead()
	defer b.l.release()
	row := b.p.seg.row(b.end.seg)
	for from := b.end.block; from < b.p.seg.blocks(); {
		to := min(from+maxLogWindow/row*row, b.p.seg.blocks())
		torn := b.torn(b.end.seg, from, to-from)
		for ; from < to; from += row {
			if _, err := b.follow(b.end.seg, from, torn[from]); err != nil {
				return err
			}
		}
	}
	return nil
}

// inFree looks at the free segments of a group.
func (b *behind) inFree(g *groupState) error {
	defer b.l.release()
	misses := 0
	w := b.p.seg.where.Load()
	for i := range w.spans {
		sp := &w.spans[i]
		for seg := sp.first; sp.group == g && seg < sp.first+sp.count && misses < behindMost; seg++ {
			if !b.p.seg.isFree(seg) {
				continue
			}
			b.l.window = 1 // for most there is nothing but this
			found, err := b.follow(seg, 0, b.torn(seg, 0, b.p.seg.row(seg))[0])
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

// torn returns of which rows among n blocks of a segment the devices say different things, by their first block: what is not
// on the one that is read may be on another.
func (b *behind) torn(seg, blk, n uint32) map[uint32]bool {
	g, off := b.p.seg.locate(uint64(seg)<<b.p.seg.shift + uint64(blk)<<block.Shift)
	if !g.Redundant() {
		return nil
	}
	rows := map[uint32]bool{}
	faults, _, _ := g.Audit(off, int64(n)<<block.Shift, func([]byte) []int { return nil }) // what cannot be read says nothing
	for _, f := range faults {
		rows[blk+uint32((f.At-off)>>block.Shift)] = true
	}
	return rows
}

// expects reports whether h is of a batch from behind the end that was not looked at.
func (b *behind) expects(h *wal.Header) bool {
	return h.Flags&wal.FlagCold == 0 && b.end.precedes(h) && h.Seq > max(b.end.seq, b.seen[h.Incarnation])
}

// follow looks at the batch at a place, if it is one from behind the end, and at those that follow it.
func (b *behind) follow(seg, blk uint32, torn bool) (found bool, err error) {
	h, _, err := b.l.header(seg, blk)
	if torn {
		h, _, err = b.l.wanted(seg, blk, b.expects)
	}
	if err != nil || !b.expects(&h) {
		return false, nil
	}
	b.l.window = max(b.l.window, logWindow)
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
		h, _, err = b.l.wanted(pos.seg, pos.block, pos.follows)
	}
	return true, nil
}

// precedes reports whether h is of the same incarnation as what is expected at pos, or of the one after.
func (pos *logPos) precedes(h *wal.Header) bool {
	return h.Incarnation == pos.incarnation || h.Before == pos.incarnation
}
