package pool

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// drainState is the work of moving one frozen table into pages. cycle serialises whole cycles (freeze, drain,
// checkpoint); mu is held in each of their steps, and let go in between.
type drainState struct {
	cycle sync.Mutex
	mu    sync.Mutex
	ended bool // there will be no further cycle; guarded by cycle

	frozen     int             // which table
	work       []uint64        // chunks to rewrite, in order
	next       int             // first of work that is not done
	total      atomic.Int64    // chunks of the frozen table; 0: it is drained
	done       atomic.Int64    // of them
	began      atomic.Int64    // when, in nanoseconds
	from       logPos          // everything before is in the frozen table or in pages
	clock      uint64          // segments.clock there
	cost       indexCost       // of the cycle under way; guarded by idx.mu
	wrote      atomic.Int64    // bytes of the index written since the freeze
	settled    int64           // bytes of the index that the frozen updates, and a checkpoint that was left, were to take
	moves      []movedBlock    // what the cleaner copied before the freeze, by key
	nextMove   int             // first of moves that is not of a chunk done
	images     []image         // the replicas as they were there
	released   []*Replica      // taken apart, to be forgotten once that is checkpointed
	purging    bool            // chunks are only looked at for versions that nobody shows any more
	victims    map[uint32]bool // index segments to be emptied, while that is done
	compaction compaction
	writer     indexWriter
	cold       indexWriter // history pages
	page       index.Page
	layer      layer
	group      []drained
	ahead      pagesAhead
	data       changes      // of the group's pages
	hist       []histChange // likewise
	old        []index.Old  // scratch
}

// histChange is a history page that a chunk has now, or has not any more.
type histChange struct {
	ref  index.HistRef
	sign int
}

// image is what a checkpoint says of a replica besides its directory: its state where the replay begins.
type image struct {
	r       *Replica
	applied block.Version
	state   []byte
	dying   bool
	size    int64
	snaps   snapshots
}

// drained is a chunk of the group in the writer's buffer.
type drained struct {
	r      *Replica
	chunk  uint64
	block  *dirBlock // of the chunk, pinned
	old    chunkRef
	page   uint64
	id     uint64
	tomb   block.Version
	older  bool // the page has or refers to older versions
	deep   bool // it refers to some
	held   int64
	count  int // blocks whose newest version has data in the new page, and their bytes
	data   uint32
	gone   int // ends of its part of drainState.data.gone, data.come and hist
	come   int
	hist   int
	forget bool
}

// behind returns how far writers that fill the active table to used of capacity are ahead of the drain, which is to be
// over when three quarters are full; an eighth is for those who write when it has hardly begun. Up to 1 they are to be
// slowed down, so that there is something left for the time when the drain itself waits for a device; from then on they
// have to wait.
func (s *drainState) behind(used, capacity int) float64 {
	total := s.total.Load()
	if total == 0 {
		return 0
	}
	eighth := float64(capacity) / 8
	return float64(used)/eighth - 1 - 5*float64(s.done.Load())/float64(total)
}

