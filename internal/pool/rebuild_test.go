package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestRebuildCarriesSnapshots has a replica diverge from another one and follow it again: the list of snapshots first,
// then pieces of chunks with all their versions in any order, while live operations come later than the source has
// them. In the end both must have the same versions of everything.
func TestRebuildCarriesSnapshots(t *testing.T) {
	for range 6 {
		seed := *modelSeed
		if seed == 0 {
			seed = rand.Uint64N(1e9)
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			rebuild(t, rand.New(rand.NewPCG(seed, 4)))
		})
	}
}

func rebuild(t *testing.T, rng *rand.Rand) {
	const blocks = 1300
	opt := Options{DeltaEntries: 8192, SegmentBytes: 256 << 10, inlineBytes: 400, historyBytes: 1500}
	var pools [2]*Pool
	var reps [2]*Replica
	var mems [2]*disk.Mem
	for i := range pools {
		pools[i], mems[i] = newMemPool(t, 128<<20, opt)
		r, err := pools[i].CreateReplica("v", blocks*block.Size)
		must(t, err)
		reps[i] = r
	}
	world := refPool{}
	world.add("v", block.GUID{}, blocks*block.Size)
	ref := world["v"]
	n, made := uint64(0), 0
	stream := func(ref *refReplica, epoch uint64, count int) (ops []Op) {
		for range count {
			n++
			o := Op{Version: block.Version{Epoch: epoch, N: n}, Block: rng.Uint64N(blocks)}
			switch k := rng.IntN(20); {
			case k < 12:
				o.Kind = OpWrite
				o.Count = uint32(min(1+rng.Uint64N(30), blocks-o.Block))
				o.Data = fill(int(o.Count), rng.Uint64())
			case k < 14:
				o.Kind, o.Count = OpDiscard, uint32(min(1+rng.Uint64N(30), blocks-o.Block))
			case k == 14:
				o.Kind, o.Block, o.Count = OpDiscard, o.Block&^511, uint32(min(512, blocks-o.Block&^511))
			case k < 18:
				o.Kind, o.Name = OpSnapshot, fmt.Sprint("s", made)
				made++
				if rng.IntN(4) == 0 { // a name that was used before
					o.Name = fmt.Sprint("s", rng.IntN(made))
					if slices.ContainsFunc(ref.snaps, func(s refSnapshot) bool { return s.name == o.Name }) {
						o.Kind = OpDeleteSnapshot
					}
				}
			default:
				o.Kind = OpMark
				if len(ref.snaps) > 0 {
					o.Kind, o.Name = OpDeleteSnapshot, ref.snaps[rng.IntN(len(ref.snaps))].name
				}
			}
			ref.apply(&o)
			ops = append(ops, o)
		}
		return ops
	}
	both := stream(ref, 1, 60)
	for i := range reps {
		must(t, reps[i].Apply(both))
		if rng.IntN(2) == 0 {
			must(t, pools[i].cycle())
		}
	}
	base := ref.applied
	must(t, reps[1].Apply(stream(ref.copy(), 1, 15))) // a tail that never was
	must(t, reps[0].Apply(stream(ref, 2, 40)))
	joined := ref.applied

	src, dst := reps[0], reps[1]
	must(t, dst.SetState([]byte("incomplete"), joined))
	added, err := dst.SetSnapshots(src.Snapshots())
	must(t, err)
	for _, s := range added {
		if s.Version.Less(base) {
			base = s.Version
		}
	}
	var late []Op // live operations that the source has and the joiner does not
	lag := func(most int) {
		for len(late) > most {
			k := 1 + rng.IntN(len(late))
			must(t, dst.Apply(late[:k]))
			late = late[k:]
		}
	}
	todo := map[uint64]bool{}
	for _, r := range []*Replica{src, dst} {
		for next, done := uint64(0), false; !done; {
			var list []uint64
			list, next, done = r.Changed(base, next, nil)
			for _, c := range list {
				todo[c] = true
			}
		}
	}
	for _, number := range slices.Sorted(func(yield func(uint64) bool) {
		for c := range todo {
			if !yield(c) {
				return
			}
		}
	}) {
		const piece = 128
		for _, i := range rng.Perm(block.ChunkBlocks / piece) {
			for {
				ops := stream(ref, 2, rng.IntN(4))
				must(t, src.Apply(ops))
				late = append(late, ops...)
				have, err := dst.Versions(number, nil)
				must(t, err)
				if rng.IntN(3) == 0 {
					lag(rng.IntN(6)) // the list of what is here is outdated
				}
				var c Chunk
				must(t, src.ReadVersions(number, i*piece, piece, have, &c))
				if _, err = dst.Merge(&c); err == nil {
					break
				}
				if !isStale(err) {
					t.Fatal(err)
				}
			}
			lag(rng.IntN(6))
			switch rng.IntN(8) {
			case 0:
				must(t, pools[1].cycle())
				must(t, pools[1].Check())
			case 1:
				must(t, pools[1].Sync())
				mems[1] = mems[1].PowerCut(disk.Fate(rng.IntN(4)), rng)
				pools[1].Close()
				if pools[1], err = Open([]disk.Device{mems[1]}, opt); err != nil {
					t.Fatal(err)
				}
				dst = pools[1].Replica("v")
				must(t, pools[1].Check())
			}
		}
	}
	lag(0)
	must(t, dst.SetState([]byte("complete"), ref.applied))
	for range 2 {
		for number := range uint64((blocks + 511) / 512) {
			a, err := src.Versions(number, nil)
			must(t, err)
			b, err := dst.Versions(number, nil)
			must(t, err)
			if !slices.Equal(a, b) {
				t.Fatalf("chunk %d: versions differ: %s", number, firstDifference(a, b))
			}
		}
		for i := range ref.snaps {
			ref.snaps[i].refd = -1 // not counted again
		}
		seen, err := dst.observe()
		must(t, err)
		ref.state = "complete"
		if d := ref.diff(seen); d != "" {
			t.Fatal(d)
		}
		if d := ref.look(dst); d != "" {
			t.Fatal(d)
		}
		must(t, pools[1].cycle())
		must(t, pools[1].Check())
	}
	must(t, pools[1].Close())
}

