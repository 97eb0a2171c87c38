package pool

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// hooked is a device in the middle of whose operations a test does something else.
type hooked struct {
	disk.Device
	write, read, flush func() // called before the operation is carried out, flush after it; they are called once
}

func once(f *func()) {
	if g := *f; g != nil {
		*f = nil
		g()
	}
}

func (h *hooked) WritevAt(bufs [][]byte, off int64) error {
	once(&h.write)
	return h.Device.WritevAt(bufs, off)
}

func (h *hooked) ReadAt(b []byte, off int64) error {
	once(&h.read)
	return h.Device.ReadAt(b, off)
}

func (h *hooked) Flush() error {
	err := h.Device.Flush()
	once(&h.flush)
	return err
}

func hookedPool(t *testing.T) (*Pool, *hooked, *disk.Mem) {
	m := disk.NewMem("mem0", 32<<20)
	h := &hooked{Device: m}
	p, err := Create(Stripe(h), Config{Name: "test"}, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p, h, m
}

// lostPower returns the pool as a power cut leaves it that takes everything unflushed.
func lostPower(t *testing.T, m *disk.Mem) *Pool {
	q, err := Open([]disk.Device{m.PowerCut(disk.Lost, rand.New(rand.NewPCG(1, 1)))}, Options{DeltaEntries: 4096})
	must(t, err)
	t.Cleanup(func() { q.Close() })
	return q
}

// TestWriteDuringFlush appends while a device flushes: the flush does not count for what was appended.
func TestWriteDuringFlush(t *testing.T) {
	p, h, m := hookedPool(t)
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	h.flush = func() { must(t, r.Apply([]Op{write(1, 1, 2)})) }
	must(t, p.Sync())
	must(t, p.Sync()) // covers the second write
	if v := lostPower(t, m).Replica("v").Applied(); v != ver(2) {
		t.Fatalf("a successful Sync covered 1.2, %v is there", v)
	}
}

// TestFlushDuringWrite flushes before a write that is under way is done: the next flush must not be left out.
func TestFlushDuringWrite(t *testing.T) {
	p, h, m := hookedPool(t)
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	h.write = func() { must(t, p.flushDevices()) }
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	must(t, p.Sync())
	if v := lostPower(t, m).Replica("v").Applied(); v != ver(1) {
		t.Fatalf("a successful Sync covered 1.1, %v is there", v)
	}
}

// TestReaderKeepsItsSegment overwrites what a reader is about to read and has its segment freed and discarded. The
// reader gets what was there.
func TestReaderKeepsItsSegment(t *testing.T) {
	p, h, _ := hookedPool(t)
	r, err := p.CreateReplica("v", 8<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 30, 1)}))
	done := make(chan error, 1)
	h.read = func() {
		for n := range uint64(20) {
			must(t, r.Apply([]Op{write(0, 30, 2+n)}))
		}
		gen := p.read.gen.Load()
		go func() { done <- p.cycle() }()
		for p.read.gen.Load() == gen && len(done) == 0 { // until it waits for the reader, or does not
			runtime.Gosched()
		}
	}
	got := make([]byte, 30*block.Size)
	must(t, r.Read(0, got, nil))
	if !bytes.Equal(got, fill(30, 1)) {
		t.Fatal("not what was there")
	}
	must(t, <-done)
	if p.Stats().SegmentsFreed == 0 {
		t.Fatal("nothing was freed")
	}
}

// TestWriteDuringClean overwrites and discards what the cleaner has just decided to move.
func TestWriteDuringClean(t *testing.T) {
	p, h, _ := hookedPool(t)
	r, err := p.CreateReplica("v", 8<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 4, 1)}))
	seg := p.log.pos.seg
	for n := range uint64(20) { // the log goes on to other segments
		must(t, r.Apply([]Op{write(100, 60, 2+n)}))
	}
	must(t, p.cycle())
	p.drain.cycle.Lock()
	var overtake func()
	overtake = func() {
		if f := p.cleaner.found; len(f) == 0 || f[0].ver.IsZero() { // it still looks for what is to be moved
			h.read = overtake
			return
		}
		must(t, r.Apply([]Op{write(1, 1, 100), discard(2, 1, 101)}))
	}
	h.read = overtake
	err = p.moveSegment(seg)
	p.drain.cycle.Unlock()
	must(t, err)
	if h.read != nil || p.Stats().BlocksMoved == 0 {
		t.Fatal("nothing was moved")
	}
	must(t, p.cycle()) // puts the new places into pages
	want := fill(4, 1)
	copy(want[block.Size:], fill(1, 100))
	clear(want[2*block.Size : 3*block.Size])
	got := make([]byte, 4*block.Size)
	must(t, r.Read(0, got, nil))
	if !bytes.Equal(got, want) || r.Applied() != ver(101) {
		t.Fatal("the cleaner brought back what was overwritten")
	}
	must(t, p.Check())
}
