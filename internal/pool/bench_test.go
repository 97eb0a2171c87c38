package pool

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// benchPool makes a pool on a sparse file in the directory named by POOL_BENCH_DIR, or in the test's own.
func benchPool(tb testing.TB, size int64, opt Options) (*Pool, string) {
	tb.Helper()
	dir := os.Getenv("POOL_BENCH_DIR")
	if dir == "" {
		dir = tb.TempDir()
	}
	path := filepath.Join(dir, "pool.img")
	os.Remove(path)
	f, err := os.Create(path)
	must(tb, err)
	must(tb, f.Truncate(size))
	must(tb, f.Close())
	d, err := disk.Open(path, disk.Options{Direct: os.Getenv("POOL_BENCH_DIRECT") != ""})
	must(tb, err)
	p, err := Create(Stripe(d), Config{Name: "bench"}, opt)
	must(tb, err)
	tb.Cleanup(func() {
		p.Close()
		os.Remove(path)
	})
	return p, path
}

// benchOps returns batches of random writes within blocks.
func benchOps(batch, blocksPerOp int, blocks uint64, data []byte, sums []uint32) func() []Op {
	rng := rand.New(rand.NewPCG(1, 2))
	ops := make([]Op, batch)
	n := uint64(0)
	return func() []Op {
		for i := range ops {
			n++
			b := rng.Uint64N(blocks/uint64(blocksPerOp)) * uint64(blocksPerOp)
			at := i * blocksPerOp % (len(data) / block.Size)
			ops[i] = Op{
				Kind: OpWrite, Block: b, Count: uint32(blocksPerOp), Version: ver(n),
				Data: data[at*block.Size : (at+blocksPerOp)*block.Size], Sums: sums[at : at+blocksPerOp],
			}
		}
		return ops
	}
}

func benchData(blocks int) ([]byte, []uint32) { return withSums(noise(blocks, 1)) }

func withSums(data []byte) ([]byte, []uint32) {
	blocks := len(data) / block.Size
	sums := make([]uint32, blocks)
	for i := range sums {
		sums[i] = block.Sum(data[i*block.Size : (i+1)*block.Size])
	}
	return data, sums
}

// compressions are what is compared: noise, and data of which one half is, compressed or not.
var compressions = []struct {
	name string
	how  compress.Algorithm
	data func(n int, seed uint64) []byte
}{
	{"noise-off", compress.Off, noise}, {"noise-lz4", compress.LZ4, noise}, {"noise-zstd", compress.Zstd, noise},
	{"half-lz4", compress.LZ4, half}, {"half-zstd", compress.Zstd, half}, {"zeroes", compress.LZ4, func(n int, _ uint64) []byte { return make([]byte, n*block.Size) }},
}

// BenchmarkCompress reports the time per 4 KiB block of random writes in batches of 32, and of reads of 4 and 128 KiB
// of what was written in order, in batches of 128 KiB.
func BenchmarkCompress(b *testing.B) {
	for _, c := range compressions {
		p, _ := benchPool(b, 32<<30, Options{Compression: c.how})
		data, sums := withSums(c.data(256, 1))
		b.Run("write/"+c.name, func(b *testing.B) {
			r, err := p.CreateReplica(fmt.Sprint("w", b.N), 4<<30)
			must(b, err)
			next := benchOps(32, 1, 1<<20, data, sums)
			b.ReportAllocs()
			b.ResetTimer()
			cpu := cpuTime()
			for n := 0; n < b.N; n += 32 {
				if err := r.Apply(next()); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/block")
			s := r.Stats()
			b.ReportMetric(s.CompressRatio(), "ratio")
		})
		r, err := p.CreateReplica("r", 256<<20)
		must(b, err)
		for i := range uint64(2048) {
			at := i % 8 * 32
			must(b, r.Apply([]Op{{Kind: OpWrite, Block: i * 32, Count: 32, Version: ver(i + 1), Data: data[at*block.Size : (at+32)*block.Size], Sums: sums[at : at+32]}}))
		}
		must(b, p.cycle())
		for _, blocks := range []int{1, 32} {
			b.Run(fmt.Sprintf("read-kib=%d/%s", 4*blocks, c.name), func(b *testing.B) {
				dst, got := make([]byte, blocks*block.Size), make([]uint32, blocks)
				rng := rand.New(rand.NewPCG(1, 2))
				b.ReportAllocs()
				b.ResetTimer()
				cpu := cpuTime()
				for n := 0; n < b.N; n += blocks {
					if err := r.Read(rng.Uint64N(65536/uint64(blocks))*uint64(blocks), dst, got); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/block")
			})
		}
	}
}

// BenchmarkApply reports the time per 4 KiB block of random writes to a 4 GiB volume, drains and checkpoints included.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct{ batch, blocks int }{{1, 1}, {8, 1}, {32, 1}, {128, 1}, {1, 32}, {8, 32}} {
		b.Run(fmt.Sprintf("batch=%d/kib=%d", c.batch, 4*c.blocks), func(b *testing.B) {
			p, _ := benchPool(b, 64<<30, Options{})
			r, err := p.CreateReplica("v", 4<<30)
			must(b, err)
			data, sums := benchData(256)
			next := benchOps(c.batch, c.blocks, 1<<20, data, sums)
			per := c.batch * c.blocks
			b.ReportAllocs()
			b.ResetTimer()
			cpu := cpuTime()
			for n := 0; n < b.N; n += per {
				if err := r.Apply(next()); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			s := p.Stats()
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/block")
			b.ReportMetric(float64(s.IndexBytes)/float64(s.BlocksWritten), "index-B/block")
		})
	}
}

// BenchmarkRead reports the time per block of reads from a volume that was written at random.
func BenchmarkRead(b *testing.B) {
	for _, blocks := range []int{1, 32} {
		b.Run(fmt.Sprintf("kib=%d", 4*blocks), func(b *testing.B) {
			p, _ := benchPool(b, 16<<30, Options{})
			r, err := p.CreateReplica("v", 1<<30)
			must(b, err)
			data, sums := benchData(256)
			next := benchOps(8, 32, 1<<18, data, sums)
			for range 2000 {
				must(b, r.Apply(next()))
			}
			must(b, p.cycle())
			dst := make([]byte, blocks*block.Size)
			got := make([]uint32, blocks)
			rng := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			b.ResetTimer()
			cpu := cpuTime()
			for n := 0; n < b.N; n += blocks {
				if err := r.Read(rng.Uint64N(1<<18-uint64(blocks)), dst, got); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N), "cpu-ns/block")
		})
	}
}

