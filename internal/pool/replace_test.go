package pool

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// blank fails the test unless a device that left carries nothing any more.
func (s *sweep) blank(m *disk.Mem) {
	s.t.Helper()
	m.Reopen()
	if _, err := Probe(m); !errors.Is(err, ErrBlank) {
		s.fatalf("device %s after it left: %v", m.Name(), err)
	}
}

// guid returns the GUID of the member that a device is.
func (s *sweep) guid(d *disk.Mem) block.GUID {
	for _, m := range s.p.members() {
		if x, ok := m.dev.Disk().(switched); m.dev.Disk() == disk.Device(d) || ok && x.Mem == d {
			return m.guid
		}
	}
	s.fatalf("device %s is not a member", d.Name())
	panic("not reached")
}

// replaceable returns the devices to replace in tests: those that may be lost, or the first one.
func (l layout) replaceable() []int {
	if v := l.victims(); len(v) > 0 {
		return v
	}
	return []int{0}
}

// TestReplaceDevice: devices are replaced while the pool is used, and refused when they do not do.
func TestReplaceDevice(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		s.churn(20)
		for i, v := range l.replaceable() {
			old := s.mems[v]
			guid := s.guid(old)
			size := old.Size()
			refuse := func(g block.GUID, m *disk.Mem, why string) {
				t.Helper()
				if err := s.p.Replace(g, m); err == nil || !strings.Contains(err.Error(), why) {
					t.Fatalf("%v, want %s", err, why)
				}
			}
			refuse(guid, disk.NewMem("small", size-1<<20), "needed")
			refuse(block.NewGUID(), disk.NewMem("any", size), "no such device")
			used := disk.NewMem("used", size)
			used.FlipBit(70000, 1)
			refuse(guid, used, "not blank")
			refuse(guid, s.mems[(v+1)%len(s.mems)], "member of the pool already")
			other := disk.NewMem("other", 64<<20)
			q, err := Create(Stripe(other), Config{Name: "another"}, Options{})
			must(t, err)
			must(t, q.Close())
			other.Reopen()
			refuse(guid, other, "another")

			m := disk.NewMem("new", size+4096*int64(s.rng.IntN(100)))
			if i > 0 || len(l.groups) > 1 { // the first group may hold nothing
				must(t, s.p.Replace(guid, m))
			} else { // a look at it while it goes on
				waits, resume := m.HangIf(func(op string, off, _ int64) bool {
					return op == "write" && off >= label.HeadBytes && off < size-label.TailBytes
				})
				must(t, s.p.Replace(guid, m))
				<-waits
				refuse(guid, disk.NewMem("second", size), "being replaced already")
				states := map[DeviceState]int{}
				for _, d := range s.p.Devices() {
					states[d.State]++
				}
				if states[DeviceReplacing] != 1 || states[DeviceResilvering] != 1 || s.p.Stats().Health != HealthOnline {
					t.Fatal(states, s.p.Stats().Failure)
				}
				resume()
			}
			s.churn(10)
			s.p.rest()
			if s.p.memberOf(guid) != nil || len(s.p.Devices()) != len(s.mems) {
				t.Fatalf("%+v", s.p.Devices())
			}
			s.blank(old)
			s.mems[v] = m
			s.churn(2)
			s.p.rest()
			s.whole()
		}
		s.wholeAgain()
		must(t, s.p.Close())
	})
}

