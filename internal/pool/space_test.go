package pool

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// waitUntil waits until cond holds, which it looks at after every cycle of the background.
func waitUntil(p *Pool, cond func() bool) {
	c := &p.cycles
	c.mu.Lock()
	defer c.mu.Unlock()
	for !cond() && !c.stop {
		c.cond.Wait()
	}
}

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

// TestCleaner overwrites a volume at random for many times the size of the pool.
func TestCleaner(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64N(1e9)
	}
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	const blocks = 4800 // 18.75 of 32 MiB, less 10 of 120 segments
	r, err := p.CreateReplica("v", blocks*block.Size)
	must(t, err)
	want := make([]uint32, blocks)
	for i := range want {
		want[i] = block.ZeroSum
	}
	for n := uint64(1); n < 6000; n++ {
		var ops []Op
		for range 8 {
			o := write(rng.Uint64N(blocks), 1, n)
			want[o.Block] = block.Sum(o.Data)
			ops = append(ops, o)
		}
		if err := r.Apply(ops); err != nil {
			t.Fatalf("batch %d: %v; %+v", n, err, p.Stats())
		}
	}
	look := func(p *Pool) {
		t.Helper()
		sums := make([]uint32, blocks)
		must(t, p.Replica("v").Read(0, make([]byte, blocks*block.Size), sums))
		for i := range sums {
			if sums[i] != want[i] {
				t.Fatalf("block %d", i)
			}
		}
		must(t, p.Check())
	}
	look(p)
	if p.Stats().BlocksMoved == 0 {
		t.Fatal("nothing was moved")
	}
	s := p.Stats()
	t.Logf("%d written, %d moved, %d checkpoints, %d of %d segments free", s.BlocksWritten, s.BlocksMoved, s.Checkpoints, s.FreeSegments, s.Segments)
	k := m.Kill()
	q, err := Open([]disk.Device{k}, Options{DeltaEntries: 4096})
	must(t, err)
	look(q)
	must(t, q.Close())
}

func TestFullPool(t *testing.T) {
	p, _ := newMemPool(t, 16<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	n := uint64(1)
	for ; ; n++ {
		if err = r.Apply([]Op{write(n*20, 20, n)}); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrNoSpace) || r.Applied() != ver(n-1) {
		t.Fatal(err, r.Applied())
	}
	s := p.Stats()
	if s.Free > s.Capacity/5 {
		t.Fatalf("full with %d of %d bytes free", s.Free, s.Capacity)
	}
	if err := r.Apply([]Op{write(0, 20, n), discard(0, 100, n+1)}); !errors.Is(err, ErrNoSpace) || r.Applied() != ver(n-1) {
		t.Fatal(err, r.Applied())
	}
	for i := range uint64(300) { // what gives back or records state must go on
		n++
		must(t, r.SetState([]byte("full"), ver(n)))
		n++
		must(t, r.Apply([]Op{discard(i, 1, n)}))
	}
	n++
	must(t, r.Apply([]Op{discard(0, 2000, n)}))
	n++
	must(t, r.Apply([]Op{write(0, 20, n)}))
	must(t, p.Check())
	must(t, p.DestroyReplica("v"))
	r, err = p.CreateReplica("w", 8<<20)
	must(t, err)
	for i := range uint64(20) {
		must(t, r.Apply([]Op{write(i*100, 100, i+1)}))
	}
	must(t, p.Check())
}

func TestReadOnlyLimit(t *testing.T) {
	p, _ := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, ReadOnlyPercent: 50})
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	n := uint64(1)
	for ; n < 400; n++ {
		if err = r.Apply([]Op{write(n*20, 20, n)}); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrReadOnly) || !errors.Is(err, ErrNoSpace) || !p.Stats().ReadOnly {
		t.Fatal(err, p.Stats())
	}
	must(t, r.Apply([]Op{discard(0, 1000, n)}))
	must(t, r.Apply([]Op{write(0, 1, n+1)}))
}

