package pool

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestClones: a clone, and one of that, show what their snapshots did and what was written since; what they need cannot
// go before them, and goes when they do.
func TestClones(t *testing.T) {
	p, m := newMemPool(t, 64<<20, smallHistory)
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1), write(1, 1, 2), write(600, 1, 3), snap("s", 4), write(0, 1, 5), discard(512, 512, 6)}))
	c, err := p.Clone("c", "v", "s")
	must(t, err)
	if c.Applied() != ver(4) || c.Size() != r.Size() || c.GUID() == r.GUID() {
		t.Fatal(c.Applied())
	}
	must(t, c.Apply([]Op{write(1, 1, 10), discard(600, 1, 11), snap("t", 12), discard(0, 512, 13), write(2, 1, 14)}))
	d, err := p.Clone("d", "c", "t")
	must(t, err)
	must(t, d.Apply([]Op{write(3, 1, 20)}))
	look := func(p *Pool) {
		t.Helper()
		r, c, d := p.Replica("v"), p.Replica("c"), p.Replica("d")
		for _, x := range []struct {
			r    *Replica
			name string
			want [5]uint64 // of blocks 0, 1, 2, 3, 600
		}{
			{r, "", [5]uint64{5, 2}}, {r, "s", [5]uint64{1, 2, 0, 0, 3}}, {c, "t", [5]uint64{1, 10}}, {c, "", [5]uint64{0, 0, 14}}, {d, "", [5]uint64{1, 10, 0, 20}},
		} {
			for i, b := range []uint64{0, 1, 2, 3, 600} {
				shows(t, x.r, x.name, b, x.want[i])
			}
		}
		if o, s := d.Origin(); o != "c" || s != "t" || r.Snapshots()[0].Clones[0] != "c" {
			t.Fatal(o, s, r.Snapshots())
		}
		var vers [block.ChunkBlocks]block.Version
		must(t, d.Newer(0, block.Version{}, &vers))
		if vers[0] != ver(1) || vers[1] != ver(10) || vers[3] != ver(20) || !vers[2].IsZero() {
			t.Fatal(vers[:4])
		}
		if l, _, _ := d.Changed(ver(0), 0, nil); len(l) != 2 {
			t.Fatal(l)
		}
		var k Chunk
		must(t, d.ReadChunk(0, nil, &k))
		if len(k.DataOf) != 3 || !bytes.Equal(k.Data[:block.Size], fill(1, 1)) {
			t.Fatal(k.DataOf)
		}
		must(t, p.Check())
	}
	look(p)
	must(t, p.cycle())
	look(p)
	if err := r.Apply([]Op{unsnap("s", 7)}); !errors.Is(err, ErrInUse) || r.Applied() != ver(6) {
		t.Fatal(err)
	}
	for _, name := range []string{"v", "c"} {
		if err := p.DestroyReplica(name); !errors.Is(err, ErrInUse) {
			t.Fatal(err)
		}
	}
	m = m.Kill()
	q, err := Open([]disk.Device{m}, smallHistory)
	must(t, err)
	defer q.Close()
	look(q)
	for _, name := range []string{"d", "c", "v"} {
		must(t, q.DestroyReplica(name))
		m = m.Kill() // the slots of what is taken apart are still in the checkpoint
		x, err := Open([]disk.Device{m}, smallHistory)
		must(t, err)
		must(t, x.Check())
		must(t, x.Close())
		m.Reopen()
		q.Close()
		q, err = Open([]disk.Device{m}, smallHistory)
		must(t, err)
	}
	must(t, q.cycle())
	must(t, q.Check())
	if n := q.Stats().Allocated; n > 64<<10 {
		t.Fatal(n)
	}
	q.Close()
}

// TestCloneDepth: a chain of clones has an end, which no pool is held to that has a longer one.
func TestCloneDepth(t *testing.T) {
	p, m := newMemPool(t, 64<<20, smallHistory)
	r, err := p.CreateReplica("0", 1<<20)
	must(t, err)
	v := uint64(0)
	clone := func(p *Pool, of int) error {
		v++
		must(t, p.Replica(fmt.Sprint(of)).Apply([]Op{snap("s", v)}))
		_, err := p.Clone(fmt.Sprint(of+1), fmt.Sprint(of), "s")
		return err
	}
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	v++
	for i := range MaxCloneDepth {
		must(t, clone(p, i))
	}
	if err := clone(p, MaxCloneDepth); !errors.Is(err, ErrTooLarge) {
		t.Fatal("one more:", err)
	}
	_, err = p.Clone("beside", "0", "s")
	must(t, err)
	shows(t, p.Replica(fmt.Sprint(MaxCloneDepth)), "", 0, 1)
	must(t, p.Check())
	must(t, p.Close())

	m.Reopen()
	less := smallHistory
	less.cloneDepth = 10
	p, err = Open([]disk.Device{m}, less)
	must(t, err)
	shows(t, p.Replica(fmt.Sprint(MaxCloneDepth)), "", 0, 1)
	if _, err := p.Clone("more", "10", "s"); !errors.Is(err, ErrTooLarge) {
		t.Error("one more:", err)
	}
	_, err = p.Clone("more", "9", "s")
	must(t, err)
	must(t, p.Check())
	must(t, p.Close())
}
