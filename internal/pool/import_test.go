package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// renamed is a device under another name.
type renamed struct {
	*disk.Mem
	name string
}

func (r renamed) Name() string { return r.name }

// closedPool makes a pool with something in it and closes it.
func closedPool(t *testing.T, l layout) []*disk.Mem {
	t.Helper()
	p, mems := newLayoutPool(t, l, 20<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 700, 1)}))
	must(t, p.Close())
	reopenAll(mems)
	return mems
}

// lookAt opens the pool, looks at its health, unless that is "", and at what closedPool wrote, and closes it.
func lookAt(t *testing.T, devs []disk.Device, health string) {
	t.Helper()
	p, err := Open(devs, Options{DeltaEntries: 4096, Deadline: time.Second})
	must(t, err)
	if s := p.Stats(); s.Health != health && health != "" {
		t.Errorf("%s, want %s: %s", s.Health, health, s.Failure)
	}
	sums := make([]uint32, 700)
	must(t, p.Replica("v").Read(0, make([]byte, 700*block.Size), sums))
	want := fill(700, 1)
	for i := range sums {
		if sums[i] != block.Sum(want[i*block.Size:(i+1)*block.Size]) {
			t.Fatal("block", i)
		}
	}
	must(t, p.Check())
	must(t, p.Close())
	for _, d := range devs {
		if r, ok := d.(interface{ Reopen() }); ok {
			r.Reopen()
		}
	}
}

// TestImport opens pools under other names and in any order, with as many devices missing as their groups can do
// without, and refuses when one more is.
func TestImport(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		mems := closedPool(t, l)
		rng := rand.New(rand.NewPCG(1, 1))
		for range 3 {
			var devs []disk.Device
			for i, at := range rng.Perm(len(mems)) {
				devs = append(devs, renamed{mems[at], fmt.Sprint("/dev/other", i)})
			}
			lookAt(t, devs, HealthOnline)
		}
		for gone := range mems {
			g, _ := l.of(gone)
			devs := without(mems, gone)
			if l.parity(g) == 0 {
				if _, err := Open(devs, Options{}); err == nil || !strings.Contains(err.Error(), "missing") && len(devs) > 0 {
					t.Error(err)
				}
				continue
			}
			var copies []disk.Device // each on copies of their own: the labels will call the missing one out
			for i, d := range devs {
				devs[i] = d.(*disk.Mem).Clone()
				copies = append(copies, devs[i])
			}
			lookAt(t, devs, HealthDegraded)
			health := HealthDegraded
			if len(l.groups) > 1 {
				health = "" // it may have missed nothing but the labels
			}
			lookAt(t, append(copies, mems[gone].Clone()), health)
		}
		victims := l.victims()
		if len(victims) == 0 {
			return
		}
		guid := func(i int) string {
			x, err := Probe(mems[i])
			must(t, err)
			return x.Device.String()
		}
		last := slices.Max(victims)
		g, _ := l.of(last)
		more := 0
		for i := range mems {
			if h, _ := l.of(i); h == g && !slices.Contains(victims, i) {
				more = i
			}
		}
		left := without(mems, append(victims, more)...)
		_, err := Open(left, Options{})
		if len(left) > 0 && (err == nil || !strings.Contains(err.Error(), "needs") || !strings.Contains(err.Error(), guid(more)) || !strings.Contains(err.Error(), guid(last))) {
			t.Error(err)
		}
		var copies []*disk.Mem
		for _, m := range mems {
			copies = append(copies, m.Clone())
		}
		lookAt(t, without(copies, victims...), HealthDegraded)
	})
}

// rawLabel writes something that Encode does not, with a right checksum, as all labels of a device.
func rawLabel(t *testing.T, m *disk.Mem, change func(b []byte)) {
	b := make([]byte, block.Size)
	must(t, m.ReadAt(b, 0))
	change(b)
	clear(b[12:16])
	binary.LittleEndian.PutUint32(b[12:], block.Sum(b))
	for _, off := range []int64{0, 64 << 10, m.Size() - 1<<20, m.Size() - 1<<20 + 64<<10} {
		must(t, m.WritevAt([][]byte{b}, off))
	}
}

