package pool

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

var (
	modelSeed  = flag.Uint64("model.seed", 0, "run the model test with this seed only")
	modelSeeds = flag.Int("model.seeds", 1, "number of seeds of the model test for each layout")
	modelOps   = flag.Int("model.ops", 1200, "operations per seed")
)

// modelBlock is what a block is in the reference model.
type modelBlock struct {
	ver    block.Version
	sum    uint32
	stored bool
}

// modelReplica is the trivial implementation of a replica.
type modelReplica struct {
	name    string
	blocks  []modelBlock
	applied block.Version
	state   string
	n       uint64 // last version number handed out
	epoch   uint64
	raw     bool // nothing is ever compressed
}

func (m *modelReplica) clone() *modelReplica {
	c := *m
	c.blocks = append([]modelBlock(nil), m.blocks...)
	return &c
}

func (m *modelReplica) apply(ops []Op) {
	for _, o := range ops {
		for i := range uint64(o.Count) {
			switch o.Kind {
			case OpWrite:
				sum := block.Sum(o.Data[i*block.Size : (i+1)*block.Size])
				m.blocks[o.Block+i] = modelBlock{o.Version, sum, sum != block.ZeroSum}
			case OpDiscard:
				m.blocks[o.Block+i] = modelBlock{ver: o.Version, sum: block.ZeroSum}
			}
		}
		m.applied = o.Version
	}
}

func (m *modelReplica) merge(c *Chunk) {
	for i := range block.ChunkBlocks {
		b := c.Index*block.ChunkBlocks + uint64(i)
		if b >= uint64(len(m.blocks)) {
			break
		}
		switch block.Resolve(m.blocks[b].ver, c.Versions[i], c.Scan) {
		case block.Take:
			m.blocks[b] = modelBlock{c.Versions[i], c.Sums[i], c.Stored[i] && c.Sums[i] != block.ZeroSum}
			if !c.Stored[i] {
				m.blocks[b].sum = block.ZeroSum
			}
		case block.Drop:
			m.blocks[b] = modelBlock{sum: block.ZeroSum}
		}
	}
}

// diff returns how r differs from the model, "" if it does not.
func (m *modelReplica) diff(r *Replica) string {
	if r == nil {
		return "missing"
	}
	if r.Applied() != m.applied {
		return fmt.Sprintf("applied %v, want %v", r.Applied(), m.applied)
	}
	if string(r.State()) != m.state {
		return fmt.Sprintf("state %q, want %q", r.State(), m.state)
	}
	dst := make([]byte, len(m.blocks)*block.Size)
	sums := make([]uint32, len(m.blocks))
	if err := r.Read(0, dst, sums); err != nil {
		return err.Error()
	}
	used := int64(0)
	var vers [block.ChunkBlocks]block.Version
	for i := range m.blocks {
		if i%block.ChunkBlocks == 0 {
			r.ChunkVersions(uint64(i/block.ChunkBlocks), &vers)
		}
		b := &m.blocks[i]
		want := b.sum
		if b.stored {
			used += block.Size
		} else {
			want = block.ZeroSum
		}
		if v := vers[i%block.ChunkBlocks]; v != b.ver {
			return fmt.Sprintf("block %d: version %v, want %v", i, v, b.ver)
		}
		if sums[i] != want || block.Sum(dst[i*block.Size:(i+1)*block.Size]) != want {
			return fmt.Sprintf("block %d (version %v): content differs", i, b.ver)
		}
	}
	s := r.Stats()
	if s.Used != used {
		return fmt.Sprintf("used %d, want %d", s.Used, used)
	}
	if s.Data < 0 || s.Data > used || m.raw && s.Data != used { // what is stored as it is, is exact at any time
		return fmt.Sprintf("data takes %d bytes of %d", s.Data, used)
	}
	return ""
}

