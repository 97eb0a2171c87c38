package pool

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/raid"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// healStep is the number of bytes of data that are healed at a time. Nobody waits for more than one step.
const healStep = 1 << 20

// walk goes through segments and makes what is live in them right on all devices that are online. It works beside
// everything else. What it relies on:
//
//   - What is live was found after a whole cycle had begun and ended, so that everything that was written before is in
//     the index. What is written later the walk need not see: it goes to all devices that are online.
//   - A segment is looked at by somebody who is entered as a reader and has seen then that it is not dead, so that it is
//     not freed meanwhile. What was freed since the walk began is left alone.
//   - Content is taken for right only if the index says so, or a header that the index, or a header before it in the log,
//     has shown to be what was written there last: devices lie, and old headers look as good as new ones.
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
	end     logPos            // of the log when everything before was in the index
	buf     []byte
	chunk   chunkPieces

	repaired, errors int64
	lost             bool // something could not be had
}

// errSkipped means that a segment is dead, or was freed since the walk began.
var errSkipped = errors.New("segment is not in use any more")

// newWalk prepares a walk through the segments from lo to below hi for which want is true.
func (p *Pool) newWalk(lo, hi uint32, want func(seg uint32) bool) (*walk, error) {
	p.seg.watchFrees()
	if err := p.cycle(); err != nil {
		return nil, err
	}
	w := &walk{p: p, headers: p.newLogReader(), orphans: map[uint64]uint64{}, buf: make([]byte, block.Size)}
	p.drain.mu.Lock()
	w.root = slices.Clone(p.root)
	p.drain.mu.Unlock()
	p.log.mu.Lock()
	w.end = p.log.pos
	p.log.mu.Unlock()
	w.live = p.newLiveMap(lo, hi, want)
	w.pace = func(int64) error { return nil }
	w.found = func(Damage) bool { return true }
	return w, nil
}

// mark finds out what is live.
func (w *walk) mark() error {
	return w.p.eachChunk(func(c *chunkPieces) error {
		if c.err != nil {
			w.damagedPage(c)
			return w.pace(0)
		}
		for i := range c.data {
			w.live.set(c.data[i].loc)
		}
		return w.pace(0)
	})
}

// maxOrphans is the number of orphans that are looked up together.
const maxOrphans = 1 << 16

