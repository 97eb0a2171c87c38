package pool

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// lineUp is a pool with one append in the device, which hangs, and others lined up behind it.
type lineUp struct {
	t       *testing.T
	p       *Pool
	m       *disk.Mem
	resume  func()
	results []chan error // of the calls, in their order
}

func isWrite(op string, _, _ int64) bool { return op == "write" }

// newLineUp makes the first call hang in the device and has the others come while it does.
func newLineUp(t *testing.T, p *Pool, m *disk.Mem, calls ...func() error) *lineUp {
	waits, resume := m.HangIf(isWrite)
	t.Cleanup(resume)
	s := &lineUp{t: t, p: p, m: m, resume: resume}
	for i, call := range calls {
		c := make(chan error, 1)
		s.results = append(s.results, c)
		go func() { c <- call() }()
		if i == 0 {
			<-waits
		}
		for s.waiting() < i {
			runtime.Gosched()
		}
	}
	return s
}

func (s *lineUp) waiting() int {
	s.p.joint.mu.Lock()
	defer s.p.joint.mu.Unlock()
	return len(s.p.joint.waiting)
}

// next lets the append that hangs go on and returns when another one hangs.
func (s *lineUp) next() {
	waits, resume := s.m.HangIf(isWrite)
	s.t.Cleanup(resume)
	s.resume()
	<-waits
	s.resume = resume
}

// reads fails the test unless that is what a replica has from a block on.
func reads(t *testing.T, r *Replica, b uint64, want ...[]byte) {
	t.Helper()
	all := bytes.Join(want, nil)
	got := make([]byte, len(all))
	if must(t, r.Read(b, got, nil)); !bytes.Equal(got, all) {
		t.Errorf("replica %s has something else at block %d", r.name, b)
	}
}

func apply(r *Replica, ops ...Op) func() error { return func() error { return r.Apply(ops) } }

// TestAppendsTogether: calls that come while an append is in the device are appended together, in the order in which they
// came. Nobody sees them, and no flush counts for them, before the device has them.
func TestAppendsTogether(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10})
	must(t, p.Close())
	m.Reopen()
	p = openIdle(t, []disk.Device{m}, Options{DeltaEntries: 4096}) // nothing is appended but by the calls
	var r [3]*Replica
	for i, name := range []string{"a", "b", "c"} {
		var err error
		r[i], err = p.CreateReplica(name, 1<<20)
		must(t, err)
	}
	a, b, c := r[0], r[1], r[2]
	given := Op{Kind: OpWrite, Block: 9, Count: 3, Version: ver(1), Data: slices.Concat(noise(1, 1), make([]byte, block.Size), half(1, 2))}
	for i := range 3 {
		given.Sums = append(given.Sums, block.Sum(given.Data[i*block.Size:(i+1)*block.Size]))
	}
	must(t, b.Apply([]Op{write(5, 3, 1)}))
	must(t, p.Sync())
	before := p.Stats()
	s := newLineUp(t, p, m,
		apply(a, write(0, 1, 1)),
		apply(b, Op{Kind: OpWrite, Block: 0, Count: 2, Version: ver(2), Data: noise(2, 7)}, discard(5, 2, 3), write(7, 1, 4)),
		apply(a, write(0, 1, 2), write(20, 2, 3)),
		apply(c, given),
		apply(a, write(0, 1, 4), Op{Kind: OpMark, Version: ver(5)}),
	)
	s.next()
	must(t, <-s.results[0])
	zero := make([]byte, block.Size)
	reads(t, a, 0, fill(1, 1))
	reads(t, b, 0, zero, zero)
	reads(t, b, 5, fill(3, 1))
	reads(t, c, 9, zero)
	if a.Applied() != ver(1) || b.Applied() != ver(1) || !c.Applied().IsZero() {
		t.Error("operations are visible that the device has not got")
	}
	must(t, p.Sync()) // and does not count for what comes to the device after it
	s.resume()
	for i, res := range s.results[1:] {
		if err := <-res; err != nil {
			t.Errorf("call %d: %v", i+1, err)
		}
	}
	if n := p.Stats().Batches - before.Batches; n != 2 {
		t.Errorf("%d batches instead of one and another for all who came meanwhile", n)
	}
	found := func(p *Pool) {
		t.Helper()
		a, b, c := p.Replica("a"), p.Replica("b"), p.Replica("c")
		reads(t, a, 0, fill(1, 4))
		reads(t, a, 20, fill(2, 3))
		reads(t, b, 0, noise(2, 7))
		reads(t, b, 5, zero, zero, fill(1, 4))
		reads(t, c, 9, given.Data)
		if a.Applied() != ver(5) || b.Applied() != ver(4) || c.Applied() != ver(1) {
			t.Error(a.Applied(), b.Applied(), c.Applied())
		}
		must(t, p.Check())
	}
	found(p)
	must(t, p.Sync())
	found(lostPower(t, m))
	_ = closeIdle(p) // its device is gone
}

