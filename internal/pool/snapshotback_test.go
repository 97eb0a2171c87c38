package pool

import (
	"runtime"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// pullFirst merges the first chunk of src into dst, with all versions.
func pullFirst(t *testing.T, dst, src *Replica) {
	t.Helper()
	have, err := dst.Versions(0, nil)
	must(t, err)
	var c Chunk
	must(t, src.ReadVersions(0, 0, block.ChunkBlocks, have, &c))
	_, err = dst.Merge(&c)
	must(t, err)
}

// TestSnapshotComesBack deletes a snapshot in a tail that never was and has a rebuild bring it back while what only it
// shows is still there. What the merge that follows relies on must stay: for a drain that has seen the time without the
// snapshot, and for a replay that drains within that time.
func TestSnapshotComesBack(t *testing.T) {
	at := func(epoch, n uint64) block.Version { return block.Version{Epoch: epoch, N: n} }
	write := func(v block.Version, b uint64) Op {
		return Op{Kind: OpWrite, Version: v, Block: b, Count: 1, Data: fill(1, v.N)}
	}
	const size = 8 * block.ChunkBlocks * block.Size
	sp, _ := newMemPool(t, 64<<20, Options{})
	src, err := sp.CreateReplica("v", size)
	must(t, err)
	p, m := newMemPool(t, 64<<20, Options{DeltaEntries: 16 << 10})
	dst, err := p.CreateReplica("v", size)
	must(t, err)
	for _, r := range []*Replica{src, dst} {
		must(t, r.Apply([]Op{write(at(1, 1), 0), {Kind: OpSnapshot, Version: at(1, 2), Name: "s"}}))
	}
	must(t, p.cycle())
	must(t, src.Apply([]Op{write(at(2, 3), 0)}))

	p.drain.cycle.Lock()
	must(t, dst.Apply([]Op{write(at(1, 3), 0), {Kind: OpDeleteSnapshot, Version: at(1, 4), Name: "s"}}))
	for n := range uint64(3000) { // enough for a replay to drain a smaller table
		must(t, dst.Apply([]Op{write(at(1, 5+n), block.ChunkBlocks+n)}))
	}
	must(t, dst.SetState([]byte("incomplete"), src.Applied()))
	set := make(chan error)
	go func() {
		_, err := dst.SetSnapshots(src.Snapshots())
		set <- err
	}()
	for waits := true; waits; runtime.Gosched() {
		select {
		case err := <-set: // it does without a cycle: there will be none
			must(t, err)
			defer p.drain.cycle.Unlock()
			waits = false
		default:
			if p.hurry.Load() > 0 {
				p.drain.cycle.Unlock()
				must(t, <-set)
				waits = false
			}
		}
	}
	pullFirst(t, dst, src)
	look := func(p *Pool, when string) {
		t.Helper()
		want, err := src.Versions(0, nil)
		must(t, err)
		got, err := p.Replica("v").Versions(0, nil)
		must(t, err)
		if !slices.Equal(want, got) {
			t.Fatalf("%s: versions %v instead of %v", when, got, want)
		}
		b := make([]byte, block.Size)
		must(t, p.Replica("v").ReadSnapshot("s", 0, b, nil))
		if block.Sum(b) != block.Sum(fill(1, 1)) {
			t.Fatalf("%s: wrong content", when)
		}
		must(t, p.Check())
	}
	must(t, p.Sync())
	m = m.PowerCut(disk.Lost, nil)
	q, err := Open([]disk.Device{m}, Options{DeltaEntries: 4096})
	must(t, err)
	defer q.Close()
	look(q, "opened again")
	must(t, q.cycle())
	look(q, "drained")
}

// TestDeletedDuringDrain merges a chunk while a drain is under way, which takes a version away that covered another one,
// and deletes the snapshot that showed that one so far: a later snapshot does now, in what the drain does not know yet.
func TestDeletedDuringDrain(t *testing.T) {
	at := func(epoch, n uint64) block.Version { return block.Version{Epoch: epoch, N: n} }
	write := func(v block.Version) Op {
		return Op{Kind: OpWrite, Version: v, Block: 0, Count: 1, Data: fill(1, v.N)}
	}
	snap := func(v block.Version, name string) Op { return Op{Kind: OpSnapshot, Version: v, Name: name} }
	sp, _ := newMemPool(t, 64<<20, Options{Compression: compress.Off})
	src, err := sp.CreateReplica("v", block.ChunkBlocks*block.Size)
	must(t, err)
	p, _ := newMemPool(t, 64<<20, Options{Compression: compress.Off})
	dst, err := p.CreateReplica("v", block.ChunkBlocks*block.Size)
	must(t, err)
	for _, r := range []*Replica{src, dst} {
		must(t, r.Apply([]Op{write(at(1, 1)), snap(at(1, 2), "a"), write(at(1, 3)), snap(at(1, 4), "b")}))
	}
	must(t, src.Apply([]Op{snap(at(2, 5), "c"), write(at(2, 6))}))
	must(t, dst.Apply([]Op{write(at(1, 5))})) // a tail that never was
	must(t, dst.SetState([]byte("incomplete"), src.Applied()))
	_, err = dst.SetSnapshots(src.Snapshots())
	must(t, err)
	must(t, p.cycle())

	p.drain.cycle.Lock()
	p.drain.mu.Lock()
	p.freeze()
	p.drain.mu.Unlock()
	pullFirst(t, dst, src)
	for _, r := range []*Replica{src, dst} {
		must(t, r.Apply([]Op{{Kind: OpDeleteSnapshot, Version: at(2, 7), Name: "b"}}))
	}
	must(t, p.drainAll())
	must(t, p.drained())
	p.drain.cycle.Unlock()
	want, err := src.Versions(0, nil)
	must(t, err)
	for range 2 {
		got, err := dst.Versions(0, nil)
		must(t, err)
		if !slices.Equal(want, got) {
			t.Fatalf("versions %v instead of %v", got, want)
		}
		must(t, p.cycle())
		must(t, p.Check())
	}
	must(t, src.Apply([]Op{{Kind: OpDeleteSnapshot, Version: at(2, 8), Name: "c"}}))
	must(t, dst.Apply([]Op{{Kind: OpDeleteSnapshot, Version: at(2, 8), Name: "c"}}))
	must(t, p.cycle())
	if n := dst.held; n != block.Size {
		t.Errorf("%d bytes of older versions are left, of one block", n)
	}
	must(t, p.Check())
}
