package pool

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

func snap(name string, v uint64) Op { return Op{Kind: OpSnapshot, Name: name, Version: ver(v)} }
func unsnap(name string, v uint64) Op {
	return Op{Kind: OpDeleteSnapshot, Name: name, Version: ver(v)}
}

// shows fails unless a block of a snapshot (the replica, if name is empty) has the content of a version; zero: zeroes.
func shows(t *testing.T, r *Replica, name string, b, v uint64) {
	t.Helper()
	got, want := make([]byte, block.Size), make([]byte, block.Size)
	if v > 0 {
		want = fill(1, v)
	}
	var err error
	if name == "" {
		err = r.Read(b, got, nil)
	} else {
		err = r.ReadSnapshot(name, b, got, nil)
	}
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s %q block %d: not version %d (%v)", r.Name(), name, b, v, err)
	}
}

func unique(t *testing.T, r *Replica, name string, blocks int64) {
	t.Helper()
	if n, err := r.SnapshotUnique(name); err != nil || n != blocks*block.Size {
		t.Fatalf("snapshot %s has %d blocks of its own, want %d (%v)", name, n/block.Size, blocks, err)
	}
}

// smallHistory makes histories deep with few versions.
var smallHistory = Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off, inlineBytes: 300, historyBytes: 1000}

// TestSnapshotGivesBackWhatOnlyItHeld: deleting a snapshot frees what no other one shows.
func TestSnapshotGivesBackWhatOnlyItHeld(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, Compression: compress.Off})
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 100, 1), snap("a", 2), write(0, 10, 3), snap("b", 4), write(5, 10, 5), discard(50, 10, 6)}))
	look := func(r *Replica) {
		t.Helper()
		for name, want := range map[string][]uint64{"a": {1, 1, 1}, "b": {3, 1, 1}, "": {3, 5, 0}} {
			shows(t, r, name, 0, want[0])
			for i, b := range []uint64{14, 50} {
				got := make([]byte, block.Size)
				if name == "" {
					must(t, r.Read(b, got, nil))
				} else {
					must(t, r.ReadSnapshot(name, b, got, nil))
				}
				var data []byte
				switch want[i+1] {
				case 0:
					data = make([]byte, block.Size)
				case 1:
					data = fill(100, 1)[b*block.Size : (b+1)*block.Size]
				case 5:
					data = fill(10, 5)[(b-5)*block.Size : (b-4)*block.Size]
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("snapshot %q block %d", name, b)
				}
			}
		}
		unique(t, r, "a", 10) // 0 to 9, which b has in version 3
		unique(t, r, "b", 5)  // 5 to 9 of version 3; the rest is the replica's or a's too
		if s := r.Snapshots(); len(s) != 2 || s[0].Referenced != 100*block.Size || s[1].Referenced != 100*block.Size || s[0].Version != ver(2) {
			t.Fatal(s)
		}
	}
	look(r)
	must(t, p.cycle())
	look(r)
	must(t, p.Check())
	if s := r.Stats(); s.Used != 90*block.Size || s.Allocated-r.meta != (90+10+5+15)*block.Size {
		t.Fatal(s, r.meta)
	}
	must(t, p.Close())
	m.Reopen()
	p, err = Open([]disk.Device{m}, Options{})
	must(t, err)
	defer p.Close()
	r = p.Replica("v")
	look(r)
	data := func() int64 {
		must(t, p.cycle())
		must(t, p.Check())
		return r.Stats().Allocated - r.meta
	}
	before := data()
	must(t, r.Apply([]Op{unsnap("a", 7)}))
	if n := data(); before-n != 10*block.Size {
		t.Fatalf("%d bytes came back", before-n)
	}
	unique(t, r, "b", 20) // 10 to 14 and 50 to 59 are its own now
	shows(t, r, "b", 0, 3)
	must(t, r.Apply([]Op{unsnap("b", 8), unsnap("b", 9)}))
	if n := data(); n != 90*block.Size || refOf(t, r, 0).older {
		t.Fatal(n)
	}
	if err := r.ReadSnapshot("b", 0, make([]byte, block.Size), nil); !errors.Is(err, ErrNoSnapshot) {
		t.Fatal(err)
	}
}

