package pool

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestCleanerKeepsSnapshots overwrites a replica in a pool that is nearly full of what snapshots show, so that the
// cleaner has to move versions of all ages, among them such in history pages, with deleted snapshots, power cuts and
// refused writes in between. Every snapshot shows what it showed when it was taken.
func TestCleanerKeepsSnapshots(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, PageCacheBytes: 64 << 10, Compression: compress.Off}
	p, m := newMemPool(t, 40<<20, opt)
	c := newCleanTest(t, p, 1200) // of 124 x 64
	c.fill()
	type shown struct {
		name string
		sums []uint32
	}
	var snaps []shown
	look := func() {
		t.Helper()
		c.look()
		dst, got := make([]byte, len(c.now)*block.Size), make([]uint32, len(c.now))
		for _, s := range snaps {
			must(t, c.r.ReadSnapshot(s.name, 0, dst, got))
			if !slices.Equal(got, s.sums) {
				t.Fatalf("snapshot %s differs", s.name)
			}
		}
	}
	moved, refused := uint64(0), 0
	for round := range 60 {
		for range 400 { // mostly one chunk: its older versions spill into history pages
			c.n++
			b := c.rng.Uint64N(600)
			if c.rng.IntN(4) == 0 {
				b = c.rng.Uint64N(uint64(len(c.now)))
			}
			o := Op{Kind: OpWrite, Block: b, Count: 1, Version: ver(c.n), Data: noise(1, c.rng.Uint64())}
			err := c.r.Apply([]Op{o})
			if errors.Is(err, ErrNoSpace) {
				refused++
				c.n--
				break
			}
			must(t, err)
			c.did(&o)
		}
		if free := c.p.Stats().Free; len(snaps) > 0 && (free < 2<<20 || c.rng.IntN(4) == 0) {
			i := c.rng.IntN(len(snaps))
			c.n++
			must(t, c.r.Apply([]Op{{Kind: OpDeleteSnapshot, Name: snaps[i].name, Version: ver(c.n)}}))
			snaps = slices.Delete(snaps, i, i+1)
		}
		c.n++
		s := shown{fmt.Sprint("s", round), slices.Clone(c.now)}
		must(t, c.r.Apply([]Op{snap(s.name, c.n)}))
		snaps = append(snaps, s)
		if round%7 == 0 {
			look()
		}
		if round%10 == 9 {
			must(t, c.p.Sync())
			moved += c.p.Stats().BlocksMoved
			m = m.PowerCut(disk.Fate(c.rng.IntN(4)), c.rng)
			c.p.Close()
			q, err := Open([]disk.Device{m}, opt)
			must(t, err)
			t.Cleanup(func() { q.Close() })
			c.p, c.r = q, q.Replica("v")
			look()
		}
	}
	t.Logf("%d blocks moved, %d writes refused, %d snapshots at the end", moved, refused, len(snaps))
	if moved < 1000 {
		t.Errorf("only %d blocks were moved", moved)
	}
	for _, s := range snaps {
		c.n++
		must(t, c.r.Apply([]Op{{Kind: OpDeleteSnapshot, Name: s.name, Version: ver(c.n)}}))
	}
	snaps = nil
	waitUntil(c.p, func() bool { return c.p.Stats().Allocated < int64(len(c.now))*block.Size+1<<20 })
	look()
}
