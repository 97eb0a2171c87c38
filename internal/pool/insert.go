package pool

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// The functions of this file put updates into the delta. Apply, Merge and replay use the same ones, so that what a
// crash leaves behind is the same as what was in memory. The index lock is held for writing, and there is room.

// entry returns the entry of a block in the active table for version v to be put into, chained to its chunk, without
// the reference to its data. What it said before goes on in an entry of its own when a snapshot shows it.
func (p *Pool) entry(r *Replica, d *chunkRef, b uint64, v block.Version) (e *index.Entry, flags index.EntryFlags) {
	x := &p.idx
	t := x.tables[x.active]
	e, number := t.Insert(index.Key(r.slot, b))
	if number != 0 {
		p.hide(r, d, b)
		p.chain(r, d, b, e, number)
		return e, 0
	}
	state := e.State()
	if state == index.Dead {
		return e, 0
	}
	if e.Flags()&index.Replaced != 0 || len(r.snaps) > 0 && r.snaps.show(e.Version(), v) {
		if e.Visible() && state == index.Stored {
			d.fresh--
		}
		h, number := t.Add(index.Key(r.slot, b))
		h.Copy(e)
		p.chain(r, d, b, h, number)
		p.replace(r, h)
		return e, 0
	}
	if state == index.Stored {
		d.fresh--
		p.refer(r, e.Loc(), -1)
	}
	if state == index.None {
		flags = index.Cut
	}
	return e, flags | e.Flags()&index.Cut
}

// replace marks an entry as one that is kept for a snapshot.
func (p *Pool) replace(r *Replica, e *index.Entry) {
	e.Mark(index.Replaced)
	r.layered[p.idx.active] = true
}

// retire is replace for an entry that was the newest of its block.
func (p *Pool) retire(r *Replica, d *chunkRef, e *index.Entry) {
	if e.Visible() && e.State() == index.Stored {
		d.fresh--
	}
	p.replace(r, e)
}

// killNewer makes the table forget those versions of n blocks, other than the newest ones, that are not older than v: a
// lower version comes now. Discards of the chunk are left alone.
func (p *Pool) killNewer(r *Replica, d *chunkRef, b uint64, n int, v block.Version) {
	if !r.layered[p.idx.active] || d.newest.Less(v) {
		return
	}
	t := p.idx.tables[p.idx.active]
	for i := d.heads[p.idx.active]; i != 0; i = t.At(i).Next {
		e := t.At(i)
		if e.Flags()&(index.Replaced|index.Under) != 0 && e.Flags()&index.Whole == 0 && e.Block()-b < uint64(n) && !e.Version().Less(v) {
			p.kill(r, d, e)
		}
	}
}

// kill makes an entry say nothing any more.
func (p *Pool) kill(r *Replica, d *chunkRef, e *index.Entry) {
	if e.State() == index.Stored {
		if e.Visible() {
			d.fresh--
		}
		p.refer(r, e.Loc(), -1)
	}
	e.Set(index.Dead, 0, 0, block.Version{})
}

func (p *Pool) chain(r *Replica, d *chunkRef, b uint64, e *index.Entry, number uint32) {
	x := &p.idx
	t := x.tables[x.active]
	if d.heads[x.active] == 0 {
		t.Chunks = append(t.Chunks, index.Key(r.slot, b)/block.ChunkBlocks)
		x.cost[x.active].add(r.costOf(b/block.ChunkBlocks, d, !r.neighbour(t.Chunks)))
	}
	e.Next = d.heads[x.active]
	d.heads[x.active] = number
}

