package pool

import (
	"fmt"
	"maps"

	"github.com/cstor-go/cstor/internal/block"
)

// Snapshot is a snapshot of a replica. It is made and removed by operations of the replica's write order.
type Snapshot struct {
	Name       string
	Version    block.Version // it shows, per block, the newest version that is not newer
	Size       int64         // of the replica at that version, in bytes
	Referenced int64         // bytes of the blocks with data that it shows; of a clone's, without what is read through
	Clones     []string      // clones of it
}

// Snapshots returns the replica's snapshots in order of version.
func (r *Replica) Snapshots() []Snapshot {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	all := r.snaps.public()
	for i := range all {
		all[i].Clones = r.clones(all[i].Name)
	}
	return all
}

// public returns what may be told about snapshots, without their clones.
func (s snapshots) public() []Snapshot {
	all := make([]Snapshot, len(s))
	for i, x := range s {
		all[i] = Snapshot{Name: x.name, Version: x.ver, Size: x.size, Referenced: x.refd}
	}
	return all
}

// snapshot returns the snapshot of that name.
func (r *Replica) snapshot(name string) (snapshot, error) {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	if err := r.readable(); err != nil {
		return snapshot{}, err
	}
	i := r.snaps.find(name)
	if i < 0 {
		return snapshot{}, fmt.Errorf("%q: %w", name, ErrNoSnapshot)
	}
	return r.snaps[i], nil
}

// ReadSnapshot is Read of what a snapshot shows. It wraps ErrNoSnapshot, also when the snapshot is deleted meanwhile.
func (r *Replica) ReadSnapshot(name string, first uint64, dst []byte, sums []uint32) error {
	s, err := r.snapshot(name)
	if err == nil {
		if err = r.read(first, dst, sums, &s); err == nil {
			var now snapshot
			if now, err = r.snapshot(name); err == nil && now.ver != s.ver {
				err = fmt.Errorf("%q was deleted and made again: %w", name, ErrNoSnapshot)
			}
		}
	}
	if err != nil {
		return r.wrap("read snapshot", err)
	}
	return nil
}

// uniqueSizes is what the last look at all versions found.
type uniqueSizes struct {
	applied block.Version
	changes uint64
	bytes   map[string]int64
}

// SnapshotUnique returns the bytes of data that only this snapshot holds: what deleting it gives back, apart from its
// share of the index. It looks at every chunk with older versions, once for all snapshots, and again when something
// changed.
func (r *Replica) SnapshotUnique(name string) (int64, error) {
	n, err := r.unique(name)
	if err != nil {
		return 0, r.wrap("size of snapshot", err)
	}
	return n, nil
}

func (r *Replica) unique(name string) (int64, error) {
	p := r.p
	if _, err := r.snapshot(name); err != nil {
		return 0, err
	}
	p.idx.mu.RLock()
	u, snaps := uniqueSizes{applied: r.applied, changes: r.changes}, r.snaps
	p.idx.mu.RUnlock()
	r.uniqueMu.Lock()
	defer r.uniqueMu.Unlock()
	if x := &r.uniqueOf; x.bytes != nil && x.applied == u.applied && x.changes == u.changes {
		return x.bytes[name], nil
	}
	u.bytes = map[string]int64{}
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	for chunk := uint64(0); ; chunk++ {
		var ok bool
		var err error
		if chunk, ok, err = r.nextOlder(chunk); err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		ticket := p.read.enter() // anew for each chunk: segments become free only when all who were there have left
		err = r.listOwn(v, chunk)
		p.read.leave(ticket)
		if err != nil {
			return 0, err
		}
		next := v.page.Ver
		for i := range v.page.Old {
			o := &v.page.Old[i]
			if x, only := snaps.only(o.Ver, next[o.Block]); only && o.Stored {
				u.bytes[x.name] += int64(o.Loc.Len())
			}
			next[o.Block] = o.Ver
		}
	}
	r.uniqueOf = u
	return maps.Clone(u.bytes)[name], nil
}

// only returns the snapshot that shows version v of a block whose next version is next, if exactly one does.
func (s snapshots) only(v, next block.Version) (x snapshot, ok bool) {
	i := s.from(v)
	if i == len(s) || !s[i].ver.Less(next) || i+1 < len(s) && s[i+1].ver.Less(next) {
		return x, false
	}
	return s[i], true
}

// nextOlder returns the first chunk from number from on that may have older versions.
func (r *Replica) nextOlder(from uint64) (chunk uint64, ok bool, err error) {
	var d chunkRef
	for {
		if chunk, from, ok, err = r.next(from, hasOlder, &d); !ok || d.older || d.heads != [2]uint32{} {
			return chunk, ok, err
		}
	}
}

// DiffBlock is a block that one snapshot shows in another version than another does.
type DiffBlock struct {
	Block   uint64
	Stored  bool // has data; false: reads as zeroes
	Version block.Version
}

// Diff returns, for the first chunk from number chunk on where there are any, the blocks that snapshot to ("": the
// replica as it is) shows in another version than snapshot from ("": nothing at all), ascending, with what to shows;
// blocks behind the end of both are left out. They are put into dst[:0]. next is the chunk to go on with; done says
// that there are no more. To compare whole snapshots takes one page for every chunk that changed since the older one,
// and nothing for the others.
func (r *Replica) Diff(from, to string, chunk uint64, dst []DiffBlock) (blocks []DiffBlock, next uint64, done bool, err error) {
	blocks, next, done, err = r.diff(from, to, chunk, dst[:0])
	if err != nil {
		return nil, 0, false, r.wrap("compare snapshots", err)
	}
	return blocks, next, done, nil
}

func (r *Replica) diff(from, to string, chunk uint64, dst []DiffBlock) (blocks []DiffBlock, next uint64, done bool, err error) {
	p := r.p
	var a, b snapshot
	b.ver, b.size = block.Version{Epoch: ^uint64(0), N: ^uint64(0)}, r.size.Load()
	if from != "" {
		if a, err = r.snapshot(from); err != nil {
			return nil, 0, false, err
		}
	}
	if to != "" {
		if b, err = r.snapshot(to); err != nil {
			return nil, 0, false, err
		}
	}
	base := a.ver
	if b.ver.Less(base) {
		base = b.ver
	}
	v := chunkViews.Get().(*chunkView)
	defer chunkViews.Put(v)
	var one [1]uint64
	for {
		found, next, done := r.Changed(base, chunk, one[:0])
		if len(found) == 0 {
			return dst, next, done, nil
		}
		chunk = found[0] + 1
		ticket := p.read.enter() // anew for each chunk, as in unique
		err = r.listAll(v, found[0])
		p.read.leave(ticket)
		if err != nil {
			return nil, 0, false, err
		}
		most := blocksOf(max(a.size, b.size))
		for i := 0; i < block.ChunkBlocks && found[0]*block.ChunkBlocks+uint64(i) < most; i++ {
			o, _ := v.page.Find(i, b.ver)
			if x, _ := v.page.Find(i, a.ver); from == "" && !o.Ver.IsZero() || from != "" && x.Ver != o.Ver {
				dst = append(dst, DiffBlock{Block: found[0]*block.ChunkBlocks + uint64(i), Stored: o.Stored, Version: o.Ver})
			}
		}
		if len(dst) > 0 {
			for _, name := range []string{from, to} { // what was read is right only if they are still there
				if name != "" {
					if _, err := r.snapshot(name); err != nil {
						return nil, 0, false, err
					}
				}
			}
			return dst, chunk, false, nil
		}
	}
}
