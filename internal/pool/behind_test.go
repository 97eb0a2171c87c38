package pool

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// looked is told of the reads of a device that look at what a free segment begins with, and returns whether one waits.
func looked(m *disk.Mem, seg int64, look func() bool) (waits <-chan struct{}, resume func()) {
	return m.HangIf(func(op string, off, n int64) bool {
		off -= label.HeadBytes
		return op == "read" && n == block.Size && off >= 0 && off < m.Size()-label.HeadBytes-label.TailBytes && off%seg == 0 && look()
	})
}

// twoStripes returns a pool of two groups, whose segments are in one span each at first, and its devices.
func twoStripes(t *testing.T, opt Options) (*Pool, []*disk.Mem) {
	t.Helper()
	mems := []*disk.Mem{disk.NewMem("mem0", 64<<20), disk.NewMem("mem1", 64<<20)}
	p, err := Create([]Group{{Kind: raid.Stripe, Devices: []disk.Device{mems[0]}}, {Kind: raid.Stripe, Devices: []disk.Device{mems[1]}}}, Config{Name: "test"}, opt)
	must(t, err)
	return p, mems
}

// TestOpenLooksOncePerGroup: however often a pool has grown, Open looks at so many free segments of a group for the rest of
// the log, the lowest first.
func TestOpenLooksOncePerGroup(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10}
	p, mems := twoStripes(t, opt)
	for range 3 {
		for _, m := range mems {
			m.Grow(m.Size() + 32<<20)
		}
		must(t, p.Expand())
	}
	if n := len(p.seg.where.Load().spans); n != 8 {
		t.Fatalf("%d spans", n)
	}
	n, devs := make([]int, len(mems)), make([]disk.Device, len(mems))
	for i, m := range disk.KillAll(mems) {
		_, end := looked(m, opt.SegmentBytes, func() bool { n[i]++; return false })
		defer end()
		devs[i] = m
	}
	p, err := Open(devs, opt)
	must(t, err)
	for i, n := range n {
		if n > behindMost+1 || n < behindMost { // one may begin with something else that is small
			t.Errorf("%d free segments of group %d were looked at", n, i)
		}
	}
	must(t, p.Close())
}

// TestOpenLooksAtGroupsTogether: no device waits for those of other groups while free segments are looked at.
func TestOpenLooksAtGroupsTogether(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, Deadline: time.Second}
	p, mems := twoStripes(t, opt)
	must(t, p.Close())
	var waits [2]<-chan struct{}
	var resume [2]func()
	for i, m := range mems {
		m.Reopen()
		waits[i], resume[i] = looked(m, opt.SegmentBytes, func() bool { return true })
	}
	go func() {
		<-waits[0]
		<-waits[1]
		resume[0]()
		resume[1]()
	}()
	p, err := Open([]disk.Device{mems[0], mems[1]}, opt)
	must(t, err)
	if h := p.Stats().Health; h != HealthOnline {
		t.Errorf("%s: a device that was waited for hung until another one was", h)
	}
	must(t, p.Close())
}

// missed fails the test unless a pool is refused, by Open and by those who only look, since what was flushed is damaged.
func missed(t *testing.T, what string, mems ...*disk.Mem) {
	t.Helper()
	if _, err := OpenReadOnly(spies(t, mems), Options{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("%s: looked at: %v", what, err)
	}
	rep, err := Verify(spies(t, mems), Options{})
	must(t, err)
	if len(rep.Findings) != 1 || !strings.Contains(rep.Findings[0].String(), "was on stable storage") {
		t.Errorf("%s: verify: %v", what, rep.Findings)
	}
	if p, err := Open(devicesOf(mems), Options{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("%s: %v, back to %v", what, err, p.Replica("v").Applied())
		must(t, p.Close())
	}
}

// TestOpenLooksAtAllCopies: what was flushed is damaged beyond repair, and so is all that one of the devices has of what comes
// behind it, where it is called stable. Open must refuse, whichever device it is.
func TestOpenLooksAtAllCopies(t *testing.T) {
	rng := testRand(t)
	redundant(t, func(t *testing.T, l layout) {
		p, mems := newLayoutPool(t, layout{l.name, l.groups[:1]}, 24<<20, Options{SegmentBytes: 256 << 10, Manual: true})
		r, err := p.CreateReplica("v", 1<<20)
		must(t, err)
		must(t, p.Sync())
		at := p.log.pos
		must(t, r.Apply([]Op{discard(0, 1, 1)}))
		must(t, p.Sync())
		must(t, r.Apply([]Op{discard(0, 1, 2)}))
		first, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
		rest := int64(p.seg.blocks()-at.block) / int64(p.seg.row(at.seg)) * block.Size
		for i := range mems {
			damaged := clones(mems)
			damaged[i].Corrupt(off, rest, rng)
			for k, n := indexOf(mems, first), 0; n < l.parity(0); k = (k + 1) % len(mems) {
				if k != i {
					damaged[k].Corrupt(off, block.Size, rng)
					n++
				}
			}
			missed(t, "without "+mems[i].Name(), damaged...)
		}
	})
}