// TestConcurrent has writers, readers, mergers and statistics at work at once; it is for the race detector, and checks
// that reads return one of the versions written.
func TestConcurrent(t *testing.T) {
	p, _ := newMemPool(t, 96<<20, Options{SegmentBytes: 512 << 10, DeltaEntries: 4096, CheckpointBytes: 4 << 20, PageCacheBytes: 64 << 10})
	const blocks = 2048
	var sums [256]uint32
	var data [256][]byte
	for i := range data {
		data[i] = fill(1, uint64(i))
		sums[i] = block.Sum(data[i])
	}
	valid := map[uint32]bool{block.ZeroSum: true}
	for _, s := range sums {
		valid[s] = true
	}
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	for w, name := range []string{"a", "b"} {
		r, err := p.CreateReplica(name, blocks*block.Size)
		must(t, err)
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			for n := uint64(1); n < 2500; n++ {
				i := rng.IntN(256)
				op := Op{Kind: OpWrite, Block: rng.Uint64N(blocks), Count: 1, Version: ver(n), Data: data[i], Sums: sums[i : i+1]}
				ops := []Op{op, op}
				ops[1].Block = rng.Uint64N(blocks)
				if n%50 == 0 {
					ops[1] = discard(rng.Uint64N(blocks/2), rng.Uint64N(blocks/2)+1, n)
				}
				if err := r.Apply(ops); err != nil {
					t.Error(err)
					return
				}
				if n%200 == 0 {
					if err := r.SetState(data[i], ver(n)); err != nil {
						t.Error(err)
					}
				}
			}
		})
		others.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 10))
			dst, got := make([]byte, 64*block.Size), make([]uint32, 64)
			var c Chunk
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := r.Read(rng.Uint64N(blocks-64), dst, got); err != nil {
					t.Error(err)
					return
				}
				for i, s := range got {
					if !valid[s] || block.Sum(dst[i*block.Size:(i+1)*block.Size]) != s {
						t.Error("content that nobody wrote")
						return
					}
				}
				if err := r.ReadChunk(rng.Uint64N(blocks/512), nil, &c); err != nil {
					t.Error(err)
					return
				}
				for _, v := range c.Versions {
					if c.Scan.Less(v) {
						t.Errorf("version %v in a listing of %v", v, c.Scan)
					}
				}
				c.Scan = block.Version{} // everything here is newer: keeps, but takes the whole path
				if _, err := r.Merge(&c); err != nil && !errors.Is(err, ErrStaleChunk) {
					t.Error(err)
					return
				}
				r.Changed(ver(5), 0, nil)
				p.Stats()
				r.Stats()
			}
		})
	}
	writers.Wait()
	close(stop)
	others.Wait()
	must(t, p.Check())
}

// TestInterruptedDestroy makes a checkpoint while a destroyed replica is still being taken apart.
func TestInterruptedDestroy(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, NoDiscard: true})
	fresh := p.Stats()
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	for i := range uint64(16) {
		must(t, r.Apply([]Op{write(i*256, 256, i+1)}))
	}
	must(t, p.cycle())
	p.drain.cycle.Lock()
	p.idx.mu.Lock()
	p.idx.soft = -1 // the active table asks for attention all the time
	p.idx.mu.Unlock()
	p.drain.cycle.Unlock()
	must(t, p.DestroyReplica("v"))
	must(t, p.cycle())
	if p.idx.bySlot[0] != r || len(r.dir) == 0 {
		t.Fatal("taken apart already")
	}
	must(t, p.Check())
	n, err := p.CreateReplica("v", 1<<20) // the name is free, the slot is not
	must(t, err)
	must(t, n.Apply([]Op{write(0, 1, 7)}))
	q, err := Open([]disk.Device{m.Kill()}, Options{})
	must(t, err)
	defer q.Close()
	if v := q.Replica("v"); len(q.Replicas()) != 1 || v.GUID() != n.GUID() || v.Applied() != ver(7) {
		t.Fatal("the wrong replica")
	}
	q.wake()
	waitUntil(q, func() bool { return q.Stats().FreeSegments >= fresh.FreeSegments-4 })
	must(t, q.Check())
}

// TestUpdatesLeaveRoomForTheirPages fills a small pool with the headers of updates that take no data, each of another
// chunk: there is room for the pages that they become, in the drain that goes on meanwhile too.
func TestUpdatesLeaveRoomForTheirPages(t *testing.T) {
	p, _ := newMemPool(t, 128<<20, Options{SegmentBytes: 256 << 10})
	const chunks = 40000
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	for i := range uint64(chunks) {
		must(t, r.Apply([]Op{{Kind: OpDiscard, Version: block.Version{Epoch: 1, N: i + 1}, Block: i * block.ChunkBlocks, Count: 7}}))
	}
	must(t, p.Sync())
	must(t, p.Check())
	must(t, p.Close())
}
