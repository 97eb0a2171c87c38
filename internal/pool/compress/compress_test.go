package compress

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
)

// content returns a block of which about the given share, in 1/16, is incompressible.
func content(rng *rand.Rand, share int) []byte {
	b := make([]byte, block.Size)
	for i := 0; i < len(b); i += 64 {
		if rng.IntN(16) < share {
			for j := range b[i : i+64] {
				b[i+j] = byte(rng.Uint32())
			}
		} else {
			copy(b[i:i+64], "the quick brown fox jumps over the lazy dog; pack my box with it")
			b[i+rng.IntN(64)] = byte(rng.Uint32())
		}
	}
	return b
}

// TestRoundTrip: what is packed has the promised size and is unpacked to the same content.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var p Packer
	dst, got := make([]byte, MaxPacked), make([]byte, block.Size)
	for _, a := range []Algorithm{LZ4, Zstd, Off} {
		packed, raw := 0, 0
		for i := range 2000 {
			b := content(rng, i%17)
			if i%100 == 0 {
				clear(b[:rng.IntN(len(b))])
			}
			n := p.Pack(a, dst, b)
			if n == 0 {
				raw++
				continue
			}
			packed++
			if n%Granule != 0 || n > MaxPacked {
				t.Fatalf("%v: %d bytes", a, n)
			}
			rng.Uint32()
			if err := Unpack(got, dst[:n]); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%v: block %d: %v", a, i, err)
			}
			if n+Granule <= len(dst) && Unpack(got, dst[:n+Granule]) == nil {
				t.Fatalf("%v: a length that is not the block's is accepted", a)
			}
		}
		if raw == 0 || (packed == 0) != (a == Off) {
			t.Fatalf("%v: %d packed, %d not", a, packed, raw)
		}
	}
}

// TestDamage flips every bit of compressed blocks: what comes back is the content or fails its checksum, and the bytes
// behind the destination stay.
func TestDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var p Packer
	for _, a := range []Algorithm{LZ4, Zstd} {
		for _, share := range []int{0, 4, 9} {
			b := content(rng, share)
			sum := block.Sum(b)
			dst := make([]byte, MaxPacked)
			n := p.Pack(a, dst, b)
			if n == 0 {
				t.Fatalf("%v: share %d does not shrink", a, share)
			}
			guard := bytes.Repeat([]byte{0xa5}, block.Size+64)
			for bit := range n * 8 {
				dst[bit/8] ^= 1 << (bit % 8)
				err := Unpack(guard[:block.Size], dst[:n])
				if err == nil && block.Sum(guard[:block.Size]) == sum && !bytes.Equal(guard[:block.Size], b) {
					t.Fatalf("%v: bit %d: wrong bytes with the right checksum", a, bit)
				}
				if err == nil && bit/8 >= head+int(binary.LittleEndian.Uint16(dst)&0xfff) {
					t.Fatalf("%v: bit %d behind the compressed bytes: not noticed", a, bit)
				}
				for _, g := range guard[block.Size:] {
					if g != 0xa5 {
						t.Fatalf("%v: bit %d: wrote behind the block", a, bit)
					}
				}
				dst[bit/8] ^= 1 << (bit % 8)
			}
			for cut := range n { // a length that somebody else's bytes claim
				_ = Unpack(guard[:block.Size], dst[:cut])
			}
			if err := Unpack(guard[:block.Size], dst[:n]); err != nil || !bytes.Equal(guard[:block.Size], b) {
				t.Fatal(err)
			}
		}
	}
}

// TestShort: compressed bytes that make less than a block are damaged, whatever the destination held before.
func TestShort(t *testing.T) {
	b := make([]byte, Granule)
	copy(b, []byte{6, codeLZ4 << 4, 0x50, 'h', 'e', 'l', 'l', 'o'})
	if err := Unpack(make([]byte, block.Size), b); err == nil {
		t.Fatal("5 bytes of lz4 are taken for a block")
	}
	var p Packer
	dst := make([]byte, MaxPacked)
	n := p.Pack(LZ4, dst, make([]byte, block.Size))
	for _, size := range []int{0, 1, block.Size - 1, block.Size + 1} {
		if Unpack(make([]byte, size), dst[:n]) == nil {
			t.Fatalf("a block into %d bytes", size)
		}
	}
}