// TestRefusals gives Open devices that it must not use, beside ones that would do, and looks for the sentence.
func TestRefusals(t *testing.T) {
	l := layouts[3] // three copies
	for _, c := range []struct {
		what    string
		prepare func(t *testing.T, mems []*disk.Mem) []disk.Device
		want    string
		is      error
	}{
		{"file system", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			m := disk.NewMem("xfs-disk", 20<<20)
			b := make([]byte, block.Size)
			copy(b, "XFSB")
			must(t, m.WritevAt([][]byte{b}, 0))
			return append(devicesOf(mems), m)
		}, "device xfs-disk is not blank: found xfs filesystem", nil},
		{"other pool", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			return append(devicesOf(mems[:2]), closedPool(t, layouts[0])[0])
		}, "devices of two pools", nil},
		{"old member", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			x, err := Probe(mems[0])
			must(t, err)
			old := x.Index(func() block.GUID { y, err := Probe(mems[2]); must(t, err); return y.Device }())
			x.Members[old].GUID = block.NewGUID()
			x.Generation++
			must(t, label.Write(mems[0], x))
			return devicesOf(mems)
		}, "device mem2", nil},
		{"newer format", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			rawLabel(t, mems[1], func(b []byte) { b[8] = 3 })
			return devicesOf(mems)
		}, "device mem1: label: format 3: written in a newer format", ErrNewerFormat},
		{"format 1", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			rawLabel(t, mems[1], func(b []byte) { b[8] = 1 })
			return devicesOf(mems)
		}, "device mem1: label: made by a pre-release, format 1", ErrOldFormat},
		{"copy", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			return append(devicesOf(mems), renamed{mems[1], "copy"})
		}, "are the same member 2", nil},
		{"blank only", func(t *testing.T, mems []*disk.Mem) []disk.Device {
			return []disk.Device{disk.NewMem("empty", 20<<20)}
		}, "empty", ErrBlank},
	} {
		t.Run(c.what, func(t *testing.T) {
			devs := c.prepare(t, closedPool(t, l))
			_, err := Open(devs, Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Fatal(err)
			}
			var foreign *ErrForeign
			if c.what == "file system" && !errors.As(err, &foreign) {
				t.Fatal(err)
			}
			if c.what == "old member" && !strings.Contains(err.Error(), "not a member of pool test any more") {
				t.Fatal(err)
			}
		})
	}
}

// TestHalves uses the two sides of a mirror without each other.
func TestHalves(t *testing.T) {
	l := layouts[2]
	use := func(t *testing.T, devs []disk.Device, v uint64) {
		t.Helper()
		p, err := Open(devs, Options{DeltaEntries: 4096})
		must(t, err)
		must(t, p.Replica("v").Apply([]Op{write(0, 1, v)}))
		must(t, p.Close())
		for _, d := range devs {
			d.(*disk.Mem).Reopen()
		}
	}
	for _, rounds := range [][2]int{{1, 1}, {3, 1}, {1, 2}} {
		mems := closedPool(t, l)
		for side, n := range rounds {
			for i := range n {
				use(t, []disk.Device{mems[side]}, uint64(10+10*side+i))
			}
		}
		_, err := Open(devicesOf(mems), Options{})
		if err == nil || !strings.Contains(err.Error(), "two halves") || !strings.Contains(err.Error(), "mem0") || !strings.Contains(err.Error(), "mem1") ||
			!strings.Contains(err.Error(), "wipe the one") {
			t.Fatal(err)
		}
		must(t, mems[0].Discard(0, mems[0].Size())) // what the sentence says
		p, err := Open(devicesOf(mems), Options{DeltaEntries: 4096})
		must(t, err)
		if p.Stats().Health != HealthDegraded || p.Replica("v").Applied() != ver(uint64(19+rounds[1])) {
			t.Fatal(p.Stats().Health, p.Replica("v").Applied())
		}
		must(t, p.Close())
	}
	// One side is away, comes back, and then the other one is away: nothing was lost.
	mems := closedPool(t, l)
	use(t, []disk.Device{mems[0]}, 10)
	p, err := Open(devicesOf(mems), Options{DeltaEntries: 4096})
	must(t, err)
	must(t, p.Replica("v").Apply([]Op{write(1, 1, 11)}))
	must(t, p.cycle()) // lists what the device that came back lacks, and calls it in
	must(t, p.Close())
	reopenAll(mems)
	use(t, []disk.Device{mems[0]}, 12)
	p, err = Open(devicesOf(mems), Options{DeltaEntries: 4096})
	must(t, err)
	if p.Replica("v").Applied() != ver(12) {
		t.Fatal(p.Replica("v").Applied())
	}
	must(t, p.Close())
}

// TestLabelsLost destroys label areas: one end of every device, and all of one device that the others make up for.
func TestLabelsLost(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	forLayouts(t, func(t *testing.T, l layout) {
		for _, how := range []string{"corrupt", "unreadable"} {
			mems := closedPool(t, l)
			for _, m := range mems {
				off := []int64{0, m.Size() - label.TailBytes}[rng.IntN(2)]
				if how == "corrupt" {
					m.Corrupt(off, label.HeadBytes, rng)
				} else {
					m.BadSectors(off, label.HeadBytes)
				}
			}
			lookAt(t, devicesOf(mems), HealthOnline)
		}
		for _, v := range l.victims() {
			for what, spoil := range map[string]func(m *disk.Mem){
				"damaged labels": func(m *disk.Mem) {
					for _, off := range []int64{0, m.Size() - label.TailBytes} {
						m.FlipBit(off+50, 0)
						m.FlipBit(off+64<<10+50, 0)
					}
				},
				"wiped":    func(m *disk.Mem) { must(t, m.Discard(0, m.Size())) },
				"EIO":      func(m *disk.Mem) { m.Inject(disk.Faults{FailRead: true, FailWrite: true, FailFlush: true}) },
				"no disk":  func(m *disk.Mem) { m.Disappear() },
				"dead end": func(m *disk.Mem) { m.Inject(disk.Faults{FailFrom: 3}) },
			} {
				mems := closedPool(t, l)
				spoil(mems[v])
				t.Log(what)
				lookAt(t, devicesOf(mems), HealthDegraded)
			}
		}
	})
}

