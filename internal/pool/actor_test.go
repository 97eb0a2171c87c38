package pool

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

// actor does random operations to a pool and to the reference model, and remembers what it did since the last state
// that is known for sure.
type actor struct {
	t    testing.TB
	rng  *rand.Rand
	p    *Pool
	base refPool     // known for sure
	log  []happening // since
	now  refPool     // base and log together

	epoch, n uint64     // of the last version handed out
	maxSize  int        // largest replica in blocks
	maxCount int        // most replicas, clones not counted
	longest  int        // longest discard in blocks
	place    func() int // position in the record of the devices

	dense   bool    // what is written does not compress
	far     bool    // sources of merges are far ahead: no snapshots then
	faulty  string  // the device that fails, "": none does
	faults  []error // what reads may err with then; failed writes put the pool into its failed state
	cutting bool    // the power may fail: any error leaves open what happened

	trace []string
	cover map[string]int
}

func newActor(t testing.TB, seed uint64, p *Pool) *actor {
	return &actor{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), p: p, base: refPool{}, now: refPool{},
		maxSize: 2500, maxCount: 4, longest: 150, place: func() int { return 0 }, cover: map[string]int{},
	}
}

func (a *actor) note(format string, x ...any) {
	a.trace = append(a.trace, fmt.Sprintf(format, x...))
	if len(a.trace) > 60 {
		a.trace = a.trace[1:]
	}
}

func (a *actor) fatalf(format string, x ...any) {
	a.t.Helper()
	a.t.Fatalf("%s\nlast operations:\n%s", fmt.Sprintf(format, x...), strings.Join(a.trace, "\n"))
}

func (a *actor) must(err error) {
	a.t.Helper()
	if err != nil {
		a.fatalf("%v", err)
	}
}

// atom is what happens as a whole or not at all.
type atom struct {
	applied block.Version // of the replica afterwards; zero: stays
	f       func(refPool)
}

// did carries out an operation of one part.
func (a *actor) did(what string, sync bool, f func(refPool), run func() error, accept ...error) bool {
	a.t.Helper()
	return a.didParts(what, sync, "", []atom{{f: f}}, run, accept...)
}

// didParts carries out an operation on a replica and remembers that it happened, or may have: after an error the pool
// has failed and only opening it again tells. An operation that is refused changes nothing, or only its first parts are
// there; accept says which errors may refuse it.
func (a *actor) didParts(what string, sync bool, name string, parts []atom, run func() error, accept ...error) bool {
	a.t.Helper()
	all := make([]happening, len(parts))
	for i, x := range parts {
		all[i] = happening{what: what, start: a.place(), sync: sync, f: x.f}
		if len(parts) > 1 {
			all[i].what = fmt.Sprintf("%s, part %d", what, i)
		}
	}
	err := run()
	a.note("%s", what)
	if err != nil {
		a.note("  %v", err)
		if errors.Is(err, ErrFailed) || a.cutting {
			for i := range all {
				all[i].end = never
			}
			a.log = append(a.log, all...)
			return false
		}
		refused := false
		for _, e := range accept {
			if refused = errors.Is(err, e); refused {
				a.cover["refused: "+e.Error()]++
				break
			}
		}
		if !refused && !a.tolerates(err) {
			a.fatalf("%s: %v (%d free, to keep %d, reserve %d, stats %+v)", what, err, a.p.seg.freeCount(), a.p.keep(forRecords), a.p.seg.reserve(), a.p.Stats())
		}
		n := 0
		for i, x := range parts {
			if !x.applied.IsZero() && !a.p.Replica(name).Applied().Less(x.applied) {
				n = i + 1
			}
		}
		all = all[:n]
	}
	for i := range all {
		all[i].end = a.place()
		all[i].f(a.now)
	}
	a.log = append(a.log, all...)
	return err == nil
}

// tolerates reports whether err is what the device has done that is known to fail, and says so.
func (a *actor) tolerates(err error) bool {
	known := func(fault error) bool { return errors.Is(err, fault) }
	if a.faulty != "" && slices.ContainsFunc(a.faults, known) && strings.Contains(err.Error(), a.faulty) {
		a.cover["errors of a device"]++
		return true
	}
	return false
}

// sure makes what is there now the state that is known for sure.
func (a *actor) sure() { a.base, a.log = a.now.clone(), nil }

