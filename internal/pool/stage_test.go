package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// stagedOps is operations of one epoch in a few chunks, and now and then the discard of a whole one.
func stagedOps(rng *rand.Rand, epoch, first uint64, count int) (ops []Op) {
	for n := first; len(ops) < count; n++ {
		op := Op{Kind: OpWrite, Block: rng.Uint64N(4)*block.ChunkBlocks + rng.Uint64N(24), Count: 1 + uint32(rng.IntN(8)), Version: block.Version{Epoch: epoch, N: n}}
		switch rng.IntN(6) {
		case 0:
			op.Kind = OpDiscard
		case 1:
			op.Kind, op.Block, op.Count = OpDiscard, op.Block&^(block.ChunkBlocks-1), block.ChunkBlocks
			if rng.IntN(4) > 0 {
				op.Count = 24
			}
		}
		if op.Kind == OpWrite {
			op.Data = fill(int(op.Count), epoch<<32+n)
		}
		ops = append(ops, op)
	}
	return ops
}

// wholeOf is all that a replica has.
func wholeOf(t *testing.T, r *Replica) string {
	t.Helper()
	changed, _, _ := r.Changed(block.Version{Epoch: 1, N: 40}, 0, nil)
	s := fmt.Sprintf("%v %s %v", r.Applied(), r.State(), changed)
	var v [block.ChunkBlocks]block.Version
	for c := range uint64(4) {
		must(t, r.Newer(c, block.Version{}, &v))
		b := make([]byte, block.ChunkBlocks*block.Size)
		must(t, r.Read(c*block.ChunkBlocks, b, nil))
		s += fmt.Sprintf(" %v %08x", v, block.Sum(b))
	}
	return s
}

// TestStage makes a replica with a tail of its own what another one is. Wherever the power fails meanwhile, it is afterwards
// what it was or what the other one is, with the state that belongs to that.
func TestStage(t *testing.T) {
	const size = 4 * block.ChunkBlocks * block.Size
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 3))
		opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 16 << 10}
		if opt.Compression = compress.LZ4; seed%2 > 0 {
			opt.Compression = compress.Off
		}
		sp, _ := newMemPool(t, 64<<20, opt)
		src, err := sp.CreateReplica("v", size)
		must(t, err)
		p, m := newMemPool(t, 64<<20, opt)
		r, err := p.CreateReplica("v", size)
		must(t, err)
		common := stagedOps(rng, 1, 1, 40)
		base := common[len(common)-1].Version
		for _, x := range []*Replica{src, r} {
			for i := range common {
				must(t, x.Apply(common[i:i+1]))
			}
			if rng.IntN(2) == 0 {
				must(t, x.p.cycle())
			}
		}
		must(t, r.Apply(stagedOps(rng, 1, 41, rng.IntN(12))))
		must(t, src.Apply(stagedOps(rng, 2, 41, 1+rng.IntN(12))))
		must(t, src.SetState([]byte("new"), src.Applied()))
		must(t, r.SetState([]byte("old"), r.Applied()))

		have, err := r.StageVersions(base)
		must(t, err)
		blocks, scan, err := src.ReadStage(base, have, nil)
		must(t, err)
		before := wholeOf(t, r)
		rec := disk.Record(m)
		must(t, r.ApplyStage(blocks, []byte("new"), scan))
		must(t, p.Sync())
		after := wholeOf(t, r)
		if want := wholeOf(t, src); after != want {
			t.Fatalf("seed %d: is\n%s, want\n%s", seed, after, want)
		}
		must(t, p.Check())
		n := rec.Len()
		for x := rec.Replay(); x.At() <= n; {
			for fate := range disk.Fates {
				mems := x.Cut(rng, func(int) disk.Fate { return fate })
				q := openIdle(t, []disk.Device{mems[0]}, opt)
				if is := wholeOf(t, q.Replica("v")); is != before && is != after || x.At() == n && is != after {
					t.Fatalf("seed %d, cut at %d of %d, fate %v: is\n%s, was\n%s, and would have been\n%s", seed, x.At(), n, fate, is, before, after)
				}
				must(t, q.Check())
				disk.StopAll(mems)
				closeIdle(q)
			}
			if !x.Next() {
				break
			}
		}
		must(t, p.cycle())
		must(t, p.Check())
		if is := wholeOf(t, r); is != after {
			t.Fatalf("seed %d: is %s after a checkpoint, was %s", seed, is, after)
		}
	}
}

