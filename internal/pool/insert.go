package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// The functions of this file put updates into the delta. Apply, Merge and replay use the same ones, so that what a
// crash leaves behind is the same as what was in memory. The index lock is held for writing, and there is room.

// entry returns the entry of a block in the active table, chained to its chunk, without the reference to its data.
func (p *Pool) entry(r *Replica, d *chunkRef, b uint64) *index.Entry {
	x := &p.idx
	t := x.tables[x.active]
	e, number := t.Insert(index.Key(r.slot, b))
	if number != 0 {
		p.hide(r, d, b)
		p.chain(r, d, b, e, number)
	} else if e.State() == index.Stored {
		d.fresh--
		p.refer(r, e.Loc(), -1)
	}
	return e
}

func (p *Pool) chain(r *Replica, d *chunkRef, b uint64, e *index.Entry, number uint32) {
	x := &p.idx
	t := x.tables[x.active]
	if d.heads[x.active] == 0 {
		t.Chunks = append(t.Chunks, index.Key(r.slot, b)/block.ChunkBlocks)
	}
	e.Next = d.heads[x.active]
	d.heads[x.active] = number
}

// insertData records that blocks b … b+len(sums)-1 are stored where area and lens, as in wal.Record, say, with version v.
// Blocks of zeroes become tombstones of that version.
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
		n := 0
		for ; n < most; n++ {
			length := uint8(wal.MaxLen)
			if lens != nil {
				if length = lens[n]; length == 0 {
					break
				}
			}
			loc := index.MakeLoc(area.Next(length), int(length)*wal.Granule)
			p.entry(r, d, b+uint64(n)).Set(index.Stored, loc, sums[n], v)
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
			for i := range n {
				p.entry(r, d, b+uint64(i)).Set(state, 0, 0, v)
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
		if i == d.disc[x.active] {
			continue
		}
		if e.State() == index.Stored {
			d.fresh--
			p.refer(r, e.Loc(), -1)
		}
		e.Set(index.Dead, 0, 0, block.Version{})
	}
	if d.disc[x.active] == 0 {
		e, number := t.Add(index.Key(r.slot, b))
		p.chain(r, d, b, e, number)
		d.disc[x.active] = number
	}
	t.At(d.disc[x.active]).Set(index.Tombstone, 0, 0, v)
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
		if e := x.tables[t].Find(index.Key(r.slot, b)); e != nil && e.State() != index.Dead {
			return e, true
		}
		if d.disc[t] != 0 {
			return x.tables[t].At(d.disc[t]), true
		}
	}
	return nil, false
}