func (a *actor) pick() (string, *refReplica) {
	names := a.now.names()
	name := names[a.rng.IntN(len(names))]
	return name, a.now[name]
}

func (a *actor) version() block.Version {
	if a.epoch == 0 || a.rng.IntN(50) == 0 {
		a.epoch++
	}
	a.n++
	return block.Version{Epoch: a.epoch, N: a.n}
}

// extent returns a range of at most limit blocks, often at the beginning of a chunk.
func (a *actor) extent(r *refReplica, limit int) (uint64, uint32) {
	blocks := int(blocksOf(r.size))
	b := a.rng.IntN(blocks)
	if a.rng.IntN(3) == 0 {
		b &^= block.ChunkBlocks - 1
	}
	n := 1 + a.rng.IntN(limit)
	return uint64(b), uint32(min(n, blocks-b))
}

// data returns content for n blocks: noise, or of every kind there is.
func (a *actor) data(n int) []byte {
	if a.dense {
		return noise(n, a.rng.Uint64())
	}
	return mixed(a.rng, n)
}

func sumsOf(data []byte) (sums []uint32) {
	for i := 0; i < len(data); i += block.Size {
		sums = append(sums, block.Sum(data[i:i+block.Size]))
	}
	return sums
}

func (a *actor) create() {
	name := fmt.Sprintf("r%d", a.rng.IntN(1000))
	size := int64(1+a.rng.IntN(a.maxSize))*block.Size - int64(a.rng.IntN(8))*block.SectorSize
	if a.now[name] != nil {
		if _, err := a.p.CreateReplica(name, size); !errors.Is(err, ErrExists) {
			a.fatalf("create %s again: %v", name, err)
		}
		return
	}
	a.createSized(name, size)
}

func (a *actor) createSized(name string, size int64) {
	a.t.Helper()
	var guid block.GUID
	a.did(fmt.Sprintf("create %s of %d bytes", name, size), true, func(s refPool) { s.add(name, guid, size) }, func() error {
		r, err := a.p.CreateReplica(name, size)
		if err == nil {
			guid = r.GUID()
		}
		return err
	}, ErrNoSpace)
}

func (a *actor) clone() {
	origin, r := a.pick()
	name := fmt.Sprintf("c%d", a.n)
	if len(r.snaps) == 0 || len(a.now) >= 2*a.maxCount || a.now[name] != nil {
		return
	}
	snap := r.snaps[a.rng.IntN(len(r.snaps))].name
	var guid block.GUID
	if a.did(fmt.Sprintf("clone %s of %s@%s", name, origin, snap), true, func(s refPool) { s.addClone(name, guid, origin, snap) }, func() error {
		c, err := a.p.Clone(name, origin, snap)
		if err == nil {
			guid = c.GUID()
		}
		return err
	}, ErrNoSpace) {
		a.cover["clones made"]++
		if r.origin != "" {
			a.cover["clones of clones"]++
		}
	}
}

func (a *actor) destroy() {
	name, r := a.pick()
	if len(a.now.clonesOf(name, "")) > 0 {
		if err := a.p.DestroyReplica(name); !errors.Is(err, ErrInUse) && !errors.Is(err, ErrFailed) {
			a.fatalf("destroy of %s, which has clones: %v", name, err)
		}
		a.cover["refused: in use"]++
		return
	}
	if a.did("destroy "+name, true, func(s refPool) { delete(s, name) }, func() error { return a.p.DestroyReplica(name) }, ErrNoSpace) && len(r.snaps) > 0 {
		a.cover["destroyed with snapshots"]++
	}
}

func (a *actor) sync() {
	a.did("sync", true, func(refPool) {}, a.p.Sync)
}

func (a *actor) state() {
	name, _ := a.pick()
	v := a.version()
	a.setState(name, strings.Repeat(fmt.Sprint(v.N, " "), a.rng.IntN(4000)), v)
}

func (a *actor) setState(name, state string, v block.Version) {
	a.t.Helper()
	a.did(fmt.Sprintf("set state of %s at %v", name, v), true, func(s refPool) { s[name].state, s[name].applied = state, v }, func() error {
		return a.p.Replica(name).SetState([]byte(state), v)
	}, ErrNoSpace)
}