type modelTest struct {
	t      *testing.T
	rng    *rand.Rand
	layout layout
	mems   []*disk.Mem
	away   map[int]bool // devices that are not there
	power  *powerSwitch // behind which devices are, if there is one
	opt    Options
	p      *Pool
	now    map[string]*modelReplica
	stable map[string]*modelReplica
	log    []func(map[string]*modelReplica) // since stable
	trace  []string
	full   int
	dense  bool // what is written does not compress

	lost, stale, degraded, lies int // devices that went, came back, opens without all, corrupted pieces
	sum                         Stats
}

// data returns content for n blocks.
func (m *modelTest) data(n int) []byte {
	if m.dense {
		return noise(n, m.rng.Uint64())
	}
	return mixed(m.rng, n)
}

func (m *modelTest) note(format string, a ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, a...))
	if len(m.trace) > 60 {
		m.trace = m.trace[1:]
	}
}

func (m *modelTest) fatalf(format string, a ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nlast operations:\n%s", fmt.Sprintf(format, a...), strings.Join(m.trace, "\n"))
}

// did records an event that happened.
func (m *modelTest) did(f func(map[string]*modelReplica)) {
	f(m.now)
	m.log = append(m.log, f)
}

// synced records that everything so far is stable.
func (m *modelTest) synced() {
	m.stable = map[string]*modelReplica{}
	for k, v := range m.now {
		m.stable[k] = v.clone()
	}
	m.log = nil
}

func (m *modelTest) devices() (d []disk.Device) {
	for _, i := range m.rng.Perm(len(m.mems)) {
		switch {
		case m.away[i]:
		case m.power != nil:
			d = append(d, switched{m.mems[i], m.power})
		default:
			d = append(d, m.mems[i])
		}
	}
	return d
}

func (m *modelTest) pick() *modelReplica {
	n := m.rng.IntN(len(m.now))
	best := ""
	for i := 0; i <= n; i++ { // map order must not matter to the seed
		next := ""
		for k := range m.now {
			if k > best && (next == "" || k < next) {
				next = k
			}
		}
		best = next
	}
	return m.now[best]
}

func (m *modelTest) version(r *modelReplica) block.Version {
	if r.epoch == 0 || m.rng.IntN(50) == 0 {
		r.epoch++
	}
	r.n++
	return block.Version{Epoch: r.epoch, N: r.n}
}

func (m *modelTest) extent(r *modelReplica, limit int) (uint64, uint32) {
	b := m.rng.IntN(len(r.blocks))
	if m.rng.IntN(3) == 0 {
		b &^= block.ChunkBlocks - 1
	}
	n := 1 + m.rng.IntN(limit)
	return uint64(b), uint32(min(n, len(r.blocks)-b))
}

func (m *modelTest) apply(r *modelReplica) {
	var ops []Op
	data := 0
	// What a small delta can take as one unit is 1024 entries; the batches of a large one may be anything.
	longest, most := []int{1, 40, 600, 4000}, 8
	if m.opt.DeltaEntries < 32768 {
		longest, most = []int{1, 40, 100, 150}, 6
	}
	for range 1 + m.rng.IntN(most) {
		o := Op{Version: m.version(r)}
		switch k := m.rng.IntN(20); {
		case k < 13:
			o.Kind = OpWrite
			o.Block, o.Count = m.extent(r, []int{1, 4, 40, 150}[m.rng.IntN(4)])
			o.Data = m.data(int(o.Count))
			data += int(o.Count)
			if m.rng.IntN(2) == 0 {
				for i := 0; i < len(o.Data); i += block.Size {
					o.Sums = append(o.Sums, block.Sum(o.Data[i:i+block.Size]))
				}
			}
		case k < 18:
			o.Kind = OpDiscard
			o.Block, o.Count = m.extent(r, longest[m.rng.IntN(4)])
		default:
			o.Kind = OpMark
		}
		ops = append(ops, o)
	}
	err := m.p.Replica(r.name).Apply(ops)
	m.note("apply %s %d ops, %d blocks to %v: %v", r.name, len(ops), data, ops[len(ops)-1].Version, err)
	if errors.Is(err, ErrNoSpace) && data > 0 {
		m.full++
		return
	}
	if err != nil {
		m.fatalf("apply: %v", err)
	}
	name := r.name
	m.did(func(s map[string]*modelReplica) { s[name].apply(ops) })
}

