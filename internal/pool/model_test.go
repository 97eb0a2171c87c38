package pool

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

var (
	modelSeed    = flag.Uint64("model.seed", 0, "run the model test with this seed only")
	modelSeconds = flag.Int("model.seconds", 0, "run further seeds of the model test, on all layouts in turn, for so many seconds")
	modelSeeds   = flag.Int("model.seeds", 0, "number of seeds of the model test for each layout; 0: as many as the suite takes")
	modelOps     = flag.Int("model.ops", 0, "operations per seed; 0: as many as the suite takes")
)

// modelFloors is what a run of the model test must have met at least, all layouts together, in floorOps operations of
// each; in a shorter one that share of it.
var modelFloors = map[string]int{
	"create": 30, "destroy": 100, "sync": 150, "state": 100, "merge": 250, "apply": 1500, "read": 250, "compare": 85,
	"cycle": 95, "clean": 100, "look": 29, "reopen": 34, "kill": 43, "power cut": 100,
	"happenings lost": 49, "refused: no space left in pool": 30, "refused: in use": 80,
	"clones made": 53, "clones of clones": 24, "snapshots made": 500, "snapshots deleted under writes": 150, "reads of snapshots": 64,
	"merges under snapshots": 150, "destroyed with snapshots": 51, "resized": 66,
	"cleaner moves of shared blocks": 10000, "chunks with history pages seen": 1500,
	"blocks moved by the cleaner": 30000, "segments freed": 1500, "checkpoints": 600, "index pages written": 5000, "batches replayed": 1000,
	"index pages read back": 150000, "torn headers and data at the end of the log": 4, "unfinished unit at the end of the log": 4,
	"a device goes": 36, "a device comes back": 21, "devices returned": 7, "a device lies": 41, "opened without all devices": 15, "blocks repaired": 250,
	"a device is replaced": 14, "a replacement is over": 13, "the pool grows": 2, "devices become larger": 2,
	"resilvers": 35, "scrubs": 16, "blocks compressed": 10000, "blocks of zeroes": 6500, "compression": 22,
}

const floorOps = 1200

// modelTest is an actor with the devices of its pool.
type modelTest struct {
	*actor
	layout layout
	mems   []*disk.Mem
	away   map[int]bool // devices that are not there
	power  *powerSwitch // behind which devices are, if there is one
	opt    Options
	old    string // the device that the last of mems replaces, "": there is none
	made   int    // devices that replaced others
	more   int    // times that the pool may still grow
}

// modelAct is an operation of the model test that changes more than the pool's content.
type modelAct struct {
	name      string
	weight    int // in thousandths of all operations
	available func(*modelTest) bool
	run       func(*modelTest)
}

var modelActs = []modelAct{
	{"reopen", 12, nil, (*modelTest).reopen},
	{"kill", 12, nil, (*modelTest).kill},
	{"power cut", 30, nil, (*modelTest).powerCut},
	{"cycle", 30, nil, func(m *modelTest) { m.must(m.p.cycle()); m.check() }},
	{"clean", 30, nil, func(m *modelTest) { m.clean() }},
	{"compare", 25, nil, func(m *modelTest) { m.compare() }},
	{"look", 10, func(m *modelTest) bool { return len(m.now) > 0 }, func(m *modelTest) { m.look() }},
	{"scrub", 8, nil, (*modelTest).scrub},
	{"a device lies", 20, (*modelTest).redundant, (*modelTest).lie},
	{"a device goes", 18, (*modelTest).redundant, (*modelTest).lose},
	{"a device is replaced", 8, (*modelTest).settled, (*modelTest).replace},
	{"a replacement is over", 20, func(m *modelTest) bool { return m.old != "" }, (*modelTest).replaced},
	{"the pool grows", 9, func(m *modelTest) bool { return m.settled() && m.more > 0 }, (*modelTest).grow},
	{"devices become larger", 9, func(m *modelTest) bool { return m.settled() && m.more > 0 }, (*modelTest).expand},
	{"a device returns", 15, func(m *modelTest) bool { return len(m.away) > 0 }, (*modelTest).giveBack},
}

func (m *modelTest) step() {
	k := m.rng.IntN(1000)
	for _, x := range modelActs {
		if k -= x.weight; k < 0 {
			if x.available == nil || x.available(m) {
				m.cover[x.name]++
				x.run(m)
			}
			return
		}
	}
	m.actor.step(acts)
}

