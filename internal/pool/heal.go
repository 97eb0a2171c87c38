package pool

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// healStep is the number of bytes of data that are healed at a time. Nobody waits for more than one step.
const healStep = 1 << 20

// walk goes through segments and makes what is live in them right on all devices that are online. It works beside
// everything else. What it relies on:
//
//   - It looks only at what was there when it began, see since. What is written later it need not see: that goes to all
//     devices that are online. It must not see some of it either, since a row is healed as a whole: what the walk does not
//     know of it is taken as it is, and parity is made to agree with it, though it may be what a device lies about.
//   - For the same reason a whole cycle begins and ends between the look at the index and the first repair. What the
//     index did not refer to any more when it was looked at, the newest checkpoint does not refer to then, and no replay
//     needs it: a crash does not bring it back.
//   - A segment is looked at by somebody who is entered as a reader and has seen then that it is not dead, so that it
//     is not freed meanwhile. What was freed since the walk began is left alone.
//   - Content is taken for right only if the index says so, or a header that the index, or a header before it in the
//     log, has shown to be what was written there last: devices lie, and old headers look as good as new ones.
type walk struct {
	p       *Pool
	live    *liveMap
	root    []extent
	headers *logReader
	stale   bool // devices lack what is in these segments; otherwise everything is only verified

	pace  func(n int64) error // called after every step, may wait; its error ends the walk
	found func(d Damage) (news bool)

	pieces   []piece // of what is healed together, ascending
	from, to uint64

	refs    []piece // of the index segments refsOf, ascending
	refsOf  map[uint32]bool
	orphans map[uint64]uint64 // numbers of live blocks that no header accounts for, and gap then
	gap     uint64            // address, plus one, from which on there is no header; 0: there are headers
	ends    map[uint32]uint32 // of segments that were open when the walk began: the block where more goes
	buf     []byte
	chunk   chunkPieces

	repaired, errors int64
	lost             bool // something could not be had that a device may have which is not there
	hidden           bool // a part of the index could not, so nobody knows what that refers to, which may be anywhere
}

// errSkipped means that a segment is dead, or was free since the walk began.
var errSkipped = errors.New("segment is not in use any more")

// newWalk prepares a walk through the segments from lo to below hi for which want is true.
func (p *Pool) newWalk(lo, hi uint32, want func(seg uint32) bool) (*walk, error) {
	if err := p.cycle(); err != nil {
		return nil, err
	}
	w := &walk{p: p, headers: p.newLogReader(), orphans: map[uint64]uint64{}, buf: make([]byte, block.Size)}
	w.since()
	w.live = p.newLiveMap(lo, hi, want)
	w.pace = func(int64) error { return nil }
	w.found = func(Damage) bool { return true }
	return w, nil
}

// since notes what there is when the walk begins: which segments are in use, and up to where they are written. All of that
// is in the index, since no cycle and no append is under way.
func (w *walk) since() {
	p := w.p
	p.drain.cycle.Lock()
	defer p.drain.cycle.Unlock()
	p.drain.mu.Lock()
	defer p.drain.mu.Unlock()
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	w.root = slices.Clone(p.root)
	w.ends = map[uint32]uint32{p.log.pos.seg: p.log.pos.block}
	for _, x := range []*coldWriter{&p.cleaner.warm, &p.cleaner.cold} {
		if x.open {
			w.ends[x.seg] = x.at
		}
	}
	for _, x := range []*indexWriter{&p.drain.writer, &p.drain.cold} {
		if x.open {
			w.ends[x.seg] = x.at >> block.Shift
		}
	}
	p.seg.watchFrees()
}

// end returns the address at which what the walk looks at in a segment ends.
func (w *walk) end(seg uint32) uint64 {
	blocks, open := w.ends[seg]
	if !open {
		blocks = w.p.seg.blocks()
	}
	return uint64(seg)<<w.p.seg.shift + uint64(blocks)<<block.Shift
}

