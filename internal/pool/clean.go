package pool

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// lowWater is the number of free segments below which the cleaner works.
func (p *Pool) lowWater() int { return p.seg.reserve() + max(4, p.seg.dataCount()/16) }

// cleanGroup is the number of blocks that the cleaner moves with one append.
const cleanGroup = 128

// cleaner copies what is live in sparse segments of the log to its end, so that the segments become free with the next
// checkpoint. It finds the blocks through the batch headers of the segment, asks the index whether each is still in
// use, and moves it only if that is so when the copy is logged: a write that comes first wins.
type cleaner struct {
	p     *Pool
	log   *logReader
	view  index.View
	moves []move
	buf   []byte
}

// move is a block to be copied.
type move struct {
	r   *Replica
	b   uint64
	loc index.Loc
	sum uint32
	ver block.Version
}

// clean makes space when little is left: it copies the live blocks of the sparsest segments, as far as the delta has
// room for the new locations and the log has segments to copy to. drain.cycle is held; the segments become free with
// the cycle that follows.
func (p *Pool) clean() error {
	if p.seg.freeCount() >= p.lowWater() {
		return nil
	}
	victims := p.victims()
	if len(victims) == 0 {
		return nil
	}
	c := &cleaner{p: p, log: p.newLogReader(), buf: disk.Buffer(cleanGroup * block.Size)}
	for _, seg := range victims {
		err := c.segment(seg)
		switch {
		case errors.Is(err, errNoRoom):
			return nil
		case errors.Is(err, ErrChecksum): // stays where it is; reads report it
			if p.opt.Log != nil {
				p.opt.Log.Warn("segment has damaged blocks and is not cleaned", "pool", p.cfg.Name, "segment", seg, "err", err)
			}
			p.unclean[seg] = true
		case err != nil:
			return p.fail(fmt.Errorf("clean segment %d: %w", seg, err))
		}
	}
	return nil
}

// victims returns the segments worth cleaning, the emptiest first. Together they hold no more live data than a quarter
// of the free segments and the delta can take.
func (p *Pool) victims() []uint32 {
	p.idx.mu.RLock()
	p.seg.mu.Lock()
	var all []uint32
	live := func(i uint32) uint64 { return uint64(p.seg.pageLive[i]) + uint64(p.seg.deltaLive[i]) }
	most := uint64(p.seg.bytes()) * 7 / 8
	for i := range p.seg.kind {
		if p.seg.kind[i] == segLog && !p.seg.pinned[i] && !p.unclean[uint32(i)] {
			if n := live(uint32(i)); n > 0 && n < most {
				all = append(all, uint32(i))
			}
		}
	}
	slices.SortFunc(all, func(a, b uint32) int { return int(live(a)) - int(live(b)) })
	t := p.idx.tables[p.idx.active]
	budget := min(uint64(max(p.seg.nFree/4, 1))<<p.seg.shift, uint64(max(t.Cap()-t.Len()-p.idx.reserved, 0))/2*block.Size)
	n := 0
	for n < len(all) && live(all[n]) <= budget {
		budget -= live(all[n])
		n++
	}
	p.seg.mu.Unlock()
	p.idx.mu.RUnlock()
	return all[:n]
}

// segment moves what is live in one segment.
func (c *cleaner) segment(seg uint32) error {
	row := c.p.seg.row(seg)
	for b := uint32(0); b < c.p.seg.blocks(); {
		h, raw, err := c.log.header(seg, b)
		if errors.Is(err, wal.ErrDamaged) { // the end, or what a torn write left between two incarnations
			b += row
			continue
		}
		if err != nil {
			return err
		}
		at := uint64(seg)<<c.p.seg.shift + uint64(int(b)+h.HeaderBlocks)*block.Size
		var it wal.Records
		var rec wal.Record
		for it.Reset(raw, &h); it.Next(&rec); {
			if rec.Kind == wal.Write || rec.Kind == wal.MergeWrite || rec.Kind == wal.Move {
				for i := range rec.Sums {
					if err := c.consider(&rec, rec.Block+uint64(i), index.RawAt(at+uint64(i)*block.Size)); err != nil {
						return err
					}
				}
			}
			at += uint64(wal.DataBlocks(rec.Kind, rec.Count)) * block.Size
		}
		b += padded(&h, row)
	}
	return c.flush()
}

// consider notes a block for moving when it is in use at loc.
func (c *cleaner) consider(rec *wal.Record, b uint64, loc index.Loc) error {
	m, err := c.where(rec.Slot, b)
	if err != nil || m.loc != loc {
		return err
	}
	c.moves = append(c.moves, m)
	if len(c.moves) == cleanGroup {
		return c.flush()
	}
	return nil
}

