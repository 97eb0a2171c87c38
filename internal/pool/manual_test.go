package pool

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

func manualOptions(rng *rand.Rand) Options {
	return Options{Manual: true, Rand: rng.Uint64, SegmentBytes: 256 << 10, DeltaEntries: 4096, CheckpointBytes: 256 << 10, PageCacheBytes: 1 << 20}
}

func manualPool(tb testing.TB, rng *rand.Rand) (*Pool, *disk.Mem) {
	m := disk.NewMem("mem0", 12<<20)
	p, err := Create(Stripe(m), Config{Name: "test"}, manualOptions(rng))
	must(tb, err)
	return p, m
}

// manualLife lives through one life of a pool in one goroutine, with what happens to it, and returns the digest of what
// it has written and what it went through.
func manualLife(t *testing.T, seed uint64, cover map[string]int) (hash uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	p, m := manualPool(t, rng)
	rec := disk.Record(m)
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	guid := r.GUID()
	var ops []Op // all that were applied
	synced := 0
	check := func() {
		v := r.Applied().N
		if int(v) < synced || int(v) > len(ops) {
			t.Fatalf("seed %d: %d operations are there, of %d, and %d were synced", seed, v, len(ops), synced)
		}
		ops = ops[:v]
		want := make([]byte, 64*block.Size)
		for i := range ops {
			o := &ops[i]
			if o.Kind == OpWrite {
				copy(want[o.Block*block.Size:], o.Data)
			} else {
				clear(want[o.Block*block.Size : (o.Block+uint64(o.Count))*block.Size])
			}
		}
		got := make([]byte, len(want))
		must(t, r.Read(0, got, nil))
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: not what was written", seed)
		}
	}
	leave := func() {
		s := p.Stats()
		cover["replayed"] += int(s.Replayed)
		cover["freed"] += int(s.SegmentsFreed)
		cover["moved"] += int(s.BlocksMoved)
	}
	opened := func(n *disk.Mem) {
		leave()
		m = n
		rec.Add(m)
		p, err = Open([]disk.Device{m}, manualOptions(rng))
		must(t, err)
		if r = p.Replica("v"); r == nil || r.GUID() != guid {
			t.Fatalf("seed %d: the replica is gone", seed)
		}
		check()
		synced = len(ops) // what was found is stable
	}
	for range 300 {
		switch k := rng.IntN(100); {
		case k < 60:
			b := rng.Uint64N(64)
			n := 1 + rng.Uint64N(min(16, 64-b))
			o := write(b, int(n), uint64(len(ops)+1))
			if o.Data = noise(int(n), uint64(len(ops)+1)); rng.IntN(6) == 0 {
				o = discard(b, n, uint64(len(ops)+1))
			}
			must(t, r.Apply([]Op{o}))
			ops = append(ops, o)
		case k < 66:
			must(t, p.Sync())
			synced = len(ops)
		case k < 70:
			must(t, r.SetState([]byte{byte(k)}, ver(uint64(len(ops)))))
			synced = len(ops)
		case k < 92:
			for n := rng.IntN(3); n >= 0 && p.Work(n == 0); n-- {
				cover["steps"]++
			}
		case k < 94:
			check()
		case k < 96:
			opened(m.Kill())
		case k < 98:
			fate := disk.Fate(rng.IntN(4))
			opened(m.PowerCut(fate, rng))
		default:
			must(t, p.Close())
			synced = len(ops)
			m.Reopen()
			opened(m)
		}
	}
	leave()
	must(t, p.Check())
	must(t, p.Close())
	return rec.Hash()
}

// TestManual lives through several lives of pools whose background is the caller's: each is right, starts no goroutine, and
// does to its devices what it did before.
func TestManual(t *testing.T) {
	cover := map[string]int{}
	for seed := range uint64(3) {
		before := runtime.NumGoroutine()
		hash := manualLife(t, seed, cover)
		if n := runtime.NumGoroutine(); n > before {
			t.Fatalf("seed %d: %d goroutines, %d before", seed, n, before)
		}
		if again := manualLife(t, seed, cover); again != hash {
			t.Fatalf("seed %d: the devices were written in two ways: %x and %x", seed, hash, again)
		}
	}
	t.Log(cover)
	for what, least := range map[string]int{"replayed": 200, "steps": 200, "freed": 30} {
		if cover[what] < least {
			t.Errorf("%s: %d, want at least %d", what, cover[what], least)
		}
	}
}

// TestManualFull fills a pool that nobody works for: whoever needs space makes it, until there is none.
func TestManualFull(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	p, _ := manualPool(t, rng)
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	v := uint64(0)
	for err == nil {
		v++
		err = r.Apply([]Op{{Kind: OpWrite, Block: (v - 1) * 16 % (16 << 10), Count: 16, Version: ver(v), Data: noise(16, v)}})
	}
	if !errors.Is(err, ErrNoSpace) || v < 50 {
		t.Fatalf("write %d: %v", v, err)
	}
	for n := range uint64(200) { // what it has can be replaced, which takes cleaning
		b := n * 5 % (v - 1)
		must(t, r.Apply([]Op{{Kind: OpWrite, Block: b * 16, Count: 8, Version: ver(v + n), Data: noise(8, n)}}))
	}
	if s := p.Stats(); s.BlocksMoved == 0 || s.WritesStalled == 0 {
		t.Fatalf("moved %d blocks, waited %d times", s.BlocksMoved, s.WritesStalled)
	}
	must(t, r.Apply([]Op{discard(0, 8<<10, v+1000)}))
	must(t, r.Apply([]Op{{Kind: OpWrite, Block: 0, Count: 64, Version: ver(v + 1001), Data: noise(64, 3)}}))
	must(t, p.Check())
	must(t, p.Close())
}

// BenchmarkManualCreate makes the pools that the simulator uses.
func BenchmarkManualCreate(b *testing.B) {
	b.ReportAllocs()
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		p, _ := manualPool(b, rng)
		_, err := p.CreateReplica("v", 20<<20)
		must(b, err)
	}
}

// BenchmarkManualOpen opens such a pool after the death of the process, with operations to replay.
func BenchmarkManualOpen(b *testing.B) {
	b.ReportAllocs()
	rng := rand.New(rand.NewPCG(1, 1))
	p, m := manualPool(b, rng)
	r, err := p.CreateReplica("v", 20<<20)
	must(b, err)
	for i := range uint64(60) {
		must(b, r.Apply([]Op{write(i*37%40, 1, i+1)}))
	}
	for b.Loop() {
		q, err := Open([]disk.Device{m.Clone()}, manualOptions(rng))
		must(b, err)
		if q.Replica("v").Applied() != ver(60) {
			b.Fatal("operations are missing")
		}
	}
}