// insertData records that blocks b … b+len(sums)-1 are stored where area and lens, as in wal.Record, say, with version
// v. Blocks of zeroes become tombstones of that version.
func (p *Pool) insertData(r *Replica, b uint64, area wal.Area, lens []uint8, sums []uint32, v block.Version) {
	for len(sums) > 0 {
		if len(lens) > 0 && lens[0] == 0 {
			n := 1
			for n < len(lens) && lens[n] == 0 {
				n++
			}
			p.insertGone(r, b, uint64(n), index.Tombstone, v)
			b, lens, sums = b+uint64(n), lens[n:], sums[n:]
			continue
		}
		in := int(b % block.ChunkBlocks)
		most := min(len(sums), block.ChunkBlocks-in)
		d := r.touch(b / block.ChunkBlocks)
		r.pending -= p.pendingOf(d)
		p.killNewer(r, d, b, most, v)
		n := 0
		for ; n < most; n++ {
			length := uint8(wal.MaxLen)
			if lens != nil {
				if length = lens[n]; length == 0 {
					break
				}
			}
			loc := index.MakeLoc(area.Next(length), int(length)*wal.Granule)
			e, flags := p.entry(r, d, b+uint64(n), v)
			e.Set(index.Stored, loc, sums[n], v)
			e.Mark(flags)
			d.fresh++
			p.refer(r, loc, 1)
		}
		r.stored += int64(p.idx.bitmaps.set(d, in, n, true))
		r.pending += p.pendingOf(d)
		if d.newest.Less(v) {
			d.newest = v
		}
		b, sums = b+uint64(n), sums[n:]
		if lens != nil {
			lens = lens[n:]
		}
	}
}

// insertGone records that count blocks from b on have no data: tombstones of version v, or never written.
func (p *Pool) insertGone(r *Replica, b, count uint64, state index.EntryState, v block.Version) {
	for count > 0 {
		in := int(b % block.ChunkBlocks)
		n := int(min(count, uint64(block.ChunkBlocks-in)))
		d := r.touch(b / block.ChunkBlocks)
		r.pending -= p.pendingOf(d)
		if n == block.ChunkBlocks && state == index.Tombstone {
			p.insertChunkDiscard(r, d, b, v)
		} else {
			p.killNewer(r, d, b, n, v)
			for i := range n {
				e, flags := p.entry(r, d, b+uint64(i), v)
				e.Set(state, 0, 0, v)
				e.Mark(flags)
			}
		}
		r.stored += int64(p.idx.bitmaps.set(d, in, n, false))
		r.pending += p.pendingOf(d)
		if d.newest.Less(v) {
			d.newest = v
		}
		b, count = b+uint64(n), count-uint64(n)
	}
}

// insertChunkDiscard records that the whole chunk that starts at block b was discarded at v.
func (p *Pool) insertChunkDiscard(r *Replica, d *chunkRef, b uint64, v block.Version) {
	x := &p.idx
	t := x.tables[x.active]
	p.hideChunk(r, d)
	for i := d.heads[x.active]; i != 0; i = t.At(i).Next {
		e := t.At(i)
		switch state := e.State(); {
		case state == index.Dead || state >= index.Passed || i == d.disc[x.active]:
		case state == index.None || e.Flags()&index.Cut != 0: // goes on taking away what older layers have
			if !r.snaps.show(e.Version(), v) {
				p.kill(r, d, e)
				e.Set(index.None, 0, 0, block.Version{})
			}
			p.retire(r, d, e)
		case e.Visible() && r.snaps.show(e.Version(), v):
			p.retire(r, d, e)
		case e.Visible() || !e.Version().Less(v):
			p.kill(r, d, e)
		}
	}
	if i := d.disc[x.active]; i != 0 && r.snaps.show(t.At(i).Version(), v) {
		p.replace(r, t.At(i))
	} else if i != 0 {
		t.At(i).Set(index.Dead, 0, 0, block.Version{})
	}
	e, number := t.Add(index.Key(r.slot, b)) // never in place: the order of the entries says what came after it
	p.chain(r, d, b, e, number)
	e.Set(index.Tombstone, 0, 0, v)
	e.Mark(index.Whole)
	d.disc[x.active] = number
}

// insertUnder adds a version of a block below newer ones, of so many granules of area, 0: without data.
func (p *Pool) insertUnder(r *Replica, b uint64, area *wal.Area, granules uint8, sum uint32, v block.Version) {
	e, number := p.idx.tables[p.idx.active].Add(index.Key(r.slot, b))
	p.chain(r, r.touch(b/block.ChunkBlocks), b, e, number)
	if granules == 0 {
		e.Set(index.Tombstone, 0, 0, v)
	} else {
		loc := index.MakeLoc(area.Next(granules), int(granules)*wal.Granule)
		e.Set(index.Stored, loc, sum, v)
		p.refer(r, loc, 1)
	}
	e.Mark(index.Under)
	r.layered[p.idx.active] = true
}