// TestSnapshotsOfOneVersion: two snapshots of one version show and hold the same.
func TestSnapshotsOfOneVersion(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{Compression: compress.Off})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1), snap("a", 1), snap("b", 1), write(0, 1, 2)}))
	if err := r.Apply([]Op{snap("a", 3)}); !errors.Is(err, ErrExists) || r.Applied() != ver(2) {
		t.Fatal(err)
	}
	must(t, r.Apply([]Op{snap("a", 1)})) // once more, as a target does that does not know
	for range 2 {
		shows(t, r, "a", 0, 1)
		shows(t, r, "b", 0, 1)
		unique(t, r, "a", 0)
		must(t, p.cycle())
	}
	must(t, r.Apply([]Op{unsnap("a", 4)}))
	must(t, p.cycle())
	shows(t, r, "b", 0, 1)
	unique(t, r, "b", 1)
	must(t, p.Check())
}

// TestDeepHistory keeps two hundred versions of a few blocks, so that most are in history pages.
func TestDeepHistory(t *testing.T) {
	p, m := newMemPool(t, 64<<20, smallHistory)
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	const n = 200
	for i := uint64(1); i <= n; i++ {
		must(t, r.Apply([]Op{write(i%7, 1, 2*i), snap(fmt.Sprint("s", i), 2*i+1)}))
		if i%9 == 0 {
			must(t, p.cycle())
		}
	}
	gone := map[uint64]bool{}
	look := func() {
		t.Helper()
		must(t, p.Check())
		for i := uint64(1); i <= n; i++ {
			for b := uint64(0); b < 7 && !gone[i]; b++ {
				want := i - (i%7+7-b)%7 // the newest write of b up to i
				if i < (i%7+7-b)%7+1 {
					want = 0
				}
				shows(t, r, fmt.Sprint("s", i), b, 2*want)
			}
		}
	}
	look()
	must(t, p.cycle())
	if !refOf(t, r, 0).deep {
		t.Fatal("no history pages")
	}
	look()
	must(t, p.Close())
	m.Reopen()
	p, err = Open([]disk.Device{m}, smallHistory)
	must(t, err)
	defer func() { p.Close() }()
	r = p.Replica("v")
	look()
	for i := range 20 { // the cleaner moves versions of the past too
		must(t, p.moveSome(rand.New(rand.NewPCG(uint64(i), 1))))
		must(t, p.cycle())
	}
	if p.Stats().BlocksMoved < n/2 {
		t.Fatal("hardly anything was moved: ", p.Stats().BlocksMoved)
	}
	look()
	v := uint64(2*n + 2)
	for i := uint64(1); i <= n; i++ {
		if i%5 != 0 {
			gone[i] = true
			v++
			must(t, r.Apply([]Op{unsnap(fmt.Sprint("s", i), v)}))
		}
	}
	must(t, p.cycle())
	look()
	for i := uint64(5); i <= n; i += 5 {
		gone[i] = true
		v++
		must(t, r.Apply([]Op{unsnap(fmt.Sprint("s", i), v)}))
	}
	must(t, p.cycle())
	look()
	if d := refOf(t, r, 0); d.older || d.deep || r.history != 0 || r.Stats().Allocated-r.meta != 7*block.Size {
		t.Fatalf("%+v %d %+v", d, r.history, r.Stats())
	}
}

// neverAtEase makes the active table ask for attention all the time, so that what can wait does not get far.
func neverAtEase(p *Pool) {
	p.idx.mu.Lock()
	p.idx.soft = -1
	p.idx.mu.Unlock()
}

// TestPurgeGoesOn interrupts the way through the chunks after a snapshot was deleted, and the pool's life too.
func TestPurgeGoesOn(t *testing.T) {
	p, m := newMemPool(t, 128<<20, Options{SegmentBytes: 256 << 10, Compression: compress.Off})
	r, err := p.CreateReplica("v", 400<<20)
	must(t, err)
	var ops []Op
	for c := range uint64(200) {
		ops = append(ops, write(c*512, 1, 1))
	}
	ops = append(ops, snap("s", 2))
	for c := range uint64(200) {
		ops = append(ops, write(c*512, 1, 3))
	}
	must(t, r.Apply(ops))
	must(t, p.cycle())
	p.drain.cycle.Lock()
	neverAtEase(p)
	p.drain.cycle.Unlock()
	must(t, r.Apply([]Op{unsnap("s", 4)}))
	must(t, p.cycle())
	if r.purge.wanted == false || !refOf(t, r, 0).older {
		t.Fatal("purged already")
	}
	must(t, p.Check())
	q, err := Open([]disk.Device{m.Kill()}, Options{})
	must(t, err)
	defer q.Close()
	s := q.Replica("v")
	q.wake()
	waitUntil(q, func() bool { return s.Stats().Allocated-200*block.Size < 200*1024 }) // nobody asks for it
	must(t, q.Check())
	if s.held != 0 || s.purge.wanted {
		t.Fatal(s.held)
	}
}

