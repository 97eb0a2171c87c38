package sim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
)

// Each replica has a pool of its own, of the smallest size that there is. A chunk of the model is the beginning of a chunk of
// the engine, whose other blocks stay empty.
const (
	deviceBytes  = 11 << 20
	replicaBytes = blocks / chunkBlocks * block.ChunkBlocks * block.Size
	ballastBytes = 16 << 20
)

func place(b uint64) uint64 { return b/chunkBlocks*block.ChunkBlocks + b%chunkBlocks }

// store is a replica's pool, on a device that keeps what it was told to flush, whatever happens.
type store struct {
	report  volume.Report // as the pool has it
	rng     *rand.Rand
	opt     pool.Options
	naming  []byte // of a GUID: what Rand returns next
	dev     *medium
	pool    *pool.Pool // nil: nobody has opened it
	r       *pool.Replica
	ballast *pool.Replica // what fills the pool; nil: nothing does
	synced  volume.State  // the newest state that is stable for certain
	view    *listing      // what the replica holds; nil: to be read
}

// powerLoss is what a store panics with when its machine lost power in the middle of what the pool did.
type powerLoss struct{ s *store }

// medium is the device of a store.
type medium struct {
	*disk.Mem
	left  int        // writes and flushes until it loses power, that one included; zero: it does not
	off   bool       // it has
	spoil *rand.Rand // if not nil, one bit of the next read is wrong
}

func (m *medium) ReadAt(b []byte, off int64) error {
	if m.off {
		return disk.ErrPowerOff
	}
	err := m.Mem.ReadAt(b, off)
	if rng := m.spoil; rng != nil && err == nil {
		m.spoil = nil
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
	}
	return err
}

func (m *medium) WritevAt(bufs [][]byte, off int64) error {
	if m.off {
		return disk.ErrPowerOff
	}
	m.count()
	if m.off && off/block.Size%2 == 0 { // it got nowhere
		return disk.ErrPowerOff
	}
	err := m.Mem.WritevAt(bufs, off)
	if m.off {
		err = disk.ErrPowerOff
	}
	return err
}

func (m *medium) Flush() error {
	if m.count(); m.off {
		return disk.ErrPowerOff
	}
	return m.Mem.Flush()
}

func (m *medium) Discard(off, length int64) error {
	if m.off {
		return disk.ErrPowerOff
	}
	return m.Mem.Discard(off, length)
}

// count counts an operation.
func (m *medium) count() {
	if m.left > 0 {
		m.left--
		m.off = m.left == 0
	}
}

// check is deferred by whatever uses the pool.
func (s *store) check() {
	if s.dev.off {
		panic(powerLoss{s})
	}
}

// newStore makes the pool of replica number n with an empty replica.
func newStore(seed uint64, n int, r volume.Report) (*store, error) {
	s := &store{report: r, rng: rand.New(rand.NewPCG(seed, concernStores+uint64(n)))}
	s.opt = pool.Options{
		Manual: true, Rand: s.random, SegmentBytes: 256 << 10, DeltaEntries: 4096, CheckpointBytes: 256 << 10, FlushBytes: 128 << 10,
		PageCacheBytes: 1 << 20, Compression: []compress.Algorithm{compress.LZ4, compress.Off}[s.rng.IntN(2)], NoDiscard: s.rng.IntN(4) > 0,
	}
	s.dev = &medium{Mem: disk.NewMem(r.Name, deviceBytes)}
	p, err := pool.Create(pool.Stripe(s.dev), pool.Config{Name: r.Name}, s.opt)
	if err != nil {
		return nil, err
	}
	s.naming = append([]byte(nil), r.GUID[:]...)
	s.pool = p
	if s.r, err = p.CreateReplica("volume", replicaBytes); err == nil && s.r.GUID() != r.GUID {
		err = fmt.Errorf("replica %v was to be %v", s.r.GUID(), r.GUID)
	}
	return s, err
}

// random is the pool's source of randomness, and gives the replica the GUID that it is to have.
func (s *store) random() uint64 {
	if len(s.naming) > 0 {
		b := s.naming[0]
		s.naming = s.naming[1:]
		return uint64(b) << 32
	}
	return s.rng.Uint64()
}

