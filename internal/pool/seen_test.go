package pool

import (
	"fmt"
	"slices"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

// seenReplica is a replica as the engine shows it.
type seenReplica struct {
	guid    block.GUID
	size    int64
	applied block.Version
	state   string
	used    int64
	data    int64 // bytes that the blocks take
	sums    []uint32
	vers    []block.Version
	origin  string
	from    string
	snaps   []Snapshot
	shown   [][]uint32 // checksums of what each snapshot shows
}

// observe reads everything that a pool holds.
func observe(p *Pool) (map[string]*seenReplica, error) {
	seen := map[string]*seenReplica{}
	for _, r := range p.Replicas() {
		if seen[r.Name()] != nil {
			return nil, fmt.Errorf("two replicas are called %s", r.Name())
		}
		s, err := r.observe()
		if err != nil {
			return nil, err
		}
		seen[r.Name()] = s
	}
	return seen, nil
}

func (r *Replica) observe() (s *seenReplica, err error) {
	n := int(r.blocks())
	s = &seenReplica{guid: r.GUID(), size: r.Size(), applied: r.Applied(), state: string(r.State()), used: r.Stats().Used, data: r.Stats().Data, snaps: r.Snapshots()}
	s.origin, s.from = r.Origin()
	if s.sums, err = r.readAll("", n); err != nil {
		return nil, err
	}
	for b := 0; b < n; b += block.ChunkBlocks {
		var v [block.ChunkBlocks]block.Version
		if err := r.Newer(uint64(b/block.ChunkBlocks), block.Version{}, &v); err != nil {
			return nil, err
		}
		s.vers = append(s.vers, v[:min(block.ChunkBlocks, n-b)]...)
	}
	for _, x := range s.snaps {
		sums, err := r.readAll(x.Name, int(blocksOf(x.Size)))
		if err != nil {
			return nil, err
		}
		s.shown = append(s.shown, sums)
	}
	return s, nil
}

var readBuffers = sync.Pool{New: func() any { return make([]byte, 256*block.Size) }}

// readAll returns the checksums of what the replica, or a snapshot of it, shows.
func (r *Replica) readAll(snap string, n int) ([]uint32, error) {
	sums, dst := make([]uint32, n), readBuffers.Get().([]byte)
	defer readBuffers.Put(dst)
	for b := 0; b < n; b += 256 {
		k := min(256, n-b)
		var err error
		if snap == "" {
			err = r.Read(uint64(b), dst[:k*block.Size], sums[b:b+k])
		} else {
			err = r.ReadSnapshot(snap, uint64(b), dst[:k*block.Size], sums[b:b+k])
		}
		if err != nil {
			return nil, err
		}
		for i := range k {
			if block.Sum(dst[i*block.Size:(i+1)*block.Size]) != sums[b+i] {
				return nil, fmt.Errorf("replica %s snapshot %q block %d: content is not what its checksum says", r.Name(), snap, b+i)
			}
		}
	}
	return sums, nil
}

// diff returns how what was seen differs from the model, "" if it does not.
func (s refPool) diff(seen map[string]*seenReplica) string {
	for _, k := range s.names() {
		if d := s[k].diff(seen[k]); d != "" {
			return fmt.Sprintf("replica %s: %s", k, d)
		}
	}
	for k := range seen {
		if s[k] == nil {
			return fmt.Sprintf("replica %s should not be there", k)
		}
	}
	return ""
}

func (r *refReplica) diff(s *seenReplica) string {
	switch {
	case s == nil:
		return "missing"
	case !r.guid.IsZero() && s.guid != r.guid || s.size != r.size: // an interrupted create does not tell its GUID
		return fmt.Sprintf("guid %v size %d, want %v, %d", s.guid, s.size, r.guid, r.size)
	case s.applied != r.applied:
		return fmt.Sprintf("applied %v, want %v", s.applied, r.applied)
	case s.state != r.state:
		return fmt.Sprintf("state %.40q, want %.40q", s.state, r.state)
	case s.origin != r.origin || s.from != r.from.name:
		return fmt.Sprintf("clone of %s@%s, want %s@%s", s.origin, s.from, r.origin, r.from.name)
	case len(s.snaps) != len(r.snaps):
		return fmt.Sprintf("snapshots %+v, want %+v", s.snaps, r.snaps)
	}
	if d := r.shows("", s.sums, newestVersion); d != "" {
		return d
	}
	for b := range blocksOf(r.size) {
		if v := r.head(b).ver; s.vers[b] != v {
			return fmt.Sprintf("block %d: version %v, want %v", b, s.vers[b], v)
		}
	}
	if used := r.used(); s.used != used {
		return fmt.Sprintf("used %d, want %d", s.used, used)
	}
	if s.data < 0 || s.data > s.used && r.plain { // else older versions count
		return fmt.Sprintf("%d bytes are used, and their data takes %d", s.used, s.data)
	}
	for i, x := range r.snaps {
		y := s.snaps[i]
		clones := r.in.clonesNamed(r, x.name)
		if y.Name != x.name || y.Version != x.ver || y.Size != x.size || x.refd >= 0 && y.Referenced != x.refd || !slices.Equal(y.Clones, clones) {
			return fmt.Sprintf("snapshot %+v, want %+v with clones %v", y, x, clones)
		}
		if d := r.shows(x.name, s.shown[i], x.ver); d != "" {
			return d
		}
	}
	return ""
}

// clonesNamed returns the clones of a snapshot of r.
func (s refPool) clonesNamed(r *refReplica, snap string) []string {
	for name, x := range s {
		if x == r {
			return s.clonesOf(name, snap)
		}
	}
	return nil
}

// shows compares checksums with what the replica shows at a version.
func (r *refReplica) shows(snap string, sums []uint32, at block.Version) string {
	for b, sum := range sums {
		if want := r.at(uint64(b), at); sum != want.sum {
			return fmt.Sprintf("snapshot %q block %d: not the content of version %v", snap, b, want.ver)
		}
	}
	return ""
}

// look compares what takes long to find out: sizes and differences of snapshots. It returns "" if they are right.
func (m *refReplica) look(r *Replica) string {
	for _, s := range m.snaps {
		if n, err := r.SnapshotUnique(s.name); err != nil || !sameBytes(r, n, m.unique(s.name)) {
			return fmt.Sprintf("snapshot %s: %d bytes of its own, want %d (%v)", s.name, n, m.unique(s.name), err)
		}
	}
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
	return ""
}

// sameBytes compares a number of stored bytes with one of blocks, which are the same if nothing is ever compressed.
func sameBytes(r *Replica, n, want int64) bool {
	return n == want || r.p.opt.Compression != compress.Off && n > 0 && n < want
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