// mark finds out what is live.
func (w *walk) mark() error {
	err := w.p.eachChunk(func(c *chunkPieces) error {
		if c.err != nil {
			w.damagedPage(c)
			return w.pace(0)
		}
		for i := range c.data {
			w.live.set(c.data[i].loc)
		}
		return w.pace(0)
	})
	if err != nil || !w.stale { // without headers of batches that are dead, each row that is healed is known as a whole
		return err
	}
	return w.p.cycle()
}

// maxOrphans is the number of orphans that are looked up together.
const maxOrphans = 1 << 16

// all heals the segments that are wanted from first on, and calls after for each when all that is live in it has been
// looked at. lost says that something in it could not be had which a device may have that is not there.
func (w *walk) all(first uint32, after func(seg uint32, lost bool) error) error {
	if err := w.mark(); err != nil {
		return err
	}
	var open []uint32 // those with orphans, and what comes after them
	lost := false     // something in these
	adopt := func() error {
		w.lost = lost
		if err := w.adopt(); err != nil {
			return err
		}
		for _, seg := range open {
			if err := after(seg, w.lost || w.hidden); err != nil {
				return err
			}
		}
		open, lost = open[:0], false
		return nil
	}
	for seg := first; seg < w.live.hi; seg++ {
		if !w.live.want(seg) {
			continue
		}
		w.lost = false
		n := len(w.orphans)
		if err := w.segment(seg); err != nil {
			return err
		}
		if len(w.orphans) > n || len(open) > 0 { // in order: who goes on later begins with the first that is open
			open, lost = append(open, seg), lost || w.lost
		} else if err := after(seg, w.lost || w.hidden); err != nil {
			return err
		}
		if len(w.orphans) > maxOrphans {
			if err := adopt(); err != nil {
				return err
			}
		}
	}
	return adopt()
}

// segment heals what is live in one segment. Live blocks that it cannot prove by headers become orphans.
func (w *walk) segment(seg uint32) error {
	if w.skipped(seg) {
		return nil
	}
	p := w.p
	p.seg.mu.Lock()
	kind := p.seg.kind[seg]
	p.seg.mu.Unlock()
	var err error
	switch kind {
	case segIndex:
		err = w.indexSegment(seg)
	default:
		err = w.logSegment(seg)
	}
	if errors.Is(err, errSkipped) {
		w.pieces, w.from, w.to = w.pieces[:0], 0, 0
		err = nil
	}
	return err
}

// enter makes the caller a reader who may look at a segment.
func (w *walk) enter(seg uint32) (ticket uint32, err error) {
	p := w.p
	ticket = p.read.enter()
	p.idx.mu.RLock()
	p.seg.mu.Lock()
	ok := p.seg.freed[seg/64]>>(seg%64)&1 == 0 && (p.seg.pinned[seg] || p.seg.pageLive[seg] > 0 || p.seg.deltaLive[seg] > 0)
	p.seg.mu.Unlock()
	p.idx.mu.RUnlock()
	if !ok {
		p.read.leave(ticket)
		return 0, errSkipped
	}
	return ticket, nil
}

// skipped reports whether a segment is dead, or was free since the walk began.
func (w *walk) skipped(seg uint32) bool {
	ticket, err := w.enter(seg)
	if err == nil {
		w.p.read.leave(ticket)
	}
	return err != nil
}

// indexSegment heals the pages and directory blocks of a segment, and the parts of the root.
func (w *walk) indexSegment(seg uint32) error {
	if !w.refsOf[seg] {
		if err := w.gather(seg); err != nil {
			return err
		}
	}
	lo, hi := uint64(seg)<<w.p.seg.shift, uint64(seg+1)<<w.p.seg.shift
	from, _ := slices.BinarySearchFunc(w.refs, lo, func(x piece, at uint64) int { return cmp.Compare(x.at, at) })
	to, _ := slices.BinarySearchFunc(w.refs, hi, func(x piece, at uint64) int { return cmp.Compare(x.at, at) })
	return w.scattered(w.refs[from:to])
}

