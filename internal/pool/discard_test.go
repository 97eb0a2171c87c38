package pool

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
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
	p, err := Create(Stripe(d), Config{Name: "discards"}, Options{SegmentBytes: 4 << 20, DeltaEntries: 4096, Compression: compress.Off, Manual: true})
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
	select {
	case <-p.kick: // nobody waits for a cycle
	default:
	}
	p.discardFree()
	for _, w := range p.seg.undiscarded {
		if w != 0 {
			t.Fatalf("undiscarded: %x", p.seg.undiscarded)
		}
	}
	if got := d.bytes.Load(); got < 12<<20 {
		t.Fatalf("%d bytes were discarded in the end", got)
	}
}

// TestDiscardAfterRestart gives back space while somebody writes, and opens the pool anew before it is discarded.
func TestDiscardAfterRestart(t *testing.T) {
	opt := Options{SegmentBytes: 1 << 20, DeltaEntries: 4096, Compression: compress.Off}
	m := disk.NewMem("mem0", 64<<20)
	d := &discarding{Device: m}
	p, err := Create(Stripe(d), Config{Name: "discards"}, opt)
	must(t, err)
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	for n := range uint64(64) {
		must(t, r.Apply([]Op{write(n*64, 64, n+1)}))
	}
	must(t, p.cycle())
	must(t, r.Apply([]Op{discard(64, 63*64, 65)}))
	d.before = func() { d.before = nil; must(t, r.Apply([]Op{{Kind: OpMark, Version: ver(66)}})) }
	must(t, p.cycle())
	if held := m.Bytes(); held < 12<<20 {
		t.Fatalf("%d bytes are left", held)
	}
	for _, kill := range []bool{true, false} {
		if kill {
			m = m.Kill()
			p.Close()
		} else {
			must(t, p.Close())
			m.Reopen()
		}
		p, err = Open([]disk.Device{m}, opt)
		must(t, err)
		p.idle.Store(true)
		p.drain.cycle.Lock() // no cycle meanwhile
		for len(p.kick) > 0 {
			<-p.kick
		}
		p.discardFree()
		p.drain.cycle.Unlock()
		if held := m.Bytes(); held > 6<<20 {
			t.Errorf("the device still has %d bytes", held)
		}
		got := make([]byte, 64*block.Size)
		must(t, p.Replica("v").Read(0, got, nil))
		if !bytes.Equal(got, fill(64, 1)) {
			t.Error("what is in use was discarded")
		}
		must(t, p.Check())
	}
	must(t, p.Close())
}