func (m *modelTest) merge(r *modelReplica) {
	c := &Chunk{Index: uint64(m.rng.IntN((len(r.blocks) + block.ChunkBlocks - 1) / block.ChunkBlocks)), Scan: r.applied}
	if m.rng.IntN(3) == 0 && r.applied.N > 20 {
		c.Scan.N -= uint64(m.rng.IntN(20))
	}
	stale := false
	whole := m.rng.IntN(4)
	for i := range block.ChunkBlocks {
		b := c.Index*block.ChunkBlocks + uint64(i)
		c.Sums[i] = block.ZeroSum
		if b >= uint64(len(r.blocks)) {
			break
		}
		local := r.blocks[b]
		switch k := m.rng.IntN(8); {
		case whole == 0: // the source discarded or never had all of it
			if c.Scan.N%2 == 0 {
				c.Versions[i] = block.Version{Epoch: 1, N: 1}
			}
		case k < 5:
			c.Versions[i], c.Sums[i], c.Stored[i] = local.ver, local.sum, local.stored
			if local.ver.IsZero() {
				c.Sums[i] = block.ZeroSum
			}
		case k == 5:
		case k == 6:
			c.Versions[i] = block.Version{Epoch: 1 + m.rng.Uint64N(r.epoch+1), N: 1 + m.rng.Uint64N(r.n+1)}
			if c.Versions[i] == local.ver {
				c.Versions[i].N += 1 << 40
			}
		default:
			c.Versions[i] = block.Version{Epoch: 1 + m.rng.Uint64N(r.epoch+1), N: 1<<41 + m.rng.Uint64N(1<<40)}
			d := m.data(1)
			c.Stored[i], c.Sums[i] = true, block.Sum(d)
			if m.rng.IntN(2000) == 0 {
				stale = stale || block.Resolve(local.ver, c.Versions[i], c.Scan) == block.Take
				continue
			}
			c.Data, c.DataOf = append(c.Data, d...), append(c.DataOf, uint16(i))
		}
	}
	res, err := m.p.Replica(r.name).Merge(c)
	m.note("merge %s chunk %d scan %v: %+v, %v", r.name, c.Index, c.Scan, res, err)
	switch {
	case errors.Is(err, ErrNoSpace):
		m.full++
		return
	case errors.Is(err, ErrStaleChunk) && stale:
		return
	case err != nil || stale:
		m.fatalf("merge: %v, stale %t", err, stale)
	}
	name := r.name
	m.did(func(s map[string]*modelReplica) { s[name].merge(c) })
}

func (m *modelTest) step() {
	switch k := m.rng.IntN(100); {
	case k < 3 && len(m.now) < 4 || len(m.now) == 0:
		name := fmt.Sprintf("r%d", m.rng.IntN(1000))
		if m.now[name] != nil {
			return
		}
		size := int64(1+m.rng.IntN(2500)) * 4096
		_, err := m.p.CreateReplica(name, size-int64(m.rng.IntN(8))*512)
		m.note("create %s %d: %v", name, size, err)
		if errors.Is(err, ErrNoSpace) {
			return
		}
		must(m.t, err)
		r := &modelReplica{name: name, blocks: make([]modelBlock, size/4096), raw: m.opt.Compression == compress.Off}
		m.now[name] = r
		m.synced()
	case k < 5:
		r := m.pick()
		m.note("destroy %s", r.name)
		must(m.t, m.p.DestroyReplica(r.name))
		delete(m.now, r.name)
		m.synced()
	case k < 11:
		m.note("sync")
		must(m.t, m.p.Sync())
		m.synced()
	case k < 15:
		r := m.pick()
		r.applied = m.version(r)
		r.state = strings.Repeat(fmt.Sprint(r.n, " "), m.rng.IntN(4000))
		m.note("set state %s", r.name)
		must(m.t, m.p.Replica(r.name).SetState([]byte(r.state), r.applied))
		m.synced()
	case k < 25:
		m.merge(m.pick())
	case k < 27:
		must(m.t, m.p.cycle())
		m.note("cycle")
		m.check()
	case k < 29:
		m.note("close and open")
		must(m.t, m.p.Close())
		reopenAll(m.mems)
		m.someReturn()
		m.open()
		m.synced()
		m.check()
	case k < 31:
		m.note("kill")
		m.mems = disk.KillAll(m.mems)
		m.crash(true)
	case k < 35:
		fates := make([]disk.Fate, len(m.mems))
		for i := range fates {
			if fates[i] = fates[0]; i == 0 || m.rng.IntN(2) == 0 {
				fates[i] = disk.Fate(m.rng.IntN(4))
			}
		}
		all := !slices.ContainsFunc(fates, func(f disk.Fate) bool { return f != disk.Kept })
		m.note("power cut, fates %d", fates)
		m.mems = disk.PowerCutAll(m.mems, func(i int) disk.Fate { return fates[i] }, m.rng)
		m.crash(all)
	case k < 36:
		if m.opt.Compression != compress.Off {
			a := compress.Algorithm(m.rng.IntN(3))
			m.p.SetCompression(a)
			m.note("compression %v", a)
		}
	case k < 38:
		m.fault()
	case k < 40:
		r := m.pick()
		if d := r.diff(m.p.Replica(r.name)); d != "" {
			m.fatalf("replica %s: %s", r.name, d)
		}
	default:
		m.apply(m.pick())
	}
}

