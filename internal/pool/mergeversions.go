package pool

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// Versions appends to dst every version of the blocks of a chunk that the replica or one of its snapshots shows, by
// block, the newest first: what a puller has.
func (r *Replica) Versions(number uint64, dst []BlockVersion) ([]BlockVersion, error) {
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	all, err := r.shown(v, number, 0, block.ChunkBlocks)
	if err != nil {
		return dst, r.wrap("list chunk", err)
	}
	for i := range all {
		dst = append(dst, BlockVersion{Block: all[i].Block, Version: all[i].Ver})
	}
	return dst, nil
}

// ReadVersions lists all versions of count blocks from block first of a chunk on that the replica and its snapshots
// show, and its snapshots, into c at one moment, with c.Scan what was applied then, and reads the data of those that
// are not in have. Few blocks at a time bound what c takes: there may be as many versions of a block as snapshots.
// Damage is reported as *ChecksumError.
func (r *Replica) ReadVersions(number uint64, first, count int, have []BlockVersion, c *Chunk) error {
	if err := r.readVersions(number, first, count, have, c); err != nil {
		return r.wrap("read chunk", err)
	}
	return nil
}

func (r *Replica) readVersions(number uint64, first, count int, have []BlockVersion, c *Chunk) error {
	if number >= r.chunks() || first < 0 || count <= 0 || first+count > block.ChunkBlocks {
		return fmt.Errorf("blocks %d+%d of chunk %d of %d", first, count, number, r.chunks())
	}
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	all, err := r.shown(v, number, first, count)
	if err != nil {
		return err
	}
	known := map[BlockVersion]bool{}
	for _, h := range have {
		known[h] = true
	}
	c.Index, c.Scan, c.First, c.Count = number, v.scan, first, count
	c.Snapshots = append(c.Snapshots[:0], v.snaps.public()...)
	if c.Snapshots == nil {
		c.Snapshots = []Snapshot{}
	}
	c.Data, c.DataOf, c.Old, c.OldData = c.Data[:0], c.DataOf[:0], c.Old[:0], c.OldData[:0]
	for i := range c.Versions {
		c.Versions[i], c.Sums[i], c.Stored[i] = block.Version{}, block.ZeroSum, false
	}
	for i := range all {
		o := &all[i]
		send := o.Stored && !known[BlockVersion{Block: o.Block, Version: o.Ver}]
		sum := block.ZeroSum
		if o.Stored {
			sum = o.Sum
		}
		to := &c.OldData
		if i == 0 || all[i-1].Block != o.Block {
			c.Versions[o.Block], c.Sums[o.Block], c.Stored[o.Block] = o.Ver, sum, o.Stored
			if to = &c.Data; send {
				c.DataOf = append(c.DataOf, o.Block)
			}
		} else {
			c.Old = append(c.Old, OldBlock{Block: o.Block, Version: o.Ver, Sum: sum, Stored: o.Stored, HasData: send})
		}
		if send {
			n := len(*to)
			*to = slices.Grow(*to, block.Size)[:n+block.Size]
			if err := r.fetch([]place{{loc: o.Loc, sum: o.Sum, at: o.Block, stored: true}}, number, (*to)[n:], true); err != nil {
				return err
			}
			r.p.count.blocksRead.Add(1)
		}
	}
	return nil
}

// shown lists, by block, the newest first, the versions of count blocks that the replica and its snapshots show. The
// caller is entered as a reader.
func (r *Replica) shown(v *chunkView, chunk uint64, first, count int) (all []index.Old, err error) {
	if err := r.listAll(v, chunk); err != nil {
		return nil, err
	}
	return showOnly(&v.page, first, count, func(o *index.Old, next block.Version) bool { return v.snaps.show(o.Ver, next) }), nil
}

// showOnly lists the newest versions of count blocks of a page and those older ones for which show is true.
func showOnly(pg *index.Page, first, count int, show func(o *index.Old, next block.Version) bool) (all []index.Old) {
	at := 0
	for b := first; b < first+count; b++ {
		if pg.Ver[b].IsZero() {
			continue
		}
		all = append(all, pg.At(b))
		next := pg.Ver[b]
		for at < len(pg.Old) && int(pg.Old[at].Block) < b {
			at++
		}
		for ; at < len(pg.Old) && int(pg.Old[at].Block) == b; at++ {
			if show(&pg.Old[at], next) {
				all = append(all, pg.Old[at])
			}
			next = pg.Old[at].Ver
		}
	}
	return all
}

// SetSnapshots makes the replica's list of snapshots that of a rebuild's source: those that the source does not have
// go, those that are missing come and are returned. What these show is right once every chunk whose newest version,
// here or at the source, is newer than theirs was merged with all versions. Applied stays. Wraps ErrInUse when a
// snapshot that would go has clones.
//
// A snapshot that was not there for a while may show versions that a drain under way, or one of a replay that begins
// before it came, gives back. So it returns when a checkpoint has what is left of them.
func (r *Replica) SetSnapshots(list []Snapshot) (added []Snapshot, err error) {
	added, err = r.setSnapshots(list)
	if err == nil && len(list) > 0 { // a crash may have come before the checkpoint for those that are there
		err = r.p.cycle()
	}
	if err != nil {
		return nil, r.wrap("set snapshots", err)
	}
	return added, nil
}