func (m *modelTest) devices() (d []disk.Device) {
	for _, i := range m.rng.Perm(len(m.mems)) {
		switch {
		case m.away[i]:
		case m.mems[i].Name() == m.old && m.left(i): // its labels are wiped
		case m.power != nil:
			d = append(d, switched{m.mems[i], m.power})
		default:
			d = append(d, m.mems[i])
		}
	}
	return d
}

func (m *modelTest) open() {
	before := map[string]*disk.Mem{}
	for i := range m.mems {
		if !m.away[i] {
			before[m.mems[i].Name()] = m.mems[i].Clone()
		}
	}
	p, err := Open(m.devices(), m.opt)
	if err != nil {
		m.fatalf("open: %v", err)
	}
	m.p = p
	count(m.cover, tailOf(p, before))
	if len(m.away) > 0 {
		m.cover["opened without all devices"]++
		if h := p.Stats().Health; h != HealthDegraded {
			m.fatalf("%d devices are away, and the pool is %s", len(m.away), h)
		}
	}
}

// leave ends the pool, whose devices may be gone.
func (m *modelTest) leave() error {
	s := m.p.Stats()
	for what, n := range map[string]uint64{
		"blocks moved by the cleaner": s.BlocksMoved, "segments freed": s.SegmentsFreed, "checkpoints": s.Checkpoints,
		"index pages written": s.PagesWritten, "batches replayed": s.Replayed, "index pages read back": s.CacheMisses,
		"blocks repaired": s.BlocksRepaired, "blocks compressed": s.BlocksPacked, "blocks of zeroes": s.BlocksZero,
	} {
		m.cover[what] += int(n)
	}
	if m.p.Activity().Resilver.State == ActivityDone {
		m.cover["resilvers"]++
	}
	return m.p.Close()
}

// again opens the pool after it was left, with the devices that are there by then.
func (m *modelTest) again(all bool) {
	m.t.Helper()
	for i := range m.mems {
		if m.away[i] && m.rng.IntN(2) == 0 {
			m.note("device %d is back", i)
			m.cover["a device comes back"]++
			m.mems[i].Reappear()
			delete(m.away, i)
		}
	}
	m.open()
	m.recover(all)
}

func (m *modelTest) reopen() {
	m.note("close and open")
	m.must(m.leave())
	reopenAll(m.mems)
	m.again(true)
}

func (m *modelTest) kill() {
	m.note("kill")
	m.mems = disk.KillAll(m.mems)
	m.leave()
	m.again(true)
}

func (m *modelTest) powerCut() {
	fates := make([]disk.Fate, len(m.mems))
	for i := range fates {
		if fates[i] = fates[0]; i == 0 || m.rng.IntN(2) == 0 {
			fates[i] = disk.Fate(m.rng.IntN(4))
		}
	}
	m.note("power cut, fates %d", fates)
	m.mems = disk.PowerCutAll(m.mems, func(i int) disk.Fate { return fates[i] }, m.rng)
	m.leave()
	m.again(!slices.ContainsFunc(fates, func(f disk.Fate) bool { return f != disk.Kept }))
}

// redundant reports whether a device may fail.
func (m *modelTest) redundant() bool { return len(m.layout.victims()) > 0 && m.old == "" }

// settled reports whether the devices of the pool may change.
func (m *modelTest) settled() bool { return len(m.away) == 0 && m.old == "" }

// left reports whether a device has left the pool.
func (m *modelTest) left(i int) bool {
	_, err := Probe(m.mems[i].Clone())
	return errors.Is(err, ErrBlank)
}

// replace begins to replace a device, which goes on while other things happen.
func (m *modelTest) replace() {
	v := m.layout.replaceable()
	i := v[m.rng.IntN(len(v))]
	m.made++
	dev := disk.NewMem(fmt.Sprint("other", m.made), m.mems[i].Size())
	m.old = m.mems[i].Name()
	m.note("device %s is replaced by %s", m.old, dev.Name())
	m.must(m.p.Replace(m.guid(m.old), dev))
	m.mems = append(m.mems, dev)
}

func (m *modelTest) guid(name string) block.GUID {
	for _, d := range m.p.Devices() {
		if d.Name == name {
			return d.GUID
		}
	}
	m.fatalf("device %s is not a member", name)
	panic("not reached")
}

