package pool

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// lingering is a device that a write under way keeps open: write is called before each.
type lingering struct {
	*disk.Mem
	write func(bufs [][]byte, off int64)
}

func (d *lingering) WritevAt(bufs [][]byte, off int64) error {
	if d.write != nil {
		d.write(bufs, off)
	}
	return d.Mem.WritevAt(bufs, off)
}

func (d *lingering) Close() error { return nil }

// TestReplacedIsQuiet: a checkpoint is being announced on a device when that leaves the pool. Its labels are wiped after
// that, or not at all if it does not end.
func TestReplacedIsQuiet(t *testing.T) {
	for _, ends := range []bool{false, true} {
		t.Run(fmt.Sprint("ends=", ends), func(t *testing.T) {
			mems := closedPool(t, layouts[0])
			old, fresh := &lingering{Mem: mems[0]}, &lingering{Mem: disk.NewMem("new", mems[0].Size())}
			p, err := open([]disk.Device{old}, Options{DeltaEntries: 4096, Deadline: time.Minute}) // without background
			must(t, err)
			m := p.members()[0]
			must(t, p.Replace(m.guid, fresh))
			p.resilver()
			if !ends {
				p.opt.Deadline = 50 * time.Millisecond
			}
			var armed atomic.Bool
			at, resume, over := make(chan struct{}), make(chan struct{}), make(chan struct{})
			old.write = func(_ [][]byte, off int64) {
				if off >= ringAt && off < 2*ringAt && armed.Load() {
					at <- struct{}{}
					<-resume
				}
			}
			fresh.write = func(bufs [][]byte, off int64) {
				if l, err := label.Decode(bufs[0]); err != nil || off > 0 || !l.Members[0].Left {
					return
				}
				fresh.write = nil
				armed.Store(true)
				go func() {
					defer close(over)
					_ = p.writeRing(&label.Ring{Pool: p.cfg.GUID, Generation: p.generation, Root: p.root})
				}()
				<-at
			}
			if ends {
				go func() {
					for p.memberOf(m.guid) != nil {
						runtime.Gosched()
					}
					close(resume)
				}()
			}
			if !p.endReplacements() || p.memberOf(m.guid) != nil || p.labels.now.Load().Index(m.guid) >= 0 {
				t.Fatal("not replaced")
			}
			if !ends {
				close(resume)
			}
			<-over
			if l, err := Probe(mems[0]); ends && !errors.Is(err, ErrBlank) || !ends && (err != nil || l.Device != m.guid) {
				t.Errorf("the device that left: %v", err)
			}
			p.onDevices("label", []*member{m}, func(*member) error {
				t.Error("a device that left is told of something")
				return nil
			})
			close(p.stopped)
			close(p.upkeep.stopped)
			must(t, p.Close())
		})
	}
}

// sortMems puts the devices into the order of the pool's members.
func (s *sweep) sortMems() {
	var all []*disk.Mem
	for _, m := range s.p.members() {
		d := m.dev.Disk()
		if x, ok := d.(switched); ok {
			d = x.Mem
		}
		all = append(all, d.(*disk.Mem))
	}
	s.mems = all
}

// TestReplacementFails: the new device dies, comes back, hangs, and is replaced by another one in the end.
func TestReplacementFails(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		if testing.Short() && !slices.Contains([]string{"stripe-3", "mirror-cache", "raidz2-6"}, l.name) {
			t.Skip("takes long, since devices are waited for")
		}
		t.Parallel()
		s := newSweep(t, l, testRand(t))
		s.opt.Deadline = time.Second
		s.p, s.mems = newLayoutPool(t, l, 24<<20, s.opt)
		s.synced()
		s.churn(20)
		v := l.replaceable()[len(l.replaceable())-1] // of a group in which there is something
		old := s.p.members()[v]
		state := func(want DeviceState) {
			t.Helper()
			s.p.rest()
			for _, d := range s.p.Devices() {
				if d.Replacing && d.State != want || !d.Replacing && d.State != DeviceOnline && d.State != DeviceReplacing {
					t.Fatalf("%+v, want %s", d, want)
				}
			}
			s.same()
		}
		dead := disk.NewMem("dead", old.size.Load())
		dead.Inject(disk.Faults{FailFrom: 12})
		if err := s.p.Replace(old.guid, dead); err == nil {
			state(DeviceFaulted)
			dead.Inject(disk.Faults{})
			dead.Reopen()
			must(t, s.p.Return(dead)) // only for a while
			dead.Inject(disk.Faults{FailFrom: 20})
			state(DeviceFaulted)
		}
		mute := disk.NewMem("mute", old.size.Load())
		_, resume := mute.HangIf(func(op string, off, _ int64) bool { return op == "write" && off == 0 })
		if err := s.p.Replace(old.guid, mute); err == nil {
			t.Fatal("a device that does not answer was taken")
		}
		resume()
		slow := disk.NewMem("slow", old.size.Load())
		_, resume = slow.HangIf(func(op string, off, _ int64) bool {
			return op == "write" && off >= label.HeadBytes && off < slow.Size()-label.TailBytes
		})
		must(t, s.p.Replace(old.guid, slow))
		s.churn(5) // goes on
		state(DeviceFaulted)
		good, failed := disk.NewMem("good", old.size.Load()), old.guid
		if s.rng.IntN(2) == 0 {
			failed = s.guid(slow)
		}
		must(t, s.p.Replace(failed, good))
		resume()
		s.churn(2)
		s.p.rest()
		s.mems = append(s.mems, good)
		s.sortMems()
		s.whole()
		must(t, s.p.Close())
	})
}
