package pool

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
)

// TestDiff compares snapshots both ways, with each other, with nothing and with what the replica shows now: before and
// after all of it is in pages, and in a clone, which shows what its origin did.
func TestDiff(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10})
	r, err := p.CreateReplica("v", 2042*block.Size)
	must(t, err)
	resize := func(blocks int64, v uint64) Op {
		return Op{Kind: OpResize, Size: blocks * block.Size, Version: ver(v)}
	}
	must(t, r.Apply([]Op{
		write(0, 3, 1), write(600, 1, 2), write(2040, 2, 3), snap("a", 4),
		write(1, 1, 5), discard(600, 1, 6), write(1100, 1, 7)}))
	must(t, r.Apply([]Op{resize(2039, 9)}))
	must(t, r.Apply([]Op{snap("b", 10), write(2, 1, 11), discard(1100, 1, 12), write(1, 1, 13)}))
	compare := func(r *Replica, from, to string, want ...string) {
		t.Helper()
		var got []string
		for chunk, done := uint64(0), false; !done; {
			var blocks []DiffBlock
			blocks, chunk, done, err = r.Diff(from, to, chunk, nil)
			must(t, err)
			for _, b := range blocks {
				got = append(got, fmt.Sprintf("%d at %d", b.Block, b.Version.N))
				if !b.Stored {
					got[len(got)-1] += " zeroes"
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: from %q to %q: %q, want %q", r.Name(), from, to, got, want)
		}
	}
	origin := func(r *Replica) {
		t.Helper()
		compare(r, "", "a", "0 at 1", "1 at 1", "2 at 1", "600 at 2", "2040 at 3", "2041 at 3")
		compare(r, "a", "a")
		compare(r, "a", "b", "1 at 5", "600 at 6 zeroes", "1100 at 7", "2039 at 9 zeroes", "2040 at 9 zeroes", "2041 at 9 zeroes")
		compare(r, "b", "a", "1 at 1", "600 at 2", "1100 at 0 zeroes", "2039 at 0 zeroes", "2040 at 3", "2041 at 3")
		compare(r, "b", "", "1 at 13", "2 at 11", "1100 at 12 zeroes")
	}
	origin(r)
	must(t, p.cycle())
	origin(r)
	must(t, p.cycle())
	origin(r)

	c, err := p.Clone("c", "v", "b")
	must(t, err)
	must(t, c.Apply([]Op{write(0, 1, 20), snap("x", 21), discard(2, 1, 22)}))
	for range 2 {
		compare(c, "", "x", "0 at 20", "1 at 5", "2 at 1", "600 at 6 zeroes", "1100 at 7")
		compare(c, "x", "", "2 at 22 zeroes")
		must(t, p.cycle())
	}
	if _, _, _, err := r.Diff("a", "nosuch", 0, nil); err == nil {
		t.Error("compared with a snapshot that there is not")
	}
}
