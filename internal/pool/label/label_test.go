package label

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

func sample() *Label {
	g := block.NewGUID()
	return &Label{
		Pool: block.NewGUID(), Device: g, Name: "cstor-x", Owner: "uid", Generation: 4, Change: 77, Size: 64 << 20, SegmentBytes: 1 << 20,
		Groups: []Group{{Kind: 2, Columns: 2}, {Kind: 1, Cache: true, Columns: 1}},
		Members: []Member{
			{GUID: block.NewGUID(), Out: true, Last: 5, Try: 6}, {GUID: g, Column: 1}, {GUID: block.NewGUID(), Column: 1, Replacing: true},
			{GUID: block.NewGUID(), Group: 1},
		},
		Spans: []Span{{0, 62}, {1, 3}, {0, 1 << 20}},
	}
}

// largest is a label with as much as there may be of everything.
func largest() *Label {
	l := &Label{Pool: block.NewGUID(), Name: strings.Repeat("n", MaxName), Owner: strings.Repeat("o", MaxName), Size: 64 << 20, SegmentBytes: 1 << 20}
	for i := range MaxGroups {
		l.Groups = append(l.Groups, Group{Kind: 1, Columns: 1})
		l.Members = append(l.Members, Member{GUID: block.NewGUID(), Group: i})
		l.Spans = append(l.Spans, Span{i, 1}, Span{i, 2})
	}
	l.Device = l.Members[63].GUID
	return l
}

// TestLabel: a label comes back from each of its copies, and is found with the others damaged.
func TestLabel(t *testing.T) {
	for _, l := range []*Label{sample(), largest()} {
		testLabel(t, l)
	}
}

func testLabel(t *testing.T, l *Label) {
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
	if _, err := Decode(b); !errors.Is(err, ErrDamaged) { // it may be anything
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b[12:], checksum(b))
	if _, err := Decode(b); !errors.Is(err, ErrNewerFormat) {
		t.Fatal(err)
	}
	if err := Write(d, l); err != nil {
		t.Fatal(err)
	}
	if err := d.WritevAt([][]byte{b}, copies[2]); err != nil {
		t.Fatal(err)
	}
	if _, err := Probe(d); !errors.Is(err, ErrNewerFormat) { // which a later release did not end to write
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b[8:], 1)
	binary.LittleEndian.PutUint32(b[12:], checksum(b))
	if _, err := Decode(b); !errors.Is(err, ErrOldFormat) || !strings.Contains(err.Error(), "made by a pre-release, format 1") {
		t.Fatal(err)
	}
}

// TestLabelAtOldEnd: a device became longer, and a change of its labels reached nothing but the old end. What is there
// of another pool, as data may be, does not count.
func TestLabelAtOldEnd(t *testing.T) {
	l := sample()
	d := disk.NewMem("d", l.Size)
	if err := Write(d, l); err != nil {
		t.Fatal(err)
	}
	d.Grow(l.Size + 8<<20)
	next := l.Clone()
	next.Generation, next.Change = l.Generation+1, l.Change+1
	for _, foreign := range []bool{true, false} {
		x := next.Clone()
		if foreign {
			x.Pool = block.NewGUID()
		}
		b, _ := x.Encode()
		if err := d.WritevAt([][]byte{b}, l.Size-TailBytes); err != nil {
			t.Fatal(err)
		}
		got, err := Probe(d)
		if err != nil {
			t.Fatal(err)
		}
		if want := l.Generation + 1; foreign != (got.Generation != want) {
			t.Fatalf("foreign %v: generation %d", foreign, got.Generation)
		}
	}
}

// TestLabelLimits changes one thing at a time to what no pool can be.
func TestLabelLimits(t *testing.T) {
	for i, change := range []func(l *Label){
		func(l *Label) { l.Device = block.NewGUID() },
		func(l *Label) { l.Members[2].Replacing = false },
		func(l *Label) { l.Members[1].Replacing = true },
		func(l *Label) { l.Members[0].GUID = l.Members[1].GUID },
		func(l *Label) { l.Members[0].Column = 2 },
		func(l *Label) { l.Members[3].Group = 2 },
		func(l *Label) { l.Members = l.Members[:3] },
		func(l *Label) { l.Groups[1].Kind = 0 },
		func(l *Label) { l.Groups[0].Columns = 3 },
		func(l *Label) { l.Spans[2].Group = 2 },
		func(l *Label) { l.Spans[0].Segments = 0 },
		func(l *Label) { l.Spans[0].Segments = MaxSegments },
		func(l *Label) { l.Spans = l.Spans[:1] },
		func(l *Label) { l.SegmentBytes = 3 << 20 },
		func(l *Label) { l.Size = 1 << 20 },
	} {
		l := sample()
		change(l)
		if _, err := l.Encode(); err == nil {
			t.Error("change", i, "is accepted")
		}
	}
}

