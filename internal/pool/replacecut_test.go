package pool

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestReplacePowerCut cuts the power of all devices at an operation of any of them during a replacement. When the pool
// is opened with what is there, old and new device included, the replacement goes on, or can be begun again.
func TestReplacePowerCut(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		rng := testRand(t)
		begun, ended := 0, 0
		forCuts(t, l, rng, func(s *sweep, sw *powerSwitch, n int, fate cutFate) (operations int) {
			v := l.replaceable()[0]
			old := s.guid(s.mems[v])
			m := disk.NewMem("new", s.mems[v].Size())
			all := append(s.mems, m)
			sw.arm(n, all)
			err := s.p.Replace(old, switched{m, sw})
			if err == nil {
				s.p.rest()
				err = s.p.usable()
			}
			if err == nil {
				err = s.ops("a", Op{Kind: OpWrite, Block: 5, Count: 20})
			}
			if err == nil {
				err = s.sync()
			}
			operations = sw.operations()
			s.note("power cut at operation %d: %v", n, err)
			s.cut(all, fate)
			if l.parity(0) > 0 && rng.IntN(3) == 0 {
				s.withoutOne(rng.IntN(len(s.mems)), old, s.mems[v].Name())
			}
			s.crash(false)
			s.p.rest()
			if s.p.memberOf(old) == nil {
				ended++
			} else {
				if len(s.p.members()) > len(all)-1 { // it goes on, but rest says that nothing more is to be done
					s.fatalf("replacement does not end: %+v", s.p.Devices())
				}
				begun++
				s.again(m.Name(), func(d *disk.Mem) error { return s.p.Replace(old, d) })
				s.p.rest()
			}
			return operations
		})
		if begun+ended == 0 || *everyOp && (begun == 0 || ended == 0) {
			t.Errorf("replaced again %d times, at the end already %d times", begun, ended)
		}
	})
}

// cutFate is what becomes of the unflushed writes of each device in a power cut.
type cutFate func(dev int) disk.Fate

// cut cuts the power of devices, verifies what is left, and sometimes cuts it again while the pool is opened and goes on
// with what it was about to do.
func (s *sweep) cut(mems []*disk.Mem, fate cutFate) {
	s.t.Helper()
	s.mems = disk.PowerCutAll(mems, fate, s.rng)
	s.p.Close()
	for i, m := range s.mems { // a first label that is torn beyond recognition: somebody has to wipe that
		var foreign *ErrForeign
		if _, err := Probe(m); errors.As(err, &foreign) && strings.Contains(foreign.Found, "unknown data") {
			s.mems[i] = disk.NewMem(m.Name(), m.Size())
		}
	}
	s.verified(true)
	if s.rng.IntN(3) > 0 {
		return
	}
	n := 1 + s.rng.IntN(60)
	s.power = &powerSwitch{}
	s.power.arm(n, s.mems)
	p, err := Open(s.devices(), s.opt)
	if err == nil {
		p.rest()
		err = p.Close()
	}
	s.note("power cut once more, at operation %d: %v", n, err)
	s.mems, s.power = disk.PowerCutAll(s.mems, fate, s.rng), nil
	s.verified(true)
}

// verified fails the test unless there is a sound pool on the devices. After a power cut copies of labels may be torn.
func (s *sweep) verified(cut bool) {
	s.t.Helper()
	rep, err := Verify(spies(s.t, s.mems), Options{})
	if err != nil {
		s.fatalf("verify: %v", err)
	}
	if v, err := Inspect(spies(s.t, s.mems), Options{}); err != nil || v.Error != "" {
		s.fatalf("inspect: %v %v", v, err)
	}
	for _, f := range rep.Findings {
		late := f.What == FoundDevice && strings.Contains(f.Text, "until they are resilvered")
		torn := f.What == FoundLabel && strings.HasSuffix(f.Text, "copies are intact")
		if !late && !(torn && cut) {
			s.fatalf("verify: %v", f)
		}
	}
}

// withoutOne lets the pool go on without a device until the power is cut once more. If the device was replaced
// meanwhile, it does not come back.
func (s *sweep) withoutOne(i int, old block.GUID, name string) {
	s.t.Helper()
	gone := s.mems[i]
	s.note("without device %s", gone.Name())
	s.mems = append(s.mems[:i:i], s.mems[i+1:]...)
	s.crash(false)
	must(s.t, s.goOn(s.rng.IntN(3)))
	if s.rng.IntN(2) == 0 {
		s.p.rest()
	}
	s.mems = disk.PowerCutAll(s.mems, func(int) disk.Fate { return disk.Fate(s.rng.IntN(4)) }, s.rng)
	s.p.Close()
	if gone.Name() == name {
		p, err := OpenReadOnly(spies(s.t, s.mems), Options{})
		must(s.t, err)
		defer p.Close()
		if p.memberOf(old) == nil {
			return
		}
	}
	s.mems = append(s.mems, gone)
}

// newSwitched returns a pool on devices whose power can be cut at an operation.
func newSwitched(t *testing.T, l layout, rng *rand.Rand) (*sweep, *powerSwitch) {
	t.Helper()
	s, sw := newSweep(t, l, rng), &powerSwitch{}
	mems, groups := l.make(func() int64 { return 12 << 20 })
	for i := range groups {
		for j, d := range groups[i].Devices {
			groups[i].Devices[j] = switched{d.(*disk.Mem), sw}
		}
	}
	p, err := Create(groups, Config{Name: "sweep"}, s.opt)
	must(t, err)
	s.p, s.mems = p, mems
	s.synced()
	return s, sw
}