// TestMergeForgetsWhatADrainForgot has a merge find less than a replay from the checkpoint before meets: the drain has
// dropped a version that no snapshot showed then, and that one of those which the merge brings would show.
func TestMergeForgetsWhatADrainForgot(t *testing.T) {
	for _, whole := range []bool{true, false} {
		t.Run(fmt.Sprint("whole=", whole), func(t *testing.T) {
			var pools [2]*Pool
			var reps [2]*Replica
			var mem *disk.Mem
			for i := range pools {
				pools[i], mem = newMemPool(t, 64<<20, Options{})
				r, err := pools[i].CreateReplica("v", block.ChunkBlocks*block.Size)
				must(t, err)
				reps[i] = r
			}
			at := func(epoch, n uint64) block.Version { return block.Version{Epoch: epoch, N: n} }
			write := func(v block.Version, b uint64) []Op {
				return []Op{{Kind: OpWrite, Version: v, Block: b, Count: 1, Data: fill(1, v.N)}}
			}
			snap := func(v block.Version) []Op { return []Op{{Kind: OpSnapshot, Version: v, Name: fmt.Sprint("s", v.N)}} }
			for _, r := range reps {
				must(t, r.Apply(write(at(1, 1), 0)))
				must(t, r.Apply(snap(at(1, 2))))
			}
			src, dst := reps[0], reps[1]
			must(t, pools[1].cycle())
			gone := Op{Kind: OpDiscard, Version: at(1, 3), Block: 0, Count: 1}
			if whole {
				gone.Count = block.ChunkBlocks
			}
			must(t, dst.Apply([]Op{gone}))
			if !whole {
				must(t, dst.Apply(snap(at(1, 4))))
			}
			must(t, dst.Apply(write(at(1, 5), 0)))
			for _, ops := range [][]Op{snap(at(2, 5)), write(at(2, 6), 0), snap(at(2, 7)), write(at(2, 8), 0)} {
				must(t, src.Apply(ops))
			}
			must(t, dst.SetState([]byte("incomplete"), src.Applied()))
			_, err := dst.SetSnapshots(nil)
			must(t, err)
			p := pools[1]
			p.drain.cycle.Lock()
			p.freeze()
			must(t, p.drainAll())
			p.thaw() // and no checkpoint
			_, err = dst.setSnapshots(src.Snapshots())
			must(t, err)
			var c Chunk
			must(t, src.ReadVersions(0, 0, block.ChunkBlocks, nil, &c))
			_, err = dst.Merge(&c)
			must(t, err)
			want, err := src.Versions(0, nil)
			must(t, err)
			check := func(when string) {
				t.Helper()
				have, err := dst.Versions(0, nil)
				must(t, err)
				if !slices.Equal(have, want) {
					t.Errorf("%s: versions %v instead of %v", when, have, want)
				}
			}
			check("after the merge")
			must(t, p.Sync())
			mem = mem.PowerCut(disk.Lost, nil)
			p.drain.cycle.Unlock()
			p.Close()
			p, err = Open([]disk.Device{mem}, Options{})
			must(t, err)
			dst = p.Replica("v")
			check("after a power cut")
			must(t, p.cycle())
			must(t, p.Check())
			check("after a checkpoint")
			must(t, p.Close())
		})
	}
}

func firstDifference(a, b []BlockVersion) string {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return fmt.Sprint(a[i:min(len(a), i+4)], " and ", b[min(i, len(b)):min(len(b), i+4)])
		}
	}
	return fmt.Sprint("more: ", b[len(a):min(len(b), len(a)+4)])
}

func isStale(err error) bool { return errors.Is(err, ErrStaleChunk) }
