package pool

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// A stage is what a replica lacks of another one, as of one moment, little enough to be applied at once: StageVersions lists
// what the replica has that the other may not have, ReadStage of the other one what differs, ApplyStage carries it out.

// mostStageChunks is how many chunks they are in at most.
const mostStageChunks = 1024

// ErrMoved is returned by ReadStage when operations were applied meanwhile.
var ErrMoved = errors.New("operations were applied meanwhile")

// StageVersions lists the blocks that are newer than base, ascending. Wraps ErrTooLarge when they are too many for a stage.
func (r *Replica) StageVersions(base block.Version) ([]block.Staged, error) {
	blocks, _, err := r.listStage(base, nil)
	if err != nil {
		return nil, r.wrap("list stage", err)
	}
	return blocks, nil
}

// ReadStage lists, for the moment at which the replica had applied scan, the blocks that are newer than base and those in
// have, which are an asker's that are newer than base there, ascending; and reads the data of those whose version differs
// from the asker's. About all other blocks the two agree, as with ReadNewer. Where operations are applied all the time it
// gets nowhere without still, which is held while the moment lasts: nothing may be applied then. Wraps ErrTooLarge, or
// *ChecksumError.
func (r *Replica) ReadStage(base block.Version, have []block.Staged, still sync.Locker) (blocks []block.Staged, scan block.Version, err error) {
	blocks, scan, err = r.readStage(base, have, nil)
	if err == ErrMoved && still != nil { // what it takes is in memory now
		blocks, scan, err = r.readStage(base, have, still)
	}
	if err != nil {
		return nil, scan, r.wrap("read stage", err)
	}
	return blocks, scan, nil
}

// readStage takes still before it is a reader: whoever has it may be waiting for readers.
func (r *Replica) readStage(base block.Version, have []block.Staged, still sync.Locker) (blocks []block.Staged, scan block.Version, err error) {
	if still != nil {
		still.Lock()
	}
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	scan = r.Applied()
	blocks, places, err := r.listStage(base, have)
	if err == nil && r.Applied() != scan {
		err = ErrMoved
	}
	if still != nil {
		still.Unlock()
	}
	if err == nil {
		err = r.fetchStage(blocks, places, have)
	}
	return blocks, scan, err
}

// listStage lists the blocks that are newer than base, and those in have, with where their data is. It takes what Applied
// is before and after for a sign of whether it is of one moment.
func (r *Replica) listStage(base block.Version, have []block.Staged) (blocks []block.Staged, places []place, err error) {
	if len(have) > block.MostStaged {
		return nil, nil, fmt.Errorf("%d blocks to be compared: %w", len(have), ErrTooLarge)
	}
	chunks, _, done := r.Changed(base, 0, make([]uint64, 0, mostStageChunks))
	for i := range have {
		chunks = append(chunks, have[i].Block/block.ChunkBlocks)
	}
	slices.Sort(chunks)
	if chunks = slices.Compact(chunks); !done || len(chunks) > mostStageChunks {
		return nil, nil, fmt.Errorf("more than %d chunks: %w", mostStageChunks, ErrTooLarge)
	}
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	for _, c := range chunks {
		if c >= r.chunks() {
			return nil, nil, fmt.Errorf("chunk %d of %d is outside the replica", c, r.chunks())
		}
		if err := r.list(v, c); err != nil {
			return nil, nil, err
		}
		for i := range v.page.Ver {
			b := c*block.ChunkBlocks + uint64(i)
			for len(have) > 0 && have[0].Block < b {
				have = have[1:]
			}
			asked := len(have) > 0 && have[0].Block == b
			if !asked && !base.Less(v.page.Ver[i]) {
				continue
			}
			if len(blocks) == block.MostStaged {
				return nil, nil, fmt.Errorf("more than %d blocks: %w", block.MostStaged, ErrTooLarge)
			}
			x, at := block.Staged{Block: b, Version: v.page.Ver[i], Sum: block.ZeroSum}, place{at: uint16(i)}
			if v.page.Stored.Has(i) {
				x.Stored, x.Sum = true, v.page.Sum[i]
				at.loc, at.sum, at.stored = v.page.Loc[i], x.Sum, true
			}
			blocks, places = append(blocks, x), append(places, at)
		}
	}
	return blocks, places, nil
}

