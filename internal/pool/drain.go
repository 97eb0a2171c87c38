package pool

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// drainState is the work of moving one frozen table into pages. cycle serialises whole cycles (freeze, drain,
// checkpoint); mu serialises single steps, so that writers can lend a hand in the middle of a cycle.
type drainState struct {
	cycle sync.Mutex
	mu    sync.Mutex

	frozen   int          // which table
	work     []uint64     // chunks to rewrite, in order
	next     int          // first of work that is not done
	total    atomic.Int64 // chunks of the frozen table; 0: it is drained
	done     atomic.Int64 // of them
	from     logPos       // everything before is in the frozen table or in pages
	clock    uint64       // segments.clock there
	spent    atomic.Int32 // segments taken for the index in this cycle
	moves    []movedBlock // what the cleaner copied before the freeze, by key
	nextMove int          // first of moves that is not of a chunk done
	images   []image      // the replicas as they were there
	released []*Replica   // taken apart, to be forgotten once that is checkpointed
	writer   indexWriter
	page     index.Page
	group    []drained
	gone     []index.Loc // what the group's pages do not refer to any more
	came     []index.Loc // where they found what the cleaner moved
}

// image is what a checkpoint says of a replica besides its directory: its state where the replay begins.
type image struct {
	r       *Replica
	applied block.Version
	state   []byte
	dying   bool
}

// drained is a chunk of the group in the writer's buffer.
type drained struct {
	r      *Replica
	chunk  uint64
	old    chunkRef
	page   uint64
	id     uint64
	tomb   block.Version
	from   int // of buf
	to     int
	gone   int // end of its part of drainState.gone
	count  int // blocks with data in the new page, and their bytes
	data   uint32
	came   int // of drainState.came
	forget bool
}

// behind reports whether a writer that fills the active table to used of capacity is ahead of the drain, which should
// be over when three quarters are full.
func (s *drainState) behind(used, capacity int) bool {
	total := s.total.Load()
	return total > 0 && int64(used)*total*4 > s.done.Load()*int64(capacity)*3
}

// freeze makes the active table the one to drain and starts an empty one. cycle and mu are held; the other table is
// empty.
func (p *Pool) freeze() {
	s := &p.drain
	p.log.mu.Lock()
	p.idx.mu.Lock()
	x := &p.idx
	s.frozen = x.active
	x.active = 1 - x.active
	s.from, s.clock = p.log.pos, p.seg.clock.Load()
	p.log.since = 0
	s.images = s.images[:0]
	for _, r := range x.bySlot {
		if r != nil {
			r.dying = r.destroyed
			s.images = append(s.images, image{r: r, applied: r.applied, state: r.state, dying: r.dying})
		}
	}
	x.room.Broadcast()
	p.idx.mu.Unlock()
	p.log.mu.Unlock()
	s.moves = p.cleaner.frozen(s.moves)
	s.nextMove = 0
	s.work, s.next = append(s.work[:0], x.tables[s.frozen].Chunks...), 0
	for i := range s.moves {
		if chunk := s.moves[i].key / block.ChunkBlocks; i == 0 || chunk != s.moves[i-1].key/block.ChunkBlocks {
			s.work = append(s.work, chunk)
		}
	}
	slices.Sort(s.work)
	s.work = slices.Compact(s.work)
	s.done.Store(0)
	s.total.Store(int64(len(s.work)))
}

// left returns the number of chunks that the drain under way has yet to rewrite.
func (s *drainState) left() int { return int(max(s.total.Load()-s.done.Load(), 0)) }

// thaw empties the drained table, so that it can become the active one.
func (p *Pool) thaw() {
	s := &p.drain
	p.idx.tables[s.frozen].Reset() // no chunk refers to it any more, so that nobody looks into it
	p.idx.mu.Lock()
	p.idx.room.Broadcast()
	p.idx.mu.Unlock()
	s.total.Store(0)
	s.work, s.next = s.work[:0], 0
	s.moves, s.nextMove = s.moves[:0], 0
	p.cleaner.drained()
}

// drainStep rewrites the next few chunks of the work, as many as fit into one write. drain.mu is held.
func (p *Pool) drainStep() error {
	s := &p.drain
	w := &s.writer
	s.group, s.gone, s.came = s.group[:0], s.gone[:0], s.came[:0]
	for s.next < len(s.work) && w.room(index.MaxPage) && len(s.group) < 64 {
		if err := p.drainChunk(s.work[s.next]); err != nil {
			w.buf = w.buf[:0]
			return p.fail(err)
		}
		s.next++
	}
	if len(s.group) == 0 {
		return nil
	}
	if err := p.writeGroup(w); err != nil {
		return err
	}
	p.install()
	p.count.pagesWritten.Add(uint64(len(s.group)))
	s.done.Add(int64(len(s.group)))
	return nil
}

