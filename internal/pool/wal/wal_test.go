package wal

import (
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
)

func sample() ([]byte, []Record) {
	v := block.Version{Epoch: 3, N: 77}
	records := []Record{
		{Kind: Write, Slot: 1, Block: 10, Count: 3, Version: v, Sums: []uint32{1, 2, 3}},
		{Kind: Discard, Slot: 2, Block: 1 << 37, Count: 1 << 31, Version: v},
		{Kind: State, Slot: 1, Count: 5000, Version: v, Sums: []uint32{9}},
		{Kind: Create, Slot: 7, Block: 1 << 30, Name: "pvc-1", GUID: block.GUID{1, 2}},
		{Kind: Destroy, Slot: 7, GUID: block.GUID{1, 2}},
		{Kind: Mark, Slot: 1, Version: v},
		{Kind: MergeWrite, Slot: 2, Block: 9, Count: 5, Version: v, Sums: []uint32{4, 5, 6, 7, 8}, Lens: []uint8{MaxLen, 1, 0, 56, 30}},
		{Kind: Snapshot, Slot: 1, Block: 12, Version: v, Name: "s"},
		{Kind: DeleteSnapshot, Slot: 1, Version: v, Name: "snapshot"},
		{Kind: Resize, Slot: 1, Block: 1 << 31, Version: v},
		{Kind: Clone, Slot: 3, Block: 1 << 30, Count: 1, Version: v, GUID: block.GUID{3}, Name: "clone", From: "s"},
		{Kind: TakeSnapshot, Slot: 1, Block: 12, Version: v, Name: "t", Size: 1 << 29},
		{Kind: DropSnapshot, Slot: 1, Name: "t"},
		{Kind: MergeOldWrite, Slot: 1, Block: 10, Count: 1, Version: v, Sums: []uint32{8}},
		{Kind: MergeKeep, Slot: 1, Block: 10, Count: 1, Version: v},
		{Kind: MergeOnly, Slot: 1, Block: 10, Count: 1},
	}
	b := make([]byte, FixedLen, 4*block.Size)
	for i := range records {
		n := len(b)
		b = Append(b, &records[i])
		if len(b)-n != Len(records[i].Kind, records[i].Count, len(records[i].Name)+len(records[i].From))+len(records[i].Lens) {
			panic("Len")
		}
	}
	b, _ = Finish(b, &Header{Flags: FlagMore, DataBlocks: 9, Records: len(records), Prev: 5, Incarnation: 6, Seq: 7, Stable: 4, Segment: 8, Block: 9})
	return b, records
}

// TestRoundTrip: a header and its records are decoded to what was encoded.
func TestRoundTrip(t *testing.T) {
	b, want := sample()
	h, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if h.Flags != FlagMore || h.DataBlocks != 9 || h.RawBlocks != 7 || h.PackedBytes != 87*Granule || h.Prev != 5 || h.Incarnation != 6 || h.Seq != 7 || h.Stable != 4 || h.Segment != 8 || h.Block != 9 {
		t.Fatalf("%+v", h)
	}
	var it Records
	it.Reset(b, &h)
	var r Record
	for i := range want {
		if !it.Next(&r) {
			t.Fatal("too few")
		}
		if len(r.Sums) == 0 {
			r.Sums = nil
		}
		if !reflect.DeepEqual(r, want[i]) {
			t.Fatalf("%+v, want %+v", r, want[i])
		}
	}
	if it.Next(&r) {
		t.Fatal("too many")
	}
	for i := range b {
		b[i] ^= 0x10
		if _, err := Decode(b); !errors.Is(err, ErrDamaged) {
			t.Fatalf("byte %d inverted: %v", i, err)
		}
		b[i] ^= 0x10
	}
}

