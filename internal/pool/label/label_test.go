package label

import (
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

func sample() *Label {
	g := block.NewGUID()
	return &Label{
		Pool: block.NewGUID(), Device: g, Name: "cstor-x", Owner: "uid", Layout: "stripe", Index: 1, Generation: 4, Size: 64 << 20, SegmentBytes: 1 << 20,
		Members: []Member{{GUID: block.NewGUID(), Segments: 3}, {GUID: g, Segments: 62}},
	}
}

func TestLabel(t *testing.T) {
	l := sample()
	d := disk.NewMem("d", 64<<20)
	if err := Write(d, l); err != nil {
		t.Fatal(err)
	}
	got, err := Probe(d)
	if err != nil || !reflect.DeepEqual(got, l) {
		t.Fatalf("%+v, %v", got, err)
	}
	copies := offsets(64 << 20)
	for _, off := range copies[:3] { // any one copy is enough
		d.FlipBit(off+20, 2)
		if got, err := Probe(d); err != nil || !reflect.DeepEqual(got, l) {
			t.Fatal(got, err)
		}
	}
	d.FlipBit(copies[3]+20, 2)
	if _, err := Probe(d); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	b, _ := l.Encode()
	binary.LittleEndian.PutUint32(b[8:], Format+1)
	if _, err := Decode(b); !errors.Is(err, ErrNewerFormat) {
		t.Fatal(err)
	}
}

func TestRing(t *testing.T) {
	d := disk.NewMem("d", 64<<20)
	pool := block.NewGUID()
	if r, err := ReadRing([]disk.Device{d}, pool); r != nil || err != nil {
		t.Fatal(r, err)
	}
	for g := uint64(1); g < 100; g++ {
		if err := WriteRing([]disk.Device{d}, &Ring{Pool: pool, Generation: g, Root: []Extent{{Addr: g, Len: 1, Sum: 2}}}); err != nil {
			t.Fatal(err)
		}
		if r, err := ReadRing([]disk.Device{d}, pool); err != nil || r.Generation != g || r.Root[0].Addr != g {
			t.Fatal(r, err)
		}
	}
	if r, _ := ReadRing([]disk.Device{d}, block.NewGUID()); r != nil {
		t.Fatal("ring of another pool")
	}
}

// FuzzDecode gives arbitrary content a valid checksum.
func FuzzDecode(f *testing.F) {
	b, _ := sample().Encode()
	f.Add(b)
	r := Ring{Root: []Extent{{1, 2, 3}}}
	c, _ := r.Encode()
	f.Add(c)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16 {
			binary.LittleEndian.PutUint32(b[12:], checksum(b))
		}
		if l, err := Decode(b); err == nil {
			if _, err := l.Encode(); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := DecodeRing(b); err == nil {
			if _, err := r.Encode(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
