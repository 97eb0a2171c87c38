package pool

import (
	"errors"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// follows reports whether h continues the log at pos.
func (pos *logPos) follows(h *wal.Header) bool {
	return h.Flags&wal.FlagCold == 0 && h.Seq == pos.seq && h.Prev == pos.prev && h.Incarnation == pos.incarnation
}

// advance moves pos behind h, which is in a segment with rows of that many blocks.
func (pos *logPos) advance(h *wal.Header, row uint32) {
	pos.seq++
	pos.prev = h.Sum
	if h.Flags&wal.FlagLink != 0 {
		pos.follow(h)
		return
	}
	pos.before = h.Before
	pos.block += padded(h, row)
}

// follow moves pos to where a link leads.
func (pos *logPos) follow(h *wal.Header) {
	if pos.before = h.Before; h.NextIncarnation != h.Incarnation {
		pos.before = h.Incarnation
	}
	pos.seg, pos.block, pos.incarnation = h.NextSegment, h.NextBlock, h.NextIncarnation
}

// leads reports whether h, if it is a link, leads to a place where a batch may be.
func (p *Pool) leads(h *wal.Header) bool {
	return h.Flags&wal.FlagLink == 0 ||
		uint64(h.NextSegment) < uint64(p.seg.count()) && h.NextBlock < p.seg.blocks() && h.NextBlock%p.seg.row(h.NextSegment) == 0
}

// padded returns the number of blocks that a batch takes, whole rows.
func padded(h *wal.Header, row uint32) uint32 {
	return (uint32(h.HeaderBlocks+h.DataBlocks) + row - 1) &^ (row - 1)
}

// batchAt is where a batch of the log is.
type batchAt struct {
	seg, block uint32
	link       bool
}

// replay brings the index from the checkpoint to the end of the log: the last complete unit all of whose batches are
// intact. What was on stable storage when later batches were written needs only its headers read; the rest is
// checked in full, since power may have been lost before its data was written.
func (p *Pool) replay() error {
	start := p.log.pos
	batches, end, stable, err := p.scan(start)
	if err != nil {
		return err
	}
	if end.seq <= stable {
		return fmt.Errorf("the log ends at batch %d in segment %d block %d, but batch %d was on stable storage: %w", end.seq-1, end.seg, end.block, stable, ErrDamaged)
	}
	p.log.chain = append(p.log.chain[:0], start.seg)
	pos := start
	for _, b := range batches {
		if b.seg != p.log.chain[len(p.log.chain)-1] {
			p.log.chain = append(p.log.chain, b.seg)
		}
	}
	if last := p.log.chain[len(p.log.chain)-1]; end.seg != last {
		p.log.chain = append(p.log.chain, end.seg)
	}
	p.settleSegments()
	if err := p.lookBehind(end); err != nil {
		return err
	}
	for _, seg := range p.log.chain {
		p.suspect(seg)
	}
	if p.offline != nil {
		p.offline.stable = stable
	} else if err := p.replayedStable(); err != nil {
		return err
	}
	p.appended.Store(end.seq - 1)
	p.flush.stable.Store(end.seq - 1)
	p.log.read = true
	l := p.newLogReader().readAhead()
	defer l.release()
	unitBegins := true
	window := replayWindow{p: p, l: l, left: batches, pos: pos, dirs: p.coldDirs()}
	for _, at := range batches {
		h, b, err := window.next()
		if err != nil {
			return fmt.Errorf("segment %d block %d changed while it was read: %w", at.seg, at.block, err)
		}
		if unitBegins {
			p.log.pos = pos
			if t := p.idx.tables[p.idx.active]; t.Len() > t.Cap()/2 && p.offline == nil {
				if err := p.cycle(); err != nil {
					return err
				}
			}
		}
		unitBegins = h.Flags&(wal.FlagMore|wal.FlagLink) == 0 || h.Flags&wal.FlagLink != 0 && unitBegins
		if err := p.replayBatch(&h, b); err != nil {
			return fmt.Errorf("batch %d at segment %d block %d: %w", h.Seq, at.seg, at.block, err)
		}
		row := p.seg.row(at.seg)
		if p.offline != nil {
			p.offline.noteBatch(&h, at, row)
		}
		pos.advance(&h, row)
		p.count.replayed++
		p.log.since += uint64(padded(&h, row)) * block.Size
		p.seg.clock.Add(uint64(padded(&h, row)))
	}
	p.log.pos, p.log.read = end, false
	p.settleStale()
	if p.offline != nil {
		return nil
	}
	if err := p.resume(); err != nil {
		return err
	}
	p.appended.Store(p.log.pos.seq - 1)
	// What was found not to be there must not come back with a device that is not here now, or after another crash.
	return p.flushDevices()
}

// step is a batch that scan found.
type step struct {
	at       batchAt
	complete bool // the unit ends with this batch
	before   logPos
	after    logPos
}

// scan follows the log from pos. It returns the batches up to the end, the place behind them, and the highest batch
// known to have been on stable storage.
func (p *Pool) scan(pos logPos) (batches []batchAt, end logPos, stable uint64, err error) {
	l := p.newLogReader().readAhead()
	defer l.release()
	var steps []step
	stable = p.flush.stable.Load() // of the checkpoint
	open := false
	for {
		h, _, err := l.wanted(pos.seg, pos.block, pos.follows)
		if err != nil && !errors.Is(err, wal.ErrDamaged) {
			return nil, end, 0, err
		}
		if err != nil {
			break
		}
		if !p.leads(&h) {
			break
		}
		link := h.Flags&wal.FlagLink != 0
		s := step{at: batchAt{seg: pos.seg, block: pos.block, link: link}}
		stable = max(stable, h.Stable)
		s.before = pos
		pos.advance(&h, p.seg.row(pos.seg))
		if !link {
			open = h.Flags&wal.FlagMore != 0
		}
		s.complete, s.after = !open, pos
		steps = append(steps, s)
	}
	first := p.log.pos.seq
	intact := min(uint64(len(steps)), stable+1-min(first, stable+1)) // these are known to be
	n, err := p.countIntact(steps[intact:])
	if err != nil {
		return nil, end, 0, err
	}
	intact += uint64(n)
	end = p.log.pos
	for i := range intact {
		if steps[i].complete {
			end = steps[i].after
			batches = batches[:0]
		}
	}
	for i := range intact {
		if first+uint64(i) < end.seq {
			batches = append(batches, steps[i].at)
		}
	}
	return batches, end, stable, nil
}

// replayBatch applies the records of one batch to the index, draining the delta when it is full. Batches of one unit
// are never separated by a checkpoint, since freeze takes the log's position only between units.
func (p *Pool) replayBatch(h *wal.Header, b []byte) error {
	if h.Flags&wal.FlagLink != 0 {
		return nil
	}
	area := wal.MakeArea(uint64(h.Segment)<<p.seg.shift+uint64(int(h.Block)+h.HeaderBlocks)*block.Size, h.RawBlocks)
	var it wal.Records
	it.Reset(b, h)
	var r wal.Record
	for it.Next(&r) {
		if err := p.replayRecord(&r, area); err != nil {
			return err
		}
		area.Skip(r.Kind, r.Count, r.Lens)
	}
	return nil
}

func (p *Pool) replayRecord(rec *wal.Record, area wal.Area) error {
	if rec.Kind == wal.Create || rec.Kind == wal.Clone {
		if rec.Slot >= MaxReplicas || int(rec.Slot) < len(p.idx.bySlot) && p.idx.bySlot[rec.Slot] != nil ||
			p.idx.byName[rec.Name] != nil || rec.Block == 0 || rec.Block > MaxReplicaSize {
			return fmt.Errorf("create of replica %s: %w", rec.Name, ErrDamaged)
		}
		r := p.newReplica(rec.Name, rec.GUID, int64(rec.Block))
		r.slot = rec.Slot
		if rec.Kind == wal.Clone {
			r.applied = rec.Version
			if err := p.attach(r, rec.Count, rec.From); err != nil {
				return err
			}
		}
		p.register(r)
		return nil
	}
	if int(rec.Slot) >= len(p.idx.bySlot) || p.idx.bySlot[rec.Slot] == nil {
		return fmt.Errorf("record for unknown replica %d: %w", rec.Slot, ErrDamaged)
	}
	r := p.idx.bySlot[rec.Slot]
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	switch rec.Kind {
	case wal.Destroy:
		if r.guid != rec.GUID {
			return fmt.Errorf("destroy of another replica than %s: %w", r.name, ErrDamaged)
		}
		r.destroyed = true
		delete(p.idx.byName, r.name)
		return nil
	case wal.Mark:
		r.applied = rec.Version
		return nil
	case wal.State:
		if rec.Count > MaxState {
			return fmt.Errorf("state of %d bytes: %w", rec.Count, ErrDamaged)
		}
		r.applied = rec.Version
		return p.replayState(r, rec, area.Raw)
	case wal.Snapshot, wal.DeleteSnapshot, wal.TakeSnapshot, wal.DropSnapshot, wal.Resize:
		if rec.Kind == wal.Resize && (rec.Block == 0 || rec.Block > MaxReplicaSize) {
			return fmt.Errorf("replica %s: size %d: %w", r.name, rec.Block, ErrDamaged)
		}
		r.indexPoint(rec)
		return nil
	}
	most := r.blocks()
	if rec.Kind != wal.Write && rec.Kind != wal.Discard && rec.Kind != wal.DiscardPart {
		// of a merge: part of a chunk, which snapshots may show beyond the end
		most = min((rec.Block|(block.ChunkBlocks-1))+1, blocksOf(MaxReplicaSize))
	}
	if rec.Block >= most || uint64(rec.Count) > most-rec.Block {
		return fmt.Errorf("replica %s: blocks %d+%d: %w", r.name, rec.Block, rec.Count, ErrDamaged)
	}
	p.idx.mu.Unlock()
	held, err := r.hold(nil, rec.Block, uint64(rec.Count), nil)
	p.idx.mu.Lock()
	if err != nil {
		return err
	}
	defer func() {
		p.idx.mu.Unlock()
		r.unhold(held)
		p.idx.mu.Lock()
	}()
	p.replayRoom(rec)
	switch rec.Kind {
	case wal.Write:
		p.insertData(r, rec.Block, area, rec.Lens, rec.Sums, rec.Version)
	case wal.Discard, wal.DiscardPart:
		p.insertGone(r, rec.Block, uint64(rec.Count), index.Tombstone, rec.Version)
	case wal.MergeWrite, wal.MergeDiscard, wal.MergeDrop, wal.MergeNewest, wal.MergeOldWrite, wal.MergeOldDiscard,
		wal.MergeKeep, wal.MergeOnly:
		p.indexMerge(r, rec, area)
	default:
		return fmt.Errorf("record of kind %d: %w", rec.Kind, ErrDamaged)
	}
	if rec.Kind == wal.Write || rec.Kind == wal.Discard {
		r.applied = rec.Version
	}
	return nil
}

// replayRoom makes the active table large enough for a record. That is needed only for a unit that was written under a
// larger Options.DeltaEntries than now.
func (p *Pool) replayRoom(rec *wal.Record) {
	n := uint64(rec.Count)
	if rec.Kind == wal.Discard || rec.Kind == wal.DiscardPart || rec.Kind == wal.MergeDiscard {
		n = entriesOfDiscard(rec.Block, n)
	}
	switch {
	case rec.Kind == wal.MergeWrite || rec.Kind == wal.MergeDiscard || rec.Kind == wal.MergeDrop || rec.Kind == wal.MergeOnly:
		n = mergeEntries / block.ChunkBlocks * uint64(rec.Count)
	case len(p.idx.bySlot[rec.Slot].snaps) > 0:
		n *= 2
	}
	t := p.idx.tables[p.idx.active]
	if t.Len()+int(n) > t.Cap() {
		t.Grow(max(t.Len()+int(n), 2*t.Cap()))
	}
}

// replayState reads a state record's bytes. The index lock is held, but not while the device is asked: a pool that fails
// meanwhile takes it.
func (p *Pool) replayState(r *Replica, rec *wal.Record, at uint64) error {
	var b []byte
	if rec.Count > 0 {
		b = make([]byte, rec.Count)
		p.idx.mu.Unlock()
		err := p.readSummed(b, at, rec.Sums[0])
		p.idx.mu.Lock()
		if err != nil {
			return fmt.Errorf("state of replica %s: %w", r.name, err)
		}
	}
	r.state = b
	r.weigh()
	return nil
}
