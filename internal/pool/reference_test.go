package pool

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// The reference model of a pool: a map of replicas, each an array of blocks, each a list of all versions that somebody
// shows, newest first.

// refVersion is one version of a block.
type refVersion struct {
	ver    block.Version
	sum    uint32 // of zeroes if nothing is stored
	stored bool
}

func newRefVersion(v block.Version, sum uint32, stored bool) refVersion {
	if stored = stored && sum != block.ZeroSum; !stored {
		sum = block.ZeroSum
	}
	return refVersion{v, sum, stored}
}

// refBlock is what a block is in the reference model.
type refBlock struct {
	own    []refVersion // newest first; shared by copies of the model and never changed in place
	hidden bool         // a clone does not read through to its origin
}

type refSnapshot struct {
	name string
	ver  block.Version
	size int64
	refd int64 // -1: not compared
}

// refReplica is the trivial implementation of a replica.
type refReplica struct {
	guid    block.GUID
	size    int64
	blocks  []refBlock // as many as it ever had
	applied block.Version
	state   string
	snaps   []refSnapshot // in order of version; never changed in place
	plain   bool          // has never had a snapshot
	origin  string        // of a clone, and the snapshot of it
	from    refSnapshot
	in      refPool
}

// refPool is the trivial implementation of a pool.
type refPool map[string]*refReplica

func (s refPool) add(name string, guid block.GUID, size int64) {
	s[name] = &refReplica{guid: guid, size: size, blocks: make([]refBlock, blocksOf(size)), plain: true, in: s}
}

// clone makes a clone of a snapshot.
func (s refPool) addClone(name string, guid block.GUID, origin, snap string) {
	o := s[origin]
	from := o.snaps[o.find(snap)]
	s[name] = &refReplica{guid: guid, size: from.size, applied: from.ver, blocks: make([]refBlock, blocksOf(from.size)), plain: true, origin: origin, from: from, in: s}
}

func (s refPool) clone() refPool {
	c := refPool{}
	for k, r := range s {
		c[k] = r.copy()
		c[k].in = c
	}
	return c
}

func (r *refReplica) copy() *refReplica {
	c := *r
	c.blocks = slices.Clone(r.blocks)
	return &c
}

// names returns the replicas in order, so that a seed does not depend on a map's.
func (s refPool) names() []string { return slices.Sorted(maps.Keys(s)) }

// clonesOf returns the clones of a replica, or of one of its snapshots.
func (s refPool) clonesOf(origin, snap string) (names []string) {
	for _, k := range s.names() {
		if s[k].origin == origin && (snap == "" || s[k].from.name == snap) {
			names = append(names, k)
		}
	}
	return names
}

// find returns the place of a snapshot, -1 if there is none.
func (r *refReplica) find(snap string) int {
	return slices.IndexFunc(r.snaps, func(s refSnapshot) bool { return s.name == snap })
}

var newestVersion = block.Version{Epoch: ^uint64(0), N: ^uint64(0)}

// at returns what a block shows at a version.
func (r *refReplica) at(b uint64, at block.Version) refVersion {
	hidden := false
	if b < uint64(len(r.blocks)) {
		x := &r.blocks[b]
		for i := range x.own {
			if !at.Less(x.own[i].ver) {
				return x.own[i]
			}
		}
		hidden = x.hidden
	}
	if r.origin == "" || hidden {
		return refVersion{sum: block.ZeroSum}
	}
	if r.from.ver.Less(at) {
		at = r.from.ver
	}
	return r.in[r.origin].at(b, at)
}

func (r *refReplica) head(b uint64) refVersion { return r.at(b, newestVersion) }

// prune returns a list of versions without those that nobody shows.
func (r *refReplica) prune(own []refVersion) []refVersion {
	kept := own[:0:0]
	for i, v := range own {
		if i == 0 || slices.ContainsFunc(r.snaps, func(s refSnapshot) bool { return !s.ver.Less(v.ver) && s.ver.Less(own[i-1].ver) }) {
			kept = append(kept, v)
		}
	}
	return kept
}

// put makes v the newest version of a block; everything as new or newer goes.
func (r *refReplica) put(b uint64, v refVersion) {
	l := r.blocks[b].own
	for len(l) > 0 && !l[0].ver.Less(v.ver) {
		l = l[1:]
	}
	if len(r.snaps) == 0 {
		r.blocks[b].own = []refVersion{v}
	} else {
		r.blocks[b].own = r.prune(append([]refVersion{v}, l...))
	}
}

func (r *refReplica) drop(b uint64) { r.blocks[b] = refBlock{hidden: true} }

// used returns the bytes of blocks that have data of the replica's own.
func (r *refReplica) used() (n int64) {
	for i := range r.blocks {
		if l := r.blocks[i].own; len(l) > 0 && l[0].stored {
			n += block.Size
		}
	}
	return n
}

