package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
)

// choice is content that writers choose from, so that readers know what there may be.
type choice struct {
	data [][]byte
	sums []uint32
	may  map[uint32]bool // the sums, and that of zeroes
}

// newChoice makes so many blocks with content, which gets a seed for each.
func newChoice(blocks int, content func(n int, seed uint64) []byte) *choice {
	c := &choice{may: map[uint32]bool{block.ZeroSum: true}}
	for i := range blocks {
		c.data = append(c.data, content(1, uint64(i+1)))
		c.sums = append(c.sums, block.Sum(c.data[i]))
		c.may[c.sums[i]] = true
	}
	return c
}

// errGone says that what was to be read is not there any more.
var errGone = errors.New("gone")

// look reads as many blocks at a time as n says until stop is closed, and reports what is not from the choice.
func (c *choice) look(t *testing.T, stop <-chan struct{}, n int, read func(dst []byte, sums []uint32) error) {
	dst, sums := make([]byte, n*block.Size), make([]uint32, n)
	for {
		select {
		case <-stop:
			return
		default:
		}
		if err := read(dst, sums); err == errGone {
			continue
		} else if err != nil {
			t.Error(err)
			return
		}
		for i, s := range sums {
			if !c.may[s] || block.Sum(dst[i*block.Size:(i+1)*block.Size]) != s {
				t.Error("content that nobody wrote")
				return
			}
		}
	}
}

// TestConcurrent has writers, readers, mergers and statistics at work at once; it is for the race detector, and checks
// that reads return one of the versions written.
func TestConcurrent(t *testing.T) {
	p, _ := newMemPool(t, 96<<20, Options{SegmentBytes: 512 << 10, DeltaEntries: 4096, CheckpointBytes: 4 << 20, PageCacheBytes: 64 << 10})
	const blocks = 2048
	content := newChoice(256, fill)
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	for w, name := range []string{"a", "b"} {
		r, err := p.CreateReplica(name, blocks*block.Size)
		must(t, err)
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			for n := uint64(1); n < 2500; n++ {
				i := rng.IntN(256)
				op := Op{Kind: OpWrite, Block: rng.Uint64N(blocks), Count: 1, Version: ver(n), Data: content.data[i], Sums: content.sums[i : i+1]}
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
					if err := r.SetState(content.data[i], ver(n)); err != nil {
						t.Error(err)
					}
				}
			}
		})
		others.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 10))
			var c Chunk
			content.look(t, stop, 64, func(dst []byte, sums []uint32) error {
				if err := r.ReadChunk(rng.Uint64N(blocks/512), nil, &c); err != nil {
					return err
				}
				for _, v := range c.Versions {
					if c.Scan.Less(v) {
						t.Errorf("version %v in a listing of %v", v, c.Scan)
					}
				}
				c.Scan = block.Version{} // everything here is newer: keeps, but takes the whole path
				if _, err := r.Merge(&c); err != nil && !errors.Is(err, ErrStaleChunk) {
					return err
				}
				r.Changed(ver(5), 0, nil)
				p.Stats()
				r.Stats()
				return r.Read(rng.Uint64N(blocks-64), dst, sums)
			})
		})
	}
	writers.Wait()
	close(stop)
	others.Wait()
	must(t, p.Check())
}

// TestCleanerRaces has replicas overwritten, discarded, destroyed and read while the cleaner is at work. It is for the
// race detector, and checks that reads return what was written.
func TestCleanerRaces(t *testing.T) {
	p, _ := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, PageCacheBytes: 64 << 10})
	content := newChoice(64, noise)
	const blocks = 2100 // twice, of 5500 that fit
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 2 {
		name := fmt.Sprint("v", w)
		_, err := p.CreateReplica(name, blocks*block.Size)
		must(t, err)
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for n := uint64(1); n < 9000; n++ {
				r := p.Replica(name)
				if n == 3000 && w == 0 {
					if err := p.DestroyReplica(name); err != nil {
						t.Error(err)
					}
					if r, err = p.CreateReplica(name, blocks*block.Size); err != nil {
						t.Error(err)
						return
					}
				}
				o := Op{Kind: OpWrite, Block: rng.Uint64N(blocks), Count: 1, Version: ver(n), Data: content.data[rng.IntN(64)]}
				if n%100 == 0 {
					o = discard(rng.Uint64N(blocks-100), 100, n)
				}
				if err := r.Apply([]Op{o}); err != nil {
					t.Errorf("%v; %+v", err, p.Stats())
					return
				}
			}
		})
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 2))
			content.look(t, stop, 16, func(dst []byte, sums []uint32) error {
				r := p.Replica(name)
				if r == nil {
					return errGone
				}
				err := r.Read(rng.Uint64N(blocks-16), dst, sums)
				if errors.Is(err, ErrNotFound) {
					return errGone
				}
				return err
			})
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	must(t, p.Check())
	if p.Stats().BlocksMoved == 0 {
		t.Error("nothing was moved")
	}
}

// TestSnapshotsUnderLoad has writers, readers and snapshots that come and go at once; it is for the race detector.
func TestSnapshotsUnderLoad(t *testing.T) {
	p, _ := newMemPool(t, 128<<20, smallHistory)
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	var all sync.WaitGroup
	stop := make(chan struct{})
	content := newChoice(64, fill)
	all.Go(func() {
		rng := rand.New(rand.NewPCG(1, 10))
		content.look(t, stop, 64, func(dst []byte, sums []uint32) error { return r.Read(rng.Uint64N(960), dst, sums) })
	})
	all.Go(func() {
		rng := rand.New(rand.NewPCG(2, 10))
		content.look(t, stop, 64, func(dst []byte, sums []uint32) error {
			s := r.Snapshots()
			if len(s) == 0 {
				return errGone
			}
			x := s[rng.IntN(len(s))]
			_, err := r.SnapshotUnique(x.Name)
			if err == nil {
				_, _, _, err = r.Diff(x.Name, "", rng.Uint64N(2), nil)
			}
			if err == nil {
				err = r.ReadSnapshot(x.Name, rng.Uint64N(960), dst, sums)
			}
			if errors.Is(err, ErrNoSnapshot) {
				return errGone
			}
			return err
		})
	})
	rng := rand.New(rand.NewPCG(3, 10))
	var names []string
	for n := uint64(1); n < 3000; n++ {
		ops := []Op{{Kind: OpWrite, Block: rng.Uint64N(1024), Count: 1, Version: ver(3 * n), Data: content.data[rng.IntN(64)]}}
		switch k := rng.IntN(20); {
		case k == 0 && len(names) < 20:
			names = append(names, fmt.Sprint("s", n))
			ops = append(ops, snap(names[len(names)-1], 3*n+1))
		case k == 1 && len(names) > 0:
			i := rng.IntN(len(names))
			ops = append(ops, unsnap(names[i], 3*n+1))
			names[i] = names[len(names)-1]
			names = names[:len(names)-1]
		case k == 2:
			ops = append(ops, discard(rng.Uint64N(2)*512, 512, 3*n+1))
		}
		if err := r.Apply(ops); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	all.Wait()
	must(t, p.cycle())
	must(t, p.Check())
}