// TestPurgeBeginsAgain deletes a snapshot when the way through the chunks for another one has passed most of them.
func TestPurgeBeginsAgain(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, Compression: compress.Off})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1), snap("a", 2), write(0, 1, 3), snap("b", 4), write(0, 1, 5)}))
	must(t, p.cycle())
	p.drain.cycle.Lock()
	p.idx.mu.Lock()
	r.purge = purge{wanted: true, begun: true, next: 1}
	p.idx.mu.Unlock()
	must(t, r.Apply([]Op{unsnap("b", 6)}))
	p.drain.cycle.Unlock()
	must(t, p.cycle())
	must(t, p.Check())
	shows(t, r, "a", 0, 1)
	if r.held != block.Size {
		t.Fatal(r.held)
	}
}

// TestPurgeLooksAgain deletes a snapshot after the freeze, and interrupts the way through the chunks that this cycle begins
// for another one: it has passed chunks that keep what the snapshot showed.
func TestPurgeLooksAgain(t *testing.T) {
	p, h, _ := hookedPool(t)
	r, err := p.CreateReplica("v", 400<<20)
	must(t, err)
	for i, name := range []string{"a", "b", ""} {
		v := uint64(2 * i)
		for c := range uint64(100) {
			must(t, r.Apply([]Op{write(c*block.ChunkBlocks, 1, v+1)}))
		}
		if name != "" {
			must(t, r.Apply([]Op{snap(name, v+2)}))
		}
	}
	must(t, p.cycle())
	p.drain.cycle.Lock()
	must(t, r.Apply([]Op{unsnap("a", 6)}))
	p.drain.mu.Lock()
	p.freeze()
	p.drain.mu.Unlock()
	must(t, r.Apply([]Op{unsnap("b", 7)}))
	must(t, p.drainAll())
	soft := p.idx.soft
	h.write = func() { neverAtEase(p) }
	must(t, p.drained())
	p.idx.mu.Lock()
	p.idx.soft = soft
	next := r.purge.next
	p.idx.mu.Unlock()
	p.drain.cycle.Unlock()
	if next == 0 || next >= 100 {
		t.Fatalf("interrupted at chunk %d", next)
	}
	must(t, p.cycle())
	must(t, p.cycle())
	must(t, p.Check())
	if r.held != 0 || r.purge.wanted {
		t.Fatalf("%d bytes of versions that nobody shows", r.held)
	}
}

// TestResize: what is cut off is gone, but for snapshots, which keep their size.
func TestResize(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{Compression: compress.Off})
	r, err := p.CreateReplica("v", 10*block.Size)
	must(t, err)
	resize := func(blocks int64, v uint64) Op { return Op{Kind: OpResize, Size: blocks * block.Size, Version: ver(v)} }
	must(t, r.Apply([]Op{write(9, 1, 1), snap("s", 2), resize(2000, 3), write(1999, 1, 4), snap("l", 5), resize(5, 6)}))
	if err := r.Apply([]Op{write(5, 1, 7)}); err == nil {
		t.Fatal("write behind the end")
	}
	for range 2 {
		shows(t, r, "s", 9, 1)
		shows(t, r, "l", 1999, 4)
		if err := r.ReadSnapshot("s", 10, make([]byte, block.Size), nil); err == nil {
			t.Fatal("read behind the end of a snapshot")
		}
		if r.Stats().Used != 0 || r.Size() != 5*block.Size {
			t.Fatal(r.Stats())
		}
		must(t, p.cycle())
		must(t, p.Check())
	}
	must(t, p.moveSome(rand.New(rand.NewPCG(1, 1)))) // what was cut off too
	m = m.Kill()
	q, err := Open([]disk.Device{m}, Options{})
	must(t, err)
	defer q.Close()
	r = q.Replica("v")
	must(t, r.Apply([]Op{resize(2000, 8)}))
	shows(t, r, "", 9, 0)
	shows(t, r, "", 1999, 0)
	shows(t, r, "l", 9, 1)
	must(t, q.Check())
}

