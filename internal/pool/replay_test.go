package pool

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// TestReplayOfALongLogInAFullPool opens a pool whose log has more updates than the delta takes, while so little space
// is free that the cleaner would work. The log that is still to be replayed must not be written to.
func TestReplayOfALongLogInAFullPool(t *testing.T) {
	m := disk.NewMem("mem0", 33<<20)
	opt := Options{Compression: compress.Off, SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: true}
	p, err := Create(Stripe(m), Config{Name: "test"}, opt)
	must(t, err)
	close(p.quit) // cycles are made here only
	<-p.stopped
	const blocks, batch = 6440, 230
	r, err := p.CreateReplica("v", blocks*block.Size)
	must(t, err)
	n := uint64(1)
	for b := uint64(0); b < blocks; b += 28 {
		must(t, r.Apply([]Op{write(b, 28, n)}))
		if n++; n%100 == 0 {
			must(t, p.cycle())
		}
	}
	must(t, p.cycle())
	thin := func() {
		for b := uint64(0); b < blocks; b += batch {
			var ops []Op
			for i := uint64(0); i < batch; i += 2 {
				ops = append(ops, discard(b+i, 1, n))
				n++
			}
			must(t, r.Apply(ops))
		}
	}
	for range 2 {
		thin()
	}
	for p.seg.freeCount() >= p.cleanStart() {
		must(t, r.Apply([]Op{discard(0, 1, n)}))
		n++
	}
	if free, low := p.seg.freeCount(), p.cleanStart(); free >= low {
		t.Fatalf("%d segments are free, the cleaner works below %d", free, low)
	}
	q, err := Open([]disk.Device{m.Kill()}, opt)
	must(t, err)
	defer q.Close()
	if q.Replica("v").Applied() != ver(n-1) || q.Stats().Drains == 0 {
		t.Fatal(q.Replica("v").Applied(), q.Stats().Drains)
	}
	got := make([]byte, 28*block.Size)
	for b := uint64(0); b < blocks; b += 28 {
		must(t, q.Replica("v").Read(b, got, nil))
		want := fill(28, b/28+1)
		for i := 0; i < 28; i += 2 {
			clear(want[i*block.Size : (i+1)*block.Size])
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("block %d", b)
		}
	}
	must(t, q.Check())
}

// TestLostTailStaysLost has a batch on one device only when the power fails, and opens the pool without that device:
// the batch is not there. It must not come back with the device, whatever a second power cut takes.
func TestLostTailStaysLost(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	mems := []*disk.Mem{disk.NewMem("mem0", 32<<20), disk.NewMem("mem1", 32<<20)}
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Deadline: time.Minute}
	p, err := Create([]Group{{Kind: raid.Mirror, Devices: devicesOf(mems)}}, Config{Name: "tail"}, opt)
	must(t, err)
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	must(t, p.Sync())
	must(t, r.Apply([]Op{write(0, 1, 2)}))
	mems = disk.PowerCutAll(mems, func(i int) disk.Fate { return []disk.Fate{disk.Kept, disk.Lost}[i] }, rng)
	p.Close()
	for i, devs := range [][]disk.Device{{mems[1]}, nil} {
		if devs == nil {
			mems[1] = mems[1].PowerCut(disk.Lost, rng)
			p.Close()
			devs = devicesOf(mems)
		}
		p, err = Open(devs, opt)
		must(t, err)
		if v := p.Replica("v").Applied(); v != ver(1) {
			t.Fatalf("%d devices: applied %v", i+1, v)
		}
	}
	must(t, p.Close())
}

// TestReplayedIsStable: the process dies, and what was not flushed is read after that. So a power cut does not take it.
func TestReplayedIsStable(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		must(t, s.create("a", 1000))
		for range 20 { // segments of all groups
			must(t, s.ops("a", Op{Kind: OpWrite, Block: uint64(s.rng.IntN(900)), Count: 40}))
		}
		s.mems = disk.KillAll(s.mems)
		s.crash(true)
		s.mems = disk.PowerCutAll(s.mems, func(int) disk.Fate { return disk.Lost }, s.rng)
		s.crash(true)
		s.same()
		must(t, s.p.Close())
	})
}

// TestReplayEndsAtTheFirstTornBatch damages two batches of a log that was never flushed, whose batches are read several
// at a time: everything in front of the first one is there, nothing behind it.
func TestReplayEndsAtTheFirstTornBatch(t *testing.T) {
	const batches = 100
	rng := testRand(t)
	p, m := newMemPool(t, 40<<20, Options{Compression: compress.Off, SegmentBytes: 1 << 20, FlushBytes: 1 << 40})
	r, err := p.CreateReplica("v", batches*32*block.Size)
	must(t, err)
	must(t, p.Sync())
	var parts []part // the first one of each, where a segment ends within it
	for i := range uint64(batches) {
		must(t, r.Apply([]Op{write(i*32, 32, i+1)}))
		parts = append(parts, p.log.parts[0])
	}
	image := make([]byte, m.Size())
	must(t, m.ReadAt(image, 0))
	must(t, p.Close())
	for range 8 {
		first := rng.IntN(batches)
		k := disk.NewMem("mem0", int64(len(image)))
		must(t, k.WritevAt([][]byte{image}, 0))
		for _, i := range []int{first, min(first+1+rng.IntN(2), batches-1)} {
			_, off := p.where(parts[i].area.Raw + uint64(rng.IntN(parts[i].count+1)-1)*block.Size) // one of the blocks, or the header in front of them
			k.FlipBit(off+int64(rng.IntN(90)), uint(rng.IntN(8)))
		}
		q, err := Open([]disk.Device{k}, Options{})
		must(t, err)
		r := q.Replica("v")
		if v := r.Applied(); first > 0 && v != ver(uint64(first)) || first == 0 && !v.IsZero() {
			t.Fatalf("batch %d of %d is damaged: applied %v", first+1, batches, v)
		}
		got := make([]byte, 32*block.Size)
		for i := range uint64(first) {
			must(t, r.Read(i*32, got, nil))
			if !bytes.Equal(got, fill(32, i+1)) {
				t.Fatalf("batch %d", i+1)
			}
		}
		must(t, q.Check())
		must(t, q.Close())
	}
}