// TestLabelPowerCut loses the power at every write and flush of a change of the labels, and at those of mending them
// and of the next change: the old or the new ones are there, and never older ones again.
func TestLabelPowerCut(t *testing.T) {
	labels := [3]*Label{sample(), sample(), sample()}
	for i, l := range labels {
		l.Generation, l.Change, l.Device, l.Members = uint64(3+i), uint64(i), labels[0].Device, labels[0].Members
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for n := int64(1); n <= 7; n++ {
		for k := range int64(20) {
			d := disk.NewMem("d", 64<<20)
			if err := Write(d, labels[0]); err != nil {
				t.Fatal(err)
			}
			d.Inject(disk.Faults{FailFrom: n})
			if err := Write(d, labels[1]); (err == nil) != (n == 7) {
				t.Fatal(err)
			}
			d = d.PowerCut(disk.Torn, rng)
			best, err := Probe(d)
			if err != nil || best.Generation < 3 || n == 7 && best.Generation != 4 {
				t.Fatal(n, best, err)
			}
			d.Inject(disk.Faults{FailFrom: 1 + k})
			err = Mend(d, best)
			d.Inject(disk.Faults{})
			if err == nil {
				for _, c := range Copies(d, best.Size) {
					if c.Err != nil || c.Label.Generation != best.Generation {
						t.Fatalf("%d, %d: mended %v %v", n, k, c.Label, c.Err)
					}
				}
				d.Inject(disk.Faults{FailFrom: 1 + k})
				_ = Write(d, labels[2])
			}
			got, err := Probe(d.PowerCut(disk.Torn, rng))
			if err != nil || got.Generation != best.Generation && got.Generation != 5 {
				t.Fatal(n, k, got, err)
			}
		}
	}
}

// TestRing: the newest slot of the pool counts.
func TestRing(t *testing.T) {
	d := disk.NewMem("d", 64<<20)
	pool := block.NewGUID()
	if r, err := ReadRing(d, 64<<20, pool); r != nil || err != nil {
		t.Fatal(r, err)
	}
	for g := uint64(1); g < 100; g++ {
		if err := WriteRing(d, 64<<20, &Ring{Pool: pool, Generation: g, Root: []Extent{{Addr: g, Len: 1, Sum: 2}}}); err != nil {
			t.Fatal(err)
		}
		if r, err := ReadRing(d, 64<<20, pool); err != nil || r.Generation != g || r.Root[0].Addr != g {
			t.Fatal(r, err)
		}
	}
	if r, _ := ReadRing(d, 64<<20, block.NewGUID()); r != nil {
		t.Fatal("ring of another pool")
	}
}

// FuzzDecode gives arbitrary content a valid checksum. It takes no more memory than a whole label accounts for.
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
		var l *Label
		var r *Ring
		var err, ringErr error
		if n := memory.Taken(func() { l, err = Decode(b); r, ringErr = DecodeRing(b) }); n > 64<<10 {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err == nil {
			if _, err := l.Encode(); err != nil {
				t.Fatal(err)
			}
		}
		if ringErr == nil {
			if _, err := r.Encode(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzRecognise: nothing but zeroes is taken for blank, whatever it looks like and wherever it is.
func FuzzRecognise(f *testing.F) {
	for _, s := range signatures {
		f.Add(s.want, uint32(s.off), []byte(nil), uint32(0))
	}
	f.Add([]byte{0x55, 0xaa}, uint32(510), []byte("EFI PART"), uint32(TailBytes-512))
	f.Add([]byte{0, 0}, uint32(0), []byte{1}, uint32(TailBytes-1))
	f.Fuzz(func(t *testing.T, a []byte, at uint32, b []byte, bt uint32) {
		head, tail := make([]byte, HeadBytes), make([]byte, TailBytes)
		copy(head[at%HeadBytes:], a)
		copy(tail[bt%TailBytes:], b)
		found := recognise(head, tail)
		if blank := firstNonZero(head) < 0 && firstNonZero(tail) < 0; blank != (found == "") || len(found) > 200 {
			t.Fatalf("found %q, blank %v", found, blank)
		}
	})
}

// TestUnreadable: what can be read of labels and ring is enough, and a device whose labels cannot be is not blank.
func TestUnreadable(t *testing.T) {
	d, l := disk.NewMem("d", 64<<20), sample()
	if err := Write(d, l); err != nil {
		t.Fatal(err)
	}
	for g := range uint64(3) {
		if err := WriteRing(d, d.Size(), &Ring{Pool: l.Pool, Generation: 1 + g, Root: []Extent{{Len: 1}}}); err != nil {
			t.Fatal(err)
		}
	}
	copies := offsets(d.Size())
	slot := int64(ringOffset + 2*blockSize)
	for _, c := range []struct{ off, length int64 }{
		{slot, blockSize}, {copies[0], blockSize}, {d.Size() - TailBytes + slot, blockSize}, {copies[3], blockSize}, {0, HeadBytes},
	} {
		d.BadSectors(c.off, c.length)
		if got, err := Probe(d); err != nil || !reflect.DeepEqual(got, l) {
			t.Fatalf("%d bytes at %d: %+v, %v", c.length, c.off, got, err)
		}
		if r, err := ReadRing(d, d.Size(), l.Pool); err == nil || r == nil || r.Generation != 3 {
			t.Fatalf("%d bytes at %d: %+v, %v", c.length, c.off, r, err)
		}
	}
	d.BadSectors(copies[2], blockSize)
	if _, err := Probe(d); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
}
