package pool

import (
	"bytes"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// TestLabelsBeforeStable has a device fail and another one hang where the labels are that say so: nothing is called
// stable before they are written.
func TestLabelsBeforeStable(t *testing.T) {
	p, mems := newLayoutPool(t, layouts[2], 24<<20, Options{})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	waits, resume := mems[0].HangIf(func(op string, off, _ int64) bool { return op == "write" && off == 0 })
	defer resume()
	mems[1].Disappear() // the background may find out first, and write the labels
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	before, want := p.flush.stable.Load(), p.appended.Load()
	done := make(chan error, 1)
	go func() { done <- p.Sync() }()
	<-waits
	if n := p.flush.stable.Load(); n != before || n >= want {
		t.Fatalf("batch %d is called stable, before %d, written %d", n, before, want)
	}
	resume()
	must(t, <-done)
	if p.flush.stable.Load() < want || !p.labels.now.Load().Members[1].Out {
		t.Fatal("not recorded")
	}
}

// TestLabelsOfWhoWasAway: power is lost when the labels that call nobody out are on one device only, and the pool goes on
// with the other one. What that writes must not be denied by the labels of the first, which are newer than those it began
// with, whether it was called out by these or not.
func TestLabelsOfWhoWasAway(t *testing.T) {
	for _, out := range []bool{false, true} {
		p, mems := newLayoutPool(t, layouts[2], 24<<20, Options{})
		r, err := p.CreateReplica("v", 1<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 1, 1)}))
		if out {
			mems[0].Disappear()
		}
		must(t, r.Apply([]Op{write(1, 1, 2)}))
		must(t, p.Sync())
		l := p.labels.now.Load().Clone()
		mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Lost }, nil)
		_ = p.Close() // its devices are gone
		for i := range l.Members {
			x := &l.Members[i]
			x.Out, x.Last, x.Try = false, l.Change, l.Change+1
		}
		l.Generation, l.Change = l.Generation+1, l.Change+1
		must(t, label.Write(mems[0], own(l, l.Members[0].GUID, mems[0].Size())))
		must(t, mems[0].Flush())

		p, err = Open(devicesOf(mems[1:]), Options{})
		must(t, err)
		must(t, p.Replica("v").Apply([]Op{write(1, 1, 3)}))
		must(t, p.Sync())
		mems = append(mems[:1:1], disk.PowerCutAll(mems[1:], func(int) disk.Fate { return disk.Lost }, nil)...)
		_ = p.Close()
		q := openIdle(t, devicesOf(mems), Options{})
		if got := q.Replica("v").Applied(); got != ver(3) || q.Devices()[0].Stale == 0 || q.Devices()[1].Stale > 0 {
			t.Fatalf("called out before: %v; applied %v, %+v", out, got, q.Devices())
		}
		closeIdle(q)
	}
}

// returnedPool returns a pool whose first device missed writes and is back after a power cut, and that does nothing in
// the background.
func returnedPool(t *testing.T, l layout) (*Pool, []*disk.Mem) {
	t.Helper()
	p, mems := newLayoutPool(t, l, 24<<20, Options{DeltaEntries: 4096, SegmentBytes: 256 << 10})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	mems[0].Disappear()
	must(t, r.Apply([]Op{write(0, 200, 1)}))
	must(t, p.Sync())
	mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Lost }, nil)
	return openIdle(t, devicesOf(mems), Options{DeltaEntries: 4096}), mems
}

// TestGenerationIsUsedOnce: a device that is out may have announced a checkpoint that no other one knows of, when the power was
// lost. What Open announces is not taken for that.
func TestGenerationIsUsedOnce(t *testing.T) {
	q, mems := returnedPool(t, layouts[2])
	mems = disk.KillAll(mems)
	last := q.generation
	_ = closeIdle(q)
	other := &label.Ring{Pool: q.cfg.GUID, Generation: last + 1, Root: []label.Extent{{Addr: 1 << 20, Len: block.Size}}}
	must(t, label.WriteRing(mems[0], mems[0].Size(), other))
	q = openIdle(t, devicesOf(mems), Options{DeltaEntries: 4096})
	if q.generation <= other.Generation {
		t.Errorf("checkpoint %d is announced, and the device that is out announces another one as %d", q.generation, other.Generation)
	}
	for _, m := range mems {
		if r, err := label.ReadRing(m, m.Size(), q.cfg.GUID); err != nil || r.Generation != q.generation || !slices.Equal(r.Root, q.root) {
			t.Errorf("device %s announces %+v (%v), not %d", m.Name(), r, err, q.generation)
		}
	}
	must(t, closeIdle(q))
}

// TestHealedIsFlushed: what a device that came back was found to have already, so that nothing is written to it, may be in its
// cache only. The next flush is of that, too, before any checkpoint says that the device has it.
func TestHealedIsFlushed(t *testing.T) {
	q, mems := returnedPool(t, layouts[2])
	must(t, q.Sync())
	m := q.members()[0]
	unit := m.dev.StaleUnits().Next(0)
	w := q.seg.where.Load()
	seg, _ := w.segment(m.group, unit)
	before := mems[0].Flushes()
	q.healed(seg, []lagging{{m: m, moment: m.dev.Moment()}}, false)
	must(t, q.flushDevices())
	if m.dev.IsStale(unit) || mems[0].Flushes() == before {
		t.Errorf("stale: %v, flushed %d times", m.dev.IsStale(unit), mems[0].Flushes()-before)
	}
	must(t, closeIdle(q))
}