// leave drops the pool as the death of the process does.
func (s *store) leave() {
	if s.pool != nil {
		s.dev = &medium{Mem: s.dev.Kill()}
		s.drop()
	}
}

// powerCut drops the pool as the loss of power does.
func (s *store) powerCut(fate disk.Fate, rng *rand.Rand) {
	s.dev = &medium{Mem: s.dev.PowerCut(fate, rng)}
	s.drop()
}

func (s *store) drop() { s.pool, s.r, s.ballast, s.view = nil, nil, nil, nil }

// open opens the pool, unless it is. What it has is what the replica is from now on.
func (s *store) open() error {
	defer s.check()
	if s.pool != nil {
		return nil
	}
	p, err := pool.Open([]disk.Device{s.dev}, s.opt)
	if err != nil {
		return err
	}
	s.pool, s.r, s.ballast, s.view = p, p.Replica("volume"), p.Replica("ballast"), nil
	if s.r == nil || s.r.GUID() != s.report.GUID {
		return errors.New("the replica is gone")
	}
	s.report.State = volume.State{}
	if b := s.r.State(); b != nil {
		if err := json.Unmarshal(b, &s.report.State); err != nil {
			return err
		}
	}
	s.report.Last = s.r.Applied()
	if got, want := s.report.State.Promised, s.synced.Promised; got.Epoch < want.Epoch {
		return fmt.Errorf("the promise %v is gone, %v is there", want, got)
	}
	s.synced = s.report.State
	return nil
}

// put puts the state into the log.
func (s *store) put(st volume.State, applied block.Version) error {
	defer s.check()
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	s.report.State, s.report.Last = st, applied
	return s.r.PutState(b, applied)
}

// sync makes everything stable.
func (s *store) sync() error {
	defer s.check()
	err := s.pool.Sync()
	if err == nil {
		s.synced = s.report.State
	}
	return err
}

// work does some of what the pool does in the background.
func (s *store) work(idle bool) (did bool) {
	defer s.check()
	return s.pool.Work(idle)
}

// apply executes operations that follow each other.
func (s *store) apply(ops []volume.Op) error {
	defer s.check()
	var batch []pool.Op
	for i := range ops {
		op := &ops[i]
		for b, end := op.Block, op.Block+uint64(op.Count); b < end; {
			n := min(end-b, chunkBlocks-b%chunkBlocks)
			x := pool.Op{Kind: pool.OpWrite, Block: place(b), Count: uint32(n), Version: op.Version}
			switch {
			case op.Kind == volume.OpWrite:
				x.Data = op.Tag.(*request).data()[:n*block.Size]
			case n == chunkBlocks:
				x.Kind, x.Count = pool.OpDiscard, block.ChunkBlocks
			default:
				x.Kind = pool.OpDiscard
			}
			batch = append(batch, x)
			b += n
		}
	}
	s.view = nil
	if err := s.r.Apply(batch); err != nil {
		return err
	}
	s.report.Last = ops[len(ops)-1].Version
	return nil
}

// content is what a write leaves in each of its blocks: its number over and over, or something that does not compress.
func content(id uint64) []byte {
	b := make([]byte, block.Size)
	for i := range uint64(block.Size / 8) {
		binary.LittleEndian.PutUint64(b[8*i:], word(id, i))
	}
	return b
}

func word(id, i uint64) uint64 {
	if id%2 > 0 {
		return id
	}
	return id ^ i*i*0x9e3779b97f4a7c15
}

// number returns the number of the write that left a block, zero when there is nothing. It looks at each sector.
func number(b []byte) (uint64, error) {
	id := binary.LittleEndian.Uint64(b)
	for i := uint64(0); i < block.Size/8 && id != 0; i += 63 {
		if binary.LittleEndian.Uint64(b[8*i:]) != word(id, i) {
			return 0, fmt.Errorf("a block holds %d and something else", id)
		}
	}
	return id, nil
}

