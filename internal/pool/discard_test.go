package pool

import (
	"sync/atomic"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// discarding counts what is discarded; before, if not nil, is called first.
type discarding struct {
	disk.Device
	bytes  atomic.Int64
	before func()
}

func (d *discarding) Discard(off, n int64) error {
	if d.before != nil {
		d.before()
	}
	d.bytes.Add(n)
	return d.Device.Discard(off, n)
}

// TestDiscardWaitsForWriters writes while segments are discarded: what is left of them is discarded when the pool is at rest.
func TestDiscardWaitsForWriters(t *testing.T) {
	d := &discarding{Device: disk.NewMem("mem0", 256<<20)}
	p, err := Create(Stripe(d), Config{Name: "discards"}, Options{SegmentBytes: 4 << 20, DeltaEntries: 4096, Compression: compress.Off})
	must(t, err)
	defer p.Close()
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	n := uint64(0)
	next := func(b uint64, blocks int) {
		n++
		must(t, r.Apply([]Op{write(b, blocks, n)}))
	}
	for b := uint64(0); b < 16<<20>>12; b += 64 {
		next(b, 64)
	}
	must(t, p.cycle())
	d.bytes.Store(0)
	d.before = func() { d.before = nil; next(1, 1) }
	n++
	must(t, r.Apply([]Op{discard(0, 16<<20>>12, n)}))
	must(t, p.cycle())
	if got := d.bytes.Load(); got == 0 || got >= 8<<20 {
		t.Fatalf("%d bytes were discarded, while somebody wrote", got)
	}
	left := 0
	for _, w := range p.seg.undiscarded {
		if w != 0 {
			left++
		}
	}
	if left == 0 {
		t.Fatal("nothing is left to be discarded")
	}
	p.idle.Store(true)
	p.drain.cycle.Lock() // no cycle meanwhile
	p.discardFree()
	p.drain.cycle.Unlock()
	for _, w := range p.seg.undiscarded {
		if w != 0 {
			t.Fatalf("undiscarded: %x", p.seg.undiscarded)
		}
	}
	if got := d.bytes.Load(); got < 12<<20 {
		t.Fatalf("%d bytes were discarded in the end", got)
	}
}
