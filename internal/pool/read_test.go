package pool

import (
	"bytes"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestReadsAreJoined: what was written together is read together.
func TestReadsAreJoined(t *testing.T) {
	d := &readCounter{Device: disk.NewMem("mem0", 160<<20)}
	p, err := Create(Stripe(d), Config{Name: "test"}, Options{SegmentBytes: 4 << 20, FlushBytes: 1 << 40})
	must(t, err)
	defer p.Close()
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	mix := make([]byte, 0, 32*block.Size)
	for i := range uint64(32) {
		switch i % 3 {
		case 0:
			mix = append(mix, noise(1, i)...)
		case 1:
			mix = append(mix, half(1, i)...)
		default:
			mix = append(mix, make([]byte, block.Size)...)
		}
	}
	v := uint64(0)
	next := uint64(0)
	for _, c := range []struct {
		name  string
		data  []byte
		ops   int // per batch
		most  int64
		count int // blocks per op
	}{
		{"noise", noise(32, 1), 1, 1, 32},
		{"half", half(32, 2), 1, 1, 32},
		{"half, block by block in one batch", half(32, 3), 32, 1, 1},
		{"mixed", mix, 1, 1, 32},
		{"mixed, block by block in one batch", mix, 32, 1, 1},
		{"noise, a batch per block", noise(32, 4), 1, 2, 1},
		{"half, a batch per block", half(32, 5), 1, 2, 1},
	} {
		var ops []Op
		for i := 0; i < 32; i += c.count {
			v++
			ops = append(ops, writeData(next+uint64(i), c.data[i*block.Size:(i+c.count)*block.Size], v))
			if len(ops) == c.ops {
				must(t, r.Apply(ops))
				ops = nil
			}
		}
		got := make([]byte, 32*block.Size)
		before := d.reads.Load()
		must(t, r.Read(next, got, nil))
		if n := d.reads.Load() - before; n > c.most {
			t.Errorf("%s: %d reads", c.name, n)
		}
		if !bytes.Equal(got, c.data) {
			t.Fatal(c.name)
		}
		next += 32
	}
}
