package pool

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// shape is a raid group of a layout.
type shape struct {
	kind  raid.Kind
	n     int
	cache bool
}

// layout is what pools of the tests are made of.
type layout struct {
	name   string
	groups []shape
}

var layouts = []layout{
	{"stripe", []shape{{raid.Stripe, 1, false}}},
	{"stripe-3", []shape{{raid.Stripe, 1, false}, {raid.Stripe, 1, false}, {raid.Stripe, 1, false}}},
	{"mirror-2", []shape{{raid.Mirror, 2, false}}},
	{"mirror-3", []shape{{raid.Mirror, 3, false}}},
	{"raidz-3", []shape{{raid.RAIDZ, 3, false}}},
	{"raidz-5", []shape{{raid.RAIDZ, 5, false}}},
	{"raidz2-6", []shape{{raid.RAIDZ2, 6, false}}},
	{"mirrors", []shape{{raid.Mirror, 2, false}, {raid.Mirror, 2, false}}},
	{"mirror-cache", []shape{{raid.Mirror, 2, false}, {raid.Mirror, 2, true}}},
}

var layoutFlag = flag.String("layout", "", "run the tests that go through all layouts with this one only")

// forLayouts runs a test on every layout.
func forLayouts(t *testing.T, f func(t *testing.T, l layout)) {
	for _, l := range layouts {
		if *layoutFlag == "" || *layoutFlag == l.name {
			t.Run(l.name, func(t *testing.T) { f(t, l) })
		}
	}
}

// redundant runs a test on every layout that can lose a device.
func redundant(t *testing.T, f func(t *testing.T, l layout)) {
	forLayouts(t, func(t *testing.T, l layout) {
		if l.parity(0) > 0 {
			f(t, l)
		}
	})
}

// data and parity return the shape of a group.
func (l layout) data(group int) int {
	d, _, _ := l.groups[group].kind.Shape(l.groups[group].n)
	return d
}

func (l layout) parity(group int) int {
	_, p, _ := l.groups[group].kind.Shape(l.groups[group].n)
	return p
}

// make returns the devices of a pool with that many bytes of data in each group, and the groups for Create.
func (l layout) make(size func() int64) (mems []*disk.Mem, groups []Group) {
	for i, s := range l.groups {
		g := Group{Kind: s.kind, Cache: s.cache}
		for range s.n {
			m := disk.NewMem(fmt.Sprint("mem", len(mems)), 2<<20+(size()-2<<20)/int64(l.data(i))&^4095)
			mems, g.Devices = append(mems, m), append(g.Devices, m)
		}
		groups = append(groups, g)
	}
	return mems, groups
}

// blank returns devices that together have about total bytes of segments.
func (l layout) blank(total int64) []*disk.Mem {
	n := int64(0) // groups for data
	for _, s := range l.groups {
		if !s.cache {
			n++
		}
	}
	each := (total/n + 256<<10 - 1) &^ (256<<10 - 1)
	mems, _ := l.make(func() int64 { return each + 2<<20 })
	return mems
}

// arrange returns the groups that devices of the layout make.
func (l layout) arrange(mems []*disk.Mem) (groups []Group) {
	for _, s := range l.groups {
		groups = append(groups, Group{Kind: s.kind, Cache: s.cache, Devices: devicesOf(mems[:s.n])})
		mems = mems[s.n:]
	}
	return groups
}

// devices returns the number of devices.
func (l layout) devices() (n int) {
	for _, s := range l.groups {
		n += s.n
	}
	return n
}

// of returns the group and the column of a device.
func (l layout) of(mem int) (group, column int) {
	for i, s := range l.groups {
		if mem < s.n {
			return i, mem
		}
		mem -= s.n
	}
	panic("no such device")
}

// victims returns devices that may all be lost at once: as many of each group as it has parity.
func (l layout) victims() (mems []int) {
	first := 0
	for i, s := range l.groups {
		for k := range l.parity(i) {
			mems = append(mems, first+(k*2+1)%s.n)
		}
		first += s.n
	}
	return mems
}

// newLayoutPool makes a pool on memory devices.
func newLayoutPool(t testing.TB, l layout, size int64, opt Options) (*Pool, []*disk.Mem) {
	t.Helper()
	mems, groups := l.make(func() int64 { return size })
	p, err := Create(groups, Config{Name: "test", Owner: "owner"}, opt)
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p, mems
}

// devicesOf returns memory devices as Open takes them.
func devicesOf(mems []*disk.Mem) (devs []disk.Device) {
	for _, m := range mems {
		devs = append(devs, m)
	}
	return devs
}

// without returns the devices but some.
func without(mems []*disk.Mem, gone ...int) (devs []disk.Device) {
	for i, m := range mems {
		lost := false
		for _, g := range gone {
			lost = lost || g == i
		}
		if !lost {
			devs = append(devs, m)
		}
	}
	return devs
}

func reopenAll(mems []*disk.Mem) {
	for _, m := range mems {
		m.Reopen()
	}
}

// seedOf returns the seed of a random test, which -model.seed sets.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1e9)
	}
	t.Logf("-model.seed=%d", seed)
	return seed
}

// testRand returns a random source of a test, with such a seed.
func testRand(t *testing.T) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(seedOf(t), 5))
}
