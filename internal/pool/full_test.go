package pool

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestFullManyTimes fills a pool until it refuses, discards, and fills it again, with restarts and power cuts between:
// it always refuses at the same point, stays readable, and takes discards and what replicas record.
func TestFullManyTimes(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Compression: compress.Off}
	p, m := newMemPool(t, 20<<20, opt)
	c := newCleanTest(t, p, 10000)
	at := uint64(0)
	for round := range 10 {
		written := 0
		for {
			c.n++
			o := Op{Kind: OpWrite, Block: at % 9990, Count: uint32(1 + c.rng.IntN(9)), Version: ver(c.n)}
			o.Data = noise(int(o.Count), c.n)
			err := c.r.Apply([]Op{o})
			if errors.Is(err, ErrNoSpace) {
				c.n--
				break
			}
			must(t, err)
			c.did(&o)
			at += uint64(o.Count)
			if written++; written > 5000 {
				t.Fatal("never full")
			}
		}
		s := c.p.Stats()
		if s.Free > s.Capacity/20 || s.Allocated > s.Capacity+2*s.SegmentBytes || s.Health != HealthOnline {
			t.Fatalf("round %d: refuses with %d of %d bytes allocated: %s", round, s.Allocated, s.Capacity, s.Failure)
		}
		c.n++
		must(t, c.r.SetState([]byte(fmt.Sprint("full ", round)), ver(c.n)))
		c.look()
		switch round % 3 {
		case 1:
			must(t, c.p.Close())
			m.Reopen()
		case 2:
			must(t, c.p.Sync())
			m = m.PowerCut(disk.Lost, c.rng)
			c.p.Close()
		}
		if round%3 > 0 {
			q, err := Open([]disk.Device{m}, opt)
			must(t, err)
			t.Cleanup(func() { q.Close() })
			c.p, c.r = q, q.Replica("v")
			c.look()
		}
		for range 40 { // many small holes: space that only cleaning gives back
			c.n++
			o := Op{Kind: OpDiscard, Block: c.rng.Uint64N(9900), Count: uint32(1 + c.rng.IntN(60)), Version: ver(c.n)}
			must(t, c.r.Apply([]Op{o}))
			c.did(&o)
		}
		if round == 5 {
			must(t, c.p.DestroyReplica("v"))
			r, err := c.p.CreateReplica("v", int64(len(c.now))*block.Size)
			must(t, err)
			c.r = r
			for i := range c.now {
				c.now[i] = block.ZeroSum
			}
		}
	}
	if s := c.p.Stats(); s.BlocksMoved == 0 {
		t.Errorf("nothing was moved: %+v", s)
	}
}

// fillUp writes 20 blocks at a time, each time behind those before, and returns the number of the write that was
// refused and why.
func fillUp(r *Replica, content func(n int, seed uint64) []byte) (n uint64, err error) {
	for n = 1; err == nil; n++ {
		err = r.Apply([]Op{writeData(n*20, content(20, n), n)})
	}
	return n - 1, err
}

// TestFullPool: a full pool refuses writes as a whole, and takes what gives back or records state.
func TestFullPool(t *testing.T) {
	p, _ := newMemPool(t, 16<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	n, err := fillUp(r, fill)
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

// TestReadOnlyLimit: at the limit writes are refused with ErrReadOnly, discards are not.
func TestReadOnlyLimit(t *testing.T) {
	p, _ := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, ReadOnlyPercent: 50})
	r, err := p.CreateReplica("v", 64<<20)
	must(t, err)
	n := uint64(1)
	for ; n < 400 && !p.Stats().ReadOnly; n++ {
		must(t, r.Apply([]Op{write(n*20, 20, n)}))
	}
	must(t, r.Apply([]Op{write(n*20, 20, n)})) // has its place in the order
	piece := func(b uint64, stored bool) *Chunk {
		c := &Chunk{Index: b / block.ChunkBlocks, Scan: ver(n), First: 0, Count: block.ChunkBlocks}
		must(t, r.Newer(c.Index, block.Version{}, &c.Versions))
		i := b % block.ChunkBlocks
		c.Versions[i], c.Stored[i] = ver(n), stored
		if stored {
			c.DataOf, c.Data = []uint16{uint16(i)}, fill(1, n)
			c.Sums[i] = block.Sum(c.Data)
		}
		return c
	}
	n++
	if _, err = r.Merge(piece(0, true)); !errors.Is(err, ErrReadOnly) || !errors.Is(err, ErrNoSpace) {
		t.Fatal("a merge that adds data:", err, p.Stats())
	}
	_, err = r.Merge(piece(40, false))
	must(t, err)
	must(t, r.Apply([]Op{discard(0, 1000, n)}))
	if p.Stats().ReadOnly {
		t.Fatal("still read-only:", p.Stats())
	}
	_, err = r.Merge(piece(2, true))
	must(t, err)
	must(t, p.Check())
}

