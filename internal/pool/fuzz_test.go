package pool

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness/memory"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// sampleRoot returns a root, the same with units of the device stale of which it has a list, and so many that it has a
// bitmap of them, a directory block and a node.
func sampleRoot(tb testing.TB) (roots [3][]byte, dir, node []byte, segs int) {
	p, _ := newMemPool(tb, 40<<20, Options{SegmentBytes: 1 << 20})
	r, err := p.CreateReplica("vol", 8<<20)
	must(tb, err)
	must(tb, r.Apply([]Op{write(0, 512, 1), write(600, 3, 2), snap("s", 2), discard(1024, 512, 3), snap("t", 3), snap("u", 3)}))
	_, err = p.Clone("copy", "vol", "s")
	must(tb, err)
	must(tb, r.Apply([]Op{unsnap("t", 3)}))
	must(tb, r.SetState([]byte("x"), ver(4)))
	must(tb, p.cycle())
	p.drain.cycle.Lock()
	defer p.drain.cycle.Unlock()
	p.freeze()
	p.thaw()
	for i := range roots {
		roots[i] = p.encodeRoot()
		for u := i; u < 20*i+3; u += 2 {
			p.members()[0].dev.SetStale(u)
		}
	}
	b := dirOf(tb, r, 0)
	var s dirSlot
	dir = p.encodeDir(nil, b, &s)
	node = encodeNode(nil, r.dir[0].node, &s)
	return roots, dir, node, p.seg.count()
}

