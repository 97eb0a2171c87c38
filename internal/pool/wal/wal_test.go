package wal

import (
	"errors"
	"reflect"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
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
	}
	b := make([]byte, FixedLen, 4*block.Size)
	data := 0
	for i := range records {
		n := len(b)
		b = Append(b, &records[i])
		if len(b)-n != Len(records[i].Kind, records[i].Count, len(records[i].Name)) {
			panic("Len")
		}
		data += DataBlocks(records[i].Kind, records[i].Count)
	}
	b, _ = Finish(b, &Header{Flags: FlagMore, DataBlocks: data, Records: len(records), Prev: 5, Incarnation: 6, Seq: 7, Stable: 4, Segment: 8, Block: 9})
	return b, records
}

func TestRoundTrip(t *testing.T) {
	b, want := sample()
	h, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if h.Flags != FlagMore || h.DataBlocks != 5 || h.Prev != 5 || h.Incarnation != 6 || h.Seq != 7 || h.Stable != 4 || h.Segment != 8 || h.Block != 9 {
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

// FuzzDecode gives arbitrary records a valid checksum, so that the decoder's own bounds are what is tested.
func FuzzDecode(f *testing.F) {
	b, _ := sample()
	f.Add(b[FixedLen:400], uint32(400), uint32(6), uint32(5))
	f.Fuzz(func(t *testing.T, records []byte, length, n, data uint32) {
		if len(records) > 3*block.Size {
			return
		}
		b := append(make([]byte, FixedLen, 4*block.Size), records...)
		b, _ = Finish(b, &Header{DataBlocks: int(data), Records: int(n)})
		h, err := Decode(b)
		if err != nil {
			return
		}
		var it Records
		it.Reset(b, &h)
		var r Record
		got := 0
		for it.Next(&r) {
			got++
		}
		if got != h.Records {
			t.Fatalf("%d records, header says %d", got, h.Records)
		}
	})
}
