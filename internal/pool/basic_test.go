package pool

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// fill returns n blocks of content that depends on seed.
func fill(n int, seed uint64) []byte {
	b := make([]byte, n*block.Size)
	for i := 0; i < len(b); i += 8 {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i], b[i+1], b[i+2] = byte(seed>>56), byte(seed>>48), byte(seed>>40)
	}
	return b
}

// noise returns n blocks that do not compress.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n*block.Size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), byte(seed >> 32)}).Read(b)
	return b
}

// half returns n blocks of which one half is noise and the other the same byte.
func half(n int, seed uint64) []byte {
	b := noise(n, seed)
	for i := 0; i < len(b); i += 512 {
		for j := range b[i : i+256] {
			b[i+j] = byte(seed)
		}
	}
	return b
}

// mixed returns n blocks, in runs of noise, of what shrinks more or less, and of zeroes.
func mixed(rng *rand.Rand, n int) []byte {
	var b []byte
	for n > 0 {
		k := min(n, 1+rng.IntN(1+rng.IntN(20)))
		switch rng.IntN(5) {
		case 0:
			b = append(b, noise(k, rng.Uint64())...)
		case 1:
			b = append(b, make([]byte, k*block.Size)...)
		case 2:
			b = append(b, half(k, rng.Uint64())...)
		case 3:
			b = append(b, bytes.Repeat([]byte{byte(rng.IntN(256))}, k*block.Size)...)
		default:
			b = append(b, fill(k, rng.Uint64())...)
		}
		n -= k
	}
	return b
}

func ver(n uint64) block.Version { return block.Version{Epoch: 1, N: n} }

func write(b uint64, n int, v uint64) Op {
	return Op{Kind: OpWrite, Block: b, Count: uint32(n), Version: ver(v), Data: fill(n, v)}
}

func discard(b, n, v uint64) Op {
	return Op{Kind: OpDiscard, Block: b, Count: uint32(n), Version: ver(v)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newMemPool(t testing.TB, size int64, opt Options) (*Pool, *disk.Mem) {
	t.Helper()
	m := disk.NewMem("mem0", size)
	p, err := Create(Stripe(m), Config{Name: "test", Owner: "owner"}, opt)
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p, m
}

// openIdle opens a pool without what it does in the background; closeIdle ends it.
func openIdle(t testing.TB, devs []disk.Device, opt Options) *Pool {
	t.Helper()
	p, err := open(devs, opt)
	must(t, err)
	return p
}

func closeIdle(p *Pool) error {
	close(p.stopped)
	close(p.upkeep.stopped)
	return p.Close()
}

// TestWriteReadReopen: what was written and discarded is there, also after the pool was opened again.
func TestWriteReadReopen(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 1 << 20, DeltaEntries: 4096})
	r, err := p.CreateReplica("vol", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1), write(5, 3, 2), discard(6, 1, 3), write(600, 520, 4)}))
	must(t, r.SetState([]byte("state"), ver(5)))
	want := make([]byte, 16<<20)
	copy(want, fill(1, 1))
	copy(want[5*4096:], fill(3, 2))
	clear(want[6*4096 : 7*4096])
	copy(want[600*4096:], fill(520, 4))
	look := func(p *Pool) {
		t.Helper()
		r := p.Replica("vol")
		got := make([]byte, 16<<20)
		sums := make([]uint32, len(got)/4096)
		must(t, r.Read(0, got, sums))
		if !bytes.Equal(got, want) {
			t.Fatal("content differs")
		}
		for i := range sums {
			if sums[i] != block.Sum(got[i*4096:(i+1)*4096]) {
				t.Fatalf("sum of block %d", i)
			}
		}
		if r.Applied() != ver(5) || string(r.State()) != "state" || r.Stats().Used != 523*4096 {
			t.Fatal(r.Applied(), r.State(), r.Stats())
		}
		must(t, p.Check())
	}
	look(p)
	must(t, p.cycle())
	look(p)
	must(t, p.Close())
	m.Reopen()
	p, err = Open([]disk.Device{m}, Options{DeltaEntries: 4096})
	must(t, err)
	look(p)
	m2 := m.Kill()
	p2, err := Open([]disk.Device{m2}, Options{DeltaEntries: 4096})
	must(t, err)
	look(p2)
	must(t, p2.Replica("vol").Apply([]Op{write(9, 1, 6)}))
	m3 := m2.Kill()
	p3, err := Open([]disk.Device{m3}, Options{DeltaEntries: 4096})
	must(t, err)
	defer p3.Close()
	copy(want[9*4096:], fill(1, 6))
	if p3.Replica("vol").Applied() != ver(6) {
		t.Fatal("lost")
	}
	must(t, p3.Check())
	p.Close()
	p2.Close()
}

// TestNames: replicas that there are not, or are already, and writes behind the end are refused.
func TestNames(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{})
	_, err := p.CreateReplica("a", 1<<20)
	must(t, err)
	if _, err := p.CreateReplica("a", 1<<20); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	if err := p.DestroyReplica("b"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if err := p.Replica("a").Apply([]Op{write(256, 1, 1)}); err == nil {
		t.Fatal("write behind the end")
	}
}

// waitUntil waits until cond holds, which it looks at after every cycle of the background.
func waitUntil(p *Pool, cond func() bool) {
	c := &p.cycles
	c.mu.Lock()
	defer c.mu.Unlock()
	for !cond() && !c.stop {
		c.cond.Wait()
	}
}