// insertKept has a version of a block stay when insertOnly comes.
func (p *Pool) insertKept(r *Replica, b uint64, v block.Version) {
	e, number := p.idx.tables[p.idx.active].Add(index.Key(r.slot, b))
	p.chain(r, r.touch(b/block.ChunkBlocks), b, e, number)
	e.Set(index.Kept, 0, 0, v)
	e.Mark(index.Under) // until then
	r.layered[p.idx.active] = true
}

// insertOnly takes all versions of a block away that insertKept did not name, whether they are listed now or will be
// met again by a replay from an older checkpoint. When the newest one goes, the caller puts another in its place.
func (p *Pool) insertOnly(r *Replica, b uint64) {
	x := &p.idx
	t := x.tables[x.active]
	d := r.touch(b / block.ChunkBlocks)
	r.pending -= p.pendingOf(d)
	defer func() { r.pending += p.pendingOf(d) }()
	var keep []block.Version
	for i := d.heads[x.active]; i != 0; i = t.At(i).Next {
		e := t.At(i)
		if e.Block() != b || e.Flags()&index.Whole != 0 {
			continue
		}
		switch state := e.State(); {
		case state == index.Kept && e.Flags() != 0:
			keep = append(keep, e.Version())
			e.Set(index.Kept, 0, 0, e.Version())
		case state == index.Kept: // by an insertOnly before
			p.kill(r, d, e)
		}
	}
	whole := false
	for i := d.heads[x.active]; i != 0; i = t.At(i).Next {
		e := t.At(i)
		whole = whole || e.Flags()&index.Whole != 0
		if state := e.State(); e.Block() != b || e.Flags()&index.Whole != 0 || state == index.Dead || state >= index.Passed || slices.Contains(keep, e.Version()) {
			continue
		}
		cut, visible := e.State() == index.None || e.Flags()&index.Cut != 0, e.Visible()
		if p.kill(r, d, e); cut {
			e.Set(index.None, 0, 0, block.Version{})
			if !visible {
				p.replace(r, e)
			}
		}
	}
	if whole {
		p.passOver(r, b, 1, block.Version{})
	}
}

// passOver makes n blocks, to which a rebuild gives version v, forget what the active table has of discards of their
// whole chunk, as far as these are not older.
func (p *Pool) passOver(r *Replica, b uint64, n int, v block.Version) {
	x := &p.idx
	t := x.tables[x.active]
	d := r.touch(b / block.ChunkBlocks)
	for i := d.heads[x.active]; i != 0; i = t.At(i).Next {
		if e := t.At(i); e.Flags()&index.Whole == 0 || e.Version().Less(v) {
			continue
		}
		for k := range uint64(n) {
			e, number := t.Add(index.Key(r.slot, b+k))
			p.chain(r, d, b, e, number)
			e.Set(index.Passed, 0, 0, v)
		}
		return
	}
}

// entriesOfDiscard returns how many entries a discard takes at most: one for each whole chunk, one for each block of
// the ends.
func entriesOfDiscard(b, count uint64) uint64 {
	end := b + count
	first, last := (b+block.ChunkBlocks-1)/block.ChunkBlocks, end/block.ChunkBlocks
	if first >= last {
		return min(count, 2*block.ChunkBlocks)
	}
	return first*block.ChunkBlocks - b + last - first + end - last*block.ChunkBlocks
}

// lookup returns what the tables know about a block: found is false when its page decides. The index lock is held.
func (p *Pool) lookup(r *Replica, d *chunkRef, b uint64) (e *index.Entry, found bool) {
	x := &p.idx
	for _, t := range [2]int{x.active, 1 - x.active} {
		if d.heads[t] == 0 {
			continue
		}
		if e := x.tables[t].Find(index.Key(r.slot, b)); e != nil && e.Visible() {
			return e, true
		}
		if d.disc[t] != 0 {
			return x.tables[t].At(d.disc[t]), true
		}
	}
	return nil, false
}
