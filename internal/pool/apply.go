package pool

import (
	"errors"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// Apply carries out ops in order with one append to the log. When it returns they are handed to the operating system
// and visible; Sync makes them stable. After a crash either all ops of the call are there or none, unless they update
// more than a quarter of Options.DeltaEntries blocks (a discarded chunk counts as one), in which case it may be the
// first ones; and whether an OpSnapshot, OpDeleteSnapshot or OpResize is there does not depend on what precedes or
// follows it in the call, other than by their order. Data is borrowed during the call. It wraps ErrNoSpace
// when there is no room for all of it, and then nothing is applied; ErrFailed, ErrClosed, ErrNotFound after
// DestroyReplica, ErrTooLarge, ErrExists for a snapshot's name, ErrInUse for a snapshot with clones.
func (r *Replica) Apply(ops []Op) error {
	if err := r.apply(ops); err != nil {
		return r.wrap("apply", err)
	}
	return nil
}

func (r *Replica) wrap(what string, err error) error {
	return fmt.Errorf("pool %s: replica %s: %s: %w", r.p.cfg.Name, r.name, what, err)
}

func (r *Replica) apply(ops []Op) error {
	limit := uint64(r.p.unitEntries())
	var need uint64
	from := 0
	size, shown := r.size.Load(), r.hasSnapshots()
	for i := range ops { // whatever is wrong with the call is found before any of it is applied
		if _, err := check(&ops[i], blocksOf(size), limit); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
		if ops[i].Kind == OpResize {
			size = ops[i].Size
		}
	}
	for i := range ops {
		o := &ops[i]
		n, _ := check(o, ^uint64(0), limit)
		if shown { // what is replaced may have to stay
			n *= 2
		}
		point := o.Kind == OpSnapshot || o.Kind == OpDeleteSnapshot || o.Kind == OpResize
		if need+n > limit || point { // the first only for batches far beyond what a connection delivers, or huge discards
			if err := r.applyUnit(ops[from:i], need, shown); err != nil {
				return err
			}
			from, need = i, 0
			var err error
			switch {
			case point:
				err = r.applyPoint(o)
				shown = shown || o.Kind == OpSnapshot
			case n > limit && o.Kind == OpDiscard:
				err = r.applyHugeDiscard(o.Block, uint64(o.Count), o.Version, true)
			default:
				need = n
				continue
			}
			if err != nil {
				return err
			}
			from = i + 1
			continue
		}
		need += n
	}
	return r.applyUnit(ops[from:], need, shown)
}

func (r *Replica) hasSnapshots() bool {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	return len(r.snaps) > 0
}

// unitEntries is the number of index entries that one unit of the log may need.
func (p *Pool) unitEntries() int { return p.opt.DeltaEntries / 4 }

// check validates an operation on a replica of so many blocks and returns the number of blocks that it updates, a whole
// chunk counted as one.
func check(o *Op, blocks, limit uint64) (entries uint64, err error) {
	n := uint64(o.Count)
	switch {
	case o.Kind == OpMark:
		return 0, nil
	case o.Kind == 0 || o.Kind > OpResize:
		return 0, fmt.Errorf("kind %d is unknown", o.Kind)
	case o.Version.IsZero():
		return 0, errors.New("version is zero")
	case o.Kind == OpSnapshot || o.Kind == OpDeleteSnapshot:
		return 0, checkName(o.Name)
	case o.Kind == OpResize:
		return 0, checkSize(o.Size)
	case n == 0 || o.Block >= blocks || n > blocks-o.Block:
		return 0, fmt.Errorf("blocks %d+%d of %d are outside the replica", o.Block, o.Count, blocks)
	case o.Kind == OpDiscard:
		return entriesOfDiscard(o.Block, n), nil
	case n > MaxWriteBlocks || n > limit:
		return 0, fmt.Errorf("write of %d blocks: %w", n, ErrTooLarge)
	case uint64(len(o.Data)) != n*block.Size:
		return 0, fmt.Errorf("write of %d blocks with %d bytes", n, len(o.Data))
	case o.Sums != nil && uint64(len(o.Sums)) != n:
		return 0, fmt.Errorf("write of %d blocks with %d checksums", n, len(o.Sums))
	}
	return n, nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("name is empty")
	case len(name) > MaxName:
		return fmt.Errorf("name of %d bytes: %w", len(name), ErrTooLarge)
	}
	return nil
}

func checkSize(size int64) error {
	switch {
	case size <= 0 || size%block.SectorSize != 0:
		return fmt.Errorf("size of %d bytes is not a positive multiple of %d", size, block.SectorSize)
	case size > MaxReplicaSize:
		return fmt.Errorf("size of %d bytes: %w", size, ErrTooLarge)
	}
	return nil
}

// applyHugeDiscard carries out a discard in several units. The last one carries Applied forward, if last says so. A
// crash in between leaves the rest of the range as it was; whoever resends the operation completes it.
func (r *Replica) applyHugeDiscard(b, left uint64, v block.Version, last bool) error {
	p := r.p
	step := uint64(p.unitEntries()/2-2*block.ChunkBlocks) * block.ChunkBlocks
	if p.unitEntries()/2 <= 2*block.ChunkBlocks {
		step = block.ChunkBlocks
	}
	for left > 0 {
		n := min(left, step-b%block.ChunkBlocks)
		rec := wal.Record{Kind: wal.DiscardPart, Slot: r.slot, Block: b, Count: uint32(n), Version: v}
		if n == left && last {
			rec.Kind = wal.Discard
		}
		held, err := r.hold(nil, b, n, nil)
		if err != nil {
			return err
		}
		err = p.unit(r, 2*int(entriesOfDiscard(b, n)), 0, wal.RecordLen, func() error {
			return p.add(&rec, nil, 0)
		}, func() {
			p.insertGone(r, b, n, index.Tombstone, v)
			if rec.Kind == wal.Discard {
				r.applied = v
			}
		})
		r.unhold(held)
		if err != nil {
			return err
		}
		b, left = b+n, left-n
	}
	p.freeable.Store(true)
	return nil
}