func (m *modelTest) open() {
	m.tally()
	p, err := Open(m.devices(), m.opt)
	if err != nil {
		m.fatalf("open: %v", err)
	}
	m.p = p
	if len(m.away) > 0 {
		m.degraded++
		if h := p.Stats().Health; h != HealthDegraded {
			m.fatalf("%d devices are away, and the pool is %s", len(m.away), h)
		}
	}
}

// tally adds up what happened while the pool was open.
func (m *modelTest) tally() {
	s := m.p.Stats()
	m.sum.Checkpoints += s.Checkpoints
	m.sum.PagesWritten += s.PagesWritten
	m.sum.BlocksRepaired += s.BlocksRepaired
	m.sum.BlocksMoved += s.BlocksMoved
	m.sum.Replayed += s.Replayed
	m.sum.BlocksWritten += s.BlocksWritten
	m.sum.BlocksPacked += s.BlocksPacked
	m.sum.BlocksZero += s.BlocksZero
}

// crash opens the pool after the devices went away under it and finds the prefix of the events that is there.
func (m *modelTest) crash(all bool) {
	m.p.Close() // fails, since the devices are gone; stops the background
	m.someReturn()
	m.open()
	state := map[string]*modelReplica{}
	for k, v := range m.stable {
		state[k] = v.clone()
	}
	var why []string
	for i := 0; ; i++ {
		d := m.differs(state)
		if d == "" && (!all || i == len(m.log)) {
			m.note("found %d of %d events", i, len(m.log))
			break
		}
		why = append(why, fmt.Sprintf("after %d events: %s", i, d))
		if i == len(m.log) {
			m.fatalf("no prefix of %d events:\n%s", i, strings.Join(why[max(0, len(why)-5):], "\n"))
		}
		m.log[i](state)
	}
	for k, v := range state { // numbers are never handed out twice
		if now := m.now[k]; now != nil {
			v.n, v.epoch = now.n+1, now.epoch+1
		}
	}
	m.now = state
	m.synced() // what a crash left is stable from then on: readers may have seen it
	m.check()
}

func (m *modelTest) differs(state map[string]*modelReplica) string {
	if n := len(m.p.Replicas()); n != len(state) {
		return fmt.Sprintf("%d replicas, want %d", n, len(state))
	}
	for k, v := range state {
		if d := v.diff(m.p.Replica(k)); d != "" {
			return k + ": " + d
		}
	}
	return ""
}

func (m *modelTest) check() {
	m.t.Helper()
	if err := m.p.Check(); err != nil {
		m.fatalf("%v", err)
	}
}

