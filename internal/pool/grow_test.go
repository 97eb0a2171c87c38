package pool

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// more returns groups like those of the layout, on new devices.
func (l layout) more(size int64) (mems []*disk.Mem, groups []Group) {
	mems, groups = l.make(func() int64 { return size })
	for i, m := range mems {
		n := disk.NewMem(fmt.Sprint("more", i), m.Size())
		for _, g := range groups {
			for j := range g.Devices {
				if g.Devices[j] == disk.Device(m) {
					g.Devices[j] = n
				}
			}
		}
		mems[i] = n
	}
	return mems, groups
}

// TestAddGroups: a full pool gets more raid groups and goes on.
func TestAddGroups(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 20<<20)
		s.churn(10)
		before := s.p.Stats()
		mems, groups := l.more(20 << 20)
		if err := s.p.AddGroups([]Group{{Kind: raid.RAIDZ, Devices: groups[0].Devices[:1]}}); err == nil || !strings.Contains(err.Error(), "raidz of 1 devices") {
			t.Fatal(err)
		}
		if err := s.p.AddGroups([]Group{{Kind: raid.Stripe, Devices: []disk.Device{s.mems[0]}}}); err == nil || !strings.Contains(err.Error(), "member") {
			t.Fatal(err)
		}
		must(t, s.p.AddGroups(groups))
		s.mems = append(s.mems, mems...)
		now := s.p.Stats()
		if now.Capacity < before.Capacity*3/2 || now.Segments != 2*before.Segments || now.Health != HealthOnline {
			t.Fatalf("%+v, was %+v", now, before)
		}
		must(t, s.create("big", 5500)) // does not fit into what there was
		for b := uint64(0); b < 5500; b += 100 {
			must(t, s.ops("big", Op{Kind: OpWrite, Block: b, Count: 100}))
		}
		s.churn(10)
		s.whole()
		s.wholeAgain()
		s.mems = disk.KillAll(s.mems)
		s.synced()
		s.crash(true)
		s.churn(5)
		s.whole()
		must(t, s.p.Close())
	})
}

// growSweep cuts the power at an operation of any device while grow makes the pool larger; again repeats it if the
// pool, opened again with all devices, is not larger.
func growSweep(t *testing.T, l layout, more func(s *sweep) []*disk.Mem, grow func(s *sweep, sw *powerSwitch, more []*disk.Mem) error, again func(s *sweep, more []*disk.Mem)) {
	rng := testRand(t)
	larger, same := 0, 0
	forCuts(t, l, rng, func(s *sweep, sw *powerSwitch, n int, fate cutFate) (operations int) {
		before := s.p.Stats().Segments
		add := more(s)
		all := append(s.mems, add...)
		sw.arm(n, all)
		err := grow(s, sw, add)
		operations = sw.operations()
		for i := 0; err == nil && i < 20; i++ { // some of that goes to the new space
			err = s.ops("a", Op{Kind: OpWrite, Block: uint64(i), Count: 120})
		}
		if err == nil {
			err = s.sync()
		}
		s.note("power cut at operation %d: %v", n, err)
		s.cut(all, fate)
		s.crash(false)
		s.p.rest()
		if s.p.Stats().Segments > before {
			larger++
		} else {
			same++
			again(s, s.mems[len(s.mems)-len(add):])
		}
		if s.p.Stats().Segments <= before {
			s.fatalf("the pool has not grown")
		}
		s.churn(10)
		s.p.rest()
		return operations
	})
	if larger == 0 || *everyOp && same == 0 {
		t.Errorf("larger %d times, not yet %d times", larger, same)
	}
}

// TestAddGroupsPowerCut cuts the power while raid groups are added.
func TestAddGroupsPowerCut(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		groupsOf := func(mems []*disk.Mem, wrap func(*disk.Mem) disk.Device) (groups []Group) {
			for _, sh := range l.groups {
				g := Group{Kind: sh.kind, Cache: sh.cache}
				for _, m := range mems[:sh.n] {
					g.Devices = append(g.Devices, wrap(m))
				}
				mems = mems[sh.n:]
				groups = append(groups, g)
			}
			return groups
		}
		growSweep(t, l, func(*sweep) []*disk.Mem {
			mems, _ := l.more(12 << 20)
			return mems
		}, func(s *sweep, sw *powerSwitch, more []*disk.Mem) error {
			return s.p.AddGroups(groupsOf(more, func(m *disk.Mem) disk.Device { return switched{m, sw} }))
		}, func(s *sweep, more []*disk.Mem) {
			for i, m := range more {
				m.Reopen()
				if err := s.p.admit(m, 0); err != nil { // a label that is torn
					more[i] = disk.NewMem(m.Name(), m.Size())
					s.mems[len(s.mems)-len(more)+i] = more[i]
				}
			}
			must(t, s.p.AddGroups(groupsOf(more, func(m *disk.Mem) disk.Device { return m })))
		})
	})
}