// apply carries out an operation.
func (r *refReplica) apply(o *Op) {
	i := r.find(o.Name)
	switch o.Kind {
	case OpWrite:
		sums := o.Sums
		if sums == nil {
			sums = sumsOf(o.Data)
		}
		for k := range uint64(o.Count) {
			r.put(o.Block+k, newRefVersion(o.Version, sums[k], true))
		}
	case OpDiscard:
		r.discard(o.Block, uint64(o.Count), o.Version)
	case OpSnapshot:
		if i < 0 {
			k := 0
			for k < len(r.snaps) && !o.Version.Less(r.snaps[k].ver) {
				k++
			}
			r.snaps = slices.Insert(slices.Clone(r.snaps), k, refSnapshot{o.Name, o.Version, r.size, r.used()})
			r.plain = false
		}
	case OpDeleteSnapshot:
		if i >= 0 {
			r.snaps = slices.Delete(slices.Clone(r.snaps), i, i+1)
			for b := range r.blocks {
				if l := r.blocks[b].own; len(l) > 1 {
					r.blocks[b].own = r.prune(l)
				}
			}
		}
	case OpResize: // what is cut off was discarded before
		if n := int(blocksOf(o.Size)) - len(r.blocks); n > 0 {
			r.blocks = append(r.blocks, make([]refBlock, n)...)
		}
		r.size = o.Size
	}
	r.applied = o.Version
}

// discard is a discard that does not advance Applied.
func (r *refReplica) discard(b, n uint64, v block.Version) {
	for i := range n {
		r.put(b+i, newRefVersion(v, 0, false))
	}
}

func (r *refReplica) merge(c *Chunk) {
	for i := range block.ChunkBlocks {
		b := c.Index*block.ChunkBlocks + uint64(i)
		if b >= blocksOf(r.size) {
			break
		}
		switch block.Resolve(r.head(b).ver, c.Versions[i], c.Scan) {
		case block.Take:
			r.put(b, newRefVersion(c.Versions[i], c.Sums[i], c.Stored[i]))
		case block.Drop:
			r.drop(b)
		}
	}
}

// ahead reports whether a merge brought something newer than v: what a snapshot at v shows is then right only when the
// merges carry older versions.
func (r *refReplica) ahead(v block.Version) bool {
	return slices.ContainsFunc(r.blocks, func(b refBlock) bool { return len(b.own) > 0 && v.Less(b.own[0].ver) })
}

// unique returns the bytes that only a snapshot holds.
func (r *refReplica) unique(name string) (n int64) {
	for _, b := range r.blocks {
		for i := 1; i < len(b.own); i++ {
			shown, only := 0, ""
			for _, s := range r.snaps {
				if !s.ver.Less(b.own[i].ver) && s.ver.Less(b.own[i-1].ver) {
					shown++
					only = s.name
				}
			}
			if shown == 1 && only == name && b.own[i].stored {
				n += block.Size
			}
		}
	}
	return n
}

// held returns the bytes of all versions.
func (r *refReplica) held() (n int64) {
	for _, b := range r.blocks {
		for _, v := range b.own {
			if v.stored {
				n += block.Size
			}
		}
	}
	return n
}

// happening is something that changed the pool, or may have.
type happening struct {
	what  string
	start int  // place in the record of the devices when it began
	end   int  // and when it was over; never: an error left it open whether it happened
	sync  bool // it and everything before is on stable storage once it is over
	f     func(refPool)
}

const never = 1 << 62

// resolve finds out how many of the happenings since base are in the pool: at least as many as need, at most most. It
// returns the state found.
func resolve(p *Pool, base refPool, all []happening, need, most int) (state refPool, found int, err error) {
	seen, err := observe(p)
	if err != nil {
		return nil, 0, err
	}
	state = base.clone()
	found = -1
	var why []string
	for i := 0; ; i++ {
		if i >= need {
			if d := state.diff(seen); d == "" {
				found = i
			} else {
				why = append(why, fmt.Sprintf("after %d happenings: %s", i, d))
			}
		}
		if i == most {
			break
		}
		all[i].f(state)
	}
	if found < 0 {
		e := fmt.Errorf("what is there is none of the %d to %d first happenings:", need, most)
		for _, w := range why[max(0, len(why)-4):] {
			e = fmt.Errorf("%w\n\t%s", e, w)
		}
		for i := max(0, need-2); i < most; i++ {
			e = fmt.Errorf("%w\n\t%d: %s", e, i, all[i].what)
		}
		return nil, 0, e
	}
	if found < most { // back to the state found
		state = base.clone()
		for _, h := range all[:found] {
			h.f(state)
		}
	}
	return state, found, nil
}
