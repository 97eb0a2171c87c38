package pool

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

var (
	cutSeed  = flag.Uint64("powercut.seed", 0, "workload of the power cut test")
	cutAt    = flag.Int("powercut.at", -1, "cut after this many operations of the devices only")
	cutFates = flag.Int("powercut.fates", 1, "states of the devices that are tried for every cut")
	cutSteps = flag.Int("powercut.steps", 0, "steps of the workload; 0: as many as the suite takes")
)

// recordedWorkload is a workload with everything that it did to its devices.
type recordedWorkload struct {
	seed    uint64
	guid    block.GUID
	opt     Options
	rec     *disk.Recorder
	created int            // operations of the devices when Create returned
	cover   map[string]int // what the workload did
	log     []happening    // of the whole workload, beginning with the pool's creation
}

// recordWorkload creates a pool and does everything that the engine can do to it.
func recordWorkload(t *testing.T, l layout, seed uint64, steps int) *recordedWorkload {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := &recordedWorkload{seed: seed, guid: block.NewGUID()}
	w.opt = Options{
		Compression: compress.Algorithm(rng.IntN(3)), DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10,
		NoDiscard: rng.IntN(2) == 0, Deadline: 20 * time.Second, inlineBytes: 200, historyBytes: 600,
	}
	mems := l.blank(10 << 20)
	w.rec = disk.Record(mems...)
	p, err := Create(l.arrange(mems), Config{Name: "cut", GUID: w.guid}, w.opt)
	must(t, err)
	w.created = w.rec.Len()
	a := newActor(t, seed, p)
	a.maxSize, a.maxCount, a.place, a.dense = 600, 3, w.rec.Len, rng.IntN(2) == 0
	m := &modelTest{actor: a, layout: l, mems: mems, away: map[int]bool{}, opt: w.opt}
	workload := slices.Concat(acts, []act{cycleAct, cleanAct, {"reopen", 1, always, func(a *actor) {
		a.did("close", true, func(refPool) {}, m.leave)
		for _, x := range mems {
			x.Reopen()
			x.Reappear()
		}
		if a.p, err = Open(devicesOf(mems), w.opt); err != nil {
			a.fatalf("open: %v", err)
		}
	}}, {"scrub", 1, always, func(a *actor) {
		a.must(a.p.Scrub(ScrubOptions{}))
		a.p.rest()
	}}, {"a device goes", 2, func(*actor) bool { return m.redundant() }, func(a *actor) {
		mems[m.victim()].Disappear()
	}}})
	for range steps {
		a.step(workload)
	}
	a.compare()
	a.check()
	must(t, m.leave())
	w.log, w.cover = a.log, a.cover
	return w
}

// TestPowerCut cuts the power after every single operation of the devices in a recorded workload, and looks at what is
// there afterwards: verify finds no damage, the pool opens, all its books are right, and every replica, with its
// snapshots, is a prefix of what was done to it that includes everything that was on stable storage by contract. Then
// it goes on, and the power is cut again. Every cut has one fate of the unflushed writes, with -every each of them, on all
// devices and mixed with others. In short tests some of the cuts are left out.
func TestPowerCut(t *testing.T) {
	sparse := 1
	if testing.Short() && !*everyOp {
		sparse = 3
	}
	var mu sync.Mutex
	cover := map[string]int{}
	t.Run("layouts", func(t *testing.T) {
		forLayouts(t, func(t *testing.T, l layout) {
			t.Parallel()
			steps := *cutSteps
			if steps == 0 {
				steps = min(200, max(80, 400/l.devices()))
			}
			seed := *cutSeed
			if seed == 0 {
				seed = rand.Uint64N(1e9) // another workload for each layout
			}
			w := recordWorkload(t, l, seed, steps)
			c := newCutTest(t, l, w)
			rng := rand.New(rand.NewPCG(seed, 8))
			for r := w.rec.Replay(); !t.Failed(); {
				c.settle(r.At())
				if *cutAt == r.At() || *cutAt < 0 && rng.IntN(sparse) == 0 {
					c.cuts(r)
				}
				if !r.Next() {
					break
				}
			}
			mu.Lock()
			for k, n := range c.cover {
				cover[k] += n
			}
			mu.Unlock()
		})
	})
	if *cutAt < 0 && *layoutFlag == "" && *cutSteps == 0 && !t.Failed() {
		demand(t, cover, cutFloors)
	}
}

