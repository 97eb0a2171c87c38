package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// layer is what one table has for one chunk, taken out of it so that it can be laid over a page: the only place that
// knows how the versions of a block in a table and in what is older than the table make one list. Draining, listing and
// checking use it alike.
//
// The versions of a block are a set; the newest is what the replica shows, the others are kept while a snapshot shows
// them. An entry adds its version and takes away all of the older layers that are as new or newer: a rebuild may take
// what is ahead of the live writes, which then come again in their order. Cut takes away all there is, Kept all
// versions but those named so, Passed what discards of the chunk before it have that is as new or newer; Under takes
// nothing away.
type layer struct {
	items []layerItem
	first [block.ChunkBlocks]int32 // in items, plus one
	has   index.Bitmap
	whole []wholeItem // discards of the whole chunk, newest first
	flags index.EntryFlags
	state [8]bool // which states occur

	cands []layerVersion
	out   []index.Old
}

type layerItem struct {
	index.Old
	state index.EntryState
	flags index.EntryFlags
	next  int32 // item of the same block that is older in the log, plus one
}

type wholeItem struct {
	ver block.Version
	at  int // number of items that are newer in the log
}

// layerVersion is a version of a block that the result may have.
type layerVersion struct {
	index.Old
	table bool // comes from the table
}

// changes is what laying a layer over a page changes in what the page refers to.
type changes struct {
	gone []index.Loc // what the page does not refer to any more
	come []index.Loc // what it refers to now; a location may be in both
	held int64       // by how much the bytes of older versions grew
}

// gather fills l with the entries of a chunk. The index lock is held, or the table is frozen.
func (l *layer) gather(t *index.Table, head uint32) {
	l.items, l.whole, l.has, l.flags, l.state = l.items[:0], l.whole[:0], index.Bitmap{}, 0, [8]bool{}
	for n := head; n != 0; {
		e := t.At(n)
		n = e.Next
		state, flags := e.State(), e.Flags()
		if state == index.Dead {
			continue
		}
		l.flags |= flags
		l.state[state] = true
		if flags&index.Whole != 0 {
			l.whole = append(l.whole, wholeItem{e.Version(), len(l.items)})
			continue
		}
		b := uint16(e.Block() % block.ChunkBlocks)
		l.has.Set(int(b))
		l.items = append(l.items, layerItem{
			Old:   index.Old{Block: b, Ver: e.Version(), Loc: e.Loc(), Sum: e.Sum, Stored: state == index.Stored},
			state: state, flags: flags,
		})
	}
	for i := range l.items {
		l.first[l.items[i].Block] = 0
	}
	for i := len(l.items) - 1; i >= 0; i-- {
		x := &l.items[i]
		x.next, l.first[x.Block] = l.first[x.Block], int32(i+1)
	}
}

// empty reports whether the table has nothing for the chunk.
func (l *layer) empty() bool { return len(l.items) == 0 && len(l.whole) == 0 }

// needsHistory reports whether the layer may change what the history pages of pg have, apart from the places of some.
func (l *layer) needsHistory(pg *index.Page) bool {
	if len(pg.Hist) == 0 || l.empty() {
		return false
	}
	if l.flags&(index.Under|index.Cut) != 0 || l.state[index.Passed] || l.state[index.Kept] || l.state[index.None] {
		return true
	}
	for i := range l.whole {
		for b := range pg.Ver {
			if !pg.Ver[b].Less(l.whole[i].ver) {
				return true
			}
		}
	}
	for i := range l.items {
		x := &l.items[i]
		if !pg.Ver[x.Block].Less(x.Ver) {
			return true
		}
	}
	return false
}

// lay puts the layer over pg, which becomes the newer state: per block the newest version, and the older ones that
// snapshots show. clone says that a block that was never written must say so. c, if not nil, collects the changes. The
// history pages of pg stay as they are.
func (l *layer) lay(pg *index.Page, snaps snapshots, clone bool, c *changes) {
	if l.empty() {
		return
	}
	l.out = l.out[:0]
	at := 0
	for b := range block.ChunkBlocks {
		if !l.has.Has(b) && len(l.whole) == 0 {
			continue
		}
		from := at
		for at < len(pg.Old) && int(pg.Old[at].Block) < b {
			at++
		}
		l.out = append(l.out, pg.Old[from:at]...)
		from = at
		for at < len(pg.Old) && int(pg.Old[at].Block) == b {
			at++
		}
		l.block(pg, b, pg.Old[from:at], snaps, clone, c)
	}
	l.out = append(l.out, pg.Old[at:]...)
	pg.Old, l.out = l.out, pg.Old
}

