package index

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
)

func randomOld(rng *rand.Rand, n int) []Old {
	seen := map[Old]bool{}
	var old []Old
	epochs, spread := 1+rng.Uint64N(300), uint64(1)<<rng.IntN(50)
	for range n {
		o := Old{Block: uint16(rng.IntN(block.ChunkBlocks)), Ver: block.Version{Epoch: rng.Uint64N(epochs), N: rng.Uint64N(spread)}}
		if seen[o] {
			continue
		}
		seen[o] = true
		if rng.IntN(4) > 0 {
			o.Stored, o.Loc, o.Sum = true, Loc(rng.Uint64N(spread)), rng.Uint32()
		}
		old = append(old, o)
	}
	slices.SortFunc(old, CompareOld)
	return old
}

// TestOldVersions: older versions and references to history pages come back with their page.
func TestOldVersions(t *testing.T) {
	seed := rand.Uint64N(1e9)
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		p := randomPage(rng)
		p.Old = randomOld(rng, rng.IntN(300))
		for range rng.IntN(5) {
			h := HistRef{Page: rng.Uint64(), ID: rng.Uint64(), First: 1, Last: 2, Count: 3}
			h.Lo.N, h.Hi.Epoch = rng.Uint64(), rng.Uint64()
			p.Hist = append(p.Hist, h)
		}
		p.Hole.Set(rng.IntN(block.ChunkBlocks))
		for i := range p.Ver {
			if p.Hole.Has(i) {
				p.Ver[i] = block.Version{}
				p.Stored.Unset(i)
			}
		}
		b := p.Encode(make([]byte, 64, 64+p.MaxLen()), 5, 6, 7)[64:]
		if len(b) > p.MaxLen() {
			t.Fatal(len(b), p.MaxLen())
		}
		var v View
		var o OldView
		if err := v.Open(b, 5, 6, 7, false); err != nil {
			t.Fatal(err)
		}
		if err := v.Old(&o); err != nil || o.Len() != len(p.Old) || v.HasOld() != (len(p.Old)+len(p.Hist) > 0) {
			t.Fatal(err, o.Len())
		}
		q := new(Page)
		v.Decode(q)
		if !slices.Equal(p.Old, q.Old) || !slices.Equal(p.Hist, q.Hist) || p.Hole != q.Hole || p.Ver != q.Ver {
			t.Fatal("differs")
		}
		for range 200 {
			i := rng.IntN(block.ChunkBlocks)
			at := block.Version{Epoch: rng.Uint64N(300), N: rng.Uint64() >> rng.IntN(64)}
			want, found := Old{}, false
			for _, x := range p.Old {
				if int(x.Block) == i && !at.Less(x.Ver) {
					want, found = x, true
					break
				}
			}
			if got, ok := o.Find(i, at); ok != found || got != want {
				t.Fatal("find", i, at, got, want)
			}
		}
	}
}

// TestHistoryPages: older versions are cut into history pages that hold what their references say.
func TestHistoryPages(t *testing.T) {
	seed := rand.Uint64N(1e9)
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		old := randomOld(rng, 1+rng.IntN(5000))
		for rest := old; len(rest) > 0; {
			n := HistFit(rest, MaxHistory)
			h := HistRef{ID: 9}
			b := EncodeHistory(nil, rest[:n], &h, 6, 7)
			if n == 0 || len(b) > MaxHistory || len(b)%Granule != 0 || len(b) != HistLen(rest[:n]) || n < len(rest) && HistLen(rest[:n+1]) <= MaxHistory {
				t.Fatal(n, len(b))
			}
			for _, o := range rest[:n] {
				if !h.May(int(o.Block), o.Ver) || o.Ver.Less(h.Lo) || h.Hi.Less(o.Ver) {
					t.Fatal(h, o)
				}
			}
			var v OldView
			if err := OpenHistory(&v, b, &h, 6, 7, false); err != nil || !slices.Equal(v.Append(nil), rest[:n]) {
				t.Fatal(err)
			}
			if OpenHistory(&v, b, &h, 5, 7, false) == nil || OpenHistory(&v, b, &h, 6, 8, false) == nil || OpenHistory(&v, b, &HistRef{ID: 8, Count: h.Count}, 6, 7, false) == nil {
				t.Fatal("history page of something else accepted")
			}
			b[8+rng.IntN(len(b)-8)] ^= 1 << rng.IntN(8)
			if OpenHistory(&v, b, &h, 6, 7, false) == nil {
				t.Fatal("flipped bit accepted")
			}
			rest = rest[n:]
		}
	}
}