// pace returns how many nanoseconds the drain has taken so far for what makes room for one update, so that those who
// take as long for each keep to it.
func (s *drainState) pace(capacity int) float64 {
	done := float64(s.done.Load()) * float64(capacity) * 5 / 8
	return float64(time.Now().UnixNano()-s.began.Load()) * float64(s.total.Load()) / max(done, 1)
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
	left := s.cost.directory() // of a checkpoint that was left to this cycle
	s.cost, x.cost[s.frozen] = x.cost[s.frozen], indexCost{}
	entries := int64(x.tables[s.frozen].Len()) * entryCost
	s.cost.pages, s.cost.grown = s.cost.pages+entries, s.cost.grown+entries
	s.cost.add(left)
	s.settled = p.bytesOf(&s.cost)
	s.cost.add(p.cleaner.cost)
	p.cleaner.cost = indexCost{}
	s.cost.root = p.rootCost()
	s.wrote.Store(0)
	s.images = s.images[:0]
	for _, r := range x.bySlot {
		if r != nil && !r.released {
			r.dying, r.kept = r.destroyed, r.snaps
			s.images = append(s.images, image{r: r, applied: r.applied, state: r.state, dying: r.dying, size: r.size.Load(), snaps: r.snaps})
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
	s.began.Store(time.Now().UnixNano())
	s.total.Store(int64(len(s.work)))
}

// thaw empties the drained table, so that it can become the active one.
func (p *Pool) thaw() {
	s := &p.drain
	p.idx.tables[s.frozen].Reset() // no chunk refers to it any more, so that nobody looks into it
	p.idx.mu.Lock()
	for _, r := range p.idx.bySlot {
		if r != nil {
			r.layered[s.frozen] = false
		}
	}
	s.total.Store(0) // those who wait for the drain look again
	p.idx.room.Broadcast()
	p.idx.mu.Unlock()
	s.work, s.next = s.work[:0], 0
	s.moves, s.nextMove = s.moves[:0], 0
	p.cleaner.drained()
}

// drainGroup is the number of chunks that are drained with one write at most.
const drainGroup = 64

// drainStep rewrites the next few chunks of the work, about as many as fit into one write. drain.mu is held.
func (p *Pool) drainStep() error {
	s := &p.drain
	w := &s.writer
	s.group, s.hist = s.group[:0], s.hist[:0]
	s.data.gone, s.data.come = s.data.gone[:0], s.data.come[:0]
	begin := s.next
	for s.next < len(s.work) && w.room(index.MaxHeads) && s.next-begin < drainGroup {
		if err := p.drainChunk(s.work[s.next]); err != nil { // blocks that are pinned stay so: there is no other drain
			w.buf, s.cold.buf = w.buf[:0], s.cold.buf[:0]
			return p.fail(err)
		}
		s.next++
	}
	if err := p.writeGroup(&s.cold); err != nil {
		return err
	}
	if err := p.writeGroup(w); err != nil {
		return err
	}
	p.install(s.next - begin)
	p.count.pagesWritten.Add(uint64(len(s.group)))
	p.yield() // a writer that comes back from a system call may wait 10 ms for a processor otherwise
	if p.idx.dirs.crowded() {
		return p.relieve()
	}
	return nil
}

// drainChunk puts the new page of a chunk into the writer's buffer. One that cannot be read stays where it is if it is only
// to be moved.
func (p *Pool) drainChunk(key uint64) error {
	s := &p.drain
	gone, come, hist := len(s.data.gone), len(s.data.come), len(s.hist)
	err := p.rewriteChunk(key)
	if err != nil && s.victims != nil && p.failure() == nil {
		s.data.gone, s.data.come, s.hist = s.data.gone[:gone], s.data.come[:come], s.hist[:hist]
		return nil
	}
	return err
}

func (p *Pool) rewriteChunk(key uint64) error {
	s := &p.drain
	x := &p.idx
	pg := &s.page
	x.mu.RLock()
	r := x.bySlot[key>>31]
	chunk := key & (1<<31 - 1)
	x.mu.RUnlock()
	fetched := s.ahead.reach(p, s.work[s.next:], true)
	b, err := r.pin(chunk >> dirShift)
	if err != nil {
		return err
	}
	used := false
	defer func() {
		if !used {
			r.unpin(b)
		}
	}()
	x.mu.RLock()
	d, _ := r.chunk(chunk)
	g := drained{r: r, chunk: chunk, block: b, old: *d, forget: r.dying}
	snaps, clone, purge := r.kept, r.origin != nil, r.purge.wanted
	x.mu.RUnlock()
	done := func() {
		used = true
		g.held, g.gone, g.come, g.hist = s.data.held, len(s.data.gone), len(s.data.come), len(s.hist)
		s.group = append(s.group, g)
	}
	s.data.held = 0
	if g.forget { // its pages are released when the whole directory is
		g.page, g.id, g.tomb, g.older, g.deep = g.old.page, g.old.id, g.old.tomb, g.old.older, g.old.deep
		g.count, g.data = int(g.old.count), g.old.data
		done()
		return nil
	}
	cached := p.cache.keeps(g.old.id, fetched)
	if g.old.page != 0 {
		var v index.View
		e, err := p.loadPage(r, chunk, &g.old, &v)
		if err != nil {
			return err
		}
		v.Decode(pg)
		p.cache.release(e)
	} else {
		pg.Reset(g.old.tomb)
	}
	if len(snaps) > 0 || clone || g.old.older || !p.merge(pg, &g.old) {
		s.layer.gather(x.tables[s.frozen], g.old.heads[s.frozen])
		if s.layer.needsHistory(pg) {
			if err := p.inlineHistory(r, chunk, pg); err != nil {
				return err
			}
		}
		s.layer.lay(pg, snaps, clone, &s.data)
	}
	if moves := s.movesOf(key); len(moves) > 0 {
		s.relocate(pg, moves)
		if err := p.relocateInHistory(r, chunk, pg, moves); err != nil {
			return err
		}
	}
	changed, hist := false, len(s.hist)
	if purge {
		var err error
		if changed, err = p.prune(r, chunk, pg, snaps); err != nil {
			return err
		}
	}
	if s.victims != nil {
		if err := p.moveHistory(r, chunk, pg); err != nil {
			return err
		}
	}
	if !changed && hist == len(s.hist) && (s.purging || s.victims != nil && !s.victims[uint32(g.old.pageAddr()>>p.seg.shift)]) {
		return nil // looked at in vain
	}
	if err := p.spill(r, chunk, pg); err != nil {
		return err
	}
	g.count, g.data = sizeOf(pg)
	g.older, g.deep = len(pg.Old)+len(pg.Hist) > 0, len(pg.Hist) > 0
	if v, ok := pg.Uniform(); ok {
		g.tomb = v
	} else {
		if !s.writer.room(pg.MaxLen()) {
			if err := p.writeGroup(&s.writer); err != nil {
				return err
			}
		}
		addr, err := p.place(&s.writer, pg.MaxLen())
		if err != nil {
			return err
		}
		p.nextPageID++
		from := len(s.writer.buf)
		g.id = p.nextPageID
		s.writer.buf = pg.Encode(s.writer.buf, g.id, r.slot, chunk)
		g.page = packPage(addr, len(s.writer.buf)-from)
		if cached {
			p.cache.add(g.id, s.writer.buf[from:])
		}
	}
	done()
	return nil
}

// merge applies the frozen updates of a chunk to its page, when there is nothing but newest versions, and notes which
// data blocks come and go. It returns false, with nothing done, when there is more to it. The frozen table does not
// change, so no lock is needed.
func (p *Pool) merge(pg *index.Page, d *chunkRef) bool {
	s := &p.drain
	t := p.idx.tables[s.frozen]
	var flags index.EntryFlags
	for n := d.heads[s.frozen]; n != 0; n = t.At(n).Next {
		e := t.At(n)
		flags |= e.Flags()
		if e.State() >= index.Passed || e.Flags()&index.Whole != 0 && n != d.disc[s.frozen] {
			return false
		}
	}
	if flags&^(index.Whole|index.Cut) != 0 {
		return false
	}
	c := &s.data
	leave := func(i int) {
		if pg.Stored.Has(i) {
			c.gone = append(c.gone, pg.Loc[i])
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
		if !e.Visible() {
			continue
		}
		i := int(e.Block() % block.ChunkBlocks)
		leave(i)
		pg.Ver[i] = e.Version()
		if e.State() == index.Stored {
			pg.Stored.Set(i)
			pg.Loc[i], pg.Sum[i] = e.Loc(), e.Sum
			c.come = append(c.come, e.Loc())
		}
	}
	return true
}

// movesOf returns what the cleaner copied of a chunk.
func (s *drainState) movesOf(chunk uint64) []movedBlock {
	for s.nextMove < len(s.moves) && s.moves[s.nextMove].key/block.ChunkBlocks < chunk {
		s.nextMove++
	}
	from := s.nextMove
	for s.nextMove < len(s.moves) && s.moves[s.nextMove].key/block.ChunkBlocks == chunk {
		s.nextMove++
	}
	return s.moves[from:s.nextMove]
}

// relocate puts the new locations of versions that the cleaner copied into their page, unless they are not there any
// more.
func (s *drainState) relocate(pg *index.Page, moves []movedBlock) {
	for i := range moves {
		m := &moves[i]
		b := int(m.key % block.ChunkBlocks)
		if pg.Stored.Has(b) && pg.Loc[b] == m.old {
			pg.Loc[b] = m.new
			s.data.move(m)
			continue
		}
		at, _ := slices.BinarySearchFunc(pg.Old, index.Old{Block: uint16(b), Ver: m.ver}, index.CompareOld)
		if at < len(pg.Old) && int(pg.Old[at].Block) == b && pg.Old[at].Stored && pg.Old[at].Loc == m.old {
			pg.Old[at].Loc = m.new
			s.data.move(m)
		}
	}
}

// install makes the written group known, which is so many chunks of the work, and accounts for what it replaces.
func (p *Pool) install(chunks int) {
	s := &p.drain
	x := &p.idx
	x.mu.Lock()
	gone, come, hist, step := 0, 0, 0, 0
	for i := range s.group {
		g := &s.group[i]
		if step += g.gone - gone + g.come - come; step >= 4*lockStep { // whoever waits has a turn: chunks are consistent
			step = 0
			x.mu.Unlock()
			x.mu.Lock()
		}
		l := g.r.live[g.chunk]
		if l == nil { // only its page changed
			l = g.r.enliven(g.chunk, &g.block.refs[g.chunk&(dirSpan-1)])
		}
		d := &l.chunkRef
		p.accountDrained(g.r, d, g.count, g.data)
		for ; gone < g.gone; gone++ {
			p.seg.pageLive[p.seg.of(s.data.gone[gone])] -= uint32(s.data.gone[gone].Len())
		}
		for ; come < g.come; come++ {
			p.seg.pageLive[p.seg.of(s.data.come[come])] += uint32(s.data.come[come].Len())
		}
		for ; hist < g.hist; hist++ {
			p.accountHistory(g.r, &s.hist[hist].ref, s.hist[hist].sign)
		}
		if !g.forget {
			g.r.held += g.held
			p.accountPage(g.r, d.page, -1)
			p.accountPage(g.r, g.page, 1)
			d.page, d.id, d.tomb, d.older, d.deep = g.page, g.id, g.tomb, g.older, g.deep
		}
		g.r.drained(g.block, l)
		g.block.pins--
	}
	s.done.Add(int64(chunks))
	x.room.Broadcast()
	x.mu.Unlock()
	for i := range s.group {
		if g := &s.group[i]; !g.forget && g.old.page != 0 {
			p.cache.drop(g.old.id)
		}
	}
	for i := range s.hist {
		if s.hist[i].sign < 0 {
			p.cache.drop(s.hist[i].ref.ID)
		}
	}
}