// where looks up a block; the location is zero, which no data has, when there is none.
func (c *cleaner) where(slot uint32, b uint64) (m move, err error) {
	p := c.p
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	if int(slot) >= len(p.idx.bySlot) || p.idx.bySlot[slot] == nil {
		return m, nil
	}
	r := p.idx.bySlot[slot]
	d := r.chunk(b / block.ChunkBlocks)
	if r.destroyed || b >= r.blocks() || d == nil {
		return m, nil
	}
	m = move{r: r, b: b}
	if e, ok := p.lookup(r, d, b); ok {
		if e.State() == index.Stored {
			m.loc, m.sum, m.ver = e.Loc(), e.Sum, e.Version()
		}
		return m, nil
	}
	if d.page == 0 {
		return m, nil
	}
	ref := *d
	p.idx.mu.RUnlock() // drain.cycle is held: no page changes
	page, err := p.loadPage(r, b/block.ChunkBlocks, &ref, &c.view)
	p.idx.mu.RLock()
	if err != nil {
		return m, err
	}
	i := int(b % block.ChunkBlocks)
	if loc, sum, ok := c.view.Data(i); ok {
		m.loc, m.sum, m.ver = loc, sum, c.view.Version(i)
	}
	p.cache.release(page)
	return m, nil
}

// flush copies the noted blocks.
func (c *cleaner) flush() error {
	defer func() { c.moves = c.moves[:0] }()
	for from := 0; from < len(c.moves); {
		to := from + 1
		for to < len(c.moves) && c.moves[to].r == c.moves[from].r {
			to++
		}
		if err := c.copy(c.moves[from:to]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// copy moves blocks of one replica.
func (c *cleaner) copy(moves []move) error {
	p, r := c.p, moves[0].r
	for i := 0; i < len(moves); {
		n := 1
		for i+n < len(moves) && moves[i+n].loc.Addr() == moves[i+n-1].loc.End() && p.seg.of(moves[i+n].loc) == p.seg.of(moves[i].loc) {
			n++
		}
		b := c.buf[i*block.Size : (i+n)*block.Size]
		if err := p.seg.readAt(b, moves[i].loc.Addr()); err != nil {
			return err
		}
		for j := range n {
			if !p.recoverBlock(b[j*block.Size:(j+1)*block.Size], moves[i+j].loc.Addr(), moves[i+j].sum) {
				return r.damaged(moves[i+j].b, moves[i+j].loc)
			}
		}
		i += n
	}
	if err := p.beginClean(len(moves), len(moves)*(wal.RecordLen+4)); err != nil {
		return err
	}
	defer p.end(len(moves))
	var live []move
	for i := range moves {
		m := &moves[i]
		if !c.still(m) {
			continue
		}
		rec := wal.Record{Kind: wal.Move, Slot: r.slot, Block: m.b, Count: 1, Version: m.ver, Sums: []uint32{m.sum}}
		if err := p.add(&rec, c.buf[i*block.Size:(i+1)*block.Size], len(live)); err != nil {
			return err
		}
		live = append(live, *m)
	}
	if len(live) == 0 {
		p.releaseSpare()
		return nil
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	p.idx.mu.Lock()
	for i := range p.log.parts {
		m := &live[p.log.parts[i].rec]
		p.insertData(r, m.b, p.log.parts[i].at, []uint32{m.sum}, m.ver)
	}
	p.idx.mu.Unlock()
	p.count.moved.Add(uint64(len(live)))
	return nil
}

// still reports whether a block is where it was. The log's lock is held. No drain runs, so that a page cannot have
// changed: only the tables can know better.
func (c *cleaner) still(m *move) bool {
	p := c.p
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	if m.r.destroyed {
		return false
	}
	e, ok := p.lookup(m.r, m.r.chunk(m.b/block.ChunkBlocks), m.b)
	return !ok || e.State() == index.Stored && e.Loc() == m.loc
}

var errNoRoom = errors.New("no room to clean")

// beginClean is begin for the cleaner, which must not wait for the cycle that it is part of.
func (p *Pool) beginClean(entries, header int) error {
	x := &p.idx
	x.mu.Lock()
	t := x.tables[x.active]
	if t.Len()+x.reserved+entries > t.Cap() {
		x.mu.Unlock()
		return errNoRoom
	}
	x.reserved += entries
	x.mu.Unlock()
	p.log.mu.Lock()
	err := p.failure()
	if err == nil {
		err = p.reserveLog(entries, header, min(p.seg.reserve()/3, 3))
		if errors.Is(err, ErrNoSpace) {
			err = errNoRoom
		}
	}
	if err != nil {
		p.log.mu.Unlock()
		p.unreserve(entries)
		return err
	}
	p.log.beginUnit()
	return nil
}