// FuzzUnpack: nothing is written behind the block, and none but a block's memory is taken, whatever the input.
func FuzzUnpack(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	var p Packer
	dst := make([]byte, MaxPacked)
	for _, a := range []Algorithm{LZ4, Zstd} {
		for share := range 12 {
			if n := p.Pack(a, dst, content(rng, share)); n > 0 {
				f.Add(bytes.Clone(dst[:n]))
			}
		}
	}
	guard := bytes.Repeat([]byte{0x5a}, block.Size+64)
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := memory.Taken(func() { _ = Unpack(guard[:block.Size:block.Size], b) }); n > 64<<10 {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		for _, g := range guard[block.Size:] {
			if g != 0x5a {
				t.Fatal("wrote behind the block")
			}
		}
	})
}

// TestNoAllocations: packing and unpacking need no memory of their own.
func TestNoAllocations(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var p Packer
	dst, got := make([]byte, MaxPacked), make([]byte, block.Size)
	for _, a := range []Algorithm{LZ4, Zstd} {
		b, noise := content(rng, 5), content(rng, 16)
		if n := testing.AllocsPerRun(200, func() {
			if n := p.Pack(a, dst, b); n == 0 || Unpack(got, dst[:n]) != nil {
				t.Fatal(a)
			}
			p.Pack(a, dst[:MaxPacked], noise)
		}); n > 0 {
			t.Errorf("%v: %v allocations", a, n)
		}
		n := p.Pack(a, dst, b)
		for i := range n { // damage must not make it allocate in proportion to what it claims
			dst[i] ^= 0xff
			if k := testing.AllocsPerRun(2, func() { _ = Unpack(got, dst[:n]) }); k > 8 {
				t.Errorf("%v: byte %d inverted: %v allocations", a, i, k)
			}
			dst[i] ^= 0xff
		}
	}
}

// TestPace: data that does not shrink is tried ever more seldom, and again at once when some shrinks.
func TestPace(t *testing.T) {
	var p Pace
	tried := func(blocks int, shrinks bool) (n int) {
		for range blocks / 10 {
			s := p.Begin()
			for range 10 {
				if s.Try() {
					n++
					s.Tried(shrinks)
				}
			}
			p.End(s)
		}
		return n
	}
	if n := tried(100, true); n != 100 {
		t.Fatalf("%d of 100 compressible blocks tried", n)
	}
	if n := tried(10000, false); n > 10000/maxStride+40 || n < 10000/maxStride {
		t.Fatalf("%d of 10000 incompressible blocks tried", n)
	}
	if n := tried(1000, true); n < 1000-maxStride {
		t.Fatalf("%d of 1000 tried once they shrink again", n)
	}
}

// TestParse: names of algorithms; unknown ones are refused.
func TestParse(t *testing.T) {
	for a := LZ4; a <= Off; a++ {
		if b, err := Parse(a.String()); err != nil || a != b {
			t.Fatal(a, b, err)
		}
	}
	if _, err := Parse("gzip"); err == nil {
		t.Fatal("gzip")
	}
	if n := new(Packer).Pack(9, make([]byte, MaxPacked), make([]byte, block.Size)); n != 0 {
		t.Fatal("unknown algorithm")
	}
}

func BenchmarkPack(b *testing.B) {
	rng := rand.New(rand.NewPCG(9, 10))
	for _, a := range []Algorithm{LZ4, Zstd} {
		for _, share := range []int{0, 6, 16} {
			blocks := make([][]byte, 64)
			for i := range blocks {
				blocks[i] = content(rng, share)
			}
			var p Packer
			dst, got := make([]byte, MaxPacked), make([]byte, block.Size)
			name := a.String() + map[int]string{0: "/easy", 6: "/half", 16: "/noise"}[share]
			b.Run("pack/"+name, func(b *testing.B) {
				b.ReportAllocs()
				total := 0
				for i := range b.N {
					n := p.Pack(a, dst, blocks[i%len(blocks)])
					if n == 0 {
						n = block.Size
					}
					total += n
				}
				b.ReportMetric(float64(total)/float64(b.N), "bytes/block")
			})
			if share == 16 {
				continue
			}
			n := p.Pack(a, dst, blocks[0])
			b.Run("unpack/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					if err := Unpack(got, dst[:n]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