// scattered heals the rows in which pieces are.
func (w *walk) scattered(all []piece) error {
	slices.SortFunc(all, func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	for i := range all {
		row := uint64(w.p.seg.row(uint32(all[i].at>>w.p.seg.shift))) << block.Shift
		if err := w.add(all[i].at&^(row-1), (all[i].end()+row-1)&^(row-1), all[i:i+1]); err != nil {
			return err
		}
	}
	return w.flush()
}

// add puts rows that follow each other together.
func (w *walk) add(from, to uint64, pieces []piece) error {
	shift := w.p.seg.shift
	if w.to > w.from && (from > w.to || from == w.to && w.to-w.from >= healStep || from>>shift != w.from>>shift) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.to <= w.from {
		w.from, w.to = from, from
	}
	w.pieces, w.to = append(w.pieces, pieces...), max(w.to, to)
	return nil
}

// flush heals what was put together.
func (w *walk) flush() error {
	from, to, rest := w.from, w.to, w.pieces
	defer func() { w.pieces, w.from, w.to = w.pieces[:0], 0, 0 }()
	for at := from; at < to; {
		end := min(at+healStep, to)
		for len(rest) > 0 && rest[0].end() <= at {
			rest = rest[1:]
		}
		n := 0
		for n < len(rest) && rest[n].at < end {
			n++
		}
		err := w.step(at, end, rest[:n])
		if errors.Is(err, errSkipped) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.pace(int64(end - at)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// step heals rows of one segment. Pieces that reach over their ends are made sure of first.
func (w *walk) step(from, to uint64, pieces []piece) error {
	p := w.p
	ticket, err := w.enter(uint32(from >> p.seg.shift))
	if err != nil {
		return err
	}
	defer p.read.leave(ticket)
	for i := range pieces {
		if x := &pieces[i]; x.at < from || x.end() > to {
			w.secure(x)
		}
	}
	var bad []int
	check := func(data []byte) []int {
		bad = bad[:0]
		for i := range pieces {
			x := &pieces[i]
			lo, hi := max(x.at, from), min(x.end(), to)
			if w.right(x, lo, data[lo-from:hi-from]) {
				continue
			}
			for k := int((lo - from) >> block.Shift); k <= int((hi-1-from)>>block.Shift); k++ {
				if len(bad) == 0 || bad[len(bad)-1] < k {
					bad = append(bad, k)
				}
			}
		}
		return bad
	}
	g, off := p.seg.locate(from)
	for again := false; ; again = true {
		used := make([]uint64, (to-from)>>block.Shift)
		for i := range pieces {
			raid.AddParts(used, int(max(pieces[i].at, from)-from), int(min(pieces[i].end(), to)-from))
		}
		res, err := g.HealParts(off, int64(to-from), used, check)
		if res.Rewritten > 0 {
			g.dirty.Store(true) // after the writes: the next flush covers them
		}
		w.repaired += int64(res.Wrong)
		p.count.repaired.Add(uint64(res.Wrong))
		if !errors.Is(err, raid.ErrUnrecoverable) {
			if err != nil {
				err = fmt.Errorf("segment %d: %w", from>>p.seg.shift, err)
			}
			return err
		}
		// What is damaged must not keep what shares rows with it from being healed. As long as a device is not there that
		// may have it, nothing is changed.
		if again {
			return nil
		}
		if pieces = w.sound(pieces, from, res.Lost); !p.allThere(g.index) {
			w.lost = true
			return nil
		}
	}
}

// right reports whether data, from address lo on, is what a piece says.
func (w *walk) right(x *piece, lo uint64, data []byte) bool {
	switch {
	case x.lost:
		return false
	case x.known != nil:
		return bytes.Equal(data, x.known[lo-x.at:][:len(data)])
	case x.kind == pieceZero:
		return allZero(data)
	}
	return x.right(data, w.buf)
}

// secure obtains the content of a piece that reaches over the end of what is healed together.
func (w *walk) secure(x *piece) {
	if x.known != nil || x.kind == pieceZero || x.lost {
		return
	}
	b := make([]byte, x.n)
	err := w.p.readPacked(b, x.at)
	if err != nil || !x.right(b, w.buf) {
		x.lost = !w.p.recoverPacked(b, x.at, func(b []byte) bool { return x.right(b, w.buf) })
	}
	x.known = b
}