// TestReplaceBusy replaces devices in turn while the pool is written, snapshots come and go, a full pool is cleaned,
// and scrubs run.
func TestReplaceBusy(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		rng := testRand(t)
		p, mems := newLayoutPool(t, l, 28<<20, Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 64 << 10, CheckpointBytes: 4 << 20, Compression: compress.Algorithm(rng.IntN(3))})
		const blocks = 1300
		r, err := p.CreateReplica("v", blocks*block.Size)
		must(t, err)
		want, taken := make([]byte, blocks*block.Size), map[string][]byte{}
		n := uint64(0)
		step := func() { // with the version that is next
			n++
			must(t, p.Scrub(ScrubOptions{}))
			first, count := rng.IntN(blocks-40), 1+rng.IntN(40)
			o := Op{Kind: OpWrite, Block: uint64(first), Count: uint32(count), Version: ver(n), Data: noise(count, rng.Uint64())}
			must(t, r.Apply([]Op{o}))
			copy(want[first*block.Size:], o.Data)
			if name := fmt.Sprint(n / 60 % 2); n%60 == 0 {
				n++
				if taken[name] != nil {
					must(t, r.Apply([]Op{{Kind: OpDeleteSnapshot, Name: name, Version: ver(n)}}))
					n++
				}
				must(t, r.Apply([]Op{snap(name, n)}))
				taken[name] = bytes.Clone(want)
			}
		}
		for range 200 {
			step()
		}
		for _, v := range l.replaceable() {
			old := mems[v]
			guid := p.Devices()[slices.IndexFunc(p.Devices(), func(d DeviceInfo) bool { return d.Name == old.Name() })].GUID
			m := disk.NewMem(fmt.Sprint("new", v), old.Size())
			must(t, p.Replace(guid, m))
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for p.memberOf(guid) != nil && p.usable() == nil {
					p.rest()
				}
			}()
			for over := false; !over; {
				step()
				select {
				case <-ended:
					over = true
				default:
				}
			}
			old.Reopen()
			if _, err := Probe(old); !errors.Is(err, ErrBlank) {
				t.Fatal(err)
			}
			mems[v] = m
		}
		p.rest()
		if s, x := p.Stats(), p.Activity().Scrub; s.Health != HealthOnline || s.BlocksRepaired > 0 || s.ChecksumErrors > 0 || x.State != ActivityDone || x.Repaired > 0 || x.Errors > 0 {
			t.Fatalf("%+v %+v %v", s, x, p.Damage())
		}
		t.Logf("%d versions, %d blocks moved", n, p.Stats().BlocksMoved)
		must(t, p.Check())
		must(t, p.Close())
		rep, err := Verify(spies(t, mems), Options{})
		if err != nil || rep.Damage > 0 {
			t.Fatal(err, rep.Findings)
		}
		reopenAll(mems)
		p, err = Open(devicesOf(mems), Options{DeltaEntries: 4096})
		must(t, err)
		got := make([]byte, len(want))
		must(t, p.Replica("v").Read(0, got, nil))
		if !bytes.Equal(got, want) {
			t.Error("content differs")
		}
		for name, want := range taken {
			must(t, p.Replica("v").ReadSnapshot(name, 0, got, nil))
			if !bytes.Equal(got, want) {
				t.Errorf("snapshot %s differs", name)
			}
		}
		must(t, p.Close())
	})
}

// TestReplaceDuringWrite: a write that was on its way to the old device when the new one came does not reach that. It
// is copied like everything else, without a pause.
func TestReplaceDuringWrite(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		s.churn(5)
		must(t, s.create("c", 100))
		hung := make(chan int, 1) // where the write is
		var resume []func()
		for i, m := range s.mems {
			_, f := m.HangIf(func(op string, off, _ int64) bool {
				hang := op == "write" && off >= label.HeadBytes && off < m.Size()-label.TailBytes
				if hang {
					select {
					case hung <- i:
					default:
					}
				}
				return hang
			})
			resume = append(resume, f)
		}
		end := make(chan error)
		go func() { end <- s.ops("c", Op{Kind: OpWrite, Block: 7, Count: 9}) }()
		v := <-hung
		m := disk.NewMem("new", s.mems[v].Size())
		must(t, s.p.Replace(s.guid(s.mems[v]), m))
		for s.p.Activity().Resilver.State != ActivityRunning {
			runtime.Gosched()
		}
		for _, f := range resume {
			f()
		}
		must(t, <-end)
		s.p.rest()
		s.blank(s.mems[v])
		s.mems[v] = m
		s.whole()
		must(t, s.p.Close())
	})
}