// TestReturnedStaysOut: a device that came back is called out until a checkpoint lists what it lacks, whatever else
// happens to the labels.
func TestReturnedStaysOut(t *testing.T) {
	q, mems := returnedPool(t, layouts[3])
	out := func() (out [3]bool) {
		for i, m := range q.labels.now.Load().Members {
			out[i] = m.Out
		}
		return out
	}
	if out() != [3]bool{true, false, false} || q.Devices()[0].Stale == 0 {
		t.Fatal(out())
	}
	mems[2].Disappear()
	must(t, q.Replica("v").Apply([]Op{write(300, 1, 2)}))
	must(t, q.Sync())
	if out() != [3]bool{true, false, true} {
		t.Fatal(out())
	}
	must(t, q.cycle())
	if out() != [3]bool{false, false, true} {
		t.Fatal(out())
	}
	mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Lost }, nil)
	closeIdle(q)
	q = openIdle(t, devicesOf(mems), Options{DeltaEntries: 4096})
	if d := q.Devices(); d[0].Stale == 0 || d[2].Stale == 0 || d[1].Stale > 0 || out() != [3]bool{false, false, true} {
		t.Fatalf("%+v %v", d, out())
	}
	must(t, closeIdle(q))
}

// TestEachMissedSomething: both sides of a mirror are called out, since each has what the other one lacks. Together
// they are opened, and the checksums decide; one of them alone is refused.
func TestEachMissedSomething(t *testing.T) {
	p, mems := newLayoutPool(t, layouts[2], 24<<20, Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, NoDiscard: true})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 200, 1)}))
	must(t, p.Sync())
	var at [2]int64
	for i, b := range []uint64{0, 150} {
		var s readScratch
		must(t, r.find(&s, b, 1))
		_, at[i] = p.where(s.places[0].loc.Addr())
	}
	must(t, p.relabel(func(l *label.Label) bool { l.Members[0].Out, l.Members[1].Out = true, true; return true }))
	mems = disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Lost }, nil)
	for i, m := range mems {
		must(t, m.WritevAt([][]byte{make([]byte, 12<<12)}, at[i]&^4095))
		_, err := Open([]disk.Device{m.Clone()}, Options{})
		if err == nil || !strings.Contains(err.Error(), "needs 1 of its devices up to date") || !strings.Contains(err.Error(), m.Name()+" is there but missed writes") {
			t.Fatal(err)
		}
	}
	q, err := Open(devicesOf(mems), Options{DeltaEntries: 4096})
	must(t, err)
	got := make([]byte, 200*4096)
	must(t, q.Replica("v").Read(0, got, nil))
	if !bytes.Equal(got, fill(200, 1)) {
		t.Fatal("content")
	}
	must(t, q.Close())
}

// TestRootListsWhatFlushLoses has a device fail in the flush of a checkpoint, so that all it had not flushed is gone:
// the checkpoint says so, since no replay reads that part of the log any more.
func TestRootListsWhatFlushLoses(t *testing.T) {
	p, mems := newLayoutPool(t, layouts[2], 24<<20, Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, Compression: compress.Off})
	r, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	for i := range uint64(5) {
		must(t, r.Apply([]Op{write(i*100, 100, i+1)}))
	}
	mems[1].Inject(disk.Faults{FailFlush: true})
	must(t, p.cycle())
	found := disk.PowerCutAll(mems, func(int) disk.Fate { return disk.Lost }, nil)
	q, err := Open(devicesOf(found), Options{DeltaEntries: 4096})
	must(t, err)
	defer q.Close()
	copies(t, q)
}

// TestMissedDuringCheckpoint has a device that cannot be spared miss a write after the root was made that lists what is
// stale: the labels call it out until the next checkpoint.
func TestMissedDuringCheckpoint(t *testing.T) {
	q, mems := returnedPool(t, layouts[2])
	if q.Devices()[0].Stale == 0 {
		t.Fatal("nothing is stale")
	}
	waits, resume := mems[0].HangIf(func(op string, off, _ int64) bool { return op == "write" && off >= 128<<10 && off < 256<<10 })
	defer resume()
	before := ringAreas(t, mems[1])[1]
	done := make(chan error, 1)
	go func() { done <- q.cycle() }()
	<-waits // the ring is being written
	for bytes.Equal(ringAreas(t, mems[1])[1], before) {
		runtime.Gosched()
	}
	mems[1].Inject(disk.Faults{FailOp: 1})
	must(t, q.Replica("v").Apply([]Op{write(500, 1, 2)}))
	resume()
	must(t, <-done)
	d, l := q.Devices()[1], q.labels.now.Load()
	if d.State != DeviceOnline && d.State != DeviceResilvering || d.Stale == 0 || !l.Members[1].Out || l.Members[0].Out {
		t.Fatalf("%+v, %+v", d, l.Members)
	}
	must(t, q.cycle())
	if q.labels.now.Load().Members[1].Out {
		t.Fatal("still out")
	}
	must(t, closeIdle(q))
}

// TestLabelsAreMended: copies of labels that are damaged are right again before the next change, which may be
// interrupted.
func TestLabelsAreMended(t *testing.T) {
	mems := closedPool(t, layouts[2])
	damage := func(m *disk.Mem) {
		m.FlipBit(64<<10+20, 1)
		m.FlipBit(m.Size()-label.TailBytes+64<<10+20, 1)
	}
	mended := func(m *disk.Mem) {
		t.Helper()
		for _, c := range label.Copies(m, m.Size()) {
			if c.Err != nil {
				t.Errorf("%s at %d: %v", m.Name(), c.Off, c.Err)
			}
		}
	}
	damage(mems[0])
	damage(mems[1])
	p := openIdle(t, devicesOf(mems), Options{DeltaEntries: 4096}) // without what would change labels
	mended(mems[0])
	mended(mems[1])
	must(t, closeIdle(p))
}
