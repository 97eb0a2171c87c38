package pool

import (
	"testing"

	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestAccounting: what replicas and pool show is exact at any time when nothing is compressed, exact once drained when
// it is, and never out of bounds in between.
func TestAccounting(t *testing.T) {
	rng := testRand(t)
	for _, a := range []compress.Algorithm{compress.Off, compress.LZ4, compress.Zstd} {
		p, m := newMemPool(t, 96<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: a})
		r, err := p.CreateReplica("v", 20<<20)
		must(t, err)
		exact := func(p *Pool) (n int64) {
			for _, x := range locs(t, p.Replica("v")) {
				if x.stored {
					n += int64(x.loc.Len())
				}
			}
			return n
		}
		for n := range uint64(600) {
			op := writeData(rng.Uint64N(5000), mixed(rng, 1+rng.IntN(100)), n+1)
			if rng.IntN(4) == 0 {
				op = discard(rng.Uint64N(3000), 1+rng.Uint64N(1500), n+1)
			}
			must(t, r.Apply([]Op{op}))
			s := r.Stats()
			if s.Data < 0 || s.Data > s.Used || a == compress.Off && s.Data != s.Used {
				t.Fatalf("%v: %+v", a, s)
			}
			if n%50 == 0 {
				must(t, p.Check())
				if e := exact(p); a == compress.Off && e != s.Data {
					t.Fatalf("data %d, want %d", s.Data, e)
				}
			}
		}
		must(t, p.cycle())
		s := r.Stats()
		if e := exact(p); s.Data != e || s.Allocated != e+r.meta || r.pending != 0 || r.hidden != 0 || r.delta != 0 {
			t.Fatalf("%v: %+v, data %d", a, s, e)
		}
		if q := p.Stats(); q.Allocated != s.Allocated+p.metaLive || q.Free != q.Capacity-q.Allocated {
			t.Fatalf("%v: %+v, replica %+v", a, q, s)
		}
		if c := s.CompressRatio(); (c == 1) != (a == compress.Off) {
			t.Fatal(a, c)
		}
		must(t, p.Check())
		q, err := Open([]disk.Device{m.Kill()}, Options{})
		must(t, err)
		if o := q.Replica("v").Stats(); o.Data != s.Data || o.Used != s.Used {
			t.Fatalf("%v: after a restart %+v, before %+v", a, o, s)
		}
		must(t, q.Close())
	}
}

// TestIdleDrain: a pool at rest drains by itself, so that what it shows is exact.
func TestIdleDrain(t *testing.T) {
	t.Parallel()
	p, _ := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{writeData(0, half(500, 1), 1), writeData(0, noise(300, 1), 2)}))
	waitUntil(p, func() bool { return p.Stats().Drains > 0 })
	must(t, p.Check())
	if r.pending != 0 || r.delta != 0 || r.Stats().Chunks != 1 {
		t.Fatalf("%+v", r.Stats())
	}
}

// TestSpaceReturnsByItself: a pool at rest frees what was discarded, and what a destroyed replica had, and gives it
// back to the device.
func TestSpaceReturnsByItself(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, Compression: compress.Off})
	fresh := p.Stats()
	if fresh.Allocated > 256<<10 {
		t.Fatalf("a fresh pool shows %d bytes", fresh.Allocated)
	}
	r, err := p.CreateReplica("v", 24<<20)
	must(t, err)
	for i := range uint64(24) {
		must(t, r.Apply([]Op{write(i*256, 256, i+1)}))
	}
	must(t, p.Sync())
	if s := p.Stats(); s.Allocated < 24<<20 || s.Free != s.Capacity-s.Allocated || r.Stats().Used != 24<<20 {
		t.Fatalf("%+v", s)
	}
	must(t, r.Apply([]Op{discard(0, 3000, 100)}))
	if u := r.Stats().Used; u != 24<<20-3000*4096 {
		t.Fatal(u)
	}
	before := p.Stats().FreeSegments
	waitUntil(p, func() bool { return p.Stats().FreeSegments >= before+40 }) // nobody asks for it
	must(t, p.DestroyReplica("v"))
	if s := p.Stats(); s.Allocated > fresh.Allocated+1<<20 {
		t.Fatalf("%+v", s)
	}
	waitUntil(p, func() bool { return p.Stats().FreeSegments >= fresh.FreeSegments-4 })
	must(t, p.Check())
	if s := p.Stats(); s.Allocated > fresh.Allocated+1<<20 {
		t.Fatalf("%+v, fresh %+v", s, fresh)
	}
	if b := m.Bytes(); b > 4<<20 {
		t.Fatalf("the device still holds %d bytes", b)
	}
}