// sealed returns a copy of b with the checksum of a page or a history page.
func sealed(b []byte) []byte {
	b = slices.Clone(b)
	if len(b) >= 8 {
		binary.LittleEndian.PutUint32(b[4:], block.Sum(b[8:]))
	}
	return b
}

// FuzzHistory gives arbitrary bytes a valid checksum, which leaves the bounds to the decoder. They take no more memory
// than their size accounts for, however many versions they say they have.
func FuzzHistory(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		h := HistRef{ID: 5}
		f.Add(EncodeHistory(nil, randomOld(rng, 20), &h, 6, 7), h.Count)
	}
	f.Fuzz(func(t *testing.T, b []byte, count uint32) {
		b = sealed(b)
		var v OldView
		var err error
		if n := memory.Taken(func() {
			if err = OpenHistory(&v, b, &HistRef{ID: 5, Count: count}, 6, 7, false); err == nil {
				v.Append(nil)
			}
		}); n > 64<<10+64*uint64(len(b)) {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		v.HistEnd()
		if err := OpenHistory(&v, b, &HistRef{ID: 5, Count: count}, 6, 7, true); err != nil {
			t.Fatal("checked before: ", err)
		}
		for i := range block.ChunkBlocks {
			v.Find(i, block.Version{Epoch: uint64(i), N: 3})
		}
	})
}

// TestRewind: a page as it was at a version.
func TestRewind(t *testing.T) {
	p := new(Page)
	at := func(n uint64) block.Version { return block.Version{Epoch: 1, N: n} }
	for n, l := range map[int][]uint64{0: {9, 7, 3}, 1: {4}, 2: {8}} {
		p.SetNewest(Old{Block: uint16(n), Ver: at(l[0]), Stored: true, Loc: Loc(l[0])})
		for _, v := range l[1:] {
			p.Old = append(p.Old, Old{Block: uint16(n), Ver: at(v), Stored: v != 3, Loc: Loc(v)})
		}
	}
	slices.SortFunc(p.Old, CompareOld)
	if o, ok := p.Find(0, at(8)); !ok || o.Ver != at(7) {
		t.Fatal(o)
	}
	if _, ok := p.Find(2, at(7)); ok {
		t.Fatal("too new")
	}
	p.Rewind(at(6))
	if p.Ver[0] != at(3) || p.Stored.Has(0) || p.Ver[1] != at(4) || p.Loc[1] != 4 || !p.Ver[2].IsZero() || p.Stored.Has(2) {
		t.Fatal(p.Ver[:3])
	}
}

// TestOldChecked damages an older version of a page: it is found unless the page was checked before.
func TestOldChecked(t *testing.T) {
	var p Page
	for i := range p.Ver {
		p.SetNewest(Old{Block: uint16(i), Ver: block.Version{Epoch: 1, N: uint64(i + 1000)}, Loc: RawAt(uint64(i) << block.Shift), Stored: true})
		p.Old = append(p.Old, Old{Block: uint16(i), Ver: block.Version{Epoch: 1, N: uint64(i + 1)}, Loc: RawAt(uint64(i+1000) << block.Shift), Stored: true})
	}
	enc := p.Encode(make([]byte, 0, p.MaxLen()), 1, 2, 3)
	var v View
	var o OldView
	if err := v.Open(enc, 1, 2, 3, false); err != nil || v.End() != 1512<<block.Shift || v.Old(&o) != nil || o.Len() != len(p.Old) {
		t.Fatal("page is not what was encoded:", err)
	}
	x := o.b[o.at+7*o.stride:]
	x[0], x[1] = 0xff, 0x7f // a block that no chunk has
	binary.LittleEndian.PutUint32(enc[4:], block.Sum(enc[8:]))
	if err := v.Open(enc, 1, 2, 3, false); err != nil {
		t.Fatal(err)
	}
	if end := v.End(); end != math.MaxUint64 {
		t.Errorf("end %#x", end)
	}
	if err := v.Old(&o); err == nil {
		t.Error("damaged older versions were opened")
	}
	if err := v.Open(enc, 1, 2, 3, true); err != nil || v.Old(&o) != nil {
		t.Error("a page that was checked is checked again")
	}
}