// fault lets something happen to devices that their groups can do without.
func (m *modelTest) fault() {
	victims := m.layout.victims()
	if len(victims) == 0 {
		return
	}
	i := victims[m.rng.IntN(len(victims))]
	if m.rng.IntN(3) > 0 {
		size := m.mems[i].Size() - 2<<20
		at := 1<<20 + m.rng.Int64N(size)&^4095
		n := min(int64(1+m.rng.IntN(64))<<12, size+1<<20-at)
		m.note("device %d lies: %d bytes at %d", i, n, at)
		m.mems[i].Corrupt(at, n, m.rng)
		m.lies++
		return
	}
	if !m.away[i] {
		m.note("device %d goes", i)
		m.mems[i].Disappear()
		m.away[i] = true
		m.lost++
	}
}

// someReturn decides which devices are there when the pool is opened next.
func (m *modelTest) someReturn() {
	for i := range m.mems {
		if m.away[i] && m.rng.IntN(2) == 0 {
			m.note("device %d is back", i)
			m.mems[i].Reappear()
			delete(m.away, i)
			m.stale++
		}
	}
}

// TestModel runs random operations with crashes against the reference model, on every layout.
func TestModel(t *testing.T) {
	base := *modelSeed
	if base == 0 {
		base = uint64(time.Now().UnixNano()) % 1e9
	}
	forLayouts(t, func(t *testing.T, l layout) {
		for i := range *modelSeeds {
			seed := base + uint64(i)
			t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
				t.Parallel()
				runModel(t, l, seed)
			})
		}
	})
}

func runModel(t *testing.T, l layout, seed uint64) {
	runModelOn(t, l, seed, false, func(rng *rand.Rand) int64 { return int64(12+rng.IntN(8)*rng.IntN(8)) << 20 })
}

// runModelOn runs it on groups of the given sizes; with data that does not compress if so wanted.
func runModelOn(t *testing.T, l layout, seed uint64, raw bool, size func(rng *rand.Rand) int64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := &modelTest{t: t, rng: rng, now: map[string]*modelReplica{}, layout: l, away: map[int]bool{}}
	m.dense = rng.IntN(3) == 0
	m.opt = Options{Compression: compress.Algorithm(rng.IntN(3)), DeltaEntries: 4096 << (3 * rng.IntN(2)), SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10, CheckpointBytes: int64(1+rng.IntN(8)) << 20, FlushBytes: int64(1+rng.IntN(4)) << 20, NoDiscard: rng.IntN(2) == 0}
	if raw {
		m.dense, m.opt.Compression = true, compress.Off
	}
	mems, groups := l.make(func() int64 { return size(rng) })
	m.mems = mems
	p, err := Create(groups, Config{Name: "model"}, m.opt)
	must(t, err)
	m.p = p
	fresh := p.Stats()
	m.synced()
	for range *modelOps {
		m.step()
	}
	m.check()
	for len(m.now) > 0 {
		r := m.pick()
		if d := r.diff(m.p.Replica(r.name)); d != "" {
			m.fatalf("replica %s: %s", r.name, d)
		}
		must(t, m.p.DestroyReplica(r.name))
		delete(m.now, r.name)
	}
	must(t, m.p.cycle())
	m.check()
	if s := m.p.Stats(); s.Allocated > fresh.Allocated+1<<20 || s.FreeSegments < fresh.FreeSegments-8 {
		m.fatalf("not empty: %+v, fresh %+v", s, fresh)
	}
	m.tally()
	t.Logf("%d segments, %d checkpoints, %d pages, %d batches replayed, %d blocks moved, full %d times; %d devices lost, %d back, %d opens without all, %d lies, %d repaired; of %d blocks %d compressed, %d zeroes",
		m.p.Stats().Segments, m.sum.Checkpoints, m.sum.PagesWritten, m.sum.Replayed, m.sum.BlocksMoved, m.full, m.lost, m.stale, m.degraded, m.lies, m.sum.BlocksRepaired, m.sum.BlocksWritten, m.sum.BlocksPacked, m.sum.BlocksZero)
	must(t, m.p.Close())
}
