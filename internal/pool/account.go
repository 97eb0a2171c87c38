package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// What a replica takes (all guarded by the index lock):
//
//	data      bytes of blocks that pages refer to, by chunk in chunkRef.data
//	delta     bytes of blocks that the tables refer to
//	hidden    of delta: entries of the frozen table that the active table has replaced already
//	pending   of data: what the tables have replaced; the drain releases it
//	held      bytes of older versions that pages and history pages refer to
//
// All but pending are exact, but what of hidden and pending a snapshot shows is known only when it is drained: where
// there are snapshots neither counts before. Whether a page has data for a block that a table replaces is known, but
// not how many bytes that takes without reading the page: it is estimated by the chunk's average. So all is exact when
// nothing waits to be drained, or when nothing is compressed.

// allocated returns the bytes that the replica's data and metadata take. The index lock is held.
func (r *Replica) allocated() int64 {
	n := r.data + r.delta + r.held + r.meta
	if len(r.snaps) == 0 {
		n -= r.hidden + r.pending
	}
	return n
}

// refer adds the data of an entry to the accounts, or takes it away. The index lock is held for writing.
func (p *Pool) refer(r *Replica, loc index.Loc, sign int64) {
	n := sign * int64(loc.Len())
	p.seg.deltaLive[p.seg.of(loc)] += uint32(n)
	r.delta += n
}

// pendingOf returns what the tables have replaced of the page of a chunk, in bytes: the page has data for count blocks;
// of the blocks that have data now, all whose entry in a table does not say so have it in the page. In the middle of a
// replay, when the bitmap is ahead of the tables, it may be anything. The index lock is held.
func (p *Pool) pendingOf(d *chunkRef) int64 {
	if d.count == 0 {
		return 0
	}
	replaced := int64(d.count) - int64(p.idx.bitmaps.count(d)) + int64(d.fresh)
	return replaced * int64(d.data) / int64(d.count)
}

// average returns how many bytes a block of a chunk takes that has data. The index lock is held.
func (p *Pool) average(d *chunkRef) int64 {
	if d.count == 0 {
		return block.Size
	}
	return int64(d.data) / int64(d.count)
}

// hide notes that the active table replaces what the frozen one has for block b. The index lock is held for writing,
// and the entry in the active table is new.
func (p *Pool) hide(r *Replica, d *chunkRef, b uint64) {
	x := &p.idx
	if f := 1 - x.active; d.heads[f] != 0 && d.disc[x.active] == 0 {
		if e := x.tables[f].Find(index.Key(r.slot, b)); e != nil && e.Visible() && e.State() == index.Stored {
			d.fresh--
			r.hidden += int64(e.Loc().Len())
		}
	}
}

// hideChunk is hide for all blocks of a chunk that the active table has not replaced yet, when it is about to discard
// the whole chunk.
func (p *Pool) hideChunk(r *Replica, d *chunkRef) {
	x := &p.idx
	f := 1 - x.active
	if d.disc[x.active] != 0 {
		return
	}
	for n := d.heads[f]; n != 0; n = x.tables[f].At(n).Next {
		e := x.tables[f].At(n)
		if e.Visible() && e.State() == index.Stored && !p.hidden(r, d, e.Block()) {
			d.fresh--
			r.hidden += int64(e.Loc().Len())
		}
	}
}

// hidden reports whether the active table replaces what the frozen one has for block b.
func (p *Pool) hidden(r *Replica, d *chunkRef, b uint64) bool {
	x := &p.idx
	return d.heads[x.active] != 0 && (d.disc[x.active] != 0 || x.tables[x.active].Find(index.Key(r.slot, b)) != nil)
}

// accountDrained replaces the frozen entries of a chunk by the page that now says the same: count blocks in data bytes.
// The index lock is held for writing.
func (p *Pool) accountDrained(r *Replica, d *chunkRef, count int, data uint32) {
	x := &p.idx
	r.pending -= p.pendingOf(d)
	f := 1 - x.active
	t := x.tables[f]
	for n := d.heads[f]; n != 0; n = t.At(n).Next {
		e := t.At(n)
		if e.State() != index.Stored {
			continue
		}
		switch {
		case !e.Visible():
		case p.hidden(r, d, e.Block()):
			r.hidden -= int64(e.Loc().Len())
		default:
			d.fresh--
		}
		p.refer(r, e.Loc(), -1)
	}
	d.heads[f], d.disc[f] = 0, 0
	r.data += int64(data) - int64(d.data)
	d.count, d.data = uint16(count), data
	r.pending += p.pendingOf(d)
}

// sizeOf returns how many blocks of a page have data and in how many bytes.
func sizeOf(pg *index.Page) (count int, data uint32) {
	for i := range block.ChunkBlocks {
		if pg.Stored.Has(i) {
			count++
			data += uint32(pg.Loc[i].Len())
		}
	}
	return count, data
}

// accountPage adds a page to the live bytes of its segment and of its replica, or takes it away. The index lock is
// held for writing.
func (p *Pool) accountPage(r *Replica, page uint64, sign int) {
	if page == 0 {
		return
	}
	d := chunkRef{page: page}
	n := d.pageLen() * sign
	p.seg.pageLive[d.pageAddr()>>p.seg.shift] += uint32(n)
	r.meta += int64(n)
	r.pages += int64(sign)
}

// accountHistory does so for a history page.
func (p *Pool) accountHistory(r *Replica, h *index.HistRef, sign int) {
	n := h.Len() * sign
	p.seg.pageLive[h.Addr()>>p.seg.shift] += uint32(n)
	r.meta += int64(n)
	r.history += int64(n)
}
