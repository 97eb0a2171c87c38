package pool

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// ramDisk is a device without faults, for measurements.
type ramDisk struct {
	b     []byte
	delay time.Duration // of a flush
}

func (d *ramDisk) ReadAt(b []byte, off int64) error { copy(b, d.b[off:]); return nil }
func (d *ramDisk) WritevAt(bufs [][]byte, off int64) error {
	for _, b := range bufs {
		off += int64(copy(d.b[off:], b))
	}
	return nil
}
func (d *ramDisk) Flush() error                 { time.Sleep(d.delay); return nil }
func (d *ramDisk) Discard(off, len int64) error { return nil }
func (d *ramDisk) Size() int64                  { return int64(len(d.b)) }
func (d *ramDisk) Name() string                 { return "ram" }
func (d *ramDisk) Close() error                 { return nil }

// amplification returns how many blocks a log must write for each block of uniform random overwriting when live data is
// that share of the space: a segment keeps the share v of its blocks until it is cleaned, where utilization is
// (1-v)/-ln v (Menon and Stockmeyer).
func amplification(utilization float64) float64 {
	lo, hi := 0.0, 1.0
	for range 100 {
		if v := (lo + hi) / 2; (1-v)/-math.Log(v) < utilization {
			lo = v
		} else {
			hi = v
		}
	}
	return 1 / (1 - lo)
}

// pattern picks one of n blocks.
type pattern struct {
	name string
	pick func(rng *rand.Rand, n uint64) func() uint64
}

var patterns = []pattern{
	{"uniform", func(rng *rand.Rand, n uint64) func() uint64 {
		return func() uint64 { return rng.Uint64N(n) }
	}},
	{"90-10", func(rng *rand.Rand, n uint64) func() uint64 {
		return func() uint64 {
			b := rng.Uint64N(n / 10)
			if rng.IntN(10) == 0 {
				b = n/10 + rng.Uint64N(n-n/10)
			}
			return b * 2654435761 % n
		}
	}},
	{"zipf", func(rng *rand.Rand, n uint64) func() uint64 {
		z := rand.NewZipf(rng, 1.1, 1, n-1)
		return func() uint64 { return z.Uint64() * 2654435761 % n }
	}},
}

// cleaned is what overwriting a pool costs.
type cleaned struct {
	data  float64 // blocks written for each block of a user
	want  float64 // the same, by analysis for uniform overwriting
	index float64 // bytes of index for each byte of a user
	all   float64 // bytes for each byte of a user
	s     Stats
	worst time.Duration
	over  int // batches that took more than 5 ms
	took  time.Duration
	n     int
}

// overwrite fills a share of a fresh pool and overwrites it in batches until its state is steady, and then measures.
func overwrite(tb testing.TB, dev disk.Device, opt Options, full float64, pat pattern, batch int, settle, measure float64) cleaned {
	tb.Helper()
	opt.Compression = compress.Off
	p, err := Create(Stripe(dev), Config{Name: "clean"}, opt)
	must(tb, err)
	defer p.Close()
	blocks := uint64(float64(p.Stats().Capacity)*full) / block.Size
	r, err := p.CreateReplica("v", int64(blocks*block.Size))
	must(tb, err)
	data, sums := benchData(1024)
	n := uint64(0)
	for b := uint64(0); b < blocks; b += 64 {
		c := min(64, blocks-b)
		n++
		must(tb, r.Apply([]Op{{Kind: OpWrite, Block: b, Count: uint32(c), Version: ver(n), Data: data[:c*block.Size], Sums: sums[:c]}}))
	}
	rng := rand.New(rand.NewPCG(1, 7))
	pick := pat.pick(rng, blocks)
	ops := make([]Op, batch)
	run := func(passes float64) (res cleaned) {
		begin := time.Now()
		for range int(float64(blocks) * passes / float64(batch)) {
			for i := range ops {
				n++
				at := rng.IntN(1024)
				ops[i] = Op{Kind: OpWrite, Block: pick(), Count: 1, Version: ver(n), Data: data[at*block.Size : (at+1)*block.Size], Sums: sums[at : at+1]}
			}
			at := time.Now()
			if err := r.Apply(ops); err != nil {
				tb.Fatalf("%v; %+v", err, p.Stats())
			}
			d := time.Since(at)
			res.worst = max(res.worst, d)
			if d > 5*time.Millisecond {
				res.over++
			}
			res.n += batch
		}
		res.took = time.Since(begin)
		return res
	}
	run(settle)
	a := p.Stats()
	res := run(measure)
	b := p.Stats()
	user := float64(b.BlocksWritten - a.BlocksWritten)
	res.s = b
	res.data = 1 + float64(b.BlocksMoved-a.BlocksMoved)/user
	res.want = amplification(float64(blocks*block.Size) / float64(b.Capacity))
	res.index = float64(b.IndexBytes-a.IndexBytes) / user / block.Size
	res.all = float64(b.LogBytes-a.LogBytes+b.MovedBytes-a.MovedBytes+b.IndexBytes-a.IndexBytes) / user / block.Size
	must(tb, p.Check())
	return res
}

func (c cleaned) String() string {
	return fmt.Sprintf("data x%.3f (analysis x%.3f, ratio %.2f), index x%.3f, all x%.2f; %.1f us/block, worst batch %v, %d over 5 ms, %d+%d waits, %d checkpoints",
		c.data, c.want, c.data/c.want, c.index, c.all, float64(c.took.Microseconds())/float64(c.n), c.worst, c.over, c.s.WritesPaced, c.s.WritesStalled, c.s.Checkpoints)
}

// BenchmarkClean reports what random overwriting of a pool costs that is 50, 80 and 90 % full.
func BenchmarkClean(b *testing.B) {
	dev := &ramDisk{b: make([]byte, 256<<20+2<<20)}
	for _, full := range []float64{.5, .8, .9} {
		for _, pat := range patterns {
			b.Run(fmt.Sprintf("full=%.0f/%s", full*100, pat.name), func(b *testing.B) {
				clear(dev.b[:1<<20])
				clear(dev.b[len(dev.b)-1<<20:])
				c := overwrite(b, dev, Options{SegmentBytes: 256 << 10, DeltaEntries: 1 << 14}, full, pat, 32, 4, 2)
				b.ReportMetric(c.data, "data-x")
				b.ReportMetric(c.want, "analysis-x")
				b.ReportMetric(c.data/c.want, "ratio")
				b.ReportMetric(c.index, "index-x")
				b.ReportMetric(c.all, "all-x")
				b.ReportMetric(float64(c.worst.Microseconds())/1e3, "worst-ms")
				b.ReportMetric(0, "ns/op")
				b.Logf("%v", c)
			})
		}
	}
}
