package pool

import (
	"errors"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
)

// TestCacheGroups fills a pool with a write cache: log and index begin on the cache, the capacity is that of the groups
// for data, what does not fit into the cache goes there, and the cache takes nothing beyond the capacity.
func TestCacheGroups(t *testing.T) {
	plain, _ := newLayoutPool(t, layouts[2], 40<<20, Options{SegmentBytes: 256 << 10})
	sizes := []int64{40 << 20, 40 << 20, 20 << 20, 20 << 20} // two for data, two of the cache
	_, groups := layouts[8].make(func() int64 { s := sizes[0]; sizes = sizes[1:]; return s })
	p, err := Create(groups, Config{Name: "test"}, Options{SegmentBytes: 256 << 10, DeltaEntries: 1 << 16, NoDiscard: true, Compression: compress.Off})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	if c := p.Stats().Capacity; c != plain.Stats().Capacity {
		t.Fatalf("capacity %d, without the cache %d", c, plain.Stats().Capacity)
	}
	r, err := p.CreateReplica("v", 200<<20)
	must(t, err)
	on := func() (cache, data int) {
		p.seg.mu.Lock()
		defer p.seg.mu.Unlock()
		for i, k := range p.seg.kind {
			if k != segFree && p.seg.onCache(uint32(i)) {
				cache++
			} else if k != segFree {
				data++
			}
		}
		return cache, data
	}
	n := uint64(0)
	put := func() error { n++; return r.Apply([]Op{write(n*60, 60, n)}) }
	for range 40 {
		must(t, put())
	}
	must(t, p.cycle())
	if cache, data := on(); data > 0 || cache < 36 {
		t.Fatalf("%d segments on the cache, %d on data", cache, data)
	}
	for err = nil; err == nil; err = put() {
	}
	if !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	cache, data := on()
	if s := p.Stats(); s.Allocated > s.Capacity || s.Allocated < s.Capacity*19/20 || data == 0 {
		t.Fatalf("full with %d of %d KiB; %d segments on the cache, %d of %d on data, reserve %d", s.Allocated>>10, s.Capacity>>10, cache, data, p.seg.dataCount(), p.seg.reserve())
	}
	must(t, r.Apply([]Op{discard(0, 200<<20/block.Size, n)}))
	must(t, p.cycle())
	must(t, p.Check())
	segs, ok := p.seg.allocData(nil, 3, segLog, 0)
	if !ok || p.seg.onCache(segs[0]) || p.seg.onCache(segs[1]) || p.seg.onCache(segs[2]) {
		t.Fatal("what is for data is on the cache")
	}
	p.seg.mu.Lock()
	for _, s := range segs {
		p.seg.pinned[s] = false
		p.seg.setFree(s)
	}
	p.seg.mu.Unlock()
	must(t, p.Check())
}

// TestGroupsFillEvenly has groups of different sizes: each is used in proportion.
func TestGroupsFillEvenly(t *testing.T) {
	l := layout{"uneven", []shape{{layouts[2].groups[0].kind, 2, false}, {layouts[4].groups[0].kind, 3, false}}}
	size := int64(20 << 20)
	mems, groups := l.make(func() int64 { size *= 2; return size })
	_ = mems
	p, err := Create(groups, Config{Name: "uneven"}, Options{SegmentBytes: 256 << 10, NoDiscard: true, Compression: compress.Off})
	must(t, err)
	defer p.Close()
	r, err := p.CreateReplica("v", 200<<20)
	must(t, err)
	for n := uint64(1); n < 900; n++ {
		must(t, r.Apply([]Op{write(n*20, 20, n)}))
	}
	var share [2]float64
	p.seg.mu.Lock()
	for i, g := range p.seg.where.Load().groups {
		share[i] = float64(g.free) / float64(g.all)
	}
	p.seg.mu.Unlock()
	if d := share[0] - share[1]; d < -0.1 || d > 0.1 || share[0] > 0.9 {
		t.Fatal("free", share)
	}
}
