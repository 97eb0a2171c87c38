package pool

import (
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// mergeEntries is the number of index entries that a merge may need: for each block its new version, the one before it
// if a snapshot shows that, and what passes over discards of the chunk.
const mergeEntries = 3 * block.ChunkBlocks

// mergeRun is consecutive blocks of a merge that are treated alike.
type mergeRun struct {
	kind  wal.Kind
	from  int // block of the chunk
	count int
	data  int // first block in Chunk.Data
	ver   block.Version
}

// record returns what a run is in the log, without lengths.
func (x *mergeRun) record(r *Replica, c *Chunk) wal.Record {
	rec := wal.Record{Kind: x.kind, Slot: r.slot, Block: c.Index*block.ChunkBlocks + uint64(x.from), Count: uint32(x.count), Version: x.ver}
	if x.kind == wal.MergeWrite {
		rec.Sums = c.Sums[x.from : x.from+x.count]
	}
	return rec
}

// Merge makes the blocks of a chunk what the source c had, as block.Resolve decides for each; it is atomic with respect
// to Apply, and after a crash all or nothing of it is there. Applied stays. The newest version of the chunk becomes
// that of the blocks it then has. When a block must be taken whose data is not in c, nothing is done and ErrStaleChunk
// is returned. Wraps ErrNoSpace when there is no room for c's data.
//
// Blocks that c does not list stay. A chunk that lists newest versions only leaves older versions alone, apart from those that are not older than what is
// taken. One with all versions, as ReadVersions makes it, makes those of its blocks what the source has, and the
// snapshots that the source had when it listed them come with it; SetSnapshots is called first.
func (r *Replica) Merge(c *Chunk) (MergeResult, error) {
	res, err := r.merge(c)
	if err != nil {
		return MergeResult{}, r.wrap(fmt.Sprintf("merge chunk %d", c.Index), err)
	}
	return res, nil
}

func (r *Replica) merge(c *Chunk) (res MergeResult, err error) {
	p := r.p
	if c.Index >= r.chunks() {
		return res, fmt.Errorf("chunk %d of %d is outside the replica", c.Index, r.chunks())
	}
	if len(c.Data) != len(c.DataOf)*block.Size || !slices.IsSorted(c.DataOf) {
		return res, fmt.Errorf("%d blocks named, %d bytes of data", len(c.DataOf), len(c.Data))
	}
	if c.Snapshots != nil {
		return r.mergeVersions(c)
	}
	var at [block.ChunkBlocks]int // in c.Data, plus one
	for i, b := range c.DataOf {
		if b >= block.ChunkBlocks {
			return res, fmt.Errorf("block %d of a chunk", b)
		}
		if block.Sum(c.Data[i*block.Size:(i+1)*block.Size]) != c.Sums[b] {
			return res, fmt.Errorf("block %d: data of the chunk: %w", c.Index*block.ChunkBlocks+uint64(b), ErrChecksum)
		}
		at[b] = i + 1
	}
	base := c.Index * block.ChunkBlocks
	blocks := int(min(uint64(block.ChunkBlocks), r.blocks()-base))

	held, err := r.hold(nil, base, block.ChunkBlocks, nil)
	if err != nil {
		return res, err
	}
	defer r.unhold(held)
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := p.read.enter()
	defer func() { p.read.leave(ticket) }()
	if err := r.list(v, c.Index); err != nil { // brings the page into memory before the log is locked
		return res, err
	}
	same := true
	for i := range blocks {
		same = same && c.resolve(i, v.page.Ver[i]) == block.Keep
	}
	if same {
		return MergeResult{Kept: blocks}, nil
	}
	if len(c.DataOf) > 0 {
		if err := p.mayAdd(); err != nil {
			return res, err
		}
	}
	// begin may wait for segments to be freed, which waits for readers.
	p.read.leave(ticket)
	pk := getPacker()
	defer pk.release()
	for i, b := range c.DataOf {
		pk.add(r, c.Data[i*block.Size:(i+1)*block.Size], c.Sums[b:b+1])
	}
	var replaced func() int64
	if len(c.DataOf) > 0 {
		replaced = func() (n int64) {
			for _, b := range c.DataOf {
				n += r.replaced(base+uint64(b), 1)
			}
			return n
		}
	}
	err = p.begin(r, mergeEntries, pk.seal(), block.ChunkBlocks*(wal.RecordLen+5)+wal.RecordLen, replaced)
	ticket = p.read.enter()
	if err != nil {
		return res, err
	}
	defer p.end(mergeEntries)
	if err := r.list(v, c.Index); err != nil {
		p.releaseSpare()
		return res, err
	}
	var newest block.Version
	var runs []mergeRun
	for i := range blocks {
		local := v.page.Ver[i]
		run := mergeRun{from: i, count: 1, ver: c.Versions[i]} // ver is zero for a block to drop
		final := c.Versions[i]
		switch c.resolve(i, local) {
		case block.Keep:
			res.Kept++
			final = local
			run.kind = 0
		case block.Drop:
			res.Dropped++
			run.kind = wal.MergeDrop
		case block.Take:
			res.Taken++
			run.kind = wal.MergeDiscard
			if c.Stored[i] {
				if at[i] == 0 {
					p.releaseSpare()
					return MergeResult{}, ErrStaleChunk
				}
				run.kind, run.data = wal.MergeWrite, at[i]-1
				res.Bytes += block.Size
			}
		}
		if newest.Less(final) {
			newest = final
		}
		if run.kind == 0 {
			continue
		}
		if n := len(runs); n > 0 {
			l := &runs[n-1]
			if l.kind == run.kind && l.ver == run.ver && l.from+l.count == i && (run.kind != wal.MergeWrite || l.data+l.count == run.data) {
				l.count++
				continue
			}
		}
		runs = append(runs, run)
	}
	if len(runs) == 0 {
		p.releaseSpare()
		return res, nil
	}
	for i := blocks; i < block.ChunkBlocks; i++ { // what was cut off
		if newest.Less(v.page.Ver[i]) {
			newest = v.page.Ver[i]
		}
	}
	return res, r.appendMerge(c, runs, newest, pk)
}

// resolve decides what becomes of a block that has the version local here.
func (c *Chunk) resolve(i int, local block.Version) block.Resolution {
	if c.Unlisted[i] {
		return block.Keep
	}
	if c.Ambiguous && local == c.Versions[i] && !local.IsZero() {
		return block.Take
	}
	return block.Resolve(local, c.Versions[i], c.Scan)
}

// appendMerge logs and indexes the outcome of a merge. The log's lock is held.
func (r *Replica) appendMerge(c *Chunk, runs []mergeRun, newest block.Version, pk *packer) error {
	p := r.p
	for i := range runs {
		x := &runs[i]
		rec := x.record(r, c)
		var data, packed []byte
		if x.kind == wal.MergeWrite {
			pk.next(x.data - pk.lensAt) // what is not taken
			rec.Lens, packed = pk.next(x.count)
			data = c.Data[x.data*block.Size : (x.data+x.count)*block.Size]
		}
		if err := p.addPacked(&rec, data, packed, i); err != nil {
			return err
		}
	}
	last := wal.Record{Kind: wal.MergeNewest, Slot: r.slot, Block: c.Index * block.ChunkBlocks, Version: newest}
	if err := p.add(&last, nil, len(runs)); err != nil {
		return err
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	parts := p.log.parts
	p.idx.mu.Lock()
	for i := range runs {
		parts = p.indexRun(r, runs[i].record(r, c), i, parts)
	}
	p.indexMerge(r, &last, wal.Area{})
	r.changes++
	p.idx.mu.Unlock()
	pk.count(&p.count)
	return nil
}

// indexRun makes a record of a merge visible, number i of its unit. parts are those of the unit from its own on; what is
// returned are those behind. The index lock is held for writing.
func (p *Pool) indexRun(r *Replica, rec wal.Record, i int, parts []part) []part {
	if rec.Kind != wal.MergeWrite {
		p.indexMerge(r, &rec, wal.Area{})
		return parts
	}
	first, sums := rec.Block, rec.Sums
	for ; len(parts) > 0 && parts[0].rec == i; parts = parts[1:] {
		x := &parts[0]
		rec.Block, rec.Count = first+uint64(x.first), uint32(x.count)
		rec.Sums, rec.Lens = sums[x.first:x.first+x.count], x.lens
		p.indexMerge(r, &rec, x.area)
		p.count.blocksWritten.Add(uint64(x.count))
	}
	return parts
}