// block makes the versions of one block, whose older versions in the page are old.
func (l *layer) block(pg *index.Page, b int, old []index.Old, snaps snapshots, clone bool, c *changes) {
	l.cands = l.cands[:0]
	first := int32(0)
	if l.has.Has(b) {
		first = l.first[b]
	}
	var low, seen block.Version // seen: the newest of the block, when it came after every discard of the chunk
	bounded, cut, visible := false, false, false
	bound := func(v block.Version) {
		if !bounded || v.Less(low) {
			low, bounded = v, true
		}
	}
	for i := first; i != 0; i = l.items[i-1].next {
		x := &l.items[i-1]
		if x.state >= index.Passed {
			continue
		}
		l.add(x.Old, true)
		if x.flags&index.Under != 0 {
			continue
		}
		bound(x.Ver)
		cut = cut || x.state == index.None || x.flags&index.Cut != 0
		if x.flags&index.Replaced == 0 {
			seen, visible = x.Ver, true
		}
	}
	for i := range l.whole {
		v := l.whole[i].ver
		if visible && !v.Less(seen) || l.isPassed(first, &l.whole[i]) {
			continue
		}
		l.add(index.Old{Block: uint16(b), Ver: v}, true)
		bound(v)
	}
	stays := func(v block.Version) bool {
		return !cut && (!bounded || v.Less(low)) && l.isKept(first, v)
	}
	held := int64(0)
	page := func(o index.Old) {
		if !stays(o.Ver) || !l.add(o, false) {
			c.left(&o)
		}
	}
	if !pg.Ver[b].IsZero() || pg.Hole.Has(b) {
		page(index.Old{Block: uint16(b), Ver: pg.Ver[b], Loc: pg.Loc[b], Sum: pg.Sum[b], Stored: pg.Stored.Has(b)})
	}
	for i := range old {
		if old[i].Stored {
			held -= int64(old[i].Loc.Len())
		}
		page(old[i])
	}
	pg.Ver[b] = block.Version{}
	pg.Stored.Unset(b)
	pg.Hole.Unset(b)
	for i := range l.cands {
		x := &l.cands[i]
		switch {
		case x.Ver.IsZero() && !clone:
			continue
		case i == 0:
			pg.Ver[b] = x.Ver
			if x.Stored {
				pg.Stored.Set(b)
				pg.Loc[b], pg.Sum[b] = x.Loc, x.Sum
			}
			if x.Ver.IsZero() {
				pg.Hole.Set(b)
			}
		case snaps.show(x.Ver, l.cands[i-1].Ver):
			l.out = append(l.out, x.Old)
			if x.Stored {
				held += int64(x.Loc.Len())
			}
		default:
			if !x.table {
				c.left(&x.Old)
			}
			continue
		}
		if x.table && x.Stored && c != nil {
			c.come = append(c.come, x.Loc)
		}
	}
	if c != nil {
		c.held += held
	}
}

// add puts a version among the candidates, newest first. It returns false when it is there already.
func (l *layer) add(o index.Old, table bool) bool {
	i := len(l.cands)
	for i > 0 && l.cands[i-1].Ver.Less(o.Ver) {
		i--
	}
	if i > 0 && l.cands[i-1].Ver == o.Ver {
		return false
	}
	l.cands = append(l.cands, layerVersion{})
	copy(l.cands[i+1:], l.cands[i:])
	l.cands[i] = layerVersion{Old: o, table: table}
	return true
}

// isKept reports whether the items of a block let version v of what is older stay.
func (l *layer) isKept(first int32, v block.Version) bool {
	only := false
	for i := first; l.state[index.Kept] && i != 0; i = l.items[i-1].next {
		if x := &l.items[i-1]; x.state == index.Kept {
			if x.Ver == v {
				return true
			}
			only = true
		}
	}
	return !only
}

// isPassed reports whether the items of a block say that a discard of the chunk, which came before, is not for it.
func (l *layer) isPassed(first int32, w *wholeItem) bool {
	for i := first; l.state[index.Passed] && i != 0; i = l.items[i-1].next {
		if x := &l.items[i-1]; x.state == index.Passed && int(i-1) < w.at && !w.ver.Less(x.Ver) {
			return true
		}
	}
	return false
}

// move notes that the page refers to a copy.
func (c *changes) move(m *movedBlock) {
	c.gone, c.come = append(c.gone, m.old), append(c.come, m.new)
}

// left notes that the page does not refer to o's data any more.
func (c *changes) left(o *index.Old) {
	if c != nil && o.Stored {
		c.gone = append(c.gone, o.Loc)
	}
}
