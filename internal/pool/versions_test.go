package pool

import (
	"errors"
	"flag"
	"fmt"
	"maps"
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
	versionsSeed  = flag.Uint64("versions.seed", 0, "run the model test of versions with this seed only")
	versionsSeeds = flag.Int("versions.seeds", 4, "number of seeds of the model test of versions")
	versionsOps   = flag.Int("versions.ops", 400, "operations per seed")
)

// versionsTest runs random operations on a pool and on the reference.
type versionsTest struct {
	t      *testing.T
	rng    *rand.Rand
	mem    *disk.Mem
	opt    Options
	p      *Pool
	now    modelState
	stable modelState
	log    []func(modelState)
	trace  []string
	n      uint64
	epoch  uint64
	count  map[string]int
}

func (m *versionsTest) note(what, format string, a ...any) {
	m.count[what]++
	m.trace = append(m.trace, what+" "+fmt.Sprintf(format, a...))
	m.trace = m.trace[max(0, len(m.trace)-60):]
}

func (m *versionsTest) fatalf(format string, a ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nlast operations:\n%s", fmt.Sprintf(format, a...), strings.Join(m.trace, "\n"))
}

func (m *versionsTest) must(err error) {
	m.t.Helper()
	if err != nil {
		m.fatalf("%v", err)
	}
}

func (m *versionsTest) did(f func(modelState)) {
	f(m.now)
	m.log = append(m.log, f)
}

func (m *versionsTest) synced() {
	m.stable, m.log = m.now.copy(), nil
}

func (m *versionsTest) pick() string {
	names := slices.Sorted(maps.Keys(m.now))
	return names[m.rng.IntN(len(names))]
}

func (m *versionsTest) version() block.Version {
	if m.rng.IntN(60) == 0 {
		m.epoch++
	}
	m.n++
	return block.Version{Epoch: m.epoch, N: m.n}
}

func (m *versionsTest) extent(r *refReplica) (uint64, uint32) {
	blocks := int(blocksOf(r.size))
	b := m.rng.IntN(blocks)
	n := 1 + m.rng.IntN([]int{1, 4, 40}[m.rng.IntN(3)])
	return uint64(b), uint32(min(n, blocks-b))
}

func (m *versionsTest) clonesOf(origin string) (names []string) {
	for k, v := range m.now {
		if v.origin == origin || strings.HasPrefix(v.origin, origin+"@") {
			names = append(names, k)
		}
	}
	return names
}

// apply applies a random batch.
func (m *versionsTest) apply(name string) {
	r := m.now[name].copy()
	var ops []Op
	data := 0
	for range 1 + m.rng.IntN(6) {
		o := Op{Version: m.version()}
		switch k := m.rng.IntN(24); {
		case k < 14:
			o.Kind = OpWrite
			o.Block, o.Count = m.extent(r)
			o.Data = fill(int(o.Count), m.rng.Uint64())
			data += int(o.Count)
		case k < 17:
			o.Kind = OpDiscard
			if o.Block, o.Count = m.extent(r); m.rng.IntN(3) == 0 { // whole chunks
				o.Block &^= block.ChunkBlocks - 1
				o.Count = uint32(min(blocksOf(r.size)-o.Block, uint64(1+m.rng.IntN(1200))))
			}
		case k < 20 && len(r.snaps) < 12:
			o.Kind, o.Name = OpSnapshot, fmt.Sprint("s", m.rng.IntN(1000))
			if slices.ContainsFunc(r.snaps, func(s refSnapshot) bool { return s.name == o.Name }) || r.ahead(o.Version) {
				continue
			}
			m.count["snapshot"]++
		case k < 22 && len(r.snaps) > 0:
			o.Kind, o.Name = OpDeleteSnapshot, r.snaps[m.rng.IntN(len(r.snaps))].name
			if len(m.clonesOf(name+"@"+o.Name)) > 0 {
				if err := m.p.Replica(name).Apply([]Op{o}); !errors.Is(err, ErrInUse) {
					m.fatalf("delete of snapshot %s in use: %v", o.Name, err)
				}
				continue
			}
			m.count["delete"]++
		case k == 22 && m.rng.IntN(4) == 0:
			o.Kind, o.Size = OpResize, int64(1+m.rng.IntN(1400))*block.Size-512*int64(m.rng.IntN(3))
			m.count["resize"]++
		default:
			o.Kind = OpMark
		}
		r.apply(&o)
		ops = append(ops, o)
	}
	if len(ops) == 0 {
		return
	}
	err := m.p.Replica(name).Apply(ops)
	m.note("apply", "%s %v: %v", name, describe(ops), err)
	if errors.Is(err, ErrNoSpace) && data > 0 {
		m.count["full"]++
		m.resync(name)
		return
	}
	m.must(err)
	m.did1(name, ops)
}

// did1 records a batch as the units that it makes.
func (m *versionsTest) did1(name string, ops []Op) {
	for len(ops) > 0 {
		n := 0
		for n < len(ops) && ops[n].Kind < OpSnapshot {
			n++
		}
		if n == 0 {
			n = 1
		}
		unit := ops[:n]
		m.did(func(s modelState) {
			for i := range unit {
				s[name].apply(&unit[i])
			}
		})
		if ops = ops[n:]; unit[0].Kind == OpResize {
			m.must(m.p.Sync()) // its discard is a unit of its own
			m.synced()
		}
	}
}

