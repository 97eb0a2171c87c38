package pool

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// planMerge compares what is here with what the source has and lists what is to be done. The caller is entered as a
// reader; what it returns is valid as long as the log's lock is held.
func (r *Replica) planMerge(c *Chunk, source []index.Old, from map[index.Loc]blockData) (*versionMerge, error) {
	p := r.p
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	m := &versionMerge{from: from}
	p.idx.mu.RLock()
	var more []snapshot
	for i := range c.Snapshots {
		s := &c.Snapshots[i]
		if !r.applied.Less(s.Version) || c.Scan.Less(s.Version) {
			continue
		}
		if k := r.snaps.find(s.Name); k >= 0 { // deleted and made again
			if !r.snaps[k].ver.Less(s.Version) || len(r.clones(s.Name)) > 0 {
				continue
			}
			m.log(wal.Record{Kind: wal.DropSnapshot, Slot: r.slot, Name: s.Name}, blockData{})
		}
		more = append(more, snapshot{name: s.Name, ver: s.Version})
		m.log(takeSnapshot(r, s), blockData{})
	}
	p.idx.mu.RUnlock()
	if err := r.listAll(v, c.Index); err != nil {
		return nil, err
	}
	snaps := v.snaps
	for _, x := range more {
		snaps = snaps.with(x)
	}
	for b := range block.ChunkBlocks {
		if (b < c.First || b >= c.First+c.Count) && m.newest.Less(v.page.Ver[b]) {
			m.newest = v.page.Ver[b]
		}
	}
	local := showOnly(&v.page, c.First, c.Count, func(o *index.Old, next block.Version) bool { return snaps.show(o.Ver, next) })
	for b := c.First; b < c.First+c.Count; b++ {
		here, there := cutBlock(&local, b), cutBlock(&source, b)
		if err := r.planBlock(m, c, b, here, there, snaps); err != nil {
			return nil, err
		}
	}
	if len(m.recs) > 0 {
		m.log(wal.Record{Kind: wal.MergeNewest, Slot: r.slot, Block: c.Index * block.ChunkBlocks, Version: m.newest}, blockData{})
	}
	return m, nil
}

// cutBlock takes the versions of block b off the front of a list.
func cutBlock(all *[]index.Old, b int) []index.Old {
	n := 0
	for n < len(*all) && int((*all)[n].Block) == b {
		n++
	}
	x := (*all)[:n]
	*all = (*all)[n:]
	return x
}

func find(l []index.Old, v block.Version) int {
	return slices.IndexFunc(l, func(o index.Old) bool { return o.Ver == v })
}

// planBlock plans for one block, of which here and there are the versions that somebody shows.
func (r *Replica) planBlock(m *versionMerge, c *Chunk, b int, here, there []index.Old, snaps snapshots) error {
	var want []index.Old // newest first
	for _, o := range here {
		if c.Scan.Less(o.Ver) { // a live write, which came after the listing
			want = append(want, o)
		}
	}
	for _, o := range there {
		if n := len(want); n == 0 || o.Ver.Less(want[n-1].Ver) {
			want = append(want, o)
		}
	}
	for i := len(want) - 1; i > 0; i-- {
		if !snaps.show(want[i].Ver, want[i-1].Ver) {
			want = slices.Delete(want, i, i+1)
		}
	}
	if len(want) > 0 && m.newest.Less(want[0].Ver) {
		m.newest = want[0].Ver
	}
	same := len(want) == len(here)
	for i := 0; same && i < len(want); i++ {
		same = want[i].Ver == here[i].Ver
	}
	if same {
		m.res.Kept++
		return nil
	}
	rec := wal.Record{Slot: r.slot, Block: c.Index*block.ChunkBlocks + uint64(b), Count: 1}
	if len(want) == 0 {
		m.res.Dropped++
		rec.Kind = wal.MergeDrop
		m.log(rec, blockData{})
		return nil
	}
	m.res.Taken++
	// Nothing of what is kept depends on what happens to be here besides: a replay from an older checkpoint meets
	// versions that have been dropped since. Tombstones are written again, since discards of the chunk hold for others
	// too.
	stays := func(o *index.Old) bool { return o.Stored && find(here, o.Ver) >= 0 }
	again := !slices.ContainsFunc(want, func(o index.Old) bool { return stays(&o) })
	if n := len(here); r.origin != nil && n > 0 { // a clone cannot let go of single versions of its origin
		base := find(want, here[n-1].Ver)
		again = again || base != len(want)-1
	}
	if again {
		rec.Kind = wal.MergeDrop
		m.log(rec, blockData{})
	} else {
		for i := range want {
			if stays(&want[i]) {
				rec.Kind, rec.Version = wal.MergeKeep, want[i].Ver
				m.log(rec, blockData{})
			}
		}
		rec.Kind, rec.Version = wal.MergeOnly, block.Version{}
		m.log(rec, blockData{})
	}
	for i := range want {
		o := &want[i]
		k := find(here, o.Ver)
		if !again && stays(o) && (i > 0 || k == 0) {
			continue // is where it belongs
		}
		rec.Version = o.Ver
		if rec.Kind = wal.MergeDiscard; i > 0 {
			rec.Kind = wal.MergeOldDiscard
		}
		var data blockData
		if o.Stored {
			if rec.Kind = wal.MergeWrite; i > 0 {
				rec.Kind = wal.MergeOldWrite
			}
			rec.Sums = []uint32{o.Sum}
			if find(there, o.Ver) >= 0 && o.Loc != 0 {
				data = m.from[o.Loc]
				rec.Lens = data.lens
			}
			if data.raw == nil && k >= 0 {
				data.raw = disk.Buffer(block.Size)
				if err := r.fetch([]place{{loc: here[k].Loc, sum: here[k].Sum, at: uint16(b), stored: true}}, c.Index, data.raw, false); err != nil {
					return err
				}
				rec.Sums[0] = here[k].Sum
			}
			if data.raw == nil {
				return ErrStaleChunk
			}
			m.res.Bytes += block.Size
		}
		m.log(rec, data)
		rec.Sums, rec.Lens = nil, nil
	}
	return nil
}