// compare reads everything.
func (a *actor) compare() {
	a.t.Helper()
	seen, err := observe(a.p)
	a.must(err)
	if d := a.now.diff(seen); d != "" {
		a.fatalf("%s", d)
	}
	if why := a.raw(); why != "" {
		a.fatalf("%s", why)
	}
}

// look compares what is known of a replica's snapshots.
func (a *actor) look() {
	name, r := a.pick()
	if d := r.look(a.p.Replica(name)); d != "" {
		a.fatalf("replica %s: %s", name, d)
	}
}

// raw reports a replica without snapshots whose data takes other than its size, in a pool that has never compressed
// anything: that is exact at any time.
func (a *actor) raw() string {
	for _, r := range a.p.Replicas() {
		if s := r.Stats(); a.now[r.Name()] != nil && a.now[r.Name()].plain && a.p.opt.Compression == compress.Off && s.Data != s.Used {
			return fmt.Sprintf("replica %s: %d bytes are used, and their data takes %d", r.Name(), s.Used, s.Data)
		}
	}
	return ""
}

// compression changes how is compressed what is written from now on, unless the pool is one that never compresses.
func (a *actor) compression() {
	if a.p.opt.Compression != compress.Off {
		c := compress.Algorithm(a.rng.IntN(3))
		a.note("compression %v", c)
		a.p.SetCompression(c)
	}
}

func (a *actor) check() {
	a.t.Helper()
	a.must(a.p.Check())
	for _, r := range a.p.Replicas() {
		a.cover["chunks with history pages seen"] += r.deepChunks()
	}
}

// recover finds out what of the happenings is there after the pool was opened again. all says that all of it must be.
func (a *actor) recover(all bool) {
	a.t.Helper()
	need := 0
	for i, h := range a.log {
		if h.end != never && (all || h.sync) {
			need = i + 1
		}
	}
	state, found, err := resolve(a.p, a.base, a.log, need, len(a.log))
	a.must(err)
	a.note("found %d of %d happenings", found, len(a.log))
	if found < len(a.log) {
		a.cover["happenings lost"]++
	}
	a.now = state
	if why := a.raw(); why != "" {
		a.fatalf("%s", why)
	}
	a.sure() // what a crash left is stable from then on: readers may have seen it
	a.check()
}

// act is an operation of the actor's repertoire.
type act struct {
	name      string
	weight    int
	available func(*actor) bool // nil: if there is a replica
	run       func(*actor)
}

func always(*actor) bool { return true }

// acts are the operations that any test may do at any time to a pool.
var acts = []act{
	{"create", 3, func(a *actor) bool { return len(a.now) < a.maxCount }, (*actor).create},
	{"clone", 4, nil, (*actor).clone},
	{"destroy", 4, nil, (*actor).destroy},
	{"sync", 6, always, (*actor).sync},
	{"state", 4, nil, (*actor).state},
	{"merge", 10, nil, (*actor).merge},
	{"apply", 60, nil, (*actor).apply},
	{"read", 10, nil, (*actor).read},
	{"compression", 1, always, (*actor).compression},
}

// cycle and clean are acts of tests that leave nothing to the background.
var (
	cycleAct = act{"cycle", 6, always, func(a *actor) { a.did("cycle", false, func(refPool) {}, a.p.cycle) }}
	cleanAct = act{"clean", 4, always, (*actor).clean}
)

// step does one of the operations, by weight.
func (a *actor) step(from []act) {
	total := 0
	for _, x := range from {
		if x.usable(a) {
			total += x.weight
		}
	}
	k := a.rng.IntN(total)
	for _, x := range from {
		if x.usable(a) {
			if k -= x.weight; k < 0 {
				a.cover[x.name]++
				x.run(a)
				return
			}
		}
	}
}

func (x *act) usable(a *actor) bool {
	if x.available == nil {
		return len(a.now) > 0
	}
	return x.available(a)
}

// demand logs what was covered and reports everything that stays below its floor.
func demand(t *testing.T, cover, floors map[string]int) {
	t.Helper()
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(cover)) {
		lines = append(lines, fmt.Sprintf("%7d %s", cover[k], k))
	}
	t.Log("covered:\n" + strings.Join(lines, "\n"))
	for k, n := range floors {
		if cover[k] < n {
			t.Errorf("%q happened %d times, want at least %d", k, cover[k], n)
		}
	}
}