// resync finds out how far a batch got for which there was no room.
func (m *versionsTest) resync(name string) {
	m.t.Skipf("the pool is full")
}

func describe(ops []Op) string {
	var b strings.Builder
	for _, o := range ops {
		switch o.Kind {
		case OpWrite:
			fmt.Fprintf(&b, " w%d+%d", o.Block, o.Count)
		case OpDiscard:
			fmt.Fprintf(&b, " d%d+%d", o.Block, o.Count)
		case OpSnapshot:
			fmt.Fprintf(&b, " +%s", o.Name)
		case OpDeleteSnapshot:
			fmt.Fprintf(&b, " -%s", o.Name)
		case OpResize:
			fmt.Fprintf(&b, " size%d", o.Size)
		}
		fmt.Fprintf(&b, "@%v", o.Version)
	}
	return b.String()
}

func (m *versionsTest) step() {
	switch k := m.rng.IntN(100); {
	case k < 2 && len(m.now) < 3 || len(m.now) == 0:
		m.n++
		name, size := fmt.Sprint("r", m.n), int64(1+m.rng.IntN(1400))*block.Size
		m.note("create", "%s %d", name, size)
		_, err := m.p.CreateReplica(name, size)
		m.must(err)
		m.now[name] = &refReplica{size: size, blocks: map[uint64][]refVersion{}, hidden: map[uint64]bool{}, state: m.now}
		m.synced()
	case k < 6:
		name := m.pick()
		r := m.now[name]
		if len(r.snaps) == 0 || len(m.now) >= 5 {
			return
		}
		i, clone := m.rng.IntN(len(r.snaps)), fmt.Sprint("c", m.n)
		m.n++
		m.note("clone", "%s of %s@%s", clone, name, r.snaps[i].name)
		_, err := m.p.Clone(clone, name, r.snaps[i].name)
		m.must(err)
		m.now[clone] = r.clone(name, i)
		m.synced()
	case k < 8:
		name := m.pick()
		err := m.p.DestroyReplica(name)
		m.note("destroy", "%s: %v", name, err)
		if len(m.clonesOf(name)) > 0 {
			if !errors.Is(err, ErrInUse) {
				m.fatalf("destroy of %s, which has clones: %v", name, err)
			}
			return
		}
		m.must(err)
		delete(m.now, name)
		m.synced()
	case k < 14:
		m.note("sync", "")
		m.must(m.p.Sync())
		m.synced()
	case k < 22:
		m.merge(m.pick())
	case k < 32:
		m.note("cycle", "")
		m.must(m.p.cycle())
		m.must(m.p.Check())
	case k < 34:
		m.note("reopen", "")
		m.must(m.p.Close())
		m.mem.Reopen()
		m.open()
		m.synced()
	case k < 39:
		fate := disk.Fate(m.rng.IntN(4))
		kill := m.rng.IntN(3) == 0
		m.note("crash", "kill %t fate %d", kill, fate)
		if kill {
			m.mem = m.mem.Kill()
		} else {
			m.mem = m.mem.PowerCut(fate, m.rng)
		}
		m.crash()
	case k < 44:
		m.note("clean", "")
		m.must(m.p.moveSome(m.rng))
	case k < 49:
		name := m.pick()
		if d := m.now[name].diff(m.p.Replica(name), true); d != "" {
			m.fatalf("replica %s: %s", name, d)
		}
	default:
		m.apply(m.pick())
	}
}

// merge takes something from an imaginary source that lists newest versions only.
func (m *versionsTest) merge(name string) {
	r := m.now[name]
	c := &Chunk{Index: uint64(m.rng.IntN(int(r.size+512*block.Size-1) / (512 * block.Size))), Scan: r.applied}
	ahead := block.Version{Epoch: m.epoch, N: m.n}
	if m.rng.IntN(2) == 0 { // the source may be ahead of the live writes
		m.n += 5
		c.Scan = block.Version{Epoch: m.epoch, N: m.n}
		m.n -= 5
	}
	for i := range block.ChunkBlocks {
		b := c.Index*block.ChunkBlocks + uint64(i)
		c.Sums[i] = block.ZeroSum
		if b >= blocksOf(r.size) {
			break
		}
		local := r.at(b, newestVersion)
		c.Versions[i], c.Sums[i], c.Stored[i] = local.ver, local.sum, local.stored
		switch m.rng.IntN(60) {
		case 0:
			c.Versions[i], c.Stored[i], c.Sums[i] = block.Version{}, false, block.ZeroSum
		case 1, 2, 3:
			v := block.Version{Epoch: 1 + m.rng.Uint64N(m.epoch), N: 1 + m.rng.Uint64N(m.n+4)}
			if v == local.ver || slices.ContainsFunc(r.blocks[b], func(x refVersion) bool { return x.ver == v }) || r.base(b, newestVersion).ver == v {
				continue
			}
			c.Versions[i], c.Stored[i], c.Sums[i] = v, false, block.ZeroSum
			if m.rng.IntN(3) > 0 {
				d := fill(1, m.rng.Uint64())
				c.Stored[i], c.Sums[i] = true, block.Sum(d)
				c.Data, c.DataOf = append(c.Data, d...), append(c.DataOf, uint16(i))
			}
		}
	}
	res, err := m.p.Replica(name).Merge(c)
	m.note("merge", "%s chunk %d scan %v (at %v): %+v %v", name, c.Index, c.Scan, ahead, res, err)
	if errors.Is(err, ErrNoSpace) {
		m.t.Skip("the pool is full")
	}
	if err != nil {
		m.fatalf("%v; %s", err, r.diff(m.p.Replica(name), false))
	}
	m.did(func(s modelState) {
		r := s[name]
		for i := range block.ChunkBlocks {
			b := c.Index*block.ChunkBlocks + uint64(i)
			if b >= blocksOf(r.size) {
				break
			}
			switch block.Resolve(r.at(b, newestVersion).ver, c.Versions[i], c.Scan) {
			case block.Take:
				r.put(b, refVersion{c.Versions[i], c.Sums[i], c.Stored[i]})
			case block.Drop:
				r.drop(b)
			}
		}
	})
}