// fetchStage reads the data of those blocks whose version is not the one in have. The caller is entered as a reader.
func (r *Replica) fetchStage(blocks []block.Staged, places []place, have []block.Staged) error {
	lacks := func(i int) bool {
		for len(have) > 0 && have[0].Block < blocks[i].Block {
			have = have[1:]
		}
		known := len(have) > 0 && have[0].Block == blocks[i].Block && have[0].Version == blocks[i].Version
		return blocks[i].Stored && !known
	}
	chunk := func(i int) uint64 { return blocks[i].Block / block.ChunkBlocks }
	for i := 0; i < len(blocks); {
		if !lacks(i) {
			i++
			continue
		}
		n := 1
		for i+n < len(blocks) && chunk(i+n) == chunk(i) && lacks(i+n) {
			n++
		}
		data := make([]byte, n*block.Size)
		if err := r.fetch(places[i:i+n], chunk(i), data, true); err != nil {
			return err
		}
		for k := range n {
			blocks[i+k].Data = data[k*block.Size : (k+1)*block.Size : (k+1)*block.Size]
		}
		r.p.count.blocksRead.Add(uint64(n))
		i += n
	}
	return nil
}

// ApplyStage makes blocks, ascending, what a ReadStage of another replica has listed of them, replaces the state record, and
// sets Applied, all of it at once: after a crash all or nothing of it is there. Sync makes it stable. Nothing else may be
// applied meanwhile. Like Apply it is not kept to the read-only limit. Wraps ErrNoSpace, ErrTooLarge, ErrStaleChunk when data is missing; then nothing has
// changed, unless it wraps ErrFailed.
func (r *Replica) ApplyStage(blocks []block.Staged, state []byte, applied block.Version) error {
	if err := r.applyStage(blocks, state, applied); err != nil {
		return r.wrap("apply stage", err)
	}
	return nil
}

// stageRun is consecutive blocks of a stage that are treated alike.
type stageRun struct {
	rec  wal.Record
	data []byte
}

func (r *Replica) applyStage(blocks []block.Staged, state []byte, applied block.Version) error {
	p := r.p
	switch {
	case len(blocks) > block.MostStaged || len(state) > MaxState:
		return fmt.Errorf("%d blocks, %d bytes of state: %w", len(blocks), len(state), ErrTooLarge)
	case r.hasSnapshots() || r.origin != nil:
		return fmt.Errorf("with snapshots: %w", ErrTooLarge)
	case !slices.IsSortedFunc(blocks, func(a, b block.Staged) int { return cmp.Compare(a.Block, b.Block) }):
		return errors.New("blocks are not in order")
	}
	pk := getPacker()
	defer pk.release()
	held, err := r.holdStage(blocks)
	if err != nil {
		return err
	}
	defer r.unhold(held)
	runs, entries, err := r.planStage(blocks, applied)
	if err != nil {
		return err
	}
	if entries > p.opt.DeltaEntries/4*3 {
		return fmt.Errorf("%d index entries: %w", entries, ErrTooLarge)
	}
	data, header := blocksFor(len(state)), 2*wal.RecordLen
	for i := range runs {
		x := &runs[i]
		header += wal.RecordLen
		if x.rec.Kind == wal.MergeWrite {
			header += 5 * int(x.rec.Count)
			pk.add(r, x.data, x.rec.Sums)
		}
	}
	var replaced func() int64
	if n := pk.seal(); n > 0 {
		data += n
		replaced = func() (n int64) {
			for i := range runs {
				if x := &runs[i]; x.rec.Kind == wal.MergeWrite {
					n += r.replaced(x.rec.Block, uint64(x.rec.Count))
				}
			}
			return n
		}
	}
	if err := p.begin(r, entries, data, header, replaced); err != nil {
		return err
	}
	defer p.end(entries)
	p.idx.mu.RLock()
	err = p.mayGrow(stateRoot(len(state))-stateRoot(len(r.state)), true)
	p.idx.mu.RUnlock()
	if err != nil {
		p.releaseSpare()
		return err
	}
	return r.appendStage(runs, pk, append([]byte(nil), state...), applied)
}

