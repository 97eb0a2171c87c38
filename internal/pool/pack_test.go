package pool

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

func writeData(b uint64, data []byte, v uint64) Op {
	return Op{Kind: OpWrite, Block: b, Count: uint32(len(data) / block.Size), Version: ver(v), Data: data}
}

// locs returns where every block of r is.
func locs(t *testing.T, r *Replica) []place {
	t.Helper()
	var all []place
	for b := uint64(0); b < r.blocks(); b += block.ChunkBlocks {
		var s readScratch
		n := int(min(block.ChunkBlocks, r.blocks()-b))
		must(t, r.find(&s, b, n))
		all = append(all, s.places[:n]...)
	}
	return all
}

// TestAlgorithmsCoexist writes under one algorithm after the other, restarts, cleans, and reads everything.
func TestAlgorithmsCoexist(t *testing.T) {
	rng := testRand(t)
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10})
	r, err := p.CreateReplica("v", 24<<20)
	must(t, err)
	want := make([]byte, 24<<20)
	for n := range uint64(300) {
		p.SetCompression(compress.Algorithm(n % 3))
		if p.Compression() != compress.Algorithm(n%3) {
			t.Fatal(p.Compression())
		}
		d := mixed(rng, 1+rng.IntN(60))
		b := rng.IntN(6144 - 60)
		copy(want[b*block.Size:], d)
		must(t, r.Apply([]Op{writeData(uint64(b), d, n+1)}))
	}
	look := func(p *Pool) {
		t.Helper()
		got := make([]byte, len(want))
		sums := make([]uint32, len(want)/block.Size)
		must(t, p.Replica("v").Read(0, got, sums))
		if !bytes.Equal(got, want) {
			t.Fatal("content differs")
		}
		for i := range sums {
			if sums[i] != block.Sum(want[i*block.Size:(i+1)*block.Size]) {
				t.Fatal("checksum of block", i)
			}
		}
		var c Chunk
		for i := range uint64(12) {
			must(t, p.Replica("v").ReadChunk(i, nil, &c))
			for k, b := range c.DataOf {
				at := (int(i)*block.ChunkBlocks + int(b)) * block.Size
				if !c.Stored[b] || !bytes.Equal(c.Data[k*block.Size:(k+1)*block.Size], want[at:at+block.Size]) {
					t.Fatal("chunk", i, "block", b)
				}
			}
		}
		must(t, p.Check())
	}
	look(p)
	q, err := Open([]disk.Device{m.Kill()}, Options{Compression: compress.Off})
	must(t, err)
	look(q)
	must(t, q.cycle())
	look(q)
	packed, raw := 0, 0
	for _, x := range locs(t, q.Replica("v")) {
		if x.stored && x.loc.Raw() {
			raw++
		} else if x.stored {
			packed++
		}
	}
	if packed < 100 || raw < 100 {
		t.Fatalf("%d compressed, %d as they are", packed, raw)
	}
	must(t, q.Close())
}

// TestZeroBlocks: a block of zeroes is a version without data.
func TestZeroBlocks(t *testing.T) {
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Off} {
		p, m := newMemPool(t, 64<<20, Options{Compression: a})
		r, err := p.CreateReplica("v", 24<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 1500, 1)}))
		d := noise(4, 1)
		clear(d[block.Size : 3*block.Size])
		d[2*block.Size-1] = 1 // not all zeroes
		must(t, r.Apply([]Op{writeData(100, d, 2), writeData(300, make([]byte, 1000*block.Size), 3)}))
		if s := r.Stats(); s.Used != 499*block.Size || p.Stats().BlocksZero != 1001 {
			t.Fatalf("%+v, %d", s, p.Stats().BlocksZero)
		}
		before := p.Stats().LogBytes
		must(t, r.Apply([]Op{writeData(3000, make([]byte, 2000*block.Size), 4)}))
		if n := p.Stats().LogBytes - before; n > 16<<10 {
			t.Fatalf("2000 blocks of zeroes take %d bytes", n)
		}
		var c Chunk
		must(t, r.ReadChunk(0, nil, &c))
		if c.Stored[102] || c.Versions[102] != ver(2) || c.Sums[102] != block.ZeroSum || !c.Stored[101] || c.Stored[511] || c.Versions[511] != ver(3) {
			t.Fatal("listing")
		}
		q, err := Open([]disk.Device{m.Kill()}, Options{})
		must(t, err)
		got := make([]byte, 4*block.Size)
		must(t, q.Replica("v").Read(100, got, nil))
		if !bytes.Equal(got, d) || q.Replica("v").Applied() != ver(4) {
			t.Fatal("content")
		}
		must(t, q.Check())
		must(t, q.Close())
	}
}