// cutFloors is what the power cut test must have met at least, all layouts together, in a short test.
var cutFloors = map[string]int{
	"cuts": 1500, "blocks moved by the cleaner": 500, "cleaner moves of shared blocks": 20, "created again": 15,
	"snapshots made": 60, "snapshots deleted": 15, "clones made": 5, "destroy": 15, "checkpoints": 30, "chunks with history pages seen": 1,
	"happenings lost": 100, "opened without all devices": 60, "verified": 1500, "unfinished unit at the end of the log": 3,
	"torn headers and data at the end of the log": 2,
}

// cutTest goes through the cuts of one workload.
type cutTest struct {
	t     *testing.T
	l     layout
	w     *recordedWorkload
	cover map[string]int

	base refPool // after the first done happenings of the log
	done int
}

func newCutTest(t *testing.T, l layout, w *recordedWorkload) *cutTest {
	c := &cutTest{t: t, l: l, w: w, cover: w.cover, base: refPool{}}
	t.Cleanup(func() {
		t.Logf("-powercut.seed=%d -layout=%s: %d operations of the devices, %d happenings, %d cuts, %d states of the devices, %d verified",
			w.seed, l.name, w.rec.Len(), len(w.log), c.cover["cuts"], c.cover["tries"], c.cover["verified"])
	})
	return c
}

// cuts cuts the power at this place of the record, as often as there is another fate to be tried.
func (c *cutTest) cuts(r *disk.Replay) {
	fates := *cutFates
	if *everyOp {
		fates = max(fates, int(disk.Fates)+2)
	}
	c.cover["cuts"]++
	for n := 0; n < fates && (n == 0 || r.Unflushed()); n++ {
		c.cut(r, n)
	}
}

// cut is one power cut, the n-th at this place of the record.
func (c *cutTest) cut(r *disk.Replay, n int) {
	w := c.w
	c.cover["tries"]++
	rng := rand.New(rand.NewPCG(w.seed+uint64(r.At())<<20, uint64(n)))
	fates := c.fates(r.At(), n, rng)
	kept := !slices.ContainsFunc(fates, func(f disk.Fate) bool { return f != disk.Kept })
	mems := r.Cut(rng, func(dev int) disk.Fate { return fates[dev] })
	fail := func(format string, x ...any) {
		c.t.Fatalf("-layout=%s -powercut.seed=%d -powercut.at=%d, try %d, fates %d: %s", c.l.name, w.seed, r.At(), n, fates, fmt.Sprintf(format, x...))
	}
	if r.At() >= w.created {
		c.cover["verified"]++
		verified(devicesOf(mems), fail)
	}
	p := c.open(r.At(), mems, rng, fail)
	need, most := c.done, c.done
	for most < len(w.log) && w.log[most].start < r.At() {
		h := &w.log[most]
		most++
		if h.end <= r.At() && (h.sync || kept) {
			need = most
		}
	}
	state, found, err := resolve(p, c.base, w.log[c.done:], need-c.done, most-c.done)
	if err != nil {
		fail("%v", err)
	}
	if c.done+found < most {
		c.cover["happenings lost"]++
	}
	if err := p.Check(); err != nil {
		fail("%v", err)
	}
	if *everyOp || *cutAt >= 0 || rng.IntN(2) == 0 {
		c.goOn(p, mems, state, rng, fail)
		return
	}
	disk.StopAll(mems)
	p.Close()
}