// holdStage keeps the chunks of blocks in memory.
func (r *Replica) holdStage(blocks []block.Staged) (held []*liveChunk, err error) {
	r.warmAhead(func(yield func(uint64, uint64) bool) {
		for i := range blocks {
			if c := block.Chunk(blocks[i].Block); !yield(c, c) {
				return
			}
		}
	})
	last := ^uint64(0)
	for i := range blocks {
		c := blocks[i].Block / block.ChunkBlocks
		if c == last {
			continue
		}
		last = c
		if held, err = r.hold(held, c*block.ChunkBlocks, block.ChunkBlocks, nil); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// planStage compares blocks with what is here, and lists what is to be done and how many index entries it needs: what a chunk
// has as its newest version afterwards comes behind its blocks.
func (r *Replica) planStage(blocks []block.Staged, applied block.Version) (runs []stageRun, entries int, err error) {
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	ticket := r.p.read.enter()
	defer r.p.read.leave(ticket)
	for len(blocks) > 0 {
		c, n := blocks[0].Block/block.ChunkBlocks, 0
		if blocks[0].Block >= r.blocks() {
			return nil, 0, fmt.Errorf("block %d of %d is outside the replica", blocks[0].Block, r.blocks())
		}
		if err := r.list(v, c); err != nil {
			return nil, 0, err
		}
		before := len(runs)
		for ; n < len(blocks) && blocks[n].Block/block.ChunkBlocks == c; n++ {
			b := &blocks[n]
			here := &v.page.Ver[b.Block%block.ChunkBlocks]
			if *here == b.Version {
				continue
			}
			if applied.Less(*here) || applied.Less(b.Version) {
				return nil, 0, fmt.Errorf("block %d is of %v here and of %v there, both should be of %v at most", b.Block, *here, b.Version, applied)
			}
			*here = b.Version
			if runs, err = addStage(runs, b, before, r.slot); err != nil {
				return nil, 0, err
			}
		}
		blocks = blocks[n:]
		if len(runs) == before {
			continue
		}
		for i := range runs[before:] { // themselves, and what passes over discards of the chunk
			n := int(runs[before+i].rec.Count)
			if entries += 2 * n; n == block.ChunkBlocks {
				entries -= n - 1
			}
		}
		newest := slices.MaxFunc(v.page.Ver[:], block.Version.Compare)
		runs = append(runs, stageRun{rec: wal.Record{Kind: wal.MergeNewest, Slot: r.slot, Block: c * block.ChunkBlocks, Version: newest}})
	}
	return runs, entries, nil
}

// addStage adds a block that differs, to the last run if it fits there and that is not before the first one.
func addStage(runs []stageRun, b *block.Staged, first int, slot uint32) ([]stageRun, error) {
	kind := wal.MergeDiscard
	switch {
	case b.Version.IsZero():
		kind = wal.MergeDrop
	case b.Stored && len(b.Data) != block.Size:
		return nil, ErrStaleChunk
	case b.Stored && block.Sum(b.Data) != b.Sum:
		return nil, fmt.Errorf("block %d: data of the stage: %w", b.Block, ErrChecksum)
	case b.Stored:
		kind = wal.MergeWrite
	}
	n := len(runs)
	l := (*stageRun)(nil)
	if n > first {
		l = &runs[n-1]
	}
	if l == nil || l.rec.Kind != kind || l.rec.Version != b.Version || l.rec.Block+uint64(l.rec.Count) != b.Block {
		runs = append(runs, stageRun{rec: wal.Record{Kind: kind, Slot: slot, Block: b.Block, Version: b.Version}})
		l = &runs[n]
	}
	l.rec.Count++
	if kind == wal.MergeWrite {
		l.rec.Sums = append(l.rec.Sums, b.Sum)
		if l.rec.Count == 1 {
			l.data = b.Data
		} else {
			l.data = append(l.data, b.Data...)
		}
	}
	return runs, nil
}

// appendStage logs and indexes a stage. The log's lock is held.
func (r *Replica) appendStage(runs []stageRun, pk *packer, state []byte, applied block.Version) error {
	p := r.p
	for i := range runs {
		x := &runs[i]
		var packed []byte
		if x.rec.Kind == wal.MergeWrite {
			x.rec.Lens, packed = pk.next(int(x.rec.Count))
		}
		if err := p.addPacked(&x.rec, x.data, packed, i); err != nil {
			return err
		}
	}
	sum := [1]uint32{block.Sum(state)}
	rec := wal.Record{Kind: wal.State, Slot: r.slot, Count: uint32(len(state)), Version: applied, Sums: sum[:]}
	if err := p.add(&rec, state, len(runs)); err != nil {
		return err
	}
	if err := p.endUnit(); err != nil {
		return err
	}
	parts := p.log.parts
	p.idx.mu.Lock()
	for i := range runs {
		parts = p.indexRun(r, runs[i].rec, i, parts)
	}
	r.state, r.applied = state, applied
	r.weigh()
	r.changes++
	p.idx.mu.Unlock()
	p.freeable.Store(true)
	pk.count(&p.count)
	return nil
}