// drainChunk puts the new page of a chunk into the writer's buffer.
func (p *Pool) drainChunk(key uint64) error {
	s := &p.drain
	x := &p.idx
	x.mu.RLock()
	r := x.bySlot[key>>31]
	chunk := key & (1<<31 - 1)
	g := drained{r: r, chunk: chunk, old: *r.chunk(chunk), forget: r.dying}
	x.mu.RUnlock()
	if g.forget { // its pages are released when the whole directory is
		g.page, g.id, g.tomb = g.old.page, g.old.id, g.old.tomb
		g.count, g.data = int(g.old.count), g.old.data
		g.gone, g.came = len(s.gone), len(s.came)
		s.group = append(s.group, g)
		return nil
	}
	cached := p.cache.keeps(g.old.id)
	if g.old.page != 0 {
		var v index.View
		e, err := p.loadPage(r, chunk, &g.old, &v)
		if err != nil {
			return err
		}
		v.Decode(&s.page)
		p.cache.release(e)
	} else {
		s.page.Reset(g.old.tomb)
	}
	p.merge(&s.page, &g.old)
	s.relocate(&s.page, key)
	g.gone, g.came = len(s.gone), len(s.came)
	g.count, g.data = sizeOf(&s.page)
	if v, ok := s.page.Uniform(); ok {
		g.tomb = v
	} else {
		addr, err := p.place(&s.writer)
		if err != nil {
			return err
		}
		p.nextPageID++
		g.id, g.from = p.nextPageID, len(s.writer.buf)
		s.writer.buf = s.page.Encode(s.writer.buf, g.id, r.slot, chunk)
		g.to = len(s.writer.buf)
		g.page = packPage(addr, g.to-g.from)
		if cached {
			p.cache.add(g.id, s.writer.buf[g.from:g.to])
		}
	}
	s.group = append(s.group, g)
	return nil
}

// merge applies the frozen updates of a chunk to its page and notes which data blocks go. The frozen table does not
// change, so no lock is needed.
func (p *Pool) merge(pg *index.Page, d *chunkRef) {
	s := &p.drain
	t := p.idx.tables[s.frozen]
	leave := func(i int) {
		if pg.Stored.Has(i) {
			s.gone = append(s.gone, pg.Loc[i])
			pg.Stored.Unset(i)
		}
	}
	if n := d.disc[s.frozen]; n != 0 {
		for i := range pg.Ver {
			leave(i)
		}
		pg.Reset(t.At(n).Version())
	}
	for n := d.heads[s.frozen]; n != 0; n = t.At(n).Next {
		e := t.At(n)
		if n == d.disc[s.frozen] || e.State() == index.Dead {
			continue
		}
		i := int(e.Block() % block.ChunkBlocks)
		leave(i)
		pg.Ver[i] = e.Version()
		if e.State() == index.Stored {
			pg.Stored.Set(i)
			pg.Loc[i], pg.Sum[i] = e.Loc(), e.Sum
		}
	}
}

// relocate puts the new locations of blocks that the cleaner copied into their page, unless they have been overwritten.
func (s *drainState) relocate(pg *index.Page, chunk uint64) {
	for ; s.nextMove < len(s.moves) && s.moves[s.nextMove].key/block.ChunkBlocks <= chunk; s.nextMove++ {
		m := &s.moves[s.nextMove]
		i := int(m.key % block.ChunkBlocks)
		if m.key/block.ChunkBlocks == chunk && pg.Stored.Has(i) && pg.Loc[i] == m.old {
			pg.Loc[i] = m.new
			s.gone, s.came = append(s.gone, m.old), append(s.came, m.new)
		}
	}
}

// install makes the written group known and accounts for what it replaces.
func (p *Pool) install() {
	s := &p.drain
	x := &p.idx
	x.mu.Lock()
	at, came := 0, 0
	t := x.tables[s.frozen]
	for i := range s.group {
		g := &s.group[i]
		d := g.r.touch(g.chunk)
		for n := d.heads[s.frozen]; n != 0 && !g.forget; n = t.At(n).Next {
			if e := t.At(n); e.State() == index.Stored {
				p.seg.pageLive[p.seg.of(e.Loc())] += uint32(e.Loc().Len())
			}
		}
		p.accountDrained(g.r, d, g.count, g.data)
		for ; at < g.gone; at++ {
			p.seg.pageLive[p.seg.of(s.gone[at])] -= uint32(s.gone[at].Len())
		}
		for ; came < g.came; came++ {
			p.seg.pageLive[p.seg.of(s.came[came])] += uint32(s.came[came].Len())
		}
		if g.forget {
			continue
		}
		p.accountPage(g.r, d.page, -1)
		p.accountPage(g.r, g.page, 1)
		d.page, d.id, d.tomb = g.page, g.id, g.tomb
	}
	x.mu.Unlock()
	for i := range s.group {
		if g := &s.group[i]; !g.forget && g.old.page != 0 {
			p.cache.drop(g.old.id)
		}
	}
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