// TestNotTogether: who has something to find out, or does not fit, is not taken along, and neither he nor those behind him
// are forgotten.
func TestNotTogether(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10})
	must(t, p.Close())
	m.Reopen()
	p = openIdle(t, []disk.Device{m}, Options{DeltaEntries: 16384}) // nothing goes on but the calls
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	gone, err := p.CreateReplica("gone", 1<<20)
	must(t, err)
	shown, err := p.CreateReplica("shown", 1<<20)
	must(t, err)
	must(t, shown.Apply([]Op{write(0, 1, 1)}))
	before := p.Stats()
	s := newLineUp(t, p, m,
		apply(r, write(0, 1, 1)),
		apply(r, write(1, 1, 2)),
		apply(gone, write(0, 1, 1)),
		apply(r, write(2, 1, 3)),
		apply(r, Op{Kind: OpWrite, Block: 100, Count: 200, Version: ver(4), Data: noise(200, 4)}), // of several segments
		apply(shown, write(0, 1, 9)),
		apply(r, write(3, 1, 5)),
		apply(r, Op{Kind: OpWrite, Block: 1000, Count: 40, Version: ver(6), Data: noise(40, 6)}), // too much for the rest of the segment
		apply(r, Op{Kind: OpWrite, Block: 2000, Count: 40, Version: ver(7), Data: noise(40, 7)}),
	)
	p.idx.mu.Lock()
	gone.destroyed = true
	shown.indexPoint(&wal.Record{Kind: wal.Snapshot, Name: "s", Version: ver(5)}) // as a rebuild may do
	p.idx.mu.Unlock()
	s.resume()
	for i, res := range s.results {
		if err := <-res; i == 2 && !errors.Is(err, ErrNotFound) || i != 2 && err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	p.idx.mu.Lock()
	gone.destroyed = false
	p.idx.mu.Unlock()
	reads(t, r, 0, fill(1, 1), fill(1, 2), fill(1, 3), fill(1, 5))
	reads(t, r, 100, noise(200, 4))
	reads(t, r, 1000, noise(40, 6))
	reads(t, r, 2000, noise(40, 7))
	reads(t, gone, 0, make([]byte, block.Size))
	reads(t, shown, 0, fill(1, 9))
	old := make([]byte, block.Size)
	if must(t, shown.ReadSnapshot("s", 0, old, nil)); !bytes.Equal(old, fill(1, 1)) {
		t.Error("the snapshot shows what came after it")
	}
	if n := p.Stats().Batches - before.Batches; n < 8 {
		t.Errorf("%d batches", n)
	}
	must(t, p.Check())
	if p.idx.reserved != 0 || p.joint.led || len(p.joint.waiting) > 0 {
		t.Error("something is left", p.idx.reserved, p.joint.led)
	}
	must(t, closeIdle(p))
}

// TestTogetherFails: when an append fails, all whom it had with it hear of it, and those who wait for the next one; nothing of
// theirs is there.
func TestTogetherFails(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	calls := []func() error{apply(r, write(0, 1, 1))}
	for n := uint64(2); n < 2+jointUnits+5; n++ { // more than come into one append
		calls = append(calls, apply(r, write(n, 1, n)))
	}
	s := newLineUp(t, p, m, calls...)
	m.Inject(disk.Faults{FailOp: 2}) // the first one is still under way
	s.resume()
	must(t, <-s.results[0])
	for i, res := range s.results[1:] {
		if err := <-res; !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("call %d: %v", i+1, err)
		}
	}
	if v := r.Applied(); v != ver(1) {
		t.Error("applied", v)
	}
	reads(t, r, 2, make([]byte, 8*block.Size))
}

// TestTogetherHangs: who was taken along into a device that never answers, and who waits for it, hears that the pool has
// failed. When the device answers at last, nothing comes of it.
func TestTogetherHangs(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	s := newLineUp(t, p, m, apply(r, write(0, 1, 1)), apply(r, write(1, 1, 2)), apply(r, write(2, 1, 3)), apply(r, write(3, 1, 4)))
	s.next()
	must(t, <-s.results[0])
	late := make(chan error, 1)
	go func() { late <- r.Apply([]Op{write(4, 1, 5)}) }()
	for s.waiting() < 1 {
		runtime.Gosched()
	}
	cause := errors.New("no answer")
	p.fail(cause)
	for _, res := range []chan error{s.results[2], s.results[3], late} {
		if err := <-res; !errors.Is(err, cause) {
			t.Error(err)
		}
	}
	if err := r.Apply([]Op{write(5, 1, 6)}); !errors.Is(err, cause) {
		t.Error(err)
	}
	s.resume()
	if err := <-s.results[1]; !errors.Is(err, cause) {
		t.Error(err)
	}
	if p.idx.reserved != 0 || p.joint.led || len(p.joint.waiting) > 0 {
		t.Error("something is left", p.idx.reserved, p.joint.led, len(p.joint.waiting))
	}
	if v := r.Applied(); v != ver(1) {
		t.Error("applied", v)
	}
}

// TestTogetherAtClose: a pool is closed while calls wait: each is carried out or finds it closed.
func TestTogetherAtClose(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	var calls []func() error
	for n := uint64(1); n < 9; n++ {
		calls = append(calls, apply(r, write(n, 1, n)))
	}
	s := newLineUp(t, p, m, calls...)
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	for !p.closed.Load() {
		runtime.Gosched()
	}
	s.resume()
	n := uint64(0)
	for _, res := range s.results {
		switch err := <-res; {
		case err == nil:
			n++
		case !errors.Is(err, ErrClosed):
			t.Error(err)
		}
	}
	must(t, <-closed)
	m.Reopen()
	q, err := Open([]disk.Device{m}, Options{})
	must(t, err)
	defer q.Close()
	if v := q.Replica("v").Applied(); v != ver(n) {
		t.Errorf("%d calls were carried out, %v is there", n, v)
	}
}