// TestReadOnlyLimitOfSparsePool: an index that is large for its data takes away from what the limit is a share of, so that a
// pool is read-only from where on it says that it is so full.
func TestReadOnlyLimitOfSparsePool(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10})
	const chunks, batch = 32000, 64
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	ops := make([]Op, batch)
	for i := uint64(0); i < chunks; {
		for j := range ops {
			ops[j] = Op{Kind: OpDiscard, Version: ver(i + 1), Block: i * block.ChunkBlocks, Count: 30}
			i++
		}
		must(t, r.Apply(ops))
	}
	must(t, p.Close())
	m.Reopen()
	p = openIdle(t, []disk.Device{m}, Options{})
	defer closeIdle(p)
	s := p.Stats()
	if used := s.Allocated + s.Free; s.Free == 0 || used > s.Capacity*8/10 {
		t.Fatalf("the index is not large: %d of %d bytes can be used, %d are free", used, s.Capacity, s.Free)
	}
	for percent := 1; percent < 100; percent++ {
		p.SetReadOnlyPercent(percent)
		if s = p.Stats(); s.ReadOnly != (s.Allocated >= (s.Allocated+s.Free)/100*int64(percent)) {
			t.Errorf("%d of %d bytes, limit %d %%: read-only %v", s.Allocated, s.Allocated+s.Free, percent, s.ReadOnly)
		}
	}
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

// TestFullPoolCompressed fills a pool with data that shrinks, and with data that does not behind it.
func TestFullPoolCompressed(t *testing.T) {
	p, _ := newMemPool(t, 24<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 256<<20)
	must(t, err)
	n, err := fillUp(r, half)
	full := n
	s := p.Stats()
	if !errors.Is(err, ErrNoSpace) || s.Free > s.Capacity/5 || r.Stats().Used < s.Capacity*3/2 {
		t.Fatalf("%v, %+v, %+v", err, s, r.Stats())
	}
	must(t, p.Check())
	look := func(from, to uint64) {
		t.Helper()
		got := make([]byte, 20*block.Size)
		for i := from; i < to; i++ {
			must(t, r.Read(i*20, got, nil))
			if !bytes.Equal(got, half(20, i)) {
				t.Fatal("content", i)
			}
		}
	}
	look(1, full)
	refused := false
	for i := uint64(0); i < full/2 && !refused; i++ { // what replaces data needs more room than it gives back
		err := r.Apply([]Op{writeData(i*20, noise(20, n), n)})
		if refused = errors.Is(err, ErrNoSpace); !refused {
			must(t, err)
		}
		n++
	}
	if !refused {
		t.Fatal("a full pool took twice what it had")
	}
	for range 200 {
		n++
		must(t, r.SetState([]byte("full"), ver(n)))
	}
	n++
	must(t, r.Apply([]Op{discard(0, full*20/2, n)}))
	look(full/2+1, full)
	for i := range full / 4 {
		n++
		must(t, r.Apply([]Op{writeData(i*20, half(20, i), n)}))
	}
	look(0, full/4)
	look(full/2+1, full)
	must(t, p.Check())
}