func (r *Replica) setSnapshots(list []Snapshot) (added []Snapshot, err error) {
	p := r.p
	if len(list) > MaxSnapshots {
		return nil, fmt.Errorf("%d snapshots: %w", len(list), ErrTooLarge)
	}
	header := MaxSnapshots * wal.Len(wal.DropSnapshot, 0, MaxName)
	for i := range list {
		if err := list[i].check(); err != nil {
			return nil, err
		}
		header += wal.Len(wal.TakeSnapshot, 0, len(list[i].Name))
	}
	if err := p.begin(r, 0, 0, header, nil); err != nil {
		return nil, err
	}
	defer p.end(0)
	same := func(x *snapshot, s *Snapshot) bool { return x.name == s.Name && x.ver == s.Version }
	var recs []wal.Record
	for i := range r.snaps { // changes under the log's lock only
		x := &r.snaps[i]
		if slices.ContainsFunc(list, func(s Snapshot) bool { return same(x, &s) }) {
			continue
		}
		p.idx.mu.RLock()
		clones := r.clones(x.name)
		p.idx.mu.RUnlock()
		if len(clones) > 0 {
			p.releaseSpare()
			return nil, fmt.Errorf("snapshot %s: %w by %v", x.name, ErrInUse, clones)
		}
		recs = append(recs, wal.Record{Kind: wal.DropSnapshot, Slot: r.slot, Name: x.name})
	}
	for i := range list {
		s := &list[i]
		if !slices.ContainsFunc(r.snaps, func(x snapshot) bool { return same(&x, s) }) {
			recs, added = append(recs, takeSnapshot(r, s)), append(added, *s)
		}
	}
	p.idx.mu.RLock()
	err = r.mayTake(recs)
	p.idx.mu.RUnlock()
	if err != nil || len(recs) == 0 {
		p.releaseSpare()
		return nil, err
	}
	for i := range recs {
		if err := p.add(&recs[i], nil, i); err != nil {
			return nil, err
		}
	}
	if err := p.endUnit(); err != nil {
		return nil, err
	}
	p.idx.mu.Lock()
	for i := range recs {
		r.indexPoint(&recs[i])
	}
	p.idx.mu.Unlock()
	p.freeable.Store(true)
	return added, nil
}

func takeSnapshot(r *Replica, s *Snapshot) wal.Record {
	return wal.Record{Kind: wal.TakeSnapshot, Slot: r.slot, Version: s.Version, Name: s.Name, Block: uint64(s.Referenced / block.Size), Size: s.Size}
}

// check reports what is wrong with a snapshot that another pool lists.
func (s *Snapshot) check() error {
	if s.Size < 0 || s.Size > MaxReplicaSize || s.Referenced < 0 || s.Referenced > MaxReplicaSize {
		return fmt.Errorf("snapshot %s: %d bytes, %d of them with data: %w", s.Name, s.Size, s.Referenced, ErrTooLarge)
	}
	return checkName(s.Name)
}

// mayTake returns ErrTooLarge when there is no room for the snapshots that records bring, in the place of those that they
// drop. The log's and the index lock are held.
func (r *Replica) mayTake(recs []wal.Record) error {
	snaps, more, size := len(r.snaps), int64(0), int64(0)
	for i := range recs {
		switch rec := &recs[i]; rec.Kind {
		case wal.TakeSnapshot:
			snaps, more, size = snaps+1, more+snapshotRoot(rec.Name), max(size, rec.Size)
		case wal.DropSnapshot:
			snaps, more = snaps-1, more-snapshotRoot(rec.Name)
		}
	}
	if snaps > MaxSnapshots {
		return fmt.Errorf("%d snapshots: %w", snaps, ErrTooLarge)
	}
	return r.p.mayGrow(more+r.moreNodes(size), false)
}

// versionMerge is what a merge with older versions does to a chunk.
type versionMerge struct {
	recs   []wal.Record
	data   []blockData // of each record
	from   map[index.Loc]blockData
	blocks int // of data
	need   int // index entries
	newest block.Version
	res    MergeResult
}

// blockData is the data of a block as the log takes it.
type blockData struct {
	raw    []byte
	lens   []uint8
	packed []byte
}

// pack makes the data of the versions of source ready for the log.
func (c *Chunk) pack(r *Replica, source []index.Old, pk *packer) map[index.Loc]blockData {
	from := map[index.Loc]blockData{}
	for i := range source {
		if d := c.dataAt(source[i].Loc); d != nil {
			pk.add(r, d, []uint32{source[i].Sum})
		}
	}
	pk.seal()
	for i := range source {
		if d := c.dataAt(source[i].Loc); d != nil {
			lens, packed := pk.next(1)
			from[source[i].Loc] = blockData{raw: d, lens: lens, packed: packed}
		}
	}
	return from
}