// TestNotZeroes: content is not taken for zeroes because somebody's checksum says so.
func TestNotZeroes(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	op := write(0, 1, 1)
	op.Sums = []uint32{block.ZeroSum}
	must(t, r.Apply([]Op{op}))
	dst := make([]byte, block.Size)
	if err := r.Read(0, dst, nil); !errors.Is(err, ErrChecksum) {
		t.Fatal(err)
	}
}

// TestDamagedCompressedBlock flips bits of every stored byte of compressed blocks: a read returns the content or says
// which block is damaged.
func TestDamagedCompressedBlock(t *testing.T) {
	for _, a := range []compress.Algorithm{compress.LZ4, compress.Zstd} {
		p, m := newMemPool(t, 64<<20, Options{Compression: a})
		r, err := p.CreateReplica("v", 1<<20)
		must(t, err)
		want := half(8, 5)
		must(t, r.Apply([]Op{writeData(0, want, 1)}))
		dst := make([]byte, len(want))
		found := 0
		x := locs(t, r)[3]
		if x.loc.Raw() {
			t.Fatal("not compressed")
		}
		_, off := p.where(x.loc.Addr())
		for i := range int64(x.loc.Len()) {
			bit := uint(i) % 8
			m.FlipBit(off+i, bit)
			clear(dst)
			err := r.Read(0, dst, nil)
			var ce *ChecksumError
			switch {
			case errors.As(err, &ce) && ce.Block == 3 && ce.Offset == off:
				found++
			case err != nil || !bytes.Equal(dst, want):
				t.Fatalf("%v: byte %d: %v", a, i, err)
			}
			m.FlipBit(off+i, bit)
		}
		must(t, r.Read(0, dst, nil))
		if found < x.loc.Len()*9/10 {
			t.Fatalf("%v: %d of %d flips found", a, found, x.loc.Len())
		}
	}
}

// TestTornCompressedBatch loses one sector of an unsynced batch at a time: the batch is then not there at all.
func TestTornCompressedBatch(t *testing.T) {
	p, m := newMemPool(t, 11<<20, Options{SegmentBytes: 256 << 10})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 4, 1)}))
	must(t, p.Sync())
	p.log.mu.Lock()
	from := uint64(p.log.pos.seg)<<p.seg.shift + uint64(p.log.pos.block)<<block.Shift
	p.log.mu.Unlock()
	d := append(append(half(9, 3), noise(2, 4)...), half(7, 5)...)
	must(t, r.Apply([]Op{writeData(0, d, 2)}))
	p.log.mu.Lock()
	to := uint64(p.log.pos.seg)<<p.seg.shift + uint64(p.log.pos.block)<<block.Shift
	p.log.mu.Unlock()
	_, off := p.where(from)
	end := uint64(0)
	for _, x := range locs(t, r) {
		if x.stored {
			end = max(end, x.loc.End())
		}
	}
	if to-from >= 15*block.Size {
		t.Fatalf("%d bytes are not compressed", to-from)
	}
	image := make([]byte, m.Size())
	must(t, m.ReadAt(image, 0))
	for at := int64(0); at < int64(to-from); at += 512 {
		k := disk.NewMem("mem0", m.Size())
		b := bytes.Clone(image)
		clear(b[off+at : off+at+512])
		must(t, k.WritevAt([][]byte{b}, 0))
		q, err := Open([]disk.Device{k}, Options{})
		must(t, err)
		want := ver(1)
		if bytes.Equal(b, image) || uint64(at)+from >= end {
			want = ver(2)
		}
		if got := q.Replica("v").Applied(); got != want {
			t.Fatalf("sector at %d lost: applied %v, want %v", at, got, want)
		}
		must(t, q.Replica("v").Read(0, make([]byte, 1<<20), nil))
		must(t, q.Close())
	}
}

// TestSplitCompressedWrite writes more at once than fits into what is left of a segment, and than a header can list.
func TestSplitCompressedWrite(t *testing.T) {
	rng := testRand(t)
	p, m := newMemPool(t, 128<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 1 << 18})
	r, err := p.CreateReplica("v", 512<<20)
	must(t, err)
	var ops []Op
	var b uint64
	for i := range 40 {
		d := mixed(rng, 1+rng.IntN(400))
		if i%10 == 3 { // 8192 blocks of 64 bytes each: the header is what is full
			d = bytes.Repeat([]byte{byte(i)}, MaxWriteBlocks*block.Size)
		}
		ops = append(ops, writeData(b, d, 1))
		b += uint64(len(d) / block.Size)
	}
	must(t, r.Apply(ops))
	look := func(p *Pool) {
		t.Helper()
		for _, o := range ops {
			got := make([]byte, len(o.Data))
			must(t, p.Replica("v").Read(o.Block, got, nil))
			if !bytes.Equal(got, o.Data) {
				t.Fatal("content at", o.Block)
			}
		}
		must(t, p.Check())
	}
	look(p)
	q, err := Open([]disk.Device{m.Kill()}, Options{})
	must(t, err)
	look(q)
	must(t, q.Close())
}