// fates returns what becomes of the unflushed writes of each device. The first device has each fate in turn, from one
// cut to the next and from one try to the next. The others have the same or random ones.
func (c *cutTest) fates(at, n int, rng *rand.Rand) []disk.Fate {
	all := int(disk.Fates)
	f := make([]disk.Fate, c.l.devices())
	f[0] = disk.Fate((uint64(at+n) + c.w.seed) % uint64(all))
	alike := n < all
	if !*everyOp {
		alike = rng.IntN(3) == 0
	}
	for i := range f[1:] {
		if f[1+i] = f[0]; !alike {
			f[1+i] = disk.Fate(rng.IntN(all))
		}
	}
	return f
}

// verified fails if Verify finds damage in a pool that nobody uses. A power cut is none.
func verified(devs []disk.Device, fail func(string, ...any)) {
	rep, err := Verify(devs, Options{Deadline: 20 * time.Second})
	if err != nil {
		fail("verify: %v", err)
		return
	}
	for _, f := range rep.Findings {
		if f.What != FoundDevice {
			fail("verify: %d findings: %v", rep.Damage, rep.Findings[:min(len(rep.Findings), 5)])
			return
		}
	}
}

// settle goes on with the state that every later cut must leave: what is on stable storage by contract.
func (c *cutTest) settle(at int) {
	last := c.done
	for i := c.done; i < len(c.w.log) && c.w.log[i].start < at; i++ {
		if h := &c.w.log[i]; h.sync && h.end <= at {
			last = i + 1
		}
	}
	for ; c.done < last; c.done++ {
		c.w.log[c.done].f(c.base)
	}
}

// open opens the pool, sometimes without the devices that may be missing, or makes it again when the cut interrupted
// its creation.
func (c *cutTest) open(at int, mems []*disk.Mem, rng *rand.Rand, fail func(string, ...any)) *Pool {
	before := map[string]*disk.Mem{}
	for _, m := range mems {
		before[m.Name()] = m.Clone()
	}
	devs := devicesOf(mems)
	if v := c.l.victims(); len(v) > 0 && at >= c.w.created && rng.IntN(3) == 0 {
		c.cover["opened without all devices"]++
		devs = without(mems, v...)
	}
	p, err := Open(devs, c.w.opt)
	if err == nil {
		count(c.cover, tailOf(p, before))
		return p
	}
	if at >= c.w.created {
		fail("open with %d of %d devices: %v", len(devs), len(mems), err)
	}
	c.cover["created again"]++
	if p, err = Create(c.l.arrange(mems), Config{Name: "cut", GUID: c.w.guid}, c.w.opt); err != nil {
		fail("create again: %v", err)
	}
	return p
}

// goOn uses the pool that was found after a cut, cuts the power again and looks whether everything is right once more.
func (c *cutTest) goOn(p *Pool, mems []*disk.Mem, state refPool, rng *rand.Rand, fail func(string, ...any)) {
	a := newActor(c.t, rng.Uint64(), p)
	a.base, a.now = state.clone(), state
	a.maxSize, a.maxCount = 600, 3
	a.epoch, a.n = 1<<20, 1<<20
	for range rng.IntN(5) { // none: what was seen after the first cut must survive the second one
		a.step(acts)
	}
	mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }, rng)
	p.Close()
	q, err := Open(devicesOf(mems), c.w.opt)
	if err != nil {
		fail("open after the second cut: %v", err)
	}
	need := 0
	for i, h := range a.log {
		if h.sync {
			need = i + 1
		}
	}
	if _, _, err := resolve(q, a.base, a.log, need, len(a.log)); err != nil {
		fail("after the second cut: %v", err)
	}
	if err := q.Check(); err != nil {
		fail("after the second cut: %v", err)
	}
	if rng.IntN(4) > 0 {
		disk.StopAll(mems)
		q.Close()
		return
	}
	if err := q.Close(); err != nil {
		fail("close: %v", err)
	}
	reopenAll(mems)
	verified(devicesOf(mems), fail)
}
