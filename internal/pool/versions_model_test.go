package pool

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

// The reference for versions: per block the list of all versions that somebody shows, newest first.

type refVersion struct {
	ver    block.Version
	sum    uint32
	stored bool
}

type refSnapshot struct {
	name string
	ver  block.Version
	size int64
	refd int64 // -1: not compared
}

type refReplica struct {
	size    int64
	applied block.Version
	blocks  map[uint64][]refVersion
	hidden  map[uint64]bool // where a clone does not read through
	snaps   []refSnapshot
	origin  string // "replica@snapshot"
	from    block.Version
	state   modelState
}

type modelState map[string]*refReplica

func (s modelState) copy() modelState {
	c := modelState{}
	for k, v := range s {
		c[k] = v.copy()
		c[k].state = c
	}
	return c
}

// base returns what a clone reads through.
func (m *refReplica) base(b uint64, at block.Version) refVersion {
	if m.origin == "" || m.hidden[b] {
		return refVersion{sum: block.ZeroSum}
	}
	if m.from.Less(at) {
		at = m.from
	}
	name, _, _ := strings.Cut(m.origin, "@")
	return m.state[name].at(b, at)
}

func (m *refReplica) copy() *refReplica {
	c := *m
	c.blocks, c.hidden = map[uint64][]refVersion{}, map[uint64]bool{}
	for b, l := range m.blocks {
		c.blocks[b] = slices.Clone(l)
	}
	for b := range m.hidden {
		c.hidden[b] = true
	}
	c.snaps = slices.Clone(m.snaps)
	return &c
}

func (m *refReplica) prune(b uint64) {
	l := m.blocks[b]
	for i := len(l) - 1; i > 0; i-- {
		if !slices.ContainsFunc(m.snaps, func(s refSnapshot) bool { return !s.ver.Less(l[i].ver) && s.ver.Less(l[i-1].ver) }) {
			l = slices.Delete(l, i, i+1)
		}
	}
	if m.blocks[b] = l; len(l) == 0 {
		delete(m.blocks, b)
	}
}

// put makes v the newest version of a block; everything as new or newer goes.
func (m *refReplica) put(b uint64, v refVersion) {
	l := m.blocks[b]
	for len(l) > 0 && !l[0].ver.Less(v.ver) {
		l = l[1:]
	}
	m.blocks[b] = append([]refVersion{v}, l...)
	m.prune(b)
}

func (m *refReplica) drop(b uint64) {
	delete(m.blocks, b)
	m.hidden[b] = true
}

// at returns what a block shows at a version.
func (m *refReplica) at(b uint64, at block.Version) refVersion {
	for _, v := range m.blocks[b] {
		if !at.Less(v.ver) {
			return v
		}
	}
	return m.base(b, at)
}

var newestVersion = block.Version{Epoch: ^uint64(0), N: ^uint64(0)}

func (m *refReplica) stored(at block.Version) (n int64) {
	for _, l := range m.blocks {
		for _, v := range l {
			if !at.Less(v.ver) {
				if v.stored {
					n++
				}
				break
			}
		}
	}
	return n
}

func (m *refReplica) apply(o *Op) {
	i := slices.IndexFunc(m.snaps, func(s refSnapshot) bool { return s.name == o.Name })
	switch o.Kind {
	case OpWrite:
		for i := range uint64(o.Count) {
			m.put(o.Block+i, refVersion{o.Version, block.Sum(o.Data[i*block.Size : (i+1)*block.Size]), true})
		}
	case OpDiscard:
		for i := range uint64(o.Count) {
			m.put(o.Block+i, refVersion{ver: o.Version, sum: block.ZeroSum})
		}
	case OpSnapshot:
		if i < 0 {
			m.snapshot(refSnapshot{o.Name, o.Version, m.size, m.stored(newestVersion) * block.Size})
		}
	case OpDeleteSnapshot:
		if i >= 0 {
			m.deleteSnapshot(i)
		}
	case OpResize:
		for b := blocksOf(o.Size); b < blocksOf(m.size); b++ {
			m.put(b, refVersion{ver: o.Version, sum: block.ZeroSum})
		}
		m.size = o.Size
	}
	m.applied = o.Version
}

func (m *refReplica) snapshot(s refSnapshot) {
	i := 0
	for i < len(m.snaps) && !s.ver.Less(m.snaps[i].ver) {
		i++
	}
	m.snaps = slices.Insert(m.snaps, i, s)
}

func (m *refReplica) deleteSnapshot(i int) {
	m.snaps = slices.Delete(slices.Clone(m.snaps), i, i+1)
	for b := range m.blocks {
		m.prune(b)
	}
}

// ahead reports whether a merge brought something newer than v: what a snapshot at v shows is then right only when the
// merges carry older versions.
func (m *refReplica) ahead(v block.Version) bool {
	for _, l := range m.blocks {
		if v.Less(l[0].ver) {
			return true
		}
	}
	return false
}

// unique returns the bytes that only a snapshot holds.
func (m *refReplica) unique(name string) (n int64) {
	for _, l := range m.blocks {
		for i := 1; i < len(l); i++ {
			shown := 0
			only := ""
			for _, s := range m.snaps {
				if !s.ver.Less(l[i].ver) && s.ver.Less(l[i-1].ver) {
					shown++
					only = s.name
				}
			}
			if shown == 1 && only == name && l[i].stored {
				n += block.Size
			}
		}
	}
	return n
}

