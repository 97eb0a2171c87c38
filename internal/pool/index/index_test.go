package index

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
)

func randomPage(rng *rand.Rand) *Page {
	p := new(Page)
	fill, epochs, spread := rng.IntN(101), 1+rng.IntN(600), uint64(1)<<rng.IntN(41)
	base := rng.Uint64N(1<<40 - spread + 1)
	for i := range p.Ver {
		if rng.IntN(100) >= fill {
			continue
		}
		p.Ver[i] = block.Version{Epoch: 1 + rng.Uint64N(uint64(epochs)), N: 1 + rng.Uint64()>>rng.IntN(64)}
		if rng.IntN(4) > 0 {
			p.Stored.Set(i)
			p.Loc[i], p.Sum[i] = Loc(base+rng.Uint64N(spread)), rng.Uint32()
		}
	}
	return p
}

// TestPageRoundTrip: a page is decoded to what was encoded, and the view says the same.
func TestPageRoundTrip(t *testing.T) {
	seed := rand.Uint64N(1e9)
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		p := randomPage(rng)
		b := p.Encode(make([]byte, 64, 64+MaxPage), 5, 6, 7)[64:]
		if len(b)%Granule != 0 || len(b) > MaxPage {
			t.Fatal(len(b))
		}
		var v View
		if err := v.Open(b, 5, 6, 7, false); err != nil {
			t.Fatal(err)
		}
		q := new(Page)
		v.Decode(q)
		for i := range p.Ver {
			loc, sum, ok := v.Data(i)
			if p.Ver[i] != q.Ver[i] || p.Ver[i] != v.Version(i) || p.Stored.Has(i) != q.Stored.Has(i) || ok != p.Stored.Has(i) {
				t.Fatal("block", i)
			}
			if ok && (p.Loc[i] != q.Loc[i] || p.Sum[i] != q.Sum[i] || loc != p.Loc[i] || sum != p.Sum[i]) {
				t.Fatal("block", i)
			}
		}
		if v.Open(b, 4, 6, 7, false) == nil || v.Open(b, 5, 7, 7, false) == nil || v.Open(b, 5, 6, 8, false) == nil {
			t.Fatal("page of something else accepted")
		}
		b[8+rng.IntN(len(b)-8)] ^= 1 << rng.IntN(8)
		if v.Open(b, 5, 6, 7, false) == nil {
			t.Fatal("flipped bit accepted")
		}
	}
}

// FuzzPage gives arbitrary bytes a valid checksum, which leaves the bounds to the decoder. They take no more memory than
// their size accounts for.
func FuzzPage(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 5 {
		p := randomPage(rng)
		p.Old = randomOld(rng, i*5)
		p.Hist = make([]HistRef, i)
		f.Add(p.Encode(make([]byte, 0, MaxPage), 5, 6, 7))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = sealed(b)
		var v View
		var err error
		p := new(Page)
		if n := memory.Taken(func() {
			if err = v.Open(b, 5, 6, 7, false); err == nil && v.End() <= uint64(MaxLoc) {
				v.Decode(p)
			}
		}); n > 64<<10+64*uint64(len(b)) {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil || v.End() > uint64(MaxLoc) {
			return
		}
		if err := v.Open(b, 5, 6, 7, true); err != nil {
			t.Fatal("checked before: ", err)
		}
		var o OldView
		if v.Old(&o) == nil {
			o.Find(7, block.Version{N: 9})
		}
		for i := range block.ChunkBlocks {
			v.Data(i)
			v.Version(i)
		}
	})
}

