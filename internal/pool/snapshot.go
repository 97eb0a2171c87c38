package pool

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// snapshot is a version of a replica that is kept: what it shows is, per block, the newest version that is not newer.
type snapshot struct {
	name string
	ver  block.Version
	size int64 // of the replica at that version, in bytes
	refd int64 // bytes with data at that version, without what a clone reads through
}

// snapshots are those of a replica, in order of version. A list is replaced, never changed, so that a copy of the slice
// stays what it was.
type snapshots []snapshot

// show reports whether any of the snapshots shows version v of a block whose next version is next.
func (s snapshots) show(v, next block.Version) bool {
	n := len(s)
	if n == 0 || s[n-1].ver.Less(v) {
		return false
	}
	if s[n-1].ver.Less(next) {
		return true
	}
	return s[s.from(v)].ver.Less(next)
}

// from returns the place of the first snapshot that is not older than v.
func (s snapshots) from(v block.Version) int {
	i, _ := slices.BinarySearchFunc(s, v, func(x snapshot, v block.Version) int { return x.ver.Compare(v) })
	return i
}

// find returns the place of the snapshot of that name, -1 if there is none.
func (s snapshots) find(name string) int {
	return slices.IndexFunc(s, func(x snapshot) bool { return x.name == name })
}

// with returns the list with x in it.
func (s snapshots) with(x snapshot) snapshots {
	i, _ := slices.BinarySearchFunc(s, x, func(a, b snapshot) int {
		return cmp.Or(a.ver.Compare(b.ver), -1) // behind those of the same version
	})
	return slices.Insert(slices.Clip(slices.Clone(s)), i, x)
}

// without returns the list without the snapshot at place i.
func (s snapshots) without(i int) snapshots {
	return slices.Delete(slices.Clone(s), i, i+1)
}

// purge is the way through a replica's chunks after snapshots were deleted: every chunk with older versions is looked
// at once, and what nobody shows any more goes.
type purge struct {
	wanted bool
	begun  bool   // chunks have been looked at
	next   uint64 // first chunk that is not done
	again  bool   // a snapshot was deleted on the way: once more from the beginning
}

// restart says that a snapshot was deleted. The index lock is held for writing.
func (g *purge) restart() { g.wanted, g.again = true, g.wanted && g.begun }

// over ends a way through all chunks. The index lock is held for writing.
func (g *purge) over() { *g = purge{wanted: g.again} }

// mostKept bounds Replica.kept: what a drain keeps is also what those snapshots showed that were deleted since its freeze. What
// came since, which the pages do not have yet, may have uncovered versions that they showed, and counts on them: a merge takes
// newer ones away.
const mostKept = 2 * MaxSnapshots

// waitToKeep waits for a freeze if there is no room in Replica.kept.
func (r *Replica) waitToKeep() error {
	p := r.p
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	for len(r.kept) >= mostKept {
		if err := p.usable(); err != nil {
			return err
		}
		if p.opt.Manual {
			p.idx.mu.Unlock()
			err := p.cycle()
			if p.idx.mu.Lock(); err != nil {
				return err
			}
			continue
		}
		p.wake()
		p.idx.room.Wait()
	}
	return nil
}

// applyPoint carries out an operation that concerns the replica as a whole.
func (r *Replica) applyPoint(o *Op) error {
	p := r.p
	if o.Kind == OpResize && o.Size < r.size.Load() { // what is cut off does not come back
		keep := blocksOf(o.Size)
		if err := r.applyHugeDiscard(keep, r.blocks()-keep, o.Version, false); err != nil {
			return err
		}
	}
	if o.Kind == OpSnapshot {
		if err := r.waitToKeep(); err != nil {
			return err
		}
	}
	if err := p.begin(r, 0, 0, wal.Len(wal.Snapshot, 0, len(o.Name)), nil); err != nil {
		return err
	}
	defer p.end(0)
	rec, err := r.point(o)
	if err == nil {
		if err = p.add(&rec, nil, 0); err == nil {
			err = p.endUnit()
		}
	} else {
		p.releaseSpare()
	}
	if err != nil {
		return err
	}
	p.idx.mu.Lock()
	r.indexPoint(&rec)
	p.idx.mu.Unlock()
	if rec.Kind == wal.DeleteSnapshot {
		p.freeable.Store(true)
		p.wake()
	}
	return nil
}

// point returns the record of an operation. The log's lock is held.
func (r *Replica) point(o *Op) (rec wal.Record, err error) {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	rec = wal.Record{Kind: wal.Mark, Slot: r.slot, Version: o.Version}
	i := r.snaps.find(o.Name)
	switch {
	case o.Kind == OpResize:
		if err := r.p.mayGrow(r.moreNodes(o.Size), false); err != nil {
			return rec, fmt.Errorf("size %d: %w", o.Size, err)
		}
		rec.Kind, rec.Block = wal.Resize, uint64(o.Size)
	case o.Kind == OpSnapshot && i < 0:
		if len(r.snaps) >= MaxSnapshots {
			return rec, fmt.Errorf("snapshot %s: %d snapshots: %w", o.Name, len(r.snaps), ErrTooLarge)
		}
		if err := r.p.mayGrow(snapshotRoot(o.Name), false); err != nil {
			return rec, fmt.Errorf("snapshot %s: %w", o.Name, err)
		}
		rec.Kind, rec.Name, rec.Block = wal.Snapshot, o.Name, uint64(r.stored)
	case o.Kind == OpSnapshot && r.snaps[i].ver.Less(o.Version): // a newer one came with a rebuild: this is to be deleted
		return rec, fmt.Errorf("snapshot %s of version %v: %w", o.Name, r.snaps[i].ver, ErrExists)
	case o.Kind == OpDeleteSnapshot && i >= 0 && !o.Version.Less(r.snaps[i].ver):
		if clones := r.clones(o.Name); len(clones) > 0 {
			return rec, fmt.Errorf("snapshot %s: %w by %s", o.Name, ErrInUse, strings.Join(clones, ", "))
		}
		rec.Kind, rec.Name = wal.DeleteSnapshot, o.Name
	}
	return rec, nil
}

// indexPoint makes a record of a snapshot or a size visible. The index lock is held for writing.
func (r *Replica) indexPoint(rec *wal.Record) {
	i := r.snaps.find(rec.Name)
	r.changes++
	switch rec.Kind {
	case wal.Snapshot, wal.TakeSnapshot:
		if i < 0 {
			size := r.size.Load()
			if rec.Kind == wal.TakeSnapshot {
				size = rec.Size
			}
			x := snapshot{name: rec.Name, ver: rec.Version, size: size, refd: int64(rec.Block) * block.Size}
			r.snaps, r.kept = r.snaps.with(x), r.kept.with(x)
		}
	case wal.DeleteSnapshot, wal.DropSnapshot:
		if i >= 0 {
			r.snaps = r.snaps.without(i)
			r.purge.restart()
		}
	case wal.Resize:
		r.size.Store(int64(rec.Block))
	}
	r.weigh()
	if rec.Kind != wal.TakeSnapshot && rec.Kind != wal.DropSnapshot {
		r.applied = rec.Version
	}
}

// clones returns the names of the clones of a snapshot, of any if name is empty. The index lock is held.
func (r *Replica) clones(name string) (names []string) {
	for _, c := range r.p.idx.byName {
		if c.origin == r && (name == "" || c.from.name == name) {
			names = append(names, c.name)
		}
	}
	slices.Sort(names)
	return names
}