// all heals the segments that are wanted from first on, and calls after for each when all that is live in it has been
// looked at. lost says that something in it could not be had.
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
			if err := after(seg, w.lost); err != nil {
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
		} else if err := after(seg, w.lost); err != nil {
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
	p := w.p
	p.seg.mu.Lock()
	kind := p.seg.kind[seg]
	p.seg.mu.Unlock()
	var err error
	switch kind {
	case segFree:
		return nil
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
	ok := p.seg.freed[seg/64]>>(seg%64)&1 == 0 && p.seg.kind[seg] != segFree && (p.seg.pinned[seg] || p.seg.pageLive[seg] > 0 || p.seg.deltaLive[seg] > 0)
	p.seg.mu.Unlock()
	p.idx.mu.RUnlock()
	if !ok {
		p.read.leave(ticket)
		return 0, errSkipped
	}
	return ticket, nil
}

// logSegment heals the batches of a segment that hold live blocks. Batches without live blocks cannot be proved and need
// not be; when their lengths lead to where nothing can be proved either, some device has told of old times, and the
// rows since then are looked at one by one.
func (w *walk) logSegment(seg uint32) error {
	row := w.p.seg.row(seg)
	w.gap = 0
	last := w.live.last(seg)
	if w.stale && seg == w.end.seg { // more will be written behind: headers must lead there
		last = max(last, int(w.end.block)-1)
	}
	var pos logPos              // where the next header is, if one was proved before
	back, slow := -1, uint32(0) // where the rows to look at again begin; where they end
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
	batchDead                  // a batch without live blocks; nothing tells whether it is the last one that was written there
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
		pos.seq = 0
		return row, batchOld, nil // of what the header says nothing is believed, its length neither
	case live:
		err = w.add(start, end, batchPieces(nil, start, &h, raw, row))
	case w.stale: // only the header, so that whoever goes through the segment comes by
		length := (uint32(h.HeaderBlocks) + row - 1) &^ (row - 1)
		err = w.add(start, start+uint64(length)<<block.Shift, nil)
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

// header returns the header at a place, and whether it is certain that it is the one that was written there last. Unless
// it is to be careful it does not ask all devices about a batch without live blocks.
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
	if g, _ := p.seg.locate(start); g.Parity() == 0 || !careful && err == nil && !w.live.any(start, start+uint64(padded(&h, g.row))<<block.Shift) {
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

// confirmTries is how many blocks of a batch the index is asked for.
const confirmTries = 64

// confirmed reports whether the index knows a block of the batch by the place and the checksum that the header gives it.
func (w *walk) confirmed(seg, b uint32, h *wal.Header, raw []byte) bool {
	p := w.p
	start := uint64(seg)<<p.seg.shift + uint64(b)<<block.Shift
	tries := 0
	for _, x := range batchPieces(nil, start, h, raw, 1) {
		if x.kind != pieceBlock || !w.live.any(x.at, x.end()) {
			continue
		}
		if tries++; tries > confirmTries {
			break
		}
		p.idx.mu.RLock()
		var r *Replica
		if int(x.slot) < len(p.idx.bySlot) {
			r = p.idx.bySlot[x.slot]
		}
		p.idx.mu.RUnlock()
		if r == nil {
			continue
		}
		c := &w.chunk
		if c.r != r || c.number != x.number/block.ChunkBlocks || tries == 1 {
			c.r, c.number = r, x.number/block.ChunkBlocks
			if p.fillChunk(c) != nil {
				continue
			}
		}
		want := blockAt{int(x.number % block.ChunkBlocks), x.loc(), x.sum}
		if slices.Contains(c.data, want) {
			return true
		}
	}
	return false
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
					all = append(all, blockPiece(x.loc, x.sum, c.r.slot, c.number*block.ChunkBlocks+uint64(x.block)))
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
	for gap, damaged := range gaps {
		if damaged {
			w.damaged(&piece{at: gap - 1, kind: pieceHeader})
		}
	}
	return w.scattered(all)
}

// indexSegment heals the pages and directory blocks of a segment, and the parts of the root.
func (w *walk) indexSegment(seg uint32) error {
	if !w.refsOf[seg] {
		if err := w.gather(seg); err != nil {
			return err
		}
	}
	lo, hi := uint64(seg)<<w.p.seg.shift, uint64(seg+1)<<w.p.seg.shift
	from, _ := slices.BinarySearchFunc(w.refs, lo, func(x piece, at uint64) int { return compare(x.at, at) })
	to, _ := slices.BinarySearchFunc(w.refs, hi, func(x piece, at uint64) int { return compare(x.at, at) })
	return w.scattered(w.refs[from:to])
}

// scattered heals the rows in which pieces are.
func (w *walk) scattered(all []piece) error {
	slices.SortFunc(all, func(a, b piece) int { return compare(a.at, b.at) })
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
	res, err := g.Heal(off, int64(to-from), check)
	if res.Rewritten > 0 {
		g.dirty.Store(true) // after the writes: the next flush covers them
	}
	w.repaired += int64(res.Wrong)
	p.count.repaired.Add(uint64(res.Wrong))
	if errors.Is(err, raid.ErrUnrecoverable) {
		for i := range pieces {
			w.inspect(&pieces[i], from, to, res.Lost)
		}
		w.lost = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("segment %d: %w", from>>p.seg.shift, err)
	}
	return nil
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

// inspect finds out whether a piece in rows that could not be healed is damaged itself, and reports it if it is live.
func (w *walk) inspect(x *piece, from, to uint64, lost []int) {
	p := w.p
	touched := false
	for _, k := range lost {
		at := from + uint64(k)<<block.Shift
		touched = touched || at < x.end() && x.at < at+block.Size
	}
	switch {
	case !touched || x.kind == pieceZero || x.reported:
		return
	case x.kind != pieceHeader && !x.lost:
		b := make([]byte, x.n)
		if err := p.readPacked(b, x.at); err == nil && x.right(b, w.buf) {
			return
		}
	}
	if x.kind == pieceBlock && (!w.live.any(x.at, x.end()) || !x.loc().Raw() && !w.referred(x)) || x.kind == pieceState {
		return
	}
	x.reported = true
	w.damaged(x)
}

// referred reports whether the index still refers to a compressed block, which may share the blocks that it is in with
// others.
func (w *walk) referred(x *piece) bool {
	p := w.p
	p.idx.mu.RLock()
	var r *Replica
	if int(x.slot) < len(p.idx.bySlot) {
		r = p.idx.bySlot[x.slot]
	}
	p.idx.mu.RUnlock()
	if r == nil {
		return false
	}
	c := &chunkPieces{r: r, number: x.number / block.ChunkBlocks}
	if p.fillChunk(c) != nil || c.err != nil {
		return true
	}
	return slices.Contains(c.data, blockAt{int(x.number % block.ChunkBlocks), x.loc(), x.sum})
}

// damaged reports a piece that nothing can bring back.
func (w *walk) damaged(x *piece) {
	p := w.p
	d := Damage{Block: x.number, What: x.kind.String()}
	if x.kind == piecePage || x.kind == pieceHistory {
		d.Block *= block.ChunkBlocks
	}
	d.Device, d.Offset = p.where(x.at)
	p.idx.mu.RLock()
	if x.kind.ofReplica() && int(x.slot) < len(p.idx.bySlot) && p.idx.bySlot[x.slot] != nil {
		d.Replica = p.idx.bySlot[x.slot].name
	}
	p.idx.mu.RUnlock()
	if w.found(d) {
		w.errors++
		p.count.sumErrors.Add(1)
	}
}

// damagedPage reports a page that could not be read when the index was gone through.
func (w *walk) damagedPage(c *chunkPieces) {
	var e *ChecksumError
	d := Damage{Replica: c.r.name, Block: c.number * block.ChunkBlocks, What: piecePage.String()}
	if errors.As(c.err, &e) {
		d.Device, d.Offset = e.Device, e.Offset
	}
	if w.found(d) {
		w.errors++
	}
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// liveMap says which blocks of a range of segments are live.
type liveMap struct {
	lo, hi uint32 // segments
	want   func(seg uint32) bool
	shift  uint // of a segment in blocks
	bits   []uint64
}

func (p *Pool) newLiveMap(lo, hi uint32, want func(seg uint32) bool) *liveMap {
	m := &liveMap{lo: lo, hi: hi, want: want, shift: p.seg.shift - block.Shift}
	m.bits = make([]uint64, (uint64(hi-lo)<<m.shift+63)/64)
	return m
}

// set marks the blocks of a location.
func (m *liveMap) set(loc index.Loc) {
	for b := loc.Addr() >> block.Shift; b<<block.Shift < loc.End(); b++ {
		if seg := uint32(b >> m.shift); seg >= m.lo && seg < m.hi && m.want(seg) {
			i := b - uint64(m.lo)<<m.shift
			m.bits[i/64] |= 1 << (i % 64)
		}
	}
}

// any reports whether any block of a range of addresses is live.
func (m *liveMap) any(from, to uint64) bool {
	base := uint64(m.lo) << m.shift
	for b := from >> block.Shift; b<<block.Shift < to; b++ {
		if i := b - base; m.bits[i/64]>>(i%64)&1 != 0 {
			return true
		}
	}
	return false
}

// last returns the number of the last live block of a segment, -1 if there is none.
func (m *liveMap) last(seg uint32) int {
	base := uint64(seg-m.lo) << m.shift
	for i := int64(1)<<m.shift - 1; i >= 0; i-- {
		if k := base + uint64(i); m.bits[k/64]>>(k%64)&1 != 0 {
			return int(i)
		}
	}
	return -1
}