// read returns what blocks hold.
func (s *store) read(b, count uint64) (ids []uint64, err error) {
	buf := make([]byte, chunkBlocks*block.Size)
	for end := b + count; b < end; {
		n := min(end-b, chunkBlocks-b%chunkBlocks)
		if err := s.r.Read(place(b), buf[:n*block.Size], nil); err != nil {
			return nil, err
		}
		for i := range n {
			id, err := number(buf[i*block.Size : (i+1)*block.Size])
			if err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
		b += n
	}
	return ids, nil
}

// changed returns the chunks with anything newer than base.
func (s *store) changed(base block.Version) []uint64 {
	all, _, _ := s.r.Changed(base, 0, nil)
	return all
}

// versions of the blocks of a chunk.
type versions [block.ChunkBlocks]block.Version

// versions returns those that are newer than base; others are zero.
func (s *store) versions(i uint64, base block.Version) (v versions, err error) {
	return v, s.r.Newer(i, base, (*[block.ChunkBlocks]block.Version)(&v))
}

// chunk lists what is newer than base in a chunk, here or with who has those versions, with what he lacks.
func (s *store) chunk(i uint64, base block.Version, have *versions) (*pool.Chunk, error) {
	c := &pool.Chunk{}
	return c, s.r.ReadNewer(i, base, have[:], c)
}

// stage lists what is newer than base, here or with who has those versions, as of one moment, with what he lacks.
func (s *store) stage(base block.Version, have []block.Staged) ([]block.Staged, block.Version, error) {
	return s.r.ReadStage(base, have, nil)
}

// putStage applies a stage together with the state.
func (s *store) putStage(b []block.Staged, st volume.State, applied block.Version) error {
	defer s.check()
	state, err := json.Marshal(st)
	if err != nil {
		return err
	}
	s.view = nil
	if err := s.r.ApplyStage(b, state, applied); err != nil {
		return err
	}
	s.report.State, s.report.Last = st, applied
	return nil
}

// merge makes a chunk equal to the source's, live operations aside (replication rules 31 and 32).
func (s *store) merge(c *pool.Chunk) error {
	defer s.check()
	s.view = nil
	_, err := s.r.Merge(c)
	return err
}

// listing is what all blocks hold, and since when.
type listing struct {
	versions [blocks]block.Version
	contents [blocks]uint64
}

// list reads everything.
func (s *store) list() (*listing, error) {
	if s.view != nil {
		return s.view, nil
	}
	l := &listing{}
	for i := range uint64(blocks / chunkBlocks) {
		v, err := s.versions(i, block.Version{})
		if err != nil {
			return nil, err
		}
		copy(l.versions[i*chunkBlocks:(i+1)*chunkBlocks], v[:])
	}
	ids, err := s.read(0, blocks)
	copy(l.contents[:], ids)
	s.view = l
	return l, err
}

// difference returns a block in which two listings differ, in content or in version, -1 if there is none.
func (l *listing) difference(o *listing) int {
	for b := range l.contents {
		if l.contents[b] != o.contents[b] || l.contents[b] != 0 && l.versions[b] != o.versions[b] {
			return b
		}
	}
	return -1
}

// full reports whether targets are to be told that there is no room, as the shell decides it.
func (s *store) full(was bool) bool {
	stats := s.pool.Stats()
	reserve := stats.Capacity / 8
	if was {
		return stats.Free <= reserve+reserve/4
	}
	return stats.Free < reserve
}

// fill takes the room that is left, but for the reserve.
func (s *store) fill() (err error) {
	defer s.check()
	if s.ballast == nil {
		if s.ballast, err = s.pool.CreateReplica("ballast", ballastBytes); err != nil {
			return err
		}
	}
	const n = 64
	data := make([]byte, 0, n*block.Size)
	for i := range uint64(n) {
		data = append(data, content(2*(i+1))...)
	}
	b := uint64(0)
	for v := s.ballast.Applied().N; !s.full(false); b += n {
		v++
		if b+n > ballastBytes/block.Size {
			return errors.New("the pool cannot be filled")
		}
		if err := s.ballast.Apply([]pool.Op{{Kind: pool.OpWrite, Block: b, Count: n, Version: block.Version{Epoch: 1, N: v}, Data: data}}); err != nil {
			return err
		}
	}
	return nil
}

// empty gives the room back.
func (s *store) empty() error {
	defer s.check()
	if s.ballast == nil {
		return nil
	}
	v := s.ballast.Applied()
	return s.ballast.Apply([]pool.Op{{Kind: pool.OpDiscard, Count: ballastBytes / block.Size, Version: block.Version{Epoch: 1, N: v.N + 1}}})
}

// union merges two ascending lists.
func union(a, b []uint64) []uint64 {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}