// applyUnit appends ops as one unit, which needs so many entries. shown says that this counts with snapshots.
func (r *Replica) applyUnit(ops []Op, entries uint64, shown bool) error {
	if len(ops) == 0 {
		return nil
	}
	p := r.p
	data, header, sums, discards := 0, 0, 0, false
	for i := range ops {
		o := &ops[i]
		header += wal.RecordLen
		switch o.Kind {
		case OpWrite:
			data += int(o.Count)
			header += 5 * int(o.Count)
			if o.Sums == nil {
				sums += int(o.Count)
			}
		case OpDiscard:
			discards = true
		}
	}
	var own []uint32 // checksums that the caller did not give, in order
	if sums > 0 {
		s := sumScratch.Get().(*[]uint32)
		defer sumScratch.Put(s)
		own = (*s)[:0]
		for i := range ops {
			if o := &ops[i]; o.Kind == OpWrite && o.Sums == nil {
				for at := 0; at < len(o.Data); at += block.Size {
					own = append(own, block.Sum(o.Data[at:at+block.Size]))
				}
			}
		}
		*s = own
	}
	pk := getPacker()
	defer pk.release()
	given := own
	for i := range ops {
		switch o := &ops[i]; {
		case o.Kind != OpWrite:
		case o.Sums != nil:
			pk.add(r, o.Data, o.Sums)
		default:
			pk.add(r, o.Data, given[:o.Count])
			given = given[o.Count:]
		}
	}
	held := pk.held[:0]
	for i := range ops {
		if o := &ops[i]; o.Kind != OpMark {
			var err error
			if held, err = r.hold(held, o.Block, uint64(o.Count), ops[i+1:]); err != nil {
				return err
			}
		}
	}
	pk.held = held
	defer r.unhold(held)
	u := getApplication()
	u.r, u.ops, u.own, u.pk, u.shown = r, ops, own, pk, shown
	u.entries, u.blocks, u.data, u.header = int(entries), data, pk.seal(), header
	err := p.append(u)
	if err == errShown {
		u.release()
		return r.applyUnit(ops, 2*entries, true)
	}
	if err != nil {
		return err // u may be known to somebody still
	}
	u.release()
	p.count.blocksWritten.Add(uint64(data))
	pk.count(&p.count)
	if discards {
		p.freeable.Store(true)
	}
	return nil
}

// replacedBy returns the bytes of data that operations replace. The chunks are held, and the index lock.
func (r *Replica) replacedBy(ops []Op) (n int64) {
	for i := range ops {
		if ops[i].Kind == OpWrite {
			n += r.replaced(ops[i].Block, uint64(ops[i].Count))
		}
	}
	return n
}

// replaced returns the bytes of data that blocks have which no snapshot keeps.
func (r *Replica) replaced(b, count uint64) (n int64) {
	for ; count > 0 && len(r.snaps) == 0; b, count = b+1, count-1 {
		if d := r.touch(b / block.ChunkBlocks); r.p.idx.bitmaps.has(d, int(b%block.ChunkBlocks)) {
			n += r.p.average(d)
		}
	}
	return n
}

var walKind = [...]wal.Kind{OpWrite: wal.Write, OpDiscard: wal.Discard, OpMark: wal.Mark}

// lockStep is the number of blocks indexed in one critical section: readers wait for it.
const lockStep = 256

// SetState replaces the replica's state record (at most MaxState bytes) and Applied together. Both, and everything
// applied before, are on stable storage when it returns.
func (r *Replica) SetState(state []byte, applied block.Version) error {
	if err := r.PutState(state, applied); err != nil {
		return err
	}
	if err := r.p.Sync(); err != nil {
		return r.wrap("set state", err)
	}
	return nil
}

// PutState is SetState for those who call Sync themselves: until then a crash may bring back the record that was there
// before, but none of what is applied afterwards without this one.
func (r *Replica) PutState(state []byte, applied block.Version) error {
	p := r.p
	if len(state) > MaxState {
		return r.wrap("set state", fmt.Errorf("%d bytes: %w", len(state), ErrTooLarge))
	}
	state = append([]byte(nil), state...)
	sum := [1]uint32{block.Sum(state)}
	rec := wal.Record{Kind: wal.State, Slot: r.slot, Count: uint32(len(state)), Version: applied, Sums: sum[:]}
	err := p.unit(r, 0, blocksFor(len(state)), wal.RecordLen+4, func() error {
		p.idx.mu.RLock()
		err := p.mayGrow(stateRoot(len(state))-stateRoot(len(r.state)), true)
		p.idx.mu.RUnlock()
		if err != nil {
			p.releaseSpare()
			return err
		}
		return p.add(&rec, state, 0)
	}, func() {
		r.state, r.applied = state, applied
		r.weigh()
	})
	if err != nil {
		return r.wrap("set state", err)
	}
	return nil
}
