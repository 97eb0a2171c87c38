package pool

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// refOf returns what is known about a chunk.
func refOf(t testing.TB, r *Replica, c uint64) (d chunkRef) {
	t.Helper()
	x, err := r.rlock(c)
	must(t, err)
	if x != nil {
		d = *x
	}
	r.p.idx.mu.RUnlock()
	return d
}

// refAddr returns the address of the page of a chunk.
func refAddr(t testing.TB, r *Replica, c uint64) uint64 {
	t.Helper()
	d := refOf(t, r, c)
	return d.pageAddr()
}

// dirOf returns directory block i, which is in memory.
func dirOf(t testing.TB, r *Replica, i uint64) *dirBlock {
	t.Helper()
	must(t, r.warm(i))
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	b, _ := r.loaded(i)
	return b
}

// checkCache verifies what the cache of the directory knows of itself, in a pool where nothing runs.
func checkCache(t testing.TB, p *Pool) {
	t.Helper()
	p.drain.mu.Lock()
	defer p.drain.mu.Unlock()
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	c := &p.idx.dirs
	var used, dirty int64
	for i, it := range c.ring {
		used += it.bytes()
		if it.dirty {
			dirty += it.bytes()
		}
		if it.at != i || it.pins != 0 || it.gone {
			t.Fatalf("%d: %+v", i, it)
		}
		if it.node {
			n, unwritten := it.r.dir[it.number].node, 0
			for _, b := range n.blocks {
				if b != nil && b.dirty {
					unwritten++
				}
			}
			if n.unwritten != unwritten {
				t.Fatalf("node %d: %d blocks are to be written, %d known", it.number, unwritten, n.unwritten)
			}
		}
	}
	if used != c.used || dirty != c.dirty {
		t.Fatalf("%d bytes, %d of them changed; %d and %d known", used, dirty, c.used, c.dirty)
	}
	live := 0
	for _, r := range p.idx.bySlot {
		if r == nil {
			continue
		}
		live += len(r.live)
		for _, l := range r.live {
			if l.pins != 0 || l.heads == [2]uint32{} {
				t.Fatalf("chunk %d is live: %+v", l.number, l)
			}
		}
	}
	if live != p.idx.live {
		t.Fatalf("%d live chunks, %d known", live, p.idx.live)
	}
}

// TestDirectoryBounded works at random on a directory that is much larger than the memory for it, against a map: blocks
// written and discarded all over a large replica and a clone of it.
func TestDirectoryBounded(t *testing.T) {
	rng := testRand(t)
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, PageCacheBytes: 4 << 20, CheckpointBytes: 2 << 20}
	p, m := newMemPool(t, 192<<20, opt)
	const chunks = 4 << 20 // 8 TiB
	r, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	// what is pinned, and what was changed since it was looked at whether that is too much
	group := drainGroup * (blockBytes + nodeBytes)
	var most int64
	watch := func() {
		s := p.Stats()
		if most = max(most, s.DirectoryBytes); s.DirectoryBytes > opt.PageCacheBytes/2+group || s.CacheBytes > opt.PageCacheBytes+group {
			t.Fatalf("%d bytes in memory, %d of them directory", s.CacheBytes, s.DirectoryBytes)
		}
	}
	type at struct {
		ver    uint64
		stored bool
	}
	want, atSnap := map[uint64]at{}, map[uint64]at{}
	var blocks []uint64
	v := uint64(0)
	churn := func(n int) {
		for range n {
			v++
			b := rng.Uint64N(chunks) * block.ChunkBlocks
			if len(blocks) > 0 && rng.IntN(3) == 0 {
				b = blocks[rng.IntN(len(blocks))]
			}
			if _, ok := want[b]; !ok {
				blocks = append(blocks, b)
			}
			stored := rng.IntN(5) > 0
			if stored {
				must(t, r.Apply([]Op{write(b, 1, v)}))
			} else {
				must(t, r.Apply([]Op{discard(b, 1, v)}))
			}
			want[b] = at{v, stored}
			watch()
		}
	}
	look := func(r *Replica, want map[uint64]at, n int) {
		t.Helper()
		buf := make([]byte, block.Size)
		for range n {
			b := blocks[rng.IntN(len(blocks))]
			must(t, r.Read(b, buf, nil))
			if x := want[b]; x.stored != !allZeroes(buf) || x.stored && string(buf) != string(fill(1, x.ver)) {
				t.Fatalf("%s block %d is wrong", r.name, b)
			}
			watch()
		}
	}
	churn(3000)
	look(r, want, 500)
	v++
	must(t, r.Apply([]Op{snap("s", v)}))
	for b, x := range want {
		atSnap[b] = x
	}
	base := v
	churn(1500)
	c, err := p.Clone("c", "v", "s")
	must(t, err)
	look(c, atSnap, 300)
	must(t, p.cycle())
	p.rest()
	must(t, p.Check())
	watch()
	checkCache(t, p)
	stats := r.Stats()
	if full := int64(len(blocks)) * blockBytes; most < opt.PageCacheBytes/4 || full < 3*opt.PageCacheBytes {
		t.Fatalf("%d bytes in memory of at least %d", most, full)
	}
	changed := map[uint64]bool{}
	for b, x := range want {
		if x.ver > base {
			changed[b/block.ChunkBlocks] = true
		}
	}
	see := func(r *Replica) {
		t.Helper()
		var from uint64
		got := 0
		for done := false; !done; {
			var all []uint64
			all, from, done = r.Changed(ver(base), from, nil)
			for _, c := range all {
				if got++; !changed[c] {
					t.Fatalf("chunk %d has not changed", c)
				}
			}
			watch()
		}
		if got != len(changed) {
			t.Fatalf("%d chunks changed, %d were named", len(changed), got)
		}
	}
	see(r)
	p, err = Open([]disk.Device{m.Kill()}, opt)
	must(t, err)
	defer p.Close()
	r = p.Replica("v")
	if s := r.Stats(); s != stats {
		t.Fatalf("%+v, was %+v", s, stats)
	}
	look(r, want, 500)
	look(p.Replica("c"), atSnap, 300)
	see(r)
	must(t, p.DestroyReplica("c"))
	v++
	must(t, r.Apply([]Op{unsnap("s", v)}))
	churn(300)
	must(t, p.cycle())
	p.rest()
	must(t, p.Check())
	checkCache(t, p)
	look(r, want, 300)
	must(t, p.DestroyReplica("v"))
	waitUntil(p, func() bool { p.idx.mu.RLock(); defer p.idx.mu.RUnlock(); return p.idx.bySlot[0] == nil })
	if s := p.Stats(); s.DirectoryBytes != 0 || s.LiveChunks != 0 {
		t.Fatalf("%d bytes of directory and %d live chunks of nothing", s.DirectoryBytes, s.LiveChunks)
	}
	must(t, p.Check())
}

