package pool

import (
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
)

// chunkOf returns what a source lists for block 0 of chunk 0: these versions, newest first, and snapshots.
func chunkOf(scan uint64, snaps []Snapshot, versions ...uint64) *Chunk {
	c := &Chunk{Scan: ver(scan), Count: 1, Snapshots: snaps}
	for i, v := range versions {
		d := fill(1, v)
		if i == 0 {
			c.Versions[0], c.Stored[0], c.Sums[0] = ver(v), true, block.Sum(d)
			c.Data, c.DataOf = d, []uint16{0}
			continue
		}
		c.Old = append(c.Old, OldBlock{Version: ver(v), Stored: true, HasData: true, Sum: block.Sum(d)})
		c.OldData = append(c.OldData, d...)
	}
	return c
}

func wantVersions(t *testing.T, r *Replica, want ...uint64) {
	t.Helper()
	for range 2 {
		if l := versionsOf(t, r, 0); fmt.Sprint(l) != fmt.Sprint(want) {
			t.Fatalf("versions %v, want %v", l, want)
		}
		must(t, r.p.cycle())
		must(t, r.p.Check())
	}
}

// TestMergeDoesNotExpose takes a version away that hid another one, which nobody showed and nobody must see now.
func TestMergeDoesNotExpose(t *testing.T) {
	for layers := range 4 {
		p, _ := newMemPool(t, 64<<20, Options{})
		r, err := p.CreateReplica("v", 4<<20)
		must(t, err)
		for i, v := range []uint64{57, 71, 75} {
			must(t, r.Apply([]Op{write(0, 1, v)}))
			if i > 0 && layers>>(i-1)&1 != 0 {
				must(t, p.cycle())
			}
		}
		list := []Snapshot{{Name: "s", Version: ver(80), Size: 4 << 20}}
		if added, err := r.SetSnapshots(list); err != nil || len(added) != 1 {
			t.Fatal(added, err)
		}
		must(t, r.Apply([]Op{{Kind: OpMark, Version: ver(95)}}))
		_, err = r.Merge(chunkOf(95, list, 90, 57))
		must(t, err)
		wantVersions(t, r, 90, 57)
		shows(t, r, "s", 0, 57)
	}
}

// TestMergeIsAheadOfSnapshots merges what the source has behind snapshots that come with the live operations only
// later.
func TestMergeIsAheadOfSnapshots(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 4), snap("s", 5), write(0, 1, 8), {Kind: OpMark, Version: ver(9)}}))
	list := []Snapshot{{Name: "s", Version: ver(12), Size: 4 << 20}, {Name: "t", Version: ver(14), Size: 4 << 20}}
	res, err := r.Merge(chunkOf(20, list, 15, 8))
	must(t, err)
	if res.Taken != 1 {
		t.Fatal(res)
	}
	wantVersions(t, r, 15, 8)
	must(t, r.Apply([]Op{unsnap("s", 10)})) // the one of version 5
	if s := r.Snapshots(); len(s) != 2 || s[0].Version != ver(12) {
		t.Fatal(s)
	}
	must(t, r.Apply([]Op{snap("s", 11), unsnap("s", 11)}))
	must(t, r.Apply([]Op{snap("s", 12), write(1, 1, 13), snap("t", 14), write(0, 1, 15), {Kind: OpMark, Version: ver(20)}}))
	wantVersions(t, r, 15, 8)
	for _, name := range []string{"s", "t"} {
		shows(t, r, name, 0, 8)
	}
	if s := r.Snapshots(); len(s) != 2 || s[0].Version != ver(12) || s[1].Version != ver(14) || r.Applied() != ver(20) {
		t.Fatal(s)
	}
	must(t, r.Apply([]Op{unsnap("s", 21)})) // this one is meant
	if s := r.Snapshots(); len(s) != 1 {
		t.Fatal(s)
	}
}

// TestMergeRefusesWhatItCannotDo wants data of a version that is neither here nor in the chunk.
func TestMergeRefusesWhatItCannotDo(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 4), snap("s", 5), write(0, 1, 8)}))
	c := chunkOf(9, r.Snapshots(), 8, 3)
	c.Old[0].HasData, c.OldData = false, nil
	if _, err := r.Merge(c); !isStale(err) {
		t.Fatal(err)
	}
	c = chunkOf(9, r.Snapshots(), 8, 3)
	c.OldData[7] ^= 1
	if _, err := r.Merge(c); err == nil {
		t.Fatal("damaged data was taken")
	}
	wantVersions(t, r, 8, 4)
}
