package pool

import (
	"bytes"
	"cmp"
	"errors"
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
	slot     uint32 // replica
	number   uint64 // block, or chunk
	id       uint64 // page
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
	pieceDir                      // directory block
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

// loc returns the location of a block.
func (x *piece) loc() index.Loc { return index.MakeLoc(x.at, int(x.n)) }

// blockPiece returns the piece that a block of a replica is.
func blockPiece(loc index.Loc, sum, slot uint32, b uint64) piece {
	return piece{at: loc.Addr(), n: uint32(loc.Len()), sum: sum, slot: slot, number: b}
}

// right reports whether b is the content of x, of which only checksums are known. buf has room for a block.
func (x *piece) right(b, buf []byte) bool {
	switch x.kind {
	case pieceBlock:
		at := place{loc: x.loc(), sum: x.sum}
		return at.content(buf, b)
	case piecePage:
		var v index.View
		return v.Open(b, x.id, x.slot, x.number, false) == nil
	case pieceHistory:
		var v index.OldView
		return index.OpenHistory(&v, b, x.hist, x.slot, x.number, false) == nil
	default:
		return block.Sum(b) == x.sum
	}
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
	header := bytes.Clone(raw[:h.HeaderBlocks*block.Size])
	dst = append(dst, piece{at: start, n: uint32(len(header)), kind: pieceHeader, known: header})
	first := len(dst)
	area := wal.MakeArea(start+uint64(len(header)), h.RawBlocks)
	var it wal.Records
	var rec wal.Record
	for it.Reset(raw, h); it.Next(&rec); area.Skip(rec.Kind, rec.Count, rec.Lens) {
		if rec.Kind == wal.State {
			if rec.Count > 0 {
				dst = append(dst, piece{at: area.Raw, n: rec.Count, kind: pieceState, sum: rec.Sums[0], slot: rec.Slot})
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

// chunkPieces is what the index says of one chunk.
type chunkPieces struct {
	r      *Replica
	number uint64
	data   []blockAt // every version of every block that is stored
	err    error     // the page is damaged
	page   index.Page
	view   index.View
}

// blockAt is where a block of a chunk is.
type blockAt struct {
	block int
	loc   index.Loc
	sum   uint32
}

// eachChunk calls f, without locks, for every chunk of every replica that has data, with all that its page and the
// tables refer to. What f gets is valid during the call.
func (p *Pool) eachChunk(f func(c *chunkPieces) error) error {
	c := new(chunkPieces)
	for slot := 0; ; slot++ {
		p.idx.mu.RLock()
		if slot >= len(p.idx.bySlot) {
			p.idx.mu.RUnlock()
			return nil
		}
		c.r = p.idx.bySlot[slot]
		p.idx.mu.RUnlock()
		if c.r == nil {
			continue
		}
		for c.number = 0; ; c.number++ {
			if more, err := p.nextChunk(c); err != nil {
				return err
			} else if !more {
				break
			}
			if len(c.data) == 0 && c.err == nil {
				continue
			}
			if err := f(c); err != nil {
				return err
			}
		}
	}
}

// nextChunk fills c for the first chunk that may have data from number on; false: there is none. A part of the directory
// that is damaged is passed over, and found by itself.
func (p *Pool) nextChunk(c *chunkPieces) (more bool, err error) {
	var d chunkRef
	for {
		number, next, ok, err := c.r.next(c.number, nil, &d)
		switch {
		case err != nil && !isDamage(err):
			return false, err
		case err != nil:
			c.number = next
		case !ok:
			return false, nil
		case d.page == 0 && d.heads == [2]uint32{}:
			c.number = next
		default:
			c.number = number
			return true, p.fillChunk(c)
		}
	}
}

// fillChunk fills c with all that the index refers to for chunk number of r.
func (p *Pool) fillChunk(c *chunkPieces) error {
	c.data, c.err = c.data[:0], nil
	r := c.r
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	d, err := r.rlock(c.number)
	if err != nil {
		return err
	}
	if r.destroyed || d == nil {
		p.idx.mu.RUnlock()
		return nil
	}
	ref := *d
	for t := range p.idx.tables {
		for n := d.heads[t]; n != 0; n = p.idx.tables[t].At(n).Next {
			if e := p.idx.tables[t].At(n); e.State() == index.Stored {
				c.data = append(c.data, blockAt{int(e.Block() % block.ChunkBlocks), e.Loc(), e.Sum})
			}
		}
	}
	p.idx.mu.RUnlock()
	if ref.page == 0 {
		return nil
	}
	e, err := p.loadPage(r, c.number, &ref, &c.view)
	if err != nil {
		if isDamage(err) {
			c.err = err
			return nil
		}
		return err
	}
	c.view.Decode(&c.page)
	p.cache.release(e)
	for i := range c.page.Ver {
		if c.page.Stored.Has(i) {
			c.data = append(c.data, blockAt{i, c.page.Loc[i], c.page.Sum[i]})
		}
	}
	if err := p.allHistory(r, c.number, &c.page); err != nil {
		if isDamage(err) {
			c.err = err
			return nil
		}
		return err
	}
	for i := range c.page.Old {
		if x := &c.page.Old[i]; x.Stored {
			c.data = append(c.data, blockAt{int(x.Block), x.Loc, x.Sum})
		}
	}
	return nil
}

// histories returns what the page of a chunk says of its history pages.
func (p *Pool) histories(r *Replica, number uint64) ([]index.HistRef, error) {
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	d, err := r.rlock(number)
	if err != nil {
		return nil, err
	}
	if r.destroyed || d == nil || d.page == 0 {
		p.idx.mu.RUnlock()
		return nil, nil
	}
	ref := *d
	p.idx.mu.RUnlock()
	var v index.View
	e, err := p.loadPage(r, number, &ref, &v)
	if err != nil {
		return nil, err
	}
	var pg index.Page
	v.Decode(&pg)
	p.cache.release(e)
	return pg.Hist, nil
}

// maxRefs bounds the bytes of the index whose places are in memory at a time.
const maxRefs = 256 << 20

// gather finds what the index says of some index segments, the first of which is seg.
func (w *walk) gather(seg uint32) error {
	p := w.p
	w.refs, w.refsOf = w.refs[:0], map[uint32]bool{}
	p.idx.mu.RLock()
	p.seg.mu.Lock()
	for n, i := int64(0), seg; i < w.live.hi && n < maxRefs; i++ {
		if p.seg.kind[i] == segIndex && (i == seg || w.live.want(i)) {
			w.refsOf[i] = true
			n += int64(p.seg.pageLive[i])
		}
	}
	p.seg.mu.Unlock()
	slots := len(p.idx.bySlot)
	p.idx.mu.RUnlock()
	add := func(x piece) {
		if w.refsOf[uint32(x.at>>p.seg.shift)] {
			w.refs = append(w.refs, x)
		}
	}
	for slot := range slots {
		p.idx.mu.RLock()
		r := p.idx.bySlot[slot]
		p.idx.mu.RUnlock()
		if r == nil {
			continue
		}
		if err := w.gatherReplica(r, add); err != nil {
			return err
		}
	}
	for _, e := range w.root {
		add(piece{at: e.Addr, n: e.Len, kind: pieceRoot, sum: e.Sum})
	}
	slices.SortFunc(w.refs, func(a, b piece) int { return cmp.Compare(a.at, b.at) })
	return nil
}

// gatherReplica is gather for one replica.
func (w *walk) gatherReplica(r *Replica, add func(x piece)) error {
	err := w.p.eachDir(r, func(s *dirSlot, first uint64) {
		add(piece{at: s.addr, n: s.size, kind: pieceDir, sum: s.sum, slot: r.slot, number: first * block.ChunkBlocks})
	})
	if err != nil {
		return err
	}
	var d chunkRef
	for n := uint64(0); ; {
		number, next, ok, err := r.next(n, nil, &d)
		if n = next; err != nil && isDamage(err) {
			continue // it is found by itself
		}
		if err != nil || !ok {
			return err
		}
		if d.page != 0 {
			add(piece{at: d.pageAddr(), n: uint32(d.pageLen()), kind: piecePage, slot: r.slot, number: number, id: d.id})
		}
		if d.deep {
			refs, err := w.p.histories(r, number)
			if err != nil && !isDamage(err) { // a damaged page is found by itself
				return err
			}
			for k := range refs {
				h := &refs[k]
				add(piece{at: h.Addr(), n: uint32(h.Len()), kind: pieceHistory, slot: r.slot, number: number, id: h.ID, hist: h})
			}
		}
		if err := w.pace(0); err != nil {
			return err
		}
	}
}

// eachDir calls f, without locks, for every directory block and node of a replica that is on the devices, with its first
// chunk. Nodes that cannot be had are passed over with what is below them.
func (p *Pool) eachDir(r *Replica, f func(s *dirSlot, first uint64)) error {
	var slots [nodeSpan]dirSlot
	for n := uint64(0); ; n++ {
		var root dirSlot
		var node *dirNode
		for again := true; again; { // others may take the node out of memory at once
			err := r.warmNode(n)
			if err != nil && !isDamage(err) {
				return err
			}
			p.idx.mu.RLock()
			if n >= uint64(len(r.dir)) {
				p.idx.mu.RUnlock()
				return nil
			}
			root, node = r.dir[n].dirSlot, r.dir[n].node
			if node != nil {
				slots = node.slots
			}
			p.idx.mu.RUnlock()
			again = err == nil && node == nil && root.size > 0
		}
		if root.size > 0 {
			f(&root, n<<(nodeShift+dirShift))
		}
		for j := range slots {
			if node != nil && slots[j].size > 0 {
				f(&slots[j], (n<<nodeShift|uint64(j))<<dirShift)
			}
		}
	}
}

// isDamage reports whether an error says that what is stored is damaged, rather than that it cannot be read now.
func isDamage(err error) bool { return errors.Is(err, ErrChecksum) || errors.Is(err, ErrDamaged) }