// FuzzRoot: a root that is accepted refers to nothing outside the pool, and none takes much more memory than its size.
func FuzzRoot(f *testing.F) {
	roots, _, _, segs := sampleRoot(f)
	for i, want := range []int{0, 2, 13} {
		m, err := decodeRoot(roots[i], segs, 20)
		if err != nil || m.members[0].stale.Count() != want || bytes.Contains(roots[i], binary.AppendUvarint(nil, manyRuns)) != (i == 2) {
			f.Fatal(i, m, err)
		}
		f.Add(roots[i])
	}
	if m, err := decodeRoot(roots[0], segs, 20); err != nil || len(m.replicas) != 2 || string(m.replicas[0].state) != "x" || m.replicas[0].applied != ver(4) ||
		len(m.replicas[0].snaps) != 2 || m.replicas[0].snaps[1].ver != ver(3) || !m.replicas[1].clone || m.replicas[1].from != "s" {
		f.Fatal(m, err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m *rootImage
		var err error
		if n := memory.Taken(func() { m, err = decodeRoot(b, segs, 20) }); n > 64<<10+64*uint64(len(b)) {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		for _, r := range m.replicas {
			for i := range r.snaps {
				if i > 0 && r.snaps[i].ver.Less(r.snaps[i-1].ver) || r.snaps.find(r.snaps[i].name) != i {
					t.Fatal("snapshots out of order")
				}
			}
			for _, d := range r.dirs {
				if d.addr+uint64(d.size) > uint64(segs)<<20 {
					t.Fatal("directory outside the pool")
				}
			}
		}
	})
}

// FuzzDirectory: a directory block that is accepted refers to nothing outside the pool, and none takes more memory than
// a whole one.
func FuzzDirectory(f *testing.F) {
	_, dir, _, segs := sampleRoot(f)
	refs, err := decodeDir(dir, 0, 0, uint64(segs)<<20, 20)
	if err != nil || len(refs) != 3 || refs[2].ref.tomb != ver(3) || refs[0].bitmap != fullBitmap || refs[1].bitmap.Count() != 3 {
		f.Fatal(refs, err)
	}
	f.Add(dir)
	f.Fuzz(func(t *testing.T, b []byte) {
		var refs []decodedRef
		var err error
		if n := memory.Taken(func() { refs, err = decodeDir(b, 0, 0, uint64(segs)<<20, 20) }); n > 64<<10 {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		for _, r := range refs {
			if r.i >= dirSpan || r.ref.page != 0 && r.ref.pageAddr()+uint64(r.ref.pageLen()) > uint64(segs)<<20 {
				t.Fatal("page outside the pool")
			}
		}
	})
}

// FuzzNode: a directory node that is accepted refers to nothing outside the pool, and none takes more memory than a whole
// one.
func FuzzNode(f *testing.F) {
	_, _, node, segs := sampleRoot(f)
	limit := uint64(segs) << 20
	var slots [nodeSpan]dirSlot
	if err := decodeNode(node, 0, 0, limit, &slots); err != nil || slots[0].size == 0 || slots[0].stored != 515 || slots[0].newest != ver(3) {
		f.Fatal(slots[0], err)
	}
	f.Add(node)
	f.Fuzz(func(t *testing.T, b []byte) {
		var slots [nodeSpan]dirSlot
		var err error
		if n := memory.Taken(func() { err = decodeNode(b, 0, 0, limit, &slots) }); n > 64<<10 {
			t.Fatalf("%d bytes took %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		for _, s := range slots {
			if s.addr+uint64(s.size) > limit || s.size > maxDir {
				t.Fatal("directory outside the pool")
			}
		}
	})
}

// FuzzReplay puts a batch with arbitrary records behind the end of a log, with every checksum right. Whoever opens the
// pool gets an error or a pool whose replicas can be read, and needs no more memory than the records are about.
func FuzzReplay(f *testing.F) {
	p, m := newMemPool(f, 10<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 1<<20)
	must(f, err)
	must(f, r.Apply([]Op{write(0, 4, 1), snap("s", 1), write(2, 4, 2)}))
	must(f, p.cycle())
	must(f, r.Apply([]Op{write(1, 1, 3), snap("t", 3)}))
	p.log.mu.Lock()
	at := p.log.pos
	p.log.mu.Unlock()
	_, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
	k := m.Kill()
	name := "w"
	for _, rec := range []wal.Record{
		{Kind: wal.Discard, Block: 1, Count: 7}, {Kind: wal.Discard, Count: 1<<32 - 1}, {Kind: wal.MergeDiscard, Count: 1<<32 - 1}, {Kind: wal.MergeNewest, Count: 1<<32 - 1}, {Kind: wal.DiscardPart, Count: 256}, {Kind: wal.Mark}, {Kind: wal.MergeDiscard, Count: 1},
		{Kind: wal.MergeDrop, Count: 2}, {Kind: wal.MergeNewest}, {Kind: wal.Create, Slot: 1, Block: 4096, Name: name}, {Kind: wal.Destroy, GUID: r.guid},
		{Kind: wal.Snapshot, Name: name}, {Kind: wal.DeleteSnapshot, Name: "s"}, {Kind: wal.Resize, Block: 4096},
		{Kind: wal.Clone, Slot: 1, Block: 1 << 20, Name: name, From: "s"}, {Kind: wal.TakeSnapshot, Name: name, Size: 4096},
		{Kind: wal.DropSnapshot, Name: "t"}, {Kind: wal.MergeOldDiscard, Count: 1}, {Kind: wal.MergeKeep, Count: 1}, {Kind: wal.MergeOnly, Count: 1},
	} {
		rec.Version = ver(4)
		f.Add(wal.Append(nil, &rec), uint8(1), false, []byte(nil), uint64(0))
	}
	data := []byte("something")
	whole := append(data, make([]byte, block.Size-len(data))...)
	for _, rec := range []wal.Record{
		{Kind: wal.Write, Block: 5, Count: 1, Sums: []uint32{block.Sum(whole)}}, {Kind: wal.MergeWrite, Count: 1, Sums: []uint32{block.Sum(whole)}},
		{Kind: wal.MergeOldWrite, Count: 1, Sums: []uint32{block.Sum(whole)}}, {Kind: wal.State, Count: uint32(len(data)), Sums: []uint32{block.Sum(data)}},
		{Kind: wal.Write, Count: 1, Sums: []uint32{1}},
	} {
		rec.Version = ver(4)
		f.Add(wal.Append(nil, &rec), uint8(1), false, data, at.incarnation)
	}
	usual := memory.Taken(func() {
		q, err := OpenReadOnly([]disk.Device{k.Clone()}, Options{})
		must(f, err)
		must(f, q.Close())
	})
	f.Fuzz(func(t *testing.T, records []byte, n uint8, more bool, data []byte, before uint64) {
		if len(records) > block.Size-wal.FixedLen || len(data) > 16*block.Size {
			return
		}
		h := wal.Header{
			Records: int(n), DataBlocks: blocksFor(len(data)), Prev: at.prev, Incarnation: at.incarnation, Before: before, Seq: at.seq, Segment: at.seg, Block: at.block,
		}
		if more {
			h.Flags = wal.FlagMore
		}
		b, _ := wal.Finish(append(make([]byte, wal.FixedLen, block.Size), records...), &h)
		c := k.Clone()
		err := c.WritevAt([][]byte{b, append(slices.Clone(data), make([]byte, h.DataBlocks*block.Size-len(data))...)}, off)
		must(t, err)
		most := 2*usual + 4<<20
		var it wal.Records
		var rec wal.Record
		if d, err := wal.Decode(b); err == nil {
			for it.Reset(b, &d); it.Next(&rec); {
				most += 64<<10 + uint64(rec.Count)/block.ChunkBlocks*(4<<10)
			}
		}
		var q *Pool
		if n := memory.Taken(func() { q, err = OpenReadOnly([]disk.Device{c}, Options{}) }); n > most {
			t.Fatalf("%d bytes of memory, want at most %d", n, most)
		}
		if err != nil {
			return
		}
		defer q.Close()
		for _, r := range q.Replicas() {
			_ = r.Read(0, make([]byte, block.Size), nil)
			for _, s := range r.Snapshots() {
				_ = r.ReadSnapshot(s.Name, 0, make([]byte, block.Size), nil)
			}
		}
		if block.Sum(b)%8 == 0 { // the rest takes longer
			_ = q.Check()
			_, _ = Verify([]disk.Device{c}, Options{})
			_ = q.DumpLog(func(BatchView) error { return nil })
			q.DumpCheckpoint()
			q.DumpSegments()
			for _, r := range q.Replicas() {
				_, _ = q.DumpDirectory(r)
				_, _ = q.DumpPage(r, 0)
			}
		}
	})
}
