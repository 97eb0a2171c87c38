package replica

import (
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// TestReserve checks that what all volumes may have in flight fits into the reserve, as far as the pool is large enough.
func TestReserve(t *testing.T) {
	const inFlight = 64 << 20
	for _, n := range []int{1, 2, 10} {
		if got := reserve(100<<30, n); got < int64(n)*inFlight+checkBytes {
			t.Errorf("reserve for %d volumes is %d bytes", n, got)
		}
	}
	if got := reserve(1<<30, 10); got != 128<<20 {
		t.Errorf("reserve of a small pool is %d bytes", got)
	}
}

// use writes n MiB to a replica that no session has.
func use(t *testing.T, s *Server, name string, n int) *pool.Replica {
	t.Helper()
	r, err := s.cfg.Pool.CreateReplica(name, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		data := make([]byte, 1<<20)
		rand.NewChaCha8([32]byte{byte(i)}).Read(data)
		op := pool.Op{Kind: pool.OpWrite, Block: uint64(i) << 8, Count: 1 << 8, Version: block.Version{Epoch: 1, N: uint64(i + 1)}, Data: data}
		if err := r.Apply([]pool.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestSpaceAtAttach has the pool become full while one replica is attached: the targets of those that are there are told.
func TestSpaceAtAttach(t *testing.T) {
	s, _ := newTestServer(t)
	target := accept(t, attachTo(t, s))
	use(t, s, "other", 8)
	s.cfg.Pool.SetReadOnlyPercent(1)
	if err := s.Attach(Spec{Name: "other", Target: "127.0.0.1:1", Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if m, ok := target.next().(volume.Space); !ok || !m.Full {
		t.Fatalf("%+v", m)
	}
}

// TestSpaceOrder has space come back while it is being told, at a busy replica, that it ran out: what a target is told last is
// how it is.
func TestSpaceOrder(t *testing.T) {
	s, _ := newTestServer(t)
	target := accept(t, attachTo(t, s))
	a := s.find("r")
	for range 50 {
		var tell sync.WaitGroup
		a.mu.Lock()
		s.full.Store(true)
		for range 20 {
			tell.Go(s.tellSpace)
			runtime.Gosched()
		}
		s.full.Store(false)
		a.mu.Unlock()
		s.tellSpace()
		tell.Wait()
		var last volume.Message
		target.send(volume.Ping{})
		for m := target.next(); m != volume.Message(volume.Pong{}); m = target.next() {
			last = m
		}
		if last != volume.Message(volume.Space{}) {
			t.Fatalf("told %+v last", last)
		}
	}
}

// TestSpaceHysteresis has a pool be at its read-only limit: it counts as full until there is some room below that.
func TestSpaceHysteresis(t *testing.T) {
	s, _ := newTestServer(t)
	r := use(t, s, "r", 16)
	stats := s.cfg.Pool.Stats()
	s.cfg.Pool.SetReadOnlyPercent(int(stats.Allocated * 100 / stats.Capacity))
	if !s.checkSpace() || !s.full.Load() {
		t.Fatalf("not full: %+v", s.cfg.Pool.Stats())
	}
	n := uint64(100)
	for was := s.cfg.Pool.Stats(); was.ReadOnly; was = s.cfg.Pool.Stats() {
		op := pool.Op{Kind: pool.OpDiscard, Block: (n - 100) * 16, Count: 16, Version: block.Version{Epoch: 1, N: n}}
		if err := r.Apply([]pool.Op{op}); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if s.checkSpace() {
		t.Errorf("not full any more just below the limit: %+v", s.cfg.Pool.Stats())
	}
	op := pool.Op{Kind: pool.OpDiscard, Count: 12 << 8, Version: block.Version{Epoch: 1, N: n}}
	if err := r.Apply([]pool.Op{op}); err != nil {
		t.Fatal(err)
	}
	if !s.checkSpace() || s.full.Load() {
		t.Errorf("still full well below the limit: %+v", s.cfg.Pool.Stats())
	}
}

// TestJoinWithoutRoom has replicas use up their share of a full pool's reserve: a rebuild does not begin, before anything is
// streamed for it and before the replica becomes incomplete, and asking again does not make the share larger.
func TestJoinWithoutRoom(t *testing.T) {
	s, _ := newTestServer(t)
	target := accept(t, attachTo(t, s))
	use(t, s, "other", 16)
	stats := s.cfg.Pool.Stats()
	s.cfg.Pool.SetReadOnlyPercent(int(stats.Allocated * 100 / stats.Capacity))
	if !s.checkSpace() {
		t.Fatalf("not full: %+v", s.cfg.Pool.Stats())
	}
	if err := s.mayStream(); err != nil {
		t.Fatal(err)
	}
	target.send(volume.Claim{Promise: volume.Promise{Epoch: 7, Nonce: 1}})
	if m, ok := target.next().(volume.Promised); !ok {
		t.Fatalf("%T", m)
	}
	s.least.Store(math.MaxInt64) // all of the share is used up
	for attempt := range uint64(2) {
		s.checkSpace()
		target.send(volume.Join{Attempt: attempt + 1, Size: 64 << 20})
		if m, ok := target.next().(volume.JoinFailed); !ok || m.Attempt != attempt+1 {
			t.Fatalf("%+v", m)
		}
	}
	s.cfg.Pool.SetReadOnlyPercent(100)
	s.checkSpace()
	target.send(volume.Join{Attempt: 3, Size: 64 << 20})
	if m, ok := target.next().(volume.JoinReady); !ok {
		t.Fatalf("%T", m)
	}
}