// TestStageTooLarge is refused, and nothing has changed.
func TestStageTooLarge(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 2*mostStageChunks*block.ChunkBlocks*block.Size)
	must(t, err)
	must(t, r.Apply([]Op{write(0, block.MostStaged/2, 1), write(block.MostStaged/2, block.MostStaged/2, 2)}))
	blocks, scan, err := r.ReadStage(block.Version{}, nil, nil)
	if err != nil || scan != ver(2) || len(blocks) != block.MostStaged {
		t.Fatal(len(blocks), scan, err)
	}
	must(t, r.Apply([]Op{write(block.MostStaged, 1, 3)}))
	if _, err := r.StageVersions(block.Version{}); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	if _, _, err := r.ReadStage(block.Version{}, nil, nil); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	for c := range uint64(mostStageChunks + 1) {
		must(t, r.Apply([]Op{write(c*block.ChunkBlocks, 1, 4+c)}))
	}
	if _, _, err := r.ReadStage(ver(3), nil, nil); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}

	q, err := p.CreateReplica("w", 2*mostStageChunks*block.ChunkBlocks*block.Size)
	must(t, err)
	must(t, q.SetState([]byte("old"), ver(1)))
	was := wholeOf(t, q)
	if err := q.ApplyStage(append(slices.Clone(blocks), block.Staged{Block: block.MostStaged}), nil, scan); !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	blocks[7].Data = nil
	if err := q.ApplyStage(blocks, nil, scan); !errors.Is(err, ErrStaleChunk) {
		t.Fatal(err)
	}
	blocks[7].Data = make([]byte, block.Size)
	if err := q.ApplyStage(blocks, nil, scan); !errors.Is(err, ErrChecksum) {
		t.Fatal(err)
	}
	if is := wholeOf(t, q); is != was {
		t.Fatalf("is %s, was %s", is, was)
	}
}

// TestStageOfOneMoment reads stages while pairs of blocks are written that are equal at every moment, in a pool in which
// writes have to wait for segments, and these for readers.
func TestStageOfOneMoment(t *testing.T) {
	p, _ := newMemPool(t, 12<<20, Options{SegmentBytes: 256 << 10, CheckpointBytes: 4 << 20})
	r, err := p.CreateReplica("v", 8*block.ChunkBlocks*block.Size)
	must(t, err)
	var applying sync.Mutex
	stop := make(chan struct{})
	ended := make(chan error)
	go func() {
		for n := uint64(1); ; n += 2 {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			applying.Lock()
			x := Op{Kind: OpWrite, Block: n % 64, Count: 1, Version: ver(n + 1), Data: fill(1, n)}
			y := x
			y.Block += 7 * block.ChunkBlocks
			err := r.Apply([]Op{x, y})
			applying.Unlock()
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	for scan := (block.Version{}); scan.N < 8000; {
		var blocks []block.Staged
		var err error
		blocks, scan, err = r.ReadStage(block.Version{}, nil, &applying)
		must(t, err)
		n := len(blocks) / 2
		for i := range n {
			if a, b := &blocks[i], &blocks[n+i]; a.Version != b.Version || a.Sum != b.Sum || scan.Less(a.Version) || block.Sum(a.Data) != a.Sum {
				t.Fatalf("block %d is of %v, block %d of %v, as of %v", a.Block, a.Version, b.Block, b.Version, scan)
			}
		}
	}
	close(stop)
	must(t, <-ended)
}
