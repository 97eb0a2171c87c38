package initiator_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/initiator"
	"github.com/cstor-go/cstor/internal/iscsi/memdisk"
)

// load keeps a number of requests in flight.
type load struct {
	dev    block.Device
	op     block.Op
	size   int64
	left   int
	flight int
	data   []byte
	rand   *rand.Rand
	batch  []*block.Request
	done   chan struct{}
	failed error
}

func (l *load) prepare(r *block.Request) {
	*r = block.Request{Op: l.op, Length: l.size, Offset: l.rand.Int64N(l.dev.Size()/l.size) * l.size, Client: l}
	if l.op == block.Write {
		r.Data = l.data
	}
	l.left--
	l.flight++
}

// Complete implements block.Client; the initiator has a single reader, so calls do not overlap.
func (l *load) Complete(batch []*block.Request) {
	l.batch = l.batch[:0]
	for _, r := range batch {
		l.flight--
		if r.Err != nil {
			l.failed, l.left = r.Err, 0
		}
		if r.Op == block.Read {
			r.Buf.Release()
		}
		if l.left > 0 {
			l.prepare(r)
			l.batch = append(l.batch, r)
		}
	}
	if l.flight == 0 {
		close(l.done)
		return
	}
	if len(l.batch) > 0 {
		l.dev.Submit(l.batch)
	}
}

// BenchmarkLoopback drives a volume in memory through initiator and target: the cost of iSCSI for both ends together.
func BenchmarkLoopback(b *testing.B) {
	for _, c := range []struct {
		op      block.Op
		size    int64
		depth   int
		digests bool
	}{
		{block.Write, 4096, 32, false}, {block.Read, 4096, 32, false},
		{block.Write, 4096, 1, false}, {block.Read, 4096, 1, false},
		{block.Write, 4096, 32, true}, {block.Read, 4096, 32, true},
		{block.Write, 1 << 20, 4, false}, {block.Read, 1 << 20, 4, false},
	} {
		b.Run(fmt.Sprintf("%v/%dKiB/depth=%d/digests=%v", c.op, c.size>>10, c.depth, c.digests), func(b *testing.B) {
			disk := memdisk.New(64 << 20)
			cfg := serve(b, disk, nil).config()
			cfg.HeaderDigest, cfg.DataDigest = c.digests, c.digests
			s, err := initiator.Dial(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			run := func(n int) {
				l := &load{dev: s, op: c.op, size: c.size, left: n, data: make([]byte, c.size),
					rand: rand.New(rand.NewPCG(1, 2)), done: make(chan struct{})}
				first := make([]*block.Request, min(c.depth, n))
				for i := range first {
					first[i] = new(block.Request)
					l.prepare(first[i])
				}
				s.Submit(first)
				<-l.done
				if l.failed != nil {
					b.Fatal(l.failed)
				}
			}
			run(4 * c.depth) // warm up
			b.SetBytes(c.size)
			b.ReportAllocs()
			b.ResetTimer()
			run(b.N)
		})
	}
}
