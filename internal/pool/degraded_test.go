package pool

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// TestDeviceFailsInUse lets as many devices as a group has parity fail in many ways while the pool is written and read.
// It goes on without an error, says that it is degraded, and has everything when it is opened without those devices.
func TestDeviceFailsInUse(t *testing.T) {
	for _, c := range []struct {
		how  string
		fail func(m *disk.Mem) (undo func())
		out  bool // the device is taken out
	}{
		{"EIO", func(m *disk.Mem) func() { m.Inject(disk.Faults{FailFrom: 1}); return nil }, true},
		{"writes fail", func(m *disk.Mem) func() { m.Inject(disk.Faults{FailWrite: true}); return nil }, true},
		{"flushes fail", func(m *disk.Mem) func() { m.Inject(disk.Faults{FailFlush: true}); return nil }, true},
		{"reads fail", func(m *disk.Mem) func() { m.Inject(disk.Faults{FailRead: true}); return nil }, false},
		{"one write fails", func(m *disk.Mem) func() { m.Inject(disk.Faults{FailOp: 2}); return nil }, false},
		{"loses writes", func(m *disk.Mem) func() { m.Inject(disk.Faults{LoseWrite: true}); return nil }, false},
		{"disappears", func(m *disk.Mem) func() { m.Disappear(); return nil }, true},
		{"hangs", func(m *disk.Mem) func() { _, resume := m.Hang(); return resume }, true},
		{"writes hang", func(m *disk.Mem) func() {
			_, resume := m.HangIf(func(op string, _, _ int64) bool { return op == "write" })
			return resume
		}, true},
		{"flushes hang", func(m *disk.Mem) func() {
			_, resume := m.HangIf(func(op string, _, _ int64) bool { return op == "flush" })
			return resume
		}, true},
	} {
		t.Run(c.how, func(t *testing.T) {
			if raceDetector && (c.how == "hangs" || c.how == "writes hang") {
				t.Skip("see raceDetector")
			}
			redundant(t, func(t *testing.T, l layout) {
				t.Parallel()
				opt := Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, PageCacheBytes: 16 << 10}
				if strings.Contains(c.how, "hang") { // otherwise a busy machine must not look like a device that hangs
					opt.Deadline = 200 * time.Millisecond
				}
				p, mems := newLayoutPool(t, l, 24<<20, opt)
				r, err := p.CreateReplica("v", 8<<20)
				must(t, err)
				want := make([]byte, 8<<20)
				n := uint64(0)
				rng := rand.New(rand.NewPCG(1, 2))
				put := func(rounds int) {
					t.Helper()
					for range rounds {
						n++
						o := write(rng.Uint64N(2000), 1+rng.IntN(40), n)
						must(t, r.Apply([]Op{o}))
						copy(want[o.Block*block.Size:], o.Data)
					}
				}
				look := func(p *Pool) {
					t.Helper()
					got := make([]byte, len(want))
					must(t, p.Replica("v").Read(0, got, nil))
					if !bytes.Equal(got, want) {
						t.Fatal("content differs")
					}
				}
				put(40)
				must(t, p.cycle())
				put(10)
				for _, v := range l.victims() {
					if undo := c.fail(mems[v]); undo != nil {
						defer undo()
					}
				}
				put(20)
				look(p)
				must(t, p.Sync())
				put(20)
				must(t, p.cycle())
				look(p)
				put(1)
				must(t, r.SetState([]byte("state"), ver(n+1)))
				s := p.Stats()
				if c.out && s.Health != HealthDegraded || s.Health == HealthFaulted || (s.Health == HealthOnline) != (s.Failure == "") {
					t.Errorf("%s: %s", s.Health, s.Failure)
				}
				for _, v := range l.victims() {
					d := p.Devices()[v]
					if d.Name != mems[v].Name() || c.out && (d.State != DeviceFaulted || d.Cause == nil) {
						t.Errorf("%+v", d)
					}
				}
				must(t, p.Check())
				must(t, p.Close())
				reopenAll(mems)
				q, err := Open(without(mems, l.victims()...), opt)
				must(t, err)
				look(q)
				if string(q.Replica("v").State()) != "state" || q.Stats().Health != HealthDegraded {
					t.Error(q.Stats().Health)
				}
				must(t, q.Close())
			})
		})
	}
}

// TestLiesAreRepaired corrupts everything that one device has, or two of a raidz2, in the data area, and reads it all:
// nothing wrong comes back, everything is put right, and the device is named.
func TestLiesAreRepaired(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		mems := closedPool(t, l)
		rng := rand.New(rand.NewPCG(3, 3))
		for _, v := range l.victims() {
			mems[v].Corrupt(label.HeadBytes, mems[v].Size()-2*label.HeadBytes, rng)
		}
		p, err := Open(devicesOf(mems), Options{DeltaEntries: 4096})
		must(t, err)
		dst := make([]byte, 700*block.Size)
		for range 4 { // mirrors take turns
			must(t, p.Replica("v").Read(0, dst, nil))
			if !bytes.Equal(dst, fill(700, 1)) {
				t.Fatal("content differs")
			}
		}
		if s := p.Stats(); s.BlocksRepaired == 0 || s.ChecksumErrors != 0 || s.Health != HealthOnline {
			t.Errorf("%+v", s)
		}
		blamed := false
		for i, d := range p.Devices() {
			blamed = blamed || d.ChecksumErrors > 0
			honest := true
			for _, v := range l.victims() {
				honest = honest && v != i
			}
			if honest && d.ChecksumErrors > 0 {
				t.Errorf("honest device %s is blamed", d.Name)
			}
		}
		if !blamed {
			t.Error("no device is blamed")
		}
		must(t, p.Close())
	})
}

// TestBeyondRedundancy loses one device more than a group can: writes fail, what is wrong is said, nothing hangs.
func TestBeyondRedundancy(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		p, mems := newLayoutPool(t, l, 24<<20, Options{DeltaEntries: 4096, SegmentBytes: 256 << 10})
		r, err := p.CreateReplica("v", 8<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 10, 1)}))
		must(t, p.Sync())
		for _, m := range mems {
			m.Disappear()
		}
		err = r.Apply([]Op{write(0, 10, 2)})
		if err == nil {
			err = p.Sync()
		}
		if s := p.Stats(); err == nil || s.Health != HealthFaulted || s.Failure == "" {
			t.Fatal(err, s.Health)
		}
		found := disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Lost }, nil)
		p.Close()
		q, err := Open(devicesOf(found), Options{DeltaEntries: 4096})
		must(t, err)
		if v := q.Replica("v").Applied(); v.Less(ver(1)) {
			t.Fatal(v)
		}
		must(t, q.Close())
	})
}
