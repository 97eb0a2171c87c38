package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// chunkView is the whole truth about one chunk at one moment.
type chunkView struct {
	page    index.Page
	scan    block.Version
	over    index.Page
	known   index.Bitmap
	view    index.View
	discard block.Version
	all     bool // the whole chunk was discarded after its page was written
	layers  [2]layer
	snaps   snapshots // set by listOwn
}

var chunkViews = sync.Pool{New: func() any { return new(chunkView) }}

// list fills v with the newest versions of a chunk: its page with what the tables have on top; older versions are left
// out. The caller is entered as a reader and may hold the log's lock.
func (r *Replica) list(v *chunkView, chunk uint64) error {
	if r.origin != nil {
		return r.listAll(v, chunk)
	}
	p := r.p
	d, err := r.rlockReadable(chunk)
	if err != nil {
		return err
	}
	v.scan = r.applied
	if d == nil {
		p.idx.mu.RUnlock()
		v.page.Reset(block.Version{})
		return nil
	}
	ref := *d
	v.known, v.all = index.Bitmap{}, false
	p.overlay(v, d, 1-p.idx.active)
	p.overlay(v, d, p.idx.active)
	p.idx.mu.RUnlock()
	switch {
	case v.all:
		v.page.Reset(v.discard)
	case ref.page == 0:
		v.page.Reset(ref.tomb)
	default:
		e, err := p.loadPage(r, chunk, &ref, &v.view)
		if err != nil {
			return err
		}
		v.view.Decode(&v.page)
		p.cache.release(e)
	}
	for i := range v.page.Ver {
		if v.known.Has(i) {
			v.page.Ver[i], v.page.Loc[i], v.page.Sum[i] = v.over.Ver[i], v.over.Loc[i], v.over.Sum[i]
			v.page.Stored.Unset(i)
			if v.over.Stored.Has(i) {
				v.page.Stored.Set(i)
			}
		}
	}
	return nil
}

// listOwn fills v with all versions of a chunk, those in history pages included, other than what a clone reads through.
// Some of the older versions may be such that no snapshot shows any more.
func (r *Replica) listOwn(v *chunkView, chunk uint64) error {
	p := r.p
	d, err := r.rlockReadable(chunk)
	if err != nil {
		return err
	}
	v.scan, v.snaps = r.applied, r.snaps
	if d == nil {
		p.idx.mu.RUnlock()
		v.page.Reset(block.Version{})
		return nil
	}
	ref := *d
	v.layers[0].gather(p.idx.tables[1-p.idx.active], d.heads[1-p.idx.active])
	v.layers[1].gather(p.idx.tables[p.idx.active], d.heads[p.idx.active])
	p.idx.mu.RUnlock()
	if ref.page == 0 {
		v.page.Reset(ref.tomb)
	} else {
		e, err := p.loadPage(r, chunk, &ref, &v.view)
		if err != nil {
			return err
		}
		v.view.Decode(&v.page)
		p.cache.release(e)
		if err := p.allHistory(r, chunk, &v.page); err != nil {
			return err
		}
		v.page.Hist = v.page.Hist[:0]
	}
	for i := range v.layers {
		v.layers[i].lay(&v.page, v.snaps, r.origin != nil, nil)
	}
	return nil
}

// listAll fills v with all versions of a chunk. What a clone reads through is the oldest version of a block.
func (r *Replica) listAll(v *chunkView, chunk uint64) error {
	if err := r.listOwn(v, chunk); err != nil || r.origin == nil {
		return err
	}
	o := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(o)
	if err := r.origin.listAt(o, chunk, r.from.ver); err != nil {
		return err
	}
	pg, base := &v.page, &o.page
	old := make([]index.Old, 0, len(pg.Old))
	at := 0
	for b := range block.ChunkBlocks {
		below := pg.Hole.Has(b) // an explicit hole hides what the origin has
		oldest, own := pg.Ver[b], below || !pg.Ver[b].IsZero()
		for ; at < len(pg.Old) && int(pg.Old[at].Block) == b; at++ {
			if pg.Old[at].Ver.IsZero() {
				below = true
			} else {
				old = append(old, pg.Old[at])
				oldest = pg.Old[at].Ver
			}
		}
		pg.Hole.Unset(b)
		switch {
		case below || base.Ver[b].IsZero() || own && !base.Ver[b].Less(oldest):
		case own:
			old = append(old, base.At(b))
		default:
			pg.SetNewest(base.At(b))
		}
	}
	pg.Old = old
	return nil
}

// listAt fills v with what the chunk showed at a version.
func (r *Replica) listAt(v *chunkView, chunk uint64, at block.Version) error {
	if err := r.listAll(v, chunk); err != nil {
		return err
	}
	v.page.Rewind(at)
	return nil
}

// overlay notes what table t has for a chunk. The index lock is held; older tables come first.
func (p *Pool) overlay(v *chunkView, d *chunkRef, t int) {
	x := p.idx.tables[t]
	if n := d.disc[t]; n != 0 {
		v.known, v.all, v.discard = index.Bitmap{}, true, x.At(n).Version()
	}
	for n := d.heads[t]; n != 0; n = x.At(n).Next {
		e := x.At(n)
		if n == d.disc[t] || !e.Visible() {
			continue
		}
		i := int(e.Block() % block.ChunkBlocks)
		v.known.Set(i)
		v.over.Stored.Unset(i)
		v.over.Ver[i] = e.Version()
		if e.State() == index.Stored {
			v.over.Stored.Set(i)
			v.over.Loc[i], v.over.Sum[i] = e.Loc(), e.Sum
		}
	}
}

