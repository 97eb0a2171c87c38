package raid

import (
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// null is a device that does nothing.
type null struct {
	size int64
}

func (d *null) ReadAt([]byte, int64) error     { return nil }
func (d *null) WritevAt([][]byte, int64) error { return nil }
func (d *null) Flush() error                   { return nil }
func (d *null) Discard(_, _ int64) error       { return nil }
func (d *null) Size() int64                    { return d.size }
func (d *null) Name() string                   { return "null" }
func (d *null) Close() error                   { return nil }

func benchGroup(tb testing.TB, k Kind, n int) *Group {
	tb.Helper()
	cfg := Config{Kind: k, Base: 1 << 20, UnitBytes: 4 << 20, Units: 1024}
	for range n {
		var dev disk.Device = &null{size: 1<<20 + 1024*4<<20}
		cfg.Columns = append(cfg.Columns, Column{Devices: []*Device{NewDevice(block.NewGUID(), dev)}})
	}
	g, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

var benchShapes = []struct {
	k Kind
	n int
}{{Stripe, 1}, {Mirror, 2}, {Mirror, 3}, {RAIDZ, 3}, {RAIDZ, 5}, {RAIDZ2, 6}, {RAIDZ2, 10}}

func benchBufs(n int) (bufs [][]byte) {
	for b := disk.Buffer(n); len(b) > 0; b = b[min(len(b), 16384):] {
		bufs = append(bufs, b[:min(len(b), 16384)])
	}
	return bufs
}

// BenchmarkWrite writes to devices that do nothing: what the group itself costs.
func BenchmarkWrite(b *testing.B) {
	for _, sh := range benchShapes {
		for _, size := range []int{32 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s-%d/%dk", sh.k, sh.n, size>>10), func(b *testing.B) {
				g := benchGroup(b, sh.k, sh.n)
				bufs := benchBufs(size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					if err := g.WriteInline(bufs, off); err != nil {
						b.Fatal(err)
					}
					if off += int64(size); off+int64(size) > g.Size() {
						off = 0
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(size/blockSize), "ns/block")
			})
		}
	}
}

// BenchmarkRead reads from devices that do nothing.
func BenchmarkRead(b *testing.B) {
	for _, sh := range benchShapes {
		for _, size := range []int{4 << 10, 128 << 10} {
			for _, out := range []int{0, 1} {
				name := fmt.Sprintf("%s-%d/%dk", sh.k, sh.n, size>>10)
				if out > 0 {
					name += "/degraded"
				}
				b.Run(name, func(b *testing.B) {
					g := benchGroup(b, sh.k, sh.n)
					if out > 0 {
						if g.parity == 0 {
							b.Skip("no redundancy")
						}
						g.Columns()[0].Devices[0].Fail(errGone)
					}
					buf := disk.Buffer(size)
					b.SetBytes(int64(size))
					b.ReportAllocs()
					off := int64(0)
					for b.Loop() {
						if err := g.ReadInline(buf, off); err != nil {
							b.Fatal(err)
						}
						if off += int64(size); off+int64(size) > g.Size() {
							off = 0
						}
					}
				})
			}
		}
	}
}

// BenchmarkFlush flushes devices that do nothing.
func BenchmarkFlush(b *testing.B) {
	for _, sh := range benchShapes {
		b.Run(fmt.Sprintf("%s-%d", sh.k, sh.n), func(b *testing.B) {
			g := benchGroup(b, sh.k, sh.n)
			b.ReportAllocs()
			for b.Loop() {
				if err := g.FlushInline(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkParity computes the parity of one row.
func BenchmarkParity(b *testing.B) {
	for _, sh := range benchShapes[3:] {
		b.Run(fmt.Sprintf("%s-%d", sh.k, sh.n), func(b *testing.B) {
			g := benchGroup(b, sh.k, sh.n)
			shards := make([][]byte, sh.n)
			for i := range shards {
				shards[i] = disk.Buffer(blockSize)
			}
			b.SetBytes(int64(g.Row()))
			b.ReportAllocs()
			for b.Loop() {
				g.code.encode(shards)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(g.data), "ns/block")
		})
	}
}

// BenchmarkHeal heals what is healthy.
func BenchmarkHeal(b *testing.B) {
	for _, sh := range benchShapes {
		b.Run(fmt.Sprintf("%s-%d", sh.k, sh.n), func(b *testing.B) {
			g := benchGroup(b, sh.k, sh.n)
			const size = 1 << 20
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := g.Heal(0, size, func([]byte) []int { return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