// mergeVersions makes the versions of a chunk's blocks those of the source: all that are not newer than the listing and
// that the source does not have go, those that are missing come, as far as the replica's snapshots show them, and those
// that are newer stay. Snapshots of the source that the live operations have not brought yet come too.
func (r *Replica) mergeVersions(c *Chunk) (res MergeResult, err error) {
	p := r.p
	source, err := c.versions()
	if err != nil {
		return res, err
	}
	for i := range c.Snapshots {
		if err := c.Snapshots[i].check(); err != nil {
			return res, err
		}
	}
	pk := getPacker()
	defer pk.release()
	from := c.pack(r, source, pk)
	held, err := r.hold(nil, c.Index*block.ChunkBlocks, block.ChunkBlocks, nil)
	if err != nil {
		return res, err
	}
	defer r.unhold(held)
	ticket := p.read.enter()
	defer func() { p.read.leave(ticket) }()
	m, err := r.planMerge(c, source, from)
	for err == nil {
		// begin may wait for segments to be freed, which waits for readers.
		p.read.leave(ticket)
		need, blocks := m.need+len(m.recs), m.blocks
		header := len(m.recs) * (wal.RecordLen + 5 + 9 + MaxName)
		var replaced func() int64
		if blocks > 0 {
			replaced = func() int64 { return 0 }
			err = p.mayAdd()
		}
		if err == nil {
			err = p.begin(r, need, blocks, header, replaced)
		}
		ticket = p.read.enter()
		if err != nil {
			return res, err
		}
		if m, err = r.planMerge(c, source, from); err == nil && (m.need > need || m.blocks > blocks) {
			p.releaseSpare()
			p.end(need)
			continue // more was applied meanwhile
		}
		if err == nil {
			p.idx.mu.RLock()
			err = r.mayTake(m.recs)
			p.idx.mu.RUnlock()
		}
		if err == nil && len(m.recs) > 0 {
			err = r.logMerge(m)
		} else {
			p.releaseSpare()
		}
		p.end(need)
		if err == nil {
			res = m.res
		}
		return res, err
	}
	return res, err
}

// versions returns what the source has, by block, the newest first. Loc is the place of the data in c.Data, plus one,
// or with oldData in c.OldData; zero: not here.
func (c *Chunk) versions() (all []index.Old, err error) {
	if c.First < 0 || c.Count <= 0 || c.First+c.Count > block.ChunkBlocks {
		return nil, fmt.Errorf("blocks %d+%d of a chunk", c.First, c.Count)
	}
	at, olds := 0, 0
	for b := c.First; b < c.First+c.Count; b++ {
		var loc index.Loc
		if at < len(c.DataOf) && int(c.DataOf[at]) == b {
			at++
			loc = index.Loc(at)
		}
		if !c.Versions[b].IsZero() {
			all = append(all, index.Old{Block: uint16(b), Ver: c.Versions[b], Sum: c.Sums[b], Stored: c.Stored[b], Loc: loc})
		}
	}
	if at != len(c.DataOf) {
		return nil, fmt.Errorf("data of block %d is outside the blocks listed", c.DataOf[at])
	}
	for i := range c.Old {
		o := &c.Old[i]
		if int(o.Block) < c.First || int(o.Block) >= c.First+c.Count || o.Version.IsZero() {
			return nil, fmt.Errorf("version %v of block %d", o.Version, o.Block)
		}
		x := index.Old{Block: o.Block, Ver: o.Version, Sum: o.Sum, Stored: o.Stored}
		if o.HasData {
			olds++
			x.Loc = inOldData + index.Loc(olds)
		}
		all = append(all, x)
	}
	if len(c.OldData) != olds*block.Size {
		return nil, fmt.Errorf("%d older versions with data, %d bytes", olds, len(c.OldData))
	}
	slices.SortStableFunc(all, index.CompareOld)
	for i := range all {
		if d := c.dataAt(all[i].Loc); d != nil && block.Sum(d) != all[i].Sum {
			return nil, fmt.Errorf("block %d: data of the chunk: %w", c.Index*block.ChunkBlocks+uint64(all[i].Block), ErrChecksum)
		}
		if i > 0 && index.CompareOld(all[i-1], all[i]) == 0 {
			return nil, fmt.Errorf("version %v of block %d twice", all[i].Ver, all[i].Block)
		}
	}
	return all, nil
}

const inOldData index.Loc = 1 << 40

// dataAt returns the data that versions refers to.
func (c *Chunk) dataAt(loc index.Loc) []byte {
	b := c.Data
	if loc >= inOldData {
		b, loc = c.OldData, loc-inOldData
	}
	if loc == 0 {
		return nil
	}
	return b[int(loc-1)*block.Size : int(loc)*block.Size]
}
