package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// TestSnapshotsUnderLoad has writers, readers and snapshots that come and go at once; it is for the race detector.
func TestSnapshotsUnderLoad(t *testing.T) {
	p, _ := newMemPool(t, 128<<20, smallHistory)
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	var all sync.WaitGroup
	stop := make(chan struct{})
	data := map[uint32]bool{block.ZeroSum: true}
	var blocks [64][]byte
	for i := range blocks {
		blocks[i] = fill(1, uint64(i+1))
		data[block.Sum(blocks[i])] = true
	}
	read := func(f func(b uint64, dst []byte, sums []uint32) error) {
		rng := rand.New(rand.NewPCG(1, 10))
		dst, sums := make([]byte, 64*block.Size), make([]uint32, 64)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := f(rng.Uint64N(960), dst, sums); errors.Is(err, ErrNoSnapshot) {
				continue
			} else if err != nil {
				t.Error(err)
				return
			}
			for i, s := range sums {
				if !data[s] || block.Sum(dst[i*block.Size:(i+1)*block.Size]) != s {
					t.Error("content that nobody wrote")
					return
				}
			}
		}
	}
	all.Go(func() { read(r.Read) })
	all.Go(func() {
		rng := rand.New(rand.NewPCG(2, 10))
		read(func(b uint64, dst []byte, sums []uint32) error {
			s := r.Snapshots()
			if len(s) == 0 {
				return ErrNoSnapshot
			}
			x := s[rng.IntN(len(s))]
			if _, err := r.SnapshotUnique(x.Name); err != nil {
				return err
			}
			if _, _, _, err := r.Diff(x.Name, "", rng.Uint64N(2), nil); err != nil {
				return err
			}
			return r.ReadSnapshot(x.Name, b, dst, sums)
		})
	})
	rng := rand.New(rand.NewPCG(3, 10))
	var names []string
	for n := uint64(1); n < 3000; n++ {
		ops := []Op{{Kind: OpWrite, Block: rng.Uint64N(1024), Count: 1, Version: ver(3 * n), Data: blocks[rng.IntN(64)]}}
		switch k := rng.IntN(20); {
		case k == 0 && len(names) < 20:
			names = append(names, fmt.Sprint("s", n))
			ops = append(ops, snap(names[len(names)-1], 3*n+1))
		case k == 1 && len(names) > 0:
			i := rng.IntN(len(names))
			ops = append(ops, unsnap(names[i], 3*n+1))
			names[i] = names[len(names)-1]
			names = names[:len(names)-1]
		case k == 2:
			ops = append(ops, discard(rng.Uint64N(2)*512, 512, 3*n+1))
		}
		if err := r.Apply(ops); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	all.Wait()
	must(t, p.cycle())
	must(t, p.Check())
}

// BenchmarkApplySnapshots reports the time per block of random writes to a 1 GiB volume, drains included, while a
// snapshot is made for every so many blocks, and how long the longest call took that made one.
func BenchmarkApplySnapshots(b *testing.B) {
	for _, every := range []int{0, 1 << 20, 1 << 16, 1 << 12} {
		b.Run(fmt.Sprint("every=", every), func(b *testing.B) {
			p, _ := benchPool(b, 64<<30, Options{})
			r, err := p.CreateReplica("v", 1<<30)
			must(b, err)
			data, sums := benchData(256)
			fillUp := benchOps(8, 32, 1<<18, data, sums)
			for range 2000 {
				must(b, r.Apply(fillUp()))
			}
			must(b, p.cycle())
			next := benchOps(32, 1, 1<<18, data, sums)
			n, made := uint64(1<<20), 0
			var worst time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			cpu := cpuTime()
			for i := 0; i < b.N; i += 32 {
				ops := next()
				for k := range ops {
					n++
					ops[k].Version = ver(n)
				}
				if err := r.Apply(ops); err != nil {
					b.Fatal(err)
				}
				if every > 0 && i/every > (i-32)/every {
					n++
					begin := time.Now()
					if err := r.Apply([]Op{snap(fmt.Sprint("s", made), n)}); err != nil {
						b.Fatal(err)
					}
					worst = max(worst, time.Since(begin))
					made++
				}
			}
			b.StopTimer()
			s := p.Stats()
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/block")
			b.ReportMetric(float64(s.IndexBytes)/float64(s.BlocksWritten), "index-B/block")
			b.ReportMetric(float64(made), "snapshots")
			b.ReportMetric(worst.Seconds()*1e3, "ms-longest-snapshot")
			dst, got := make([]byte, block.Size), make([]uint32, 1)
			rng := rand.New(rand.NewPCG(1, 2))
			begin := cpuTime()
			for range 100000 {
				must(b, r.Read(rng.Uint64N(1<<18), dst, got))
			}
			b.ReportMetric(float64(cpuTime()-begin)/1e5, "cpu-ns/read")
		})
	}
}