// replaced waits for the end of a replacement.
func (m *modelTest) replaced() {
	m.p.rest()
	n := len(m.mems) - 1
	i := slices.IndexFunc(m.mems, func(d *disk.Mem) bool { return d.Name() == m.old })
	if slices.ContainsFunc(m.p.Devices(), func(d DeviceInfo) bool { return d.Name == m.old }) {
		m.fatalf("replacement does not end: %+v %+v", m.p.Devices(), m.p.Activity())
	}
	m.note("device %s has left", m.old)
	m.mems[i], m.mems, m.old = m.mems[n], m.mems[:n], ""
	m.check()
}

// grow adds a raid group like the first.
func (m *modelTest) grow() {
	s := m.layout.groups[0]
	g := Group{Kind: s.kind}
	m.more--
	for i := range s.n {
		d := disk.NewMem(fmt.Sprint("more", m.more, "-", i), m.mems[0].Size())
		m.mems, g.Devices = append(m.mems, d), append(g.Devices, d)
	}
	m.note("a group of %d devices more", s.n)
	before := m.p.Stats().Capacity
	m.must(m.p.AddGroups([]Group{g}))
	if now := m.p.Stats().Capacity; now <= before {
		m.fatalf("%d bytes, were %d", now, before)
	}
}

// expand makes all devices larger.
func (m *modelTest) expand() {
	m.more--
	for _, d := range m.mems {
		d.Grow(d.Size() + 4<<20)
	}
	m.note("all devices are larger")
	before := m.p.Stats().Capacity
	m.must(m.p.Expand())
	if now := m.p.Stats().Capacity; now <= before {
		m.fatalf("%d bytes, were %d", now, before)
	}
}

// victim returns one of the devices without which the pool can do. It is never another one, so that what a device
// that was away lacks is on others.
func (m *modelTest) victim() int {
	v := m.layout.victims()
	return v[m.rng.IntN(len(v))]
}

func (m *modelTest) lie() {
	i := m.victim()
	size := m.mems[i].Size() - label.HeadBytes - label.TailBytes
	at := label.HeadBytes + m.rng.Int64N(size)&^4095
	n := min(int64(1+m.rng.IntN(64))<<12, size+label.HeadBytes-at)
	m.note("device %d lies: %d bytes at %d", i, n, at)
	m.mems[i].Corrupt(at, n, m.rng)
}

func (m *modelTest) lose() {
	if i := m.victim(); !m.away[i] {
		m.note("device %d goes", i)
		m.mems[i].Disappear()
		m.away[i] = true
	}
}

// giveBack returns a device to the pool, if that has noticed that it is away.
func (m *modelTest) giveBack() {
	i := slices.Sorted(maps.Keys(m.away))[0]
	name := m.mems[i].Name()
	for _, d := range m.p.Devices() {
		if d.Name == name && d.State != DeviceFaulted {
			m.note("the pool does not know that device %d is away", i)
			return
		}
	}
	m.p.rest() // it closes what is out of use
	m.mems[i].Reappear()
	m.mems[i].Reopen()
	err := m.p.Return(m.mems[i])
	for ; errors.Is(err, raid.ErrStuck); err = m.p.Return(m.mems[i]) {
		runtime.Gosched() // a request from before is about to hear that it failed
	}
	m.note("device %d returns: %v", i, err)
	m.must(err)
	delete(m.away, i)
	m.cover["devices returned"]++
	if m.rng.IntN(2) == 0 {
		m.p.rest()
		m.compare()
	}
}

// scrub scrubs everything; afterwards all is well.
func (m *modelTest) scrub() {
	m.note("scrub")
	m.must(m.p.Scrub(ScrubOptions{}))
	if m.rng.IntN(3) == 0 {
		return // it goes on in the background
	}
	m.p.rest()
	if x := m.p.Activity().Scrub; x.State != ActivityDone || x.Errors > 0 {
		m.fatalf("scrub: %+v %v", x, m.p.Damage())
	}
	m.cover["scrubs"]++
	m.check()
}

