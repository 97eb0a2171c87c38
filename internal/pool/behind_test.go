package pool

import (
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