// TestTable: the table against a map.
func TestTable(t *testing.T) {
	seed := rand.Uint64N(1e9)
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	tab := NewTable(1000)
	for range 3 {
		want := map[uint64]Loc{}
		for tab.Len() < tab.Cap() {
			if rng.IntN(10) == 0 {
				tab.Add(Key(1, rng.Uint64N(5000)))
				continue
			}
			k := Key(uint32(rng.IntN(3)), rng.Uint64N(5000))
			e, n := tab.Insert(k)
			if _, known := want[k]; known != (n == 0) || n != 0 && (e.State() != Dead || e.Block() != k&(1<<40-1)) {
				t.Fatal("insert", k)
			}
			want[k] = Loc(rng.Uint64N(1 << 40))
			e.Set(Stored, want[k], 0, block.Version{N: 1})
		}
		tab.Grow(1500)
		for k := range uint64(5000) {
			for s := range uint32(3) {
				e := tab.Find(Key(s, k))
				loc, ok := want[Key(s, k)]
				if ok != (e != nil) || ok && e.Loc() != loc {
					t.Fatal("find", k)
				}
			}
		}
		tab.Reset()
	}
}

func BenchmarkEncode(b *testing.B) {
	p := new(Page)
	for i := range p.Ver {
		p.Ver[i] = block.Version{Epoch: 1, N: uint64(1000 + i*17)}
		p.Stored.Set(i)
		p.Loc[i] = RawAt(uint64(i*7919%100000) << 12)
	}
	buf := make([]byte, 0, MaxPage)
	for b.Loop() {
		p.Encode(buf, 1, 2, 3)
	}
}

func BenchmarkInsert(b *testing.B) {
	tab := NewTable(1 << 18)
	rng := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if tab.Len() == tab.Cap() {
			tab.Reset()
		}
		e, _ := tab.Insert(Key(1, rng.Uint64N(1<<24)))
		e.Set(Stored, 1, 2, block.Version{N: 1})
	}
}

// BenchmarkLoad is what a page that was read from a device costs before one block is looked up.
func BenchmarkLoad(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	var p Page
	for i := range p.Ver {
		p.SetNewest(Old{Block: uint16(i), Ver: block.Version{Epoch: 3, N: rng.Uint64N(1 << 24)}, Loc: RawAt(rng.Uint64N(1<<26) << block.Shift), Sum: rng.Uint32(), Stored: true})
	}
	enc := p.Encode(make([]byte, 0, p.MaxLen()), 1, 2, 3)
	b.ReportAllocs()
	for b.Loop() {
		var v View
		if v.Open(enc, 1, 2, 3, false) != nil || v.End() == 0 {
			b.Fatal("page")
		}
	}
}

// TestEnd compares End with the ends of all locations, and gives it ones that are beyond every address.
func TestEnd(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, packed := range []bool{false, true} {
		var p Page
		want := uint64(0)
		for i := range p.Ver {
			loc := RawAt(rng.Uint64N(1<<30) << block.Shift)
			if packed && i%3 == 0 {
				loc = MakeLoc(uint64(loc.Addr()), (1+rng.IntN(block.Size/Granule-1))*Granule)
			}
			want = max(want, loc.End())
			p.SetNewest(Old{Block: uint16(i), Ver: block.Version{Epoch: 1, N: uint64(i + 1)}, Loc: loc, Stored: true})
		}
		enc := p.Encode(make([]byte, 0, p.MaxLen()), 1, 2, 3)
		var v View
		if err := v.Open(enc, 1, 2, 3, false); err != nil {
			t.Fatal(err)
		}
		if got := v.End(); got != want {
			t.Errorf("packed %v: end %#x, want %#x", packed, got, want)
		}
		if packed {
			continue
		}
		for _, base := range []uint64{math.MaxUint64, uint64(MaxLoc)} { // where nothing can be
			v.locBase = base
			if got := v.End(); got <= uint64(MaxLoc) {
				t.Errorf("base %#x: end %#x", base, got)
			}
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	p := new(Page)
	for i := range p.Ver {
		p.SetNewest(Old{Block: uint16(i), Ver: block.Version{Epoch: 1, N: uint64(1000 + i*17)}, Loc: RawAt(uint64(i*7919%100000) << 12), Stored: true})
	}
	enc := p.Encode(make([]byte, 0, MaxPage), 1, 2, 3)
	for b.Loop() {
		var v View
		if v.Open(enc, 1, 2, 3, true) != nil {
			b.Fatal("page")
		}
		v.Decode(p)
	}
}