// TestReplaceGoneDevice: what is replaced is not there any more, or went away while it was replaced.
func TestReplaceGoneDevice(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		s.churn(10)
		for i, v := range l.victims() {
			guid := s.p.members()[v].guid
			if i%2 == 0 {
				s.goAway(v)
				s.churn(10)
			}
			m := disk.NewMem(fmt.Sprint("new", i), s.mems[v].Size())
			must(t, s.p.Replace(guid, m))
			if i%2 == 1 {
				s.goAway(v)
			}
			s.churn(3)
			s.p.rest()
			s.mems[v].Reappear()
			s.mems[v].Reopen()
			if err := s.p.Return(s.mems[v]); err == nil || !strings.Contains(err.Error(), "not a member") {
				t.Fatal(err)
			}
			s.mems[v] = m
			// The order of the members changes with a replacement, that of the tests must not.
			s.sortMems()
		}
		s.whole()
		must(t, s.p.Close())
	})
}

// TestReplaceByLarger: the pool takes the room of larger devices when all of a raid group are.
func TestReplaceByLarger(t *testing.T) {
	for _, l := range []layout{layouts[0], layouts[4]} {
		t.Run(l.name, func(t *testing.T) {
			s := newHealTest(t, l, 12<<20)
			s.churn(2)
			before := s.p.Stats().Segments
			for v, old := range s.mems {
				if n := s.p.Stats().Segments; n != before {
					t.Fatalf("%d segments after %d devices, were %d", n, v, before)
				}
				s.mems[v] = disk.NewMem(fmt.Sprint("new", v), 2*old.Size())
				must(t, s.p.Replace(s.guid(old), s.mems[v]))
				s.p.rest()
			}
			if n := s.p.Stats().Segments; n < 2*before {
				t.Fatalf("%d segments, were %d", n, before)
			}
			s.churn(2)
			s.whole()
			s.wholeAgain()
			must(t, s.p.Close())
		})
	}
}

// TestReplaceDamagedDevice: what nothing can repair does not keep a device from being replaced, and costs nothing else.
func TestReplaceDamagedDevice(t *testing.T) {
	for _, unreadable := range []bool{false, true} {
		p, mems := newLayoutPool(t, layouts[0], 24<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.LZ4})
		r, err := p.CreateReplica("v", 8<<20)
		must(t, err)
		const n = 512
		must(t, r.Apply([]Op{{Kind: OpWrite, Count: n, Version: ver(1), Data: half(n, 1)}}))
		must(t, p.cycle())
		var s readScratch
		must(t, r.find(&s, 0, n))
		at := slices.Clone(s.places[:n])
		_, off := p.where(at[300].loc.Addr())
		broken := map[int]bool{300: true} // what it touches
		if unreadable {
			mems[0].BadSectors(off&^4095, 1)
			for i := range at {
				broken[i] = at[i].loc.Addr() < (at[300].loc.Addr()|4095)+1 && at[i].loc.End() > at[300].loc.Addr()&^4095
			}
		} else {
			mems[0].FlipBit(off+40, 3)
		}
		guid := p.Devices()[0].GUID
		must(t, p.Replace(guid, disk.NewMem("new", mems[0].Size())))
		p.rest()
		if d := p.Devices(); p.memberOf(guid) != nil || len(d) != 1 || d[0].State != DeviceOnline {
			t.Fatalf("%+v", d)
		}
		lost := 0
		for i := range at {
			b := make([]byte, block.Size)
			if err := r.Read(uint64(i), b, nil); (err != nil) != broken[i] || err != nil && !errors.Is(err, ErrChecksum) {
				t.Errorf("block %d: %v", i, err)
			}
			if broken[i] {
				lost++
			}
		}
		if d := p.Damage(); len(d) != lost || (lost > 1) != unreadable || d[0].Replica != "v" {
			t.Errorf("%d blocks are lost: %v", lost, d)
		}
		must(t, p.Close())
	}
}