func (m *versionsTest) open() {
	p, err := Open([]disk.Device{m.mem}, m.opt)
	if err != nil {
		m.fatalf("open: %v", err)
	}
	m.p = p
	m.must(p.Check())
}

// crash opens the pool after its device went away and finds the prefix of the events that is there.
func (m *versionsTest) crash() {
	m.p.Close()
	m.open()
	state := m.stable.copy()
	var why []string
	for i := 0; ; i++ {
		d := m.differs(state)
		if d == "" {
			break
		}
		why = append(why, fmt.Sprintf("after %d events: %s", i, d))
		if i == len(m.log) {
			m.fatalf("no prefix of %d events:\n%s", i, strings.Join(why[max(0, len(why)-5):], "\n"))
		}
		m.log[i](state)
	}
	m.now = state
	m.epoch++
	m.synced()
}

func (m *versionsTest) differs(state modelState) string {
	if n := len(m.p.Replicas()); n != len(state) {
		return fmt.Sprintf("%d replicas, want %d", n, len(state))
	}
	for k, v := range state {
		if d := v.diff(m.p.Replica(k), false); d != "" {
			return k + ": " + d
		}
	}
	return ""
}

// TestVersionsModel runs random operations on snapshots and clones, with crashes, against the reference.
func TestVersionsModel(t *testing.T) {
	seeds := []uint64{*versionsSeed}
	if *versionsSeed == 0 {
		base := uint64(time.Now().UnixNano()) % 1e9
		seeds = nil
		for i := range *versionsSeeds {
			seeds = append(seeds, base+uint64(i))
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runVersions(t, seed)
		})
	}
}

func runVersions(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	m := &versionsTest{t: t, rng: rng, now: modelState{}, epoch: 1, count: map[string]int{}}
	m.opt = Options{
		DeltaEntries: 8192, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10 << rng.IntN(6), CheckpointBytes: int64(1+rng.IntN(8)) << 20,
		FlushBytes: int64(1+rng.IntN(4)) << 20, NoDiscard: rng.IntN(2) == 0, inlineBytes: 400, historyBytes: 1500,
		Compression: []compress.Algorithm{compress.Off, compress.LZ4}[rng.IntN(2)],
	}
	m.mem = disk.NewMem("mem", 256<<20)
	p, err := Create(Stripe(m.mem), Config{Name: "versions"}, m.opt)
	must(t, err)
	m.p = p
	fresh := p.Stats()
	m.synced()
	for range *versionsOps {
		m.step()
	}
	m.end(fresh)
	t.Log(m.count)
}

// end drains everything, looks at sizes, and takes all apart.
func (m *versionsTest) end(fresh Stats) {
	m.must(m.p.cycle())
	m.must(m.p.cycle())
	m.must(m.p.Check())
	for name, r := range m.now {
		if d := r.diff(m.p.Replica(name), true); d != "" {
			m.fatalf("replica %s: %s", name, d)
		}
		x := m.p.Replica(name)
		if s := x.Stats(); !sameBytes(x, s.Allocated-x.meta, r.held()) {
			m.fatalf("replica %s: %d bytes allocated, want %d and %d of index", name, s.Allocated, r.held(), x.meta)
		}
	}
	for len(m.now) > 0 {
		for name := range m.now {
			if len(m.clonesOf(name)) == 0 {
				m.must(m.p.DestroyReplica(name))
				delete(m.now, name)
			}
		}
	}
	m.must(m.p.cycle())
	m.must(m.p.Check())
	if s := m.p.Stats(); s.Allocated > fresh.Allocated+1<<20 || s.FreeSegments < fresh.FreeSegments-8 {
		m.fatalf("not empty: %+v, fresh %+v", s, fresh)
	}
	m.must(m.p.Close())
}