// BenchmarkOpen opens pools with ever more chunks.
func BenchmarkOpen(b *testing.B) {
	for _, chunks := range []uint64{1 << 10, 1 << 14, 1 << 18} {
		b.Run(fmt.Sprintf("TiB=%.3g", float64(chunks)/(1<<19)), func(b *testing.B) {
			p, path := benchPool(b, 64<<30, Options{})
			r, err := p.CreateReplica("v", MaxReplicaSize)
			must(b, err)
			for c := uint64(0); c < chunks; c += 64 {
				var ops []Op
				for i := range uint64(64) {
					ops = append(ops, discard((c+i)*block.ChunkBlocks, 7, c+i+1))
				}
				must(b, r.Apply(ops))
			}
			must(b, p.Close())
			for b.Loop() {
				d, err := disk.Open(path, disk.Options{})
				must(b, err)
				q, err := Open([]disk.Device{d}, Options{})
				must(b, err)
				b.StopTimer()
				if n := q.Replica("v").Stats().Chunks; n != int64(chunks) {
					b.Fatal(n)
				}
				must(b, q.Close())
				b.StartTimer()
			}
		})
	}
}

// TestLongRun writes POOL_LONG_GIB GiB at random in batches of 32 and reports what that takes: time per block, the
// longest Apply, memory, and the time of a restart after a kill in the middle of the log.
func TestLongRun(t *testing.T) {
	var gib int
	if fmt.Sscan(os.Getenv("POOL_LONG_GIB"), &gib); gib == 0 {
		t.Skip("POOL_LONG_GIB is not set")
	}
	p, path := benchPool(t, 40<<30, Options{})
	r, err := p.CreateReplica("v", 8<<30)
	must(t, err)
	data, sums := benchData(256)
	next := benchOps(32, 1, 2<<20, data, sums)
	var worst time.Duration
	over := 0
	begin, cpu := time.Now(), cpuTime()
	n := gib << 18
	for i := 0; i < n; i += 32 {
		ops := next()
		at := time.Now()
		must(t, r.Apply(ops))
		if d := time.Since(at); d > 10*time.Millisecond {
			over++
			worst = max(worst, d)
		}
	}
	wall := time.Since(begin)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	s := p.Stats()
	t.Logf("%d blocks: %v wall, %v CPU per block; %d Apply over 10 ms, worst %v; heap %d MiB in use, %d MiB from the system, %d GCs; index %.0f B/block, %d checkpoints, cache %d/%d",
		n, wall/time.Duration(n), (cpuTime()-cpu)/time.Duration(n), over, worst, mem.HeapInuse>>20, mem.Sys>>20, mem.NumGC,
		float64(s.IndexBytes)/float64(s.BlocksWritten), s.Checkpoints, s.CacheHits, s.CacheMisses)
	p.closed.Store(true) // as a kill does: no checkpoint
	close(p.quit)
	<-p.stopped
	must(t, p.devs[0].Close())
	d, err := disk.Open(path, disk.Options{})
	must(t, err)
	p2, err := Open([]disk.Device{d}, Options{})
	must(t, err)
	t.Logf("restart: %v for %d batches", p2.Stats().OpenTime, p2.Stats().Replayed)
	must(t, p2.Check())
	must(t, p2.Close())
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
