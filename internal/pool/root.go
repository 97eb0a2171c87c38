package pool

import (
	"encoding/binary"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// rootImage is a checkpoint's root as read back.
type rootImage struct {
	pool     block.GUID
	from     logPos
	appended uint64 // the log reached this batch, on stable storage, when the checkpoint was committed
	members  []memberImage
	scrub    scrubTask
	replicas []replicaImage
	clock    uint64 // blocks ever appended to the log where replay begins
	live     []uint32
	kind     []uint8
	birth    []uint64 // of segments with data
}

type replicaImage struct {
	slot    uint32
	guid    block.GUID
	name    string
	size    int64
	applied block.Version
	state   []byte
	dying   bool
	dirs    []dirImage // nodes
	data    int64      // bytes of data that pages refer to
	pages   int64
	blocks  int64 // directory blocks and nodes
	meta    int64 // bytes of pages, history pages and the directory
	held    int64 // bytes of older versions in pages and history pages
	history int64 // bytes of history pages
	snaps   snapshots
	purge   purge
	clone   bool
	origin  uint32
	from    string
}

type dirImage struct {
	dirSlot
	number uint64
}

const rootMagic = 0x544f4f5247435343

// encodeRoot returns the root of the checkpoint being made and takes the root before it out of the accounts.
func (p *Pool) encodeRoot() []byte {
	s := &p.drain
	le := binary.LittleEndian
	p.idx.mu.Lock()
	for _, e := range p.root {
		p.accountRoot(e, -1)
	}
	p.idx.mu.Unlock()
	p.root = nil
	b := le.AppendUint64(nil, rootMagic)
	b = append(b, p.cfg.GUID[:]...)
	b = binary.AppendUvarint(b, uint64(s.from.seg))
	b = binary.AppendUvarint(b, uint64(s.from.block))
	b = binary.AppendUvarint(b, s.from.seq)
	b = le.AppendUint32(b, s.from.prev)
	b = le.AppendUint64(b, s.from.incarnation)
	b = binary.AppendUvarint(b, p.appended.Load())
	b = p.encodeMembers(b)
	b = p.encodeScrub(b)
	b = binary.AppendUvarint(b, s.clock)
	b = binary.AppendUvarint(b, uint64(len(s.images)))
	for i := range s.images { // the holder of drain.mu is the only one to change pages and directory blocks
		p.idx.mu.RLock()
		b = encodeReplica(b, &s.images[i])
		p.idx.mu.RUnlock()
	}
	b = binary.AppendUvarint(b, uint64(p.seg.count()))
	for i := 0; i < p.seg.count(); {
		if p.seg.pageLive[i] == 0 { // whatever it is now: the replay finds those that belong to the log
			run := i
			for run < p.seg.count() && p.seg.pageLive[run] == 0 {
				run++
			}
			b = binary.AppendUvarint(b, uint64(run-i)<<segKindBits)
			i = run
			continue
		}
		kind := p.seg.kind[i]
		b = binary.AppendUvarint(b, uint64(p.seg.pageLive[i]/index.Granule)<<segKindBits|uint64(kind))
		if kind != segIndex {
			b = binary.AppendUvarint(b, min(s.clock-min(s.clock, p.seg.birth[i]), maxAge))
		}
		i++
	}
	return b
}

func encodeReplica(b []byte, m *image) []byte {
	r := m.r
	b = binary.AppendUvarint(b, uint64(r.slot))
	b = append(b, r.guid[:]...)
	b = binary.AppendUvarint(b, uint64(len(r.name)))
	b = append(b, r.name...)
	b = binary.AppendUvarint(b, uint64(m.size))
	b = binary.AppendUvarint(b, m.applied.Epoch)
	b = binary.AppendUvarint(b, m.applied.N)
	if m.dying {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(m.state)))
	b = append(b, m.state...)
	n := 0
	for i := range r.dir {
		if r.dir[i].size > 0 {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	for i := range r.dir {
		if d := &r.dir[i].dirSlot; d.size > 0 {
			b = appendSlot(binary.AppendUvarint(b, uint64(i)), d)
		}
	}
	b = binary.AppendUvarint(b, uint64(r.data))
	b = binary.AppendUvarint(b, uint64(r.pages))
	b = binary.AppendUvarint(b, uint64(r.dirs))
	b = binary.AppendUvarint(b, uint64(r.meta))
	return encodeVersions(b, m)
}

// encodeVersions appends what a root says about the snapshots of a replica and about its origin. The index lock is
// held.
func encodeVersions(b []byte, m *image) []byte {
	r := m.r
	b = binary.AppendUvarint(b, uint64(r.held))
	b = binary.AppendUvarint(b, uint64(r.history))
	b = binary.AppendUvarint(b, uint64(len(m.snaps)))
	for i := range m.snaps {
		x := &m.snaps[i]
		b = binary.AppendUvarint(b, uint64(len(x.name)))
		b = append(b, x.name...)
		b = binary.AppendUvarint(b, x.ver.Epoch)
		b = binary.AppendUvarint(b, x.ver.N)
		b = binary.AppendUvarint(b, uint64(x.size))
		b = binary.AppendUvarint(b, uint64(x.refd))
	}
	next := uint64(0) // what is still to be purged; the log may have more to purge behind this place
	if r.purge.wanted {
		if next = 1; !r.purge.again {
			next += r.purge.next
		}
	}
	b = binary.AppendUvarint(b, next)
	if r.origin == nil || m.dying {
		return binary.AppendUvarint(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(r.origin.slot)+1)
	b = binary.AppendUvarint(b, uint64(len(r.from.name)))
	return append(b, r.from.name...)
}

// rootReader takes values off a root and remembers that it ran out of bytes or met a value out of bounds.
type rootReader struct {
	b   []byte
	bad bool
}

func (r *rootReader) uint(limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *rootReader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *rootReader) fixed(n int) uint64 {
	var v [8]byte
	copy(v[:], r.bytes(uint64(n)))
	return binary.LittleEndian.Uint64(v[:])
}

// decodeRoot reads a root of a pool of so many segments. It may be of a time when there were fewer.
func decodeRoot(b []byte, segments int, segShift uint) (*rootImage, error) {
	r := &rootReader{b: b}
	const any = ^uint64(0)
	if r.fixed(8) != rootMagic {
		return nil, fmt.Errorf("checkpoint root: magic: %w", ErrDamaged)
	}
	m := &rootImage{live: make([]uint32, segments), kind: make([]uint8, segments), birth: make([]uint64, segments)}
	copy(m.pool[:], r.bytes(16))
	m.from.seg = uint32(r.uint(uint64(segments - 1)))
	m.from.block = uint32(r.uint(1<<(segShift-block.Shift) - 1))
	m.from.seq = r.uint(any)
	m.from.prev = uint32(r.fixed(4))
	m.from.incarnation = r.fixed(8)
	m.appended = r.uint(any)
	m.members = decodeMembers(r, uint64(segments))
	m.scrub = decodeScrub(r)
	m.clock = r.uint(any)
	slots := map[uint32]bool{}
	for n := r.uint(MaxReplicas); n > 0 && !r.bad; n-- {
		x := decodeReplica(r, uint64(segments)<<segShift)
		if slots[x.slot] {
			r.bad = true
		}
		slots[x.slot] = true
		m.replicas = append(m.replicas, x)
	}
	known := int(r.uint(uint64(segments))) // the pool may have grown since
	for i := 0; i < known && !r.bad; {
		v := r.uint(any)
		kind, n := uint8(v&(1<<segKindBits-1)), v>>segKindBits
		if kind == segFree {
			if n == 0 || n > uint64(known-i) {
				r.bad = true
			}
			i += int(n)
			continue
		}
		if kind >= segKinds || n > 1<<segShift/index.Granule {
			r.bad = true
			break
		}
		m.live[i], m.kind[i] = uint32(n)*index.Granule, kind
		if kind != segIndex {
			m.birth[i] = m.clock - r.uint(m.clock)
		}
		i++
	}
	if r.bad || len(r.b) > 0 {
		return nil, fmt.Errorf("checkpoint root: %w", ErrDamaged)
	}
	return m, nil
}

func decodeReplica(r *rootReader, limit uint64) (m replicaImage) {
	const any = ^uint64(0)
	m.slot = uint32(r.uint(MaxReplicas - 1))
	copy(m.guid[:], r.bytes(16))
	m.name = string(r.bytes(r.uint(MaxName)))
	m.size = int64(r.uint(MaxReplicaSize))
	m.applied = block.Version{Epoch: r.uint(any), N: r.uint(any)}
	m.dying = r.fixed(1) != 0
	if n := r.uint(MaxState); n > 0 {
		m.state = append([]byte(nil), r.bytes(n)...)
	}
	last := uint64(MaxReplicaSize / block.Size / block.ChunkBlocks / dirSpan / nodeSpan)
	for n := r.uint(last + 1); n > 0 && !r.bad; n-- {
		d := dirImage{number: r.uint(last)}
		ok := false
		if b := r.bytes(slotBytes); b != nil {
			d.dirSlot, ok = decodeSlot(b, limit)
		}
		if i := len(m.dirs); !ok || i > 0 && d.number <= m.dirs[i-1].number {
			r.bad = true
		}
		m.dirs = append(m.dirs, d)
	}
	m.data, m.pages, m.blocks, m.meta = int64(r.uint(limit)), int64(r.uint(limit)), int64(r.uint(limit)), int64(r.uint(limit))
	m.held, m.history = int64(r.uint(limit)), int64(r.uint(limit))
	for n := r.uint(MaxSnapshots); n > 0 && !r.bad; n-- {
		x := snapshot{name: string(r.bytes(r.uint(MaxName))), ver: block.Version{Epoch: r.uint(any), N: r.uint(any)}}
		x.size, x.refd = int64(r.uint(MaxReplicaSize)), int64(r.uint(2*MaxReplicaSize))
		if i := len(m.snaps); i > 0 && x.ver.Less(m.snaps[i-1].ver) || m.snaps.find(x.name) >= 0 {
			r.bad = true
		}
		m.snaps = append(m.snaps, x)
	}
	if next := r.uint(any); next > 0 {
		m.purge = purge{wanted: true, begun: next > 1, next: next - 1}
	}
	if origin := r.uint(MaxReplicas); origin > 0 {
		m.clone, m.origin = true, uint32(origin-1)
		m.from = string(r.bytes(r.uint(MaxName)))
	}
	return m
}