// arm cuts the power of devices at the n-th operation from now on.
func (s *powerSwitch) arm(n int, mems []*disk.Mem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.done, s.off = n, 0, func() { disk.StopAll(mems) }
}

// operations returns how many there were since arm.
func (s *powerSwitch) operations() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// forCuts calls f with pools, and numbers of operations of their devices at which the power is to be cut: first with one
// that there is not, to learn how many there are, then with some all over them, each device with a random fate. With
// -every it is every operation, with each fate on all devices, and with random ones. What f leaves is looked at whole.
func forCuts(t *testing.T, l layout, rng *rand.Rand, f func(s *sweep, sw *powerSwitch, n int, fate cutFate) (operations int)) {
	t.Helper()
	cuts := -1
	cut := func(n int, fate cutFate) (operations int) {
		cuts++
		s, sw := newSwitched(t, l, rng)
		s.churn(4)
		must(t, s.sync())
		operations = f(s, sw, n, fate)
		s.sortMems()
		s.whole()
		must(t, s.p.Close())
		reopenAll(s.mems)
		s.verified(false)
		s.open()
		s.whole()
		must(t, s.p.Close())
		return operations
	}
	mixed := func(int) disk.Fate { return disk.Fate(rng.IntN(4)) }
	total := cut(1<<30, mixed)
	if *everyOp {
		for n := 1; n <= total; n++ {
			for fate := disk.Lost; fate <= disk.Prefix; fate++ {
				cut(n, func(int) disk.Fate { return fate })
			}
			cut(n, mixed)
		}
	} else {
		parts := 20
		if testing.Short() {
			parts = 10
		}
		for i := range parts {
			cut(1+i*total/parts+rng.IntN(total/parts+1), mixed)
		}
	}
	t.Logf("%d operations of the devices, %d cuts", total, cuts)
}

// again repeats what a power cut interrupted with the device of that name, as it is or, if what is on it is torn,
// wiped.
func (s *sweep) again(name string, do func(d *disk.Mem) error) {
	s.t.Helper()
	for i, m := range s.mems {
		if m.Name() != name {
			continue
		}
		m.Reopen()
		err := do(m)
		var foreign *ErrForeign
		if errors.Is(err, ErrDamaged) || errors.As(err, &foreign) && strings.Contains(foreign.Found, "unknown data") {
			s.mems[i] = disk.NewMem(name, m.Size())
			err = do(s.mems[i])
		}
		if err != nil {
			s.fatalf("again: %v", err)
		}
		return
	}
}

// TestTornWhileReplaced: the power fails while a device is being replaced, and only one of the two has what was written
// last. Whether that counts is decided once, for both: what anybody may have read since is there when the old device
// has left.
func TestTornWhileReplaced(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		for _, kept := range []string{"old", "new"} {
			s := newHealTest(t, l, 24<<20)
			s.churn(5)
			v := l.replaceable()[len(l.replaceable())-1] // of a group in which there is something
			old, dev := s.mems[v], disk.NewMem("new", s.mems[v].Size())
			guid := s.guid(old)
			s.p.upkeep.mu.Lock()
			s.p.upkeep.now = func() time.Time { return time.Time{}.Add(-time.Hour) } // no resilver is due yet
			s.p.upkeep.mu.Unlock()
			must(t, s.p.Replace(guid, dev))
			must(t, s.create("c", 300))
			for known := false; !known; known = s.shared(guid) {
				for !s.shared(guid) {
					must(t, s.ops("c", Op{Kind: OpWrite, Block: uint64(s.rng.IntN(250)), Count: uint32(1 + s.rng.IntN(40))}))
				}
				must(t, s.p.cycle()) // the checkpoint says so too
			}
			for _, m := range s.p.labels.now.Load().Members {
				if m.Out {
					t.Fatalf("the labels do not trust %+v", m)
				}
			}
			must(t, s.sync())
			for stable := true; stable; stable = s.p.flush.stable.Load() >= s.p.appended.Load() {
				must(t, s.ops("c", Op{Kind: OpWrite, Block: 7, Count: 20}))
			}
			s.mems = disk.PowerCutAll(append(s.mems, dev), func(i int) disk.Fate {
				if i == v && kept == "new" || i == len(s.mems) && kept == "old" {
					return disk.Lost
				}
				return disk.Kept
			}, s.rng)
			s.crash(kept == "old")
			s.p.rest()
			if s.p.memberOf(guid) != nil {
				s.fatalf("the replacement does not end: %+v", s.p.Devices())
			}
			s.sortMems()
			s.whole()
			must(t, s.p.Close())
		}
	})
}

// shared reports whether what is written next goes to a segment of which a device that is being replaced, and the one
// that replaces it, have everything.
func (s *sweep) shared(guid block.GUID) bool {
	s.p.log.mu.Lock()
	seg, left := s.p.log.pos.seg, s.p.seg.blocks()-s.p.log.pos.block
	s.p.log.mu.Unlock()
	return left > 30 && s.p.seg.where.Load().span(seg).group.index == s.p.memberOf(guid).group && !s.p.lacked(seg)
}