// versionsOf lists the versions of a block that somebody shows, newest first.
func versionsOf(t *testing.T, r *Replica, b uint64) (l []uint64) {
	t.Helper()
	all, err := r.Versions(b/block.ChunkBlocks, nil)
	must(t, err)
	for _, v := range all {
		if uint64(v.Block) == b%block.ChunkBlocks {
			l = append(l, v.Version.N)
		}
	}
	return l
}

// TestMergeOverChunkDiscard lets a rebuild take blocks back to before a discard of their whole chunk, of which nothing
// may be seen afterwards, not even by snapshots, however the layers lie.
func TestMergeOverChunkDiscard(t *testing.T) {
	for layers := range 8 {
		p, m := newMemPool(t, 64<<20, Options{Compression: compress.Off})
		r, err := p.CreateReplica("v", 4<<20)
		must(t, err)
		step := func(i int) {
			if layers>>i&1 != 0 {
				must(t, p.cycle())
			}
		}
		must(t, r.Apply([]Op{write(0, 3, 2), discard(0, 512, 7), snap("a", 8)}))
		step(0)
		c := &Chunk{Scan: ver(9)}
		for i := range c.Versions {
			c.Versions[i], c.Sums[i] = ver(7), block.ZeroSum
		}
		d := fill(1, 3)
		c.Versions[0], c.Versions[1] = block.Version{}, ver(3)
		c.Stored[1], c.Sums[1], c.Data, c.DataOf = true, block.Sum(d), d, []uint16{1}
		_, err = r.Merge(c)
		must(t, err)
		step(1)
		must(t, r.Apply([]Op{snap("b", 10), write(0, 3, 20)}))
		step(2)
		for range 2 {
			for b, want := range map[uint64][]uint64{0: {20}, 1: {20, 3}, 2: {20, 7}, 3: {7}} {
				if l := versionsOf(t, r, b); fmt.Sprint(l) != fmt.Sprint(want) {
					t.Fatalf("layers %b block %d: %v, want %v", layers, b, l, want)
				}
			}
			shows(t, r, "a", 0, 0)
			shows(t, r, "a", 1, 3)
			shows(t, r, "b", 1, 3)
			must(t, p.cycle())
			must(t, p.Check())
		}
		q, err := Open([]disk.Device{m.Kill()}, Options{})
		must(t, err)
		if l := versionsOf(t, q.Replica("v"), 0); len(l) != 1 {
			t.Fatal(l)
		}
		must(t, q.Close())
	}
}

// TestMergeBelowReplaced lets a rebuild take a block back to before versions that the table keeps for snapshots.
func TestMergeBelowReplaced(t *testing.T) {
	for _, drained := range []bool{false, true} {
		p, _ := newMemPool(t, 64<<20, Options{})
		r, err := p.CreateReplica("v", 4<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 2, 5), snap("a", 6), write(0, 2, 7)}))
		if drained {
			must(t, p.cycle())
		}
		c := &Chunk{Scan: ver(8)}
		for i := range c.Versions {
			c.Sums[i] = block.ZeroSum
		}
		c.Versions[1], c.Stored[1], c.Data, c.DataOf = ver(4), true, fill(1, 4), []uint16{1}
		c.Sums[1] = block.Sum(c.Data)
		_, err = r.Merge(c)
		must(t, err)
		for range 2 {
			if a, b := versionsOf(t, r, 0), versionsOf(t, r, 1); len(a) != 0 || len(b) != 1 || b[0] != 4 {
				t.Fatal(drained, a, b)
			}
			shows(t, r, "a", 0, 0)
			shows(t, r, "a", 1, 4)
			must(t, p.cycle())
			must(t, p.Check())
		}
	}
}

// TestAllocatedCountsWhatSnapshotsShow looks before and after the drain.
func TestAllocatedCountsWhatSnapshotsShow(t *testing.T) {
	p, _ := newMemPool(t, 64<<20, Options{Compression: compress.Off})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 10, 1)}))
	must(t, p.cycle())
	must(t, r.Apply([]Op{snap("s", 2), write(0, 10, 3)}))
	for range 2 {
		if s := r.Stats(); s.Data != 20*block.Size || s.Used != 10*block.Size {
			t.Fatalf("%+v", s)
		}
		must(t, p.cycle())
		must(t, p.Check())
	}
}