// held returns the bytes of all versions.
func (m *refReplica) held() (n int64) {
	for _, l := range m.blocks {
		for _, v := range l {
			if v.stored {
				n += block.Size
			}
		}
	}
	return n
}

// clone returns the replica that shows what a snapshot does.
func (m *refReplica) clone(name string, i int) *refReplica {
	s := m.snaps[i]
	return &refReplica{
		size: s.size, applied: s.ver, blocks: map[uint64][]refVersion{}, hidden: map[uint64]bool{}, origin: name + "@" + s.name, from: s.ver, state: m.state,
	}
}

// diff returns how r differs from the reference, "" if it does not. deep compares sizes and differences of snapshots too.
func (m *refReplica) diff(r *Replica, deep bool) string {
	if r == nil {
		return "missing"
	}
	if r.Applied() != m.applied || r.Size() != m.size {
		return fmt.Sprintf("applied %v, size %d; want %v, %d", r.Applied(), r.Size(), m.applied, m.size)
	}
	var names []string
	for i, s := range r.Snapshots() {
		names = append(names, s.Name)
		if i >= len(m.snaps) || s.Name != m.snaps[i].name || s.Version != m.snaps[i].ver || s.Size != m.snaps[i].size ||
			m.snaps[i].refd >= 0 && s.Referenced != m.snaps[i].refd {
			return fmt.Sprintf("snapshot %+v, want %+v", s, m.snaps)
		}
	}
	if len(names) != len(m.snaps) {
		return fmt.Sprintf("%d snapshots %v, want %d", len(names), names, len(m.snaps))
	}
	if u := r.Stats().Used; u != m.stored(newestVersion)*block.Size {
		return fmt.Sprintf("used %d, want %d", u, m.stored(newestVersion)*block.Size)
	}
	if d := m.content(r, "", m.size, newestVersion); d != "" {
		return d
	}
	for _, s := range m.snaps {
		if d := m.content(r, s.name, s.size, s.ver); d != "" {
			return fmt.Sprintf("snapshot %s (%v of %v): %s", s.name, s.ver, names, d)
		}
		if !deep {
			continue
		}
		if n, err := r.SnapshotUnique(s.name); err != nil || !sameBytes(r, n, m.unique(s.name)) {
			return fmt.Sprintf("snapshot %s of %v: %d bytes of its own, want %d (%v)", s.name, names, n, m.unique(s.name), err)
		}
	}
	if deep {
		ends := append([]refSnapshot{{}}, m.snaps...)
		for i := range ends {
			to := refSnapshot{ver: newestVersion, size: m.size}
			if i+1 < len(ends) && i%2 == 0 {
				to = ends[i+1]
			}
			if d := m.differences(r, ends[i], to); d != "" {
				return fmt.Sprintf("difference %q to %q: %s", ends[i].name, to.name, d)
			}
		}
	}
	return ""
}

// sameBytes compares a number of stored bytes with one of blocks, which are the same if nothing is compressed.
func sameBytes(r *Replica, n, want int64) bool {
	return n == want || r.p.Compression() != compress.Off && n > 0 && n < want
}

// content compares what r, or a snapshot of it, shows.
func (m *refReplica) content(r *Replica, name string, size int64, at block.Version) string {
	n := blocksOf(size)
	dst, sums := make([]byte, n*block.Size), make([]uint32, n)
	read := func(first uint64, dst []byte, sums []uint32) error {
		if name == "" {
			return r.Read(first, dst, sums)
		}
		return r.ReadSnapshot(name, first, dst, sums)
	}
	if err := read(0, dst, sums); err != nil {
		return err.Error()
	}
	var vers [block.ChunkBlocks]block.Version
	for b := range n {
		want := m.at(b, at)
		if name == "" {
			if b%block.ChunkBlocks == 0 {
				r.ChunkVersions(b/block.ChunkBlocks, &vers)
			}
			if v := vers[b%block.ChunkBlocks]; v != want.ver {
				return fmt.Sprintf("block %d: version %v, want %v", b, v, want.ver)
			}
		}
		if sums[b] != want.sum || block.Sum(dst[b*block.Size:(b+1)*block.Size]) != want.sum {
			return fmt.Sprintf("block %d: not the content of version %v, all %v", b, want.ver, m.blocks[b])
		}
	}
	return ""
}

// differences compares what Diff says.
func (m *refReplica) differences(r *Replica, from, to refSnapshot) string {
	got := map[uint64]DiffBlock{}
	last := int64(-1)
	for chunk, done := uint64(0), false; !done; {
		var blocks []DiffBlock
		var err error
		if blocks, chunk, done, err = r.Diff(from.name, to.name, chunk, nil); err != nil {
			return err.Error()
		}
		for _, b := range blocks {
			if int64(b.Block) <= last {
				return fmt.Sprintf("block %d behind %d", b.Block, last)
			}
			last = int64(b.Block)
			got[b.Block] = b
		}
	}
	for b := range blocksOf(max(from.size, to.size)) {
		x, y := refVersion{}, m.at(b, to.ver)
		if from.name != "" {
			x = m.at(b, from.ver)
		}
		g, ok := got[b]
		if ok != (x.ver != y.ver) || ok && (g.Version != y.ver || g.Stored != y.stored) {
			return fmt.Sprintf("block %d: %v to %v: %+v, %t", b, x, y, g, ok)
		}
		delete(got, b)
	}
	if len(got) > 0 {
		return fmt.Sprintf("%d blocks outside", len(got))
	}
	return ""
}