// TestBadLengths: what a header claims about its blocks is within bounds, whatever its checksum.
func TestBadLengths(t *testing.T) {
	for name, r := range map[string]Record{
		"longer than a block":          {Kind: Write, Count: 2, Sums: []uint32{1, 2}, Lens: []uint8{1, MaxLen + 1}},
		"lengths of a state record":    {Kind: State, Count: 2, Sums: []uint32{1}, Lens: []uint8{1, 1}},
		"lengths of a discard":         {Kind: Discard, Count: 1, Lens: []uint8{1}},
		"more blocks than lengths fit": {Kind: Write, Count: 900, Sums: make([]uint32, 900), Lens: make([]uint8, 10)},
	} {
		b := Append(make([]byte, FixedLen, 4*block.Size), &r)
		for blocks := range 4 {
			x, _ := Finish(append(make([]byte, 0, cap(b)), b...), &Header{DataBlocks: blocks, Records: 1})
			if _, err := Decode(x); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	b := Append(make([]byte, FixedLen, block.Size), &Record{Kind: Mark})
	b[FixedLen+1] = 2
	b, _ = Finish(b, &Header{Records: 1})
	if _, err := Decode(b); !errors.Is(err, ErrDamaged) {
		t.Error("an unknown flag is accepted")
	}
}

// TestArea lays random records out and finds every block where a plain copy of the layout's description puts it.
func TestArea(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var records []Record
		var raw, packed []uint64 // lengths, in order
		b := make([]byte, FixedLen, MaxHeaderBlocks*block.Size)
		for range rng.IntN(20) {
			r := Record{Kind: []Kind{Write, MergeWrite, Move, State, Mark, Discard}[rng.IntN(6)], Count: uint32(1 + rng.IntN(40)), Version: block.Version{Epoch: 1, N: 2}}
			switch r.Kind {
			case State:
				r.Count *= 300
				r.Sums = []uint32{1}
				raw = append(raw, uint64(r.Count+block.Size-1)/block.Size*block.Size)
			case Write, MergeWrite, Move:
				r.Sums = make([]uint32, r.Count)
				if rng.IntN(3) > 0 {
					r.Lens = make([]uint8, r.Count)
				}
				for i := range r.Sums {
					l := uint8(MaxLen)
					if r.Lens != nil {
						l = []uint8{0, MaxLen, uint8(1 + rng.IntN(MaxLen-1))}[rng.IntN(3)]
						r.Lens[i] = l
					}
					if l == MaxLen {
						raw = append(raw, block.Size)
					} else {
						packed = append(packed, uint64(l)*Granule)
					}
				}
			}
			b = Append(b, &r)
			records = append(records, r)
		}
		sum := func(lens []uint64) (n uint64) {
			for _, l := range lens {
				n += l
			}
			return n
		}
		blocks := int(sum(raw)/block.Size + (sum(packed)+block.Size-1)/block.Size)
		for _, wrong := range []int{blocks - 1, blocks + 1} {
			x, _ := Finish(append(make([]byte, 0, cap(b)), b...), &Header{DataBlocks: wrong, Records: len(records)})
			if _, err := Decode(x); !errors.Is(err, ErrDamaged) {
				t.Fatal("a data area of another size is accepted")
			}
		}
		b, _ = Finish(b, &Header{DataBlocks: blocks, Records: len(records)})
		h, err := Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		const base = 1 << 20
		area := MakeArea(base, h.RawBlocks)
		rawAt, packedAt := uint64(base), base+sum(raw)
		var it Records
		var r Record
		it.Reset(b, &h)
		for i := range records {
			if !it.Next(&r) || !slices.Equal(r.Lens, records[i].Lens) || (r.Lens == nil) != (records[i].Lens == nil) {
				t.Fatalf("%+v, want %+v", r, records[i])
			}
			whole := area
			whole.Skip(r.Kind, r.Count, r.Lens)
			switch r.Kind {
			case State:
				area.Raw += raw[0]
				rawAt, raw = rawAt+raw[0], raw[1:]
			case Write, MergeWrite, Move:
				for j := range r.Sums {
					l := uint8(MaxLen)
					if r.Lens != nil {
						l = r.Lens[j]
					}
					at := area.Next(l)
					if l == MaxLen && at != rawAt || l != MaxLen && at != packedAt {
						t.Fatalf("record %d block %d at %d, want %d or %d", i, j, at, rawAt, packedAt)
					}
					if l == MaxLen {
						rawAt, raw = rawAt+block.Size, raw[1:]
					} else {
						packedAt, packed = packedAt+packed[0], packed[1:]
					}
				}
			}
			if whole != area {
				t.Fatalf("Skip goes to %+v, Next to %+v", whole, area)
			}
		}
	}
}

// FuzzDecode gives arbitrary records a valid checksum, so that the decoder's own bounds are what is tested. A header takes
// no more memory than its size accounts for, whatever its records say of their blocks.
func FuzzDecode(f *testing.F) {
	b, _ := sample()
	f.Add(b[FixedLen:400], uint32(400), uint32(7), uint32(8))
	f.Fuzz(func(t *testing.T, records []byte, length, n, data uint32) {
		if len(records) > 3*block.Size {
			return
		}
		b := append(make([]byte, FixedLen, 4*block.Size), records...)
		b, _ = Finish(b, &Header{DataBlocks: int(data), Records: int(n)})
		var it Records
		var r Record
		var h Header
		var err error
		if n := memory.Taken(func() {
			if h, err = Decode(b); err == nil {
				for it.Reset(b, &h); it.Next(&r); {
				}
			}
		}); n > 64<<10+16*uint64(len(b)) {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		it.Reset(b, &h)
		got := 0
		area := MakeArea(0, h.RawBlocks)
		for it.Next(&r) {
			got++
			for _, l := range r.Lens {
				if at := area; at.Next(l)+uint64(l)*Granule > uint64(h.DataBlocks)*block.Size {
					t.Fatal("block outside the data area")
				}
			}
			area.Skip(r.Kind, r.Count, r.Lens)
		}
		if area.Packed > uint64(h.DataBlocks)*block.Size || area.Raw != uint64(h.RawBlocks)*block.Size {
			t.Fatalf("data ends at %+v of %d blocks", area, h.DataBlocks)
		}
		if got != h.Records {
			t.Fatalf("%d records, header says %d", got, h.Records)
		}
	})
}