// log notes a record with its data and what it needs.
func (m *versionMerge) log(rec wal.Record, data blockData) {
	m.recs, m.data = append(m.recs, rec), append(m.data, data)
	if data.raw != nil {
		m.blocks++
	}
	m.need += mergeEntries / block.ChunkBlocks
}

// logMerge logs and indexes what was planned. The log's lock is held.
func (r *Replica) logMerge(m *versionMerge) error {
	p := r.p
	for i := range m.recs {
		if err := p.addPacked(&m.recs[i], m.data[i].raw, m.data[i].packed, i); err != nil {
			return err
		}
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	areas := make([]wal.Area, len(m.recs))
	for _, x := range p.log.parts {
		areas[x.rec] = x.area
	}
	p.idx.mu.Lock()
	for i := range m.recs {
		p.indexMerge(r, &m.recs[i], areas[i])
	}
	r.changes++
	p.idx.mu.Unlock()
	p.count.blocksWritten.Add(uint64(m.blocks))
	return nil
}

// indexMerge makes one record of a merge visible, whose data is at area. The index lock is held for writing.
func (p *Pool) indexMerge(r *Replica, rec *wal.Record, area wal.Area) {
	switch rec.Kind {
	case wal.TakeSnapshot, wal.DropSnapshot:
		r.indexPoint(rec)
	case wal.MergeWrite:
		p.passOver(r, rec.Block, int(rec.Count), rec.Version)
		p.insertData(r, rec.Block, area, rec.Lens, rec.Sums, rec.Version)
	case wal.MergeDiscard:
		p.passOver(r, rec.Block, int(rec.Count), rec.Version)
		p.insertGone(r, rec.Block, uint64(rec.Count), index.Tombstone, rec.Version)
	case wal.MergeDrop:
		p.passOver(r, rec.Block, int(rec.Count), block.Version{})
		p.insertGone(r, rec.Block, uint64(rec.Count), index.None, block.Version{})
	case wal.MergeOldWrite:
		for i, sum := range rec.Sums {
			n := rec.Granules(i)
			p.insertUnder(r, rec.Block+uint64(i), &area, n, sum, rec.Version)
		}
	case wal.MergeOldDiscard:
		for i := range uint64(rec.Count) {
			p.insertUnder(r, rec.Block+i, nil, 0, 0, rec.Version)
		}
	case wal.MergeKeep:
		p.insertKept(r, rec.Block, rec.Version)
	case wal.MergeOnly:
		p.insertOnly(r, rec.Block)
	case wal.MergeNewest:
		r.touch(rec.Block / block.ChunkBlocks).newest = rec.Version
	}
}