// TestAddGroupsBeforeCheckpoint cuts the power when the labels list new raid groups and no checkpoint does, uses their
// space, and cuts it again before there is a checkpoint: the new devices lack nothing.
func TestAddGroupsBeforeCheckpoint(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		rng := testRand(t)
		for n := 1; ; n++ {
			s, sw := newSwitched(t, l, rng)
			must(t, s.create("a", 1200))
			must(t, s.ops("a", Op{Kind: OpWrite, Block: 3, Count: 50}))
			must(t, s.sync())
			before := s.p.Stats().Segments
			more, groups := l.more(12 << 20)
			all := append(s.mems, more...)
			for i := range groups {
				for j, d := range groups[i].Devices {
					groups[i].Devices[j] = switched{d.(*disk.Mem), sw}
				}
			}
			sw.arm(n, all)
			if s.p.AddGroups(groups) == nil {
				t.Fatal("labels never listed groups that no checkpoint did")
			}
			s.mems = disk.PowerCutAll(all, func(int) disk.Fate { return disk.Kept }, rng)
			s.p.Close()
			if s.p = openIdle(t, s.devices(), s.opt); s.p.Stats().Segments == before {
				closeIdle(s.p)
				continue
			}
			must(t, s.ops("a", Op{Kind: OpWrite, Block: 100, Count: 300}))
			must(t, s.sync())
			s.mems = disk.PowerCutAll(s.mems, func(int) disk.Fate { return disk.Lost }, rng)
			closeIdle(s.p)
			s.open()
			s.same()
			s.whole()
			must(t, s.p.Close())
			return
		}
	})
}

// grown makes all devices of the pool larger.
func (s *sweep) grown(by int64) {
	for _, m := range s.mems {
		m.Grow(m.Size() + by)
	}
}

// TestExpand: devices become larger one after the other; the pool grows with the smallest of each group.
func TestExpand(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 16<<20)
		s.churn(10)
		before := s.p.Stats()
		must(t, s.p.Expand())
		for i, m := range s.mems {
			m.Grow(m.Size() * 2)
			must(t, s.p.Expand())
			s.churn(2)
			if d := s.p.Devices()[i]; d.Size != m.Size() {
				t.Fatalf("%+v", d)
			}
			group, column := l.of(i)
			if now := s.p.Stats(); column < l.groups[group].n-1 && group == 0 && now.Segments != before.Segments {
				t.Fatalf("%+v, was %+v", now, before)
			}
		}
		now := s.p.Stats()
		if now.Capacity < before.Capacity*3/2 || now.Segments < 2*before.Segments {
			t.Fatalf("%+v, was %+v", now, before)
		}
		must(t, s.create("big", 4500))
		for b := uint64(0); b < 4500; b += 100 {
			must(t, s.ops("big", Op{Kind: OpWrite, Block: b, Count: 100}))
		}
		s.whole()
		s.wholeAgain()
		for _, m := range s.mems { // the labels of the head go, those of the tail are where they should be
			for off := int64(0); off < 1<<20; off += 4096 {
				m.FlipBit(off+20, 3)
			}
		}
		s.mems = disk.KillAll(s.mems)
		s.synced()
		s.crash(true)
		must(t, s.p.Close())
	})
}

// TestExpandedTail: as soon as a pool uses the room of its larger devices, where labels and announcements of their ends
// were is room too, and those at the new ends do without the ones at the heads.
func TestExpandedTail(t *testing.T) {
	rng := testRand(t)
	forLayouts(t, func(t *testing.T, l layout) {
		p, mems := newLayoutPool(t, l, 12<<20, Options{SegmentBytes: 256 << 10})
		for _, m := range mems {
			m.Grow(m.Size() + 1<<20)
		}
		must(t, p.Expand())
		mems = clones(mems)
		for _, m := range mems {
			old := m.Size() - 1<<20 - label.TailBytes
			m.Corrupt(0, label.HeadBytes, rng)
			must(t, m.Discard(old, label.TailBytes))
		}
		q, err := Open(devicesOf(mems), Options{})
		must(t, err)
		must(t, q.Check())
		must(t, q.Close())
	})
}

// TestExpandPowerCut cuts the power while a pool takes the room of its larger devices.
func TestExpandPowerCut(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		growSweep(t, l, func(s *sweep) []*disk.Mem {
			s.grown(8 << 20)
			return nil
		}, func(s *sweep, _ *powerSwitch, _ []*disk.Mem) error { return s.p.Expand() }, func(s *sweep, _ []*disk.Mem) { must(s.t, s.p.Expand()) })
	})
}