// TestModel runs random operations with crashes and failures of devices against the reference model, on every layout.
func TestModel(t *testing.T) {
	base := *modelSeed
	if base == 0 {
		base = rand.Uint64N(1e9)
	}
	seeds, ops := cmp.Or(*modelSeeds, 3), cmp.Or(*modelOps, 1000)
	if testing.Short() {
		seeds, ops = cmp.Or(*modelSeeds, 1), cmp.Or(*modelOps, 1200)
	}
	if *modelSeed != 0 {
		seeds = 1
	}
	var mu sync.Mutex
	cover := map[string]int{}
	run := func(from, to int) {
		t.Run("layouts", func(t *testing.T) {
			forLayouts(t, func(t *testing.T, l layout) {
				t.Parallel()
				seed := base // another one for each layout
				if *modelSeed == 0 {
					seed += uint64(slices.IndexFunc(layouts, func(x layout) bool { return x.name == l.name })) * 1e9
				}
				for i := from; i < to && !t.Failed(); i++ {
					c := runModel(t, l, seed+uint64(i), ops)
					mu.Lock()
					for k, n := range c {
						cover[k] += n
					}
					mu.Unlock()
				}
			})
		})
	}
	until := time.Now().Add(time.Duration(*modelSeconds) * time.Second)
	run(0, seeds)
	for n := seeds; *modelSeed == 0 && !t.Failed() && time.Now().Before(until); n++ {
		run(n, n+1)
	}
	if *modelSeed == 0 && *layoutFlag == "" && !t.Failed() {
		floors := maps.Clone(modelFloors)
		for k, n := range floors {
			floors[k] = n * min(seeds*ops, floorOps) / floorOps
		}
		demand(t, cover, floors)
	}
}

func runModel(t *testing.T, l layout, seed uint64, ops int) map[string]int {
	t.Logf("-layout=%s -model.seed=%d", l.name, seed)
	a := newActor(t, seed, nil)
	m := &modelTest{actor: a, layout: l, away: map[int]bool{}}
	rng := a.rng
	a.far = rng.IntN(4) == 0
	turn := seed/1e9 + seed // neighbours, and neighbouring layouts, differ in what follows from it
	m.opt = Options{
		Compression: compress.Algorithm(turn % 3), DeltaEntries: 4096 << (3 * rng.IntN(2)), SegmentBytes: 256 << 10,
		PageCacheBytes: 64 << 10, CheckpointBytes: int64(1+rng.IntN(8)) << 20, FlushBytes: int64(1+rng.IntN(4)) << 20, NoDiscard: rng.IntN(2) == 0,
		Deadline: time.Minute,
	}
	if rng.IntN(3) > 0 { // history pages after a few versions
		m.opt.inlineBytes, m.opt.historyBytes = 400, 1500
	}
	if m.opt.DeltaEntries > 4096 {
		a.longest = 4000
	}
	m.more = 2
	switch turn / 3 % 3 {
	case 0:
		m.more = rng.IntN(4) / 3                                                    // or they would not remain so
		m.mems, a.maxSize, a.dense = l.blank(int64(11+rng.IntN(4))<<20), 4000, true // always about full
		if rng.IntN(2) == 0 {
			m.opt.Compression = compress.Off
		}
	case 1:
		m.mems = l.blank(int64(12+rng.IntN(12)) << 20)
	default:
		m.mems, a.dense = l.blank(int64(20+rng.IntN(60))<<20), rng.IntN(2) == 0
	}
	p, err := Create(l.arrange(m.mems), Config{Name: "model"}, m.opt)
	must(t, err)
	a.p = p
	fresh := p.Stats()
	for range ops {
		m.step()
	}
	m.end(fresh)
	return a.cover
}

// end looks at everything once more, and takes it apart: nothing remains.
func (m *modelTest) end(fresh Stats) {
	if m.old != "" {
		m.replaced()
	}
	m.compare()
	m.must(m.p.cycle())
	m.must(m.p.cycle())
	m.check()
	for name, r := range m.now {
		x := m.p.Replica(name)
		if s := x.Stats(); !sameBytes(x, s.Allocated-x.meta, r.held()) {
			m.fatalf("replica %s: %d bytes allocated, want %d and %d of index", name, s.Allocated, r.held(), x.meta)
		}
		if d := r.look(x); d != "" {
			m.fatalf("replica %s: %s", name, d)
		}
	}
	for len(m.now) > 0 {
		m.destroy()
	}
	m.must(m.p.cycle())
	m.check()
	if s := m.p.Stats(); s.Allocated > fresh.Allocated+1<<20 || s.FreeSegments < fresh.FreeSegments-8 {
		m.fatalf("not empty: %+v, fresh %+v", s, fresh)
	}
	m.must(m.leave())
}