// readCounter counts the reads of a device.
type readCounter struct {
	disk.Device
	reads atomic.Int64
}

func (c *readCounter) ReadAt(b []byte, off int64) error {
	c.reads.Add(1)
	return c.Device.ReadAt(b, off)
}

// TestOpenReads opens pools with few and with many chunks: that takes the same reads.
func TestOpenReads(t *testing.T) {
	reads := func(chunks uint64) int64 {
		p, m := newMemPool(t, 256<<20, Options{SegmentBytes: 256 << 10})
		r, err := p.CreateReplica("v", 1<<40)
		must(t, err)
		for c := range chunks {
			must(t, r.Apply([]Op{discard(c*block.ChunkBlocks, 7, c+1)}))
		}
		must(t, p.Close())
		m.Reopen()
		c := &readCounter{Device: m}
		q, err := Open([]disk.Device{c}, Options{})
		must(t, err)
		n := c.reads.Load()
		if u := q.Replica("v"); u.Applied() != ver(chunks) || q.Stats().DirectoryReads != 0 {
			t.Fatal(u.Applied(), q.Stats().DirectoryReads)
		}
		must(t, q.Check())
		must(t, q.Close())
		return n
	}
	few, many := reads(40), reads(12000)
	t.Log(few, many)
	if many > few+8 {
		t.Errorf("%d reads for 12000 chunks, %d for 40", many, few)
	}
}

// TestDamagedDirectory: what is damaged of the directory hides its chunks and nothing else, and the pool opens.
func TestDamagedDirectory(t *testing.T) {
	open := func(hit func(r *Replica) uint64) (bad []bool) {
		t.Helper()
		p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
		r, err := p.CreateReplica("v", 1<<40)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 1, 1), write(dirSpan*block.ChunkBlocks, 1, 2), write(nodeSpan*dirSpan*block.ChunkBlocks, 1, 3)}))
		must(t, p.cycle())
		m = m.Kill()
		m.FlipBit(label.HeadBytes+int64(hit(r))+9, 3)
		q, err := Open([]disk.Device{m}, Options{})
		must(t, err)
		defer q.Close()
		var buf [block.Size]byte
		for _, b := range []uint64{0, dirSpan * block.ChunkBlocks, nodeSpan * dirSpan * block.ChunkBlocks} {
			err := q.Replica("v").Read(b, buf[:], nil)
			if err != nil && (!errors.Is(err, ErrChecksum) || !strings.Contains(err.Error(), "directory of chunks")) {
				t.Fatal(err)
			}
			bad = append(bad, err != nil)
			if e := q.Replica("v").Apply([]Op{write(b, 1, 9)}); (e != nil) != (err != nil) {
				t.Fatalf("write: %v, read: %v", e, err)
			}
		}
		if changed, _, _ := q.Replica("v").Changed(ver(0), 0, nil); len(changed) < 3 {
			t.Fatal(changed)
		}
		return bad
	}
	if bad := open(func(r *Replica) uint64 { return r.dir[0].node.slots[1].addr }); !slices.Equal(bad, []bool{false, true, false}) {
		t.Error(bad)
	}
	if bad := open(func(r *Replica) uint64 { return r.dir[0].addr }); !slices.Equal(bad, []bool{true, true, false}) {
		t.Error(bad)
	}
}

// TestDirectoryWalkMissesNothing goes through the directory while others take its nodes out of memory: nothing of it is
// passed over.
func TestDirectoryWalkMissesNothing(t *testing.T) {
	const span = nodeSpan * dirSpan * block.ChunkBlocks
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 64*span*block.Size)
	must(t, err)
	for i := range uint64(64) {
		must(t, r.Apply([]Op{write(i*span, 1, i+1)}))
	}
	must(t, p.Close())
	m.Reopen()
	q, err := Open([]disk.Device{m}, Options{PageCacheBytes: 1})
	must(t, err)
	defer q.Close()
	r = q.Replica("v")
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, block.Size)
		for i := uint64(0); ; i++ {
			select {
			case <-over:
				return
			default:
				if err := r.Read(i%64*span, buf, nil); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 1000 {
		n := 0
		must(t, q.eachDir(r, func(*dirSlot, uint64) { n++ }))
		if n != 128 {
			t.Errorf("%d blocks and nodes of 128", n)
			break
		}
	}
	close(over)
	wg.Wait()
}
