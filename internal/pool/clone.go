package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/pool/wal"
)

// Clone makes a replica that shows what a snapshot of another one shows, shares its blocks, and is written
// independently from then on; it has its size and, as Applied, its version, and the versions of what is applied to it
// go on from there. The snapshot cannot be deleted, nor its replica be destroyed, before the clone. It is stable when
// it returns. Wraps ErrExists, ErrNotFound, ErrNoSnapshot, ErrTooLarge.
func (p *Pool) Clone(name, origin, snapshot string) (*Replica, error) {
	r, err := p.clone(name, origin, snapshot)
	if err == nil {
		err = p.Sync()
	}
	if err != nil {
		return nil, p.wrap(fmt.Sprintf("clone %q of snapshot %q of %q", name, snapshot, origin), err)
	}
	return r, nil
}

func (p *Pool) clone(name, origin, snapshot string) (*Replica, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := p.begin(nil, 0, 0, wal.Len(wal.Clone, 0, len(name)+len(snapshot)), nil); err != nil {
		return nil, err
	}
	defer p.end(0)
	p.idx.mu.RLock()
	slot, err := p.freeSlot(name)
	o, i := p.idx.byName[origin], -1
	if o == nil {
		err = fmt.Errorf("origin: %w", ErrNotFound)
	} else if i = o.snaps.find(snapshot); i < 0 {
		err = ErrNoSnapshot
	}
	if err == nil && o.depth() >= p.opt.cloneDepth {
		err = fmt.Errorf("origin is a clone of a clone, %d deep; copy it into a new replica, or clone one that it comes from: %w", o.depth(), ErrTooLarge)
	}
	if err == nil {
		err = p.mayGrow(replicaRoot(name, snapshot, o.snaps[i].size), false)
	}
	p.idx.mu.RUnlock()
	if err != nil {
		p.releaseSpare()
		return nil, err
	}
	from := o.snaps[i] // changes under the log's lock only
	r := p.newReplica(name, p.opt.newGUID(), from.size)
	r.slot, r.applied, r.origin, r.from = slot, from.ver, o, from
	if err := p.add(&wal.Record{
		Kind: wal.Clone, Slot: slot, Block: uint64(from.size), Count: o.slot, Version: from.ver, GUID: r.guid, Name: name, From: snapshot,
	}, nil, 0); err != nil {
		return nil, err
	}
	if err := p.endUnit(); err != nil {
		return nil, err
	}
	p.register(r)
	return r, nil
}

// attach makes r a clone of the snapshot of that name of the replica in slot.
func (p *Pool) attach(r *Replica, slot uint32, name string) error {
	if int(slot) >= len(p.idx.bySlot) || p.idx.bySlot[slot] == nil || p.idx.bySlot[slot] == r {
		return fmt.Errorf("clone of unknown replica %d: %w", slot, ErrDamaged)
	}
	o := p.idx.bySlot[slot]
	i := o.snaps.find(name)
	if i < 0 {
		return fmt.Errorf("clone of %s@%s, which is not there: %w", o.name, name, ErrDamaged)
	}
	for x := o; x != nil; x = x.origin {
		if x == r {
			return fmt.Errorf("clone of itself: %w", ErrDamaged)
		}
	}
	r.origin, r.from = o, o.snaps[i]
	return nil
}

// depth returns the number of replicas that r is a clone of, one of another.
func (r *Replica) depth() (n int) {
	for ; r.origin != nil; r = r.origin {
		n++
	}
	return n
}

// Origin returns the name of the replica and of its snapshot that this is a clone of, empty if it is none.
func (r *Replica) Origin() (replica, snapshot string) {
	if r.origin == nil {
		return "", ""
	}
	return r.origin.name, r.from.name
}