// Changed returns, ascending, the chunks from number from on whose newest version is newer than base; tombstones count,
// and so do chunks of which the directory cannot be read. At most cap(dst) of them (1024 if dst has no capacity) are
// put into dst[:0]. next is where to go on; done says that there is nothing behind it. Each chunk is judged at some
// moment during the call.
func (r *Replica) Changed(base block.Version, from uint64, dst []uint64) (chunks []uint64, next uint64, done bool) {
	if cap(dst) == 0 {
		dst = make([]uint64, 0, 1024)
	}
	chunks = dst[:0]
	type place struct {
		r  *Replica
		at uint64 // first chunk from where the search is on that is newer
	}
	all := []place{{r: r}} // the replica and what it shows of others
	for o := r; o.origin != nil && base.Less(o.from.ver); o = o.origin {
		all = append(all, place{r: o.origin})
	}
	end := r.chunks()
	for first := true; ; first = false {
		found := end
		for i := range all {
			x := &all[i]
			if first || x.at < from {
				x.at = x.r.nextNewer(base, from, end)
			}
			found = min(found, x.at)
		}
		switch {
		case found >= end:
			return chunks, max(from, end), true
		case len(chunks) == cap(dst):
			return chunks, found, false
		}
		chunks = append(chunks, found)
		from = found + 1
	}
}

// nextNewer returns the first chunk from number from on, below end, that may have a version newer than base; end: none.
func (r *Replica) nextNewer(base block.Version, from, end uint64) uint64 {
	var d chunkRef
	for from < end {
		c, next, ok, err := r.next(from, func(s *dirSlot) bool { return base.Less(s.newest) }, &d)
		switch {
		case err != nil:
			return c
		case !ok || c >= end:
			return end
		case base.Less(d.newest):
			return c
		}
		from = next
	}
	return end
}

// ReadChunk lists a chunk into c at one moment, with c.Scan what was applied then, and reads the data of those stored
// blocks whose version differs from have (nil: of all; else 512 versions). Damage is reported as *ChecksumError.
func (r *Replica) ReadChunk(number uint64, have []block.Version, c *Chunk) error {
	if have == nil {
		have = noVersions[:]
	}
	if err := r.readChunk(number, have, func(int) bool { return true }, c); err != nil {
		return r.wrap("read chunk", err)
	}
	return nil
}

var noVersions [block.ChunkBlocks]block.Version

// ReadNewer is ReadChunk for somebody who agrees with the replica about every block that is not newer than base on either
// side, and has the versions in have (512 of them) of blocks that are newer there; zero: not newer. Blocks that are newer on
// neither side are not listed. This relies on discards leaving their version behind, however long ago they were: a block that
// was discarded after base is newer than base.
func (r *Replica) ReadNewer(number uint64, base block.Version, have []block.Version, c *Chunk) error {
	listed := func(i int) bool { return base.Less(c.Versions[i]) || !have[i].IsZero() }
	if err := r.readChunk(number, have, listed, c); err != nil {
		return r.wrap("read chunk", err)
	}
	return nil
}

// readChunk reads the blocks of a chunk for which listed, called when c.Versions is set, is true.
func (r *Replica) readChunk(number uint64, have []block.Version, listed func(i int) bool, c *Chunk) error {
	if number >= r.chunks() {
		return fmt.Errorf("chunk %d of %d is outside the replica", number, r.chunks())
	}
	if len(have) != block.ChunkBlocks {
		return fmt.Errorf("%d versions instead of %d", len(have), block.ChunkBlocks)
	}
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	if err := r.list(v, number); err != nil {
		return err
	}
	c.Index, c.Scan, c.Versions = number, v.scan, v.page.Ver
	c.Data, c.DataOf = c.Data[:0], c.DataOf[:0]
	for i := range c.Versions {
		c.Sums[i], c.Stored[i], c.Unlisted[i] = block.ZeroSum, false, !listed(i)
		if c.Unlisted[i] {
			c.Versions[i] = block.Version{}
		} else if v.page.Stored.Has(i) {
			c.Sums[i], c.Stored[i] = v.page.Sum[i], true
			if have[i] != c.Versions[i] {
				c.DataOf = append(c.DataOf, uint16(i))
			}
		}
	}
	if n := len(c.DataOf) * block.Size; cap(c.Data) < n {
		c.Data = make([]byte, n)
	} else {
		c.Data = c.Data[:n]
	}
	var places [block.ChunkBlocks]place
	for n, i := range c.DataOf {
		places[n] = place{loc: v.page.Loc[i], sum: v.page.Sum[i], at: i, stored: true}
	}
	if err := r.fetch(places[:len(c.DataOf)], number, c.Data, true); err != nil {
		return err
	}
	r.p.count.blocksRead.Add(uint64(len(c.DataOf)))
	return nil
}

// Newer lists those versions of a chunk that are newer than base into dst; others are zero.
func (r *Replica) Newer(number uint64, base block.Version, dst *[block.ChunkBlocks]block.Version) error {
	clear(dst[:])
	if number >= r.chunks() {
		return nil
	}
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	if err := r.list(v, number); err != nil {
		return r.wrap("list chunk", err)
	}
	for i := range dst {
		if ver := v.page.Ver[i]; base.Less(ver) {
			dst[i] = ver
		}
	}
	return nil
}