// TestHangAtOpen has a device that does not answer, at its probe or later. On a machine so busy that other devices are late
// too, the deadline was too short, and it is tried again with a longer one.
func TestHangAtOpen(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		for _, skip := range []int{0, 2, 5} {
			for deadline := 50 * time.Millisecond; ; deadline *= 2 {
				late, err := hangAtOpen(t, l, skip, deadline)
				if err == nil {
					break
				}
				if !late || deadline > time.Minute {
					t.Fatalf("after %d operations, with a deadline of %v: %v", skip, deadline, err)
				}
			}
		}
	})
}

// closedLast is a device that is not closed before every call of it has ended, as a file is.
type closedLast struct {
	*disk.Mem
	calls sync.RWMutex
}

func (d *closedLast) ReadAt(b []byte, off int64) error {
	d.calls.RLock()
	defer d.calls.RUnlock()
	return d.Mem.ReadAt(b, off)
}

func (d *closedLast) WritevAt(bufs [][]byte, off int64) error {
	d.calls.RLock()
	defer d.calls.RUnlock()
	return d.Mem.WritevAt(bufs, off)
}

func (d *closedLast) Flush() error {
	d.calls.RLock()
	defer d.calls.RUnlock()
	return d.Mem.Flush()
}

func (d *closedLast) Close() error {
	d.calls.Lock()
	defer d.calls.Unlock()
	return d.Mem.Close()
}

// hangAtOpen opens and uses a pool of which one device answers so many times. late says that others may have been late.
func hangAtOpen(t *testing.T, l layout, answers int, deadline time.Duration) (late bool, err error) {
	mems := closedPool(t, l)
	victim := mems[l.victims()[0]]
	n := 0
	_, resume := victim.HangIf(func(string, int64, int64) bool { n++; return n > answers })
	defer resume()
	devs := devicesOf(mems)
	devs[l.victims()[0]] = &closedLast{Mem: victim}
	p, err := Open(devs, Options{DeltaEntries: 4096, Deadline: deadline})
	if err != nil {
		return true, err
	}
	err = p.Replica("v").Apply([]Op{write(0, 10, 2)})
	if err == nil {
		err = p.cycle() // reaches every device
	}
	if s := p.Stats(); err == nil && s.Health != HealthDegraded {
		err = fmt.Errorf("%s: %s", s.Health, s.Failure)
	}
	if err == nil {
		err = p.Check()
	}
	for _, m := range p.members() {
		late = late || !m.online() && m.guid != p.members()[l.victims()[0]].guid
	}
	return late, errors.Join(err, p.Close()) // which does not wait for the device
}

// TestCreateNamesWhatIsWrong makes pools that cannot be.
func TestCreateNamesWhatIsWrong(t *testing.T) {
	n := func(k raid.Kind, n int, size int64) (g Group) {
		g.Kind = k
		for i := range n {
			g.Devices = append(g.Devices, disk.NewMem(fmt.Sprint("d", i), size))
		}
		return g
	}
	cache := n(raid.Mirror, 2, 40<<20)
	cache.Cache = true
	for _, c := range []struct {
		groups []Group
		opt    Options
		want   string
	}{
		{nil, Options{}, "0 devices"},
		{[]Group{n(raid.Mirror, 1, 40<<20)}, Options{}, "raid group 1: mirror of 1 devices"},
		{[]Group{n(raid.RAIDZ, 4, 40<<20)}, Options{}, "raidz of 4 devices: it takes 2^n+1"},
		{[]Group{n(raid.RAIDZ2, 5, 40<<20)}, Options{}, "raidz2 of 5 devices"},
		{[]Group{n(raid.Stripe, 2, 40<<20)}, Options{}, "stripe"},
		{[]Group{cache}, Options{}, "all raid groups are write caches"},
		{[]Group{n(raid.Mirror, 2, 4<<20)}, Options{}, "devices are too small"},
		{[]Group{n(raid.RAIDZ, 9, 40<<20)}, Options{SegmentBytes: 256 << 10}, "512 KiB to 64 MiB"},
		{[]Group{n(raid.Mirror, 33, 12<<20), n(raid.Mirror, 32, 12<<20)}, Options{}, "65 devices"},
	} {
		if _, err := Create(c.groups, Config{Name: "p"}, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
	}
}
