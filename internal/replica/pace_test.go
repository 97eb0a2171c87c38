package replica

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

const mib = 1 << 20

// moveAll has rebuilds move what they may for d, in pieces of 256 KiB each of which takes a while besides, and returns how
// much each did in MiB/s.
func moveAll(d time.Duration, piece time.Duration, paces ...*pace) (rates []int) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	moved := make([]int, len(paces))
	for i, p := range paces {
		go func() {
			for p.take(ctx, mib/4) == nil {
				moved[i] += mib / 4
				pause(ctx, piece)
			}
		}()
	}
	<-ctx.Done()
	synctest.Wait()
	for _, n := range moved {
		rates = append(rates, int(float64(n)/mib/d.Seconds()+0.5))
	}
	return rates
}

func told(s *paces, rate uint64) *pace {
	p := s.join()
	p.set(volume.Pace{BytesPerSec: rate * mib, For: "the application"})
	return p
}

// about reports whether rates are what is wanted, but for a twentieth.
func about(t *testing.T, what string, got []int, want ...int) {
	t.Helper()
	for i, w := range want {
		if got[i] < w-w/20 || got[i] > w+w/20 {
			t.Errorf("%s: %v MiB/s, want %v", what, got, want)
			return
		}
	}
}

// TestPaces has rebuilds share a pool, at various paces.
func TestPaces(t *testing.T) {
	const d = 20 * time.Second
	const piece = time.Millisecond // 250 MiB/s
	for _, x := range []struct {
		what  string
		limit int64
		told  []uint64
		want  []int
	}{
		{"one with a pace", 0, []uint64{32}, []int{32}},
		{"one without", 0, []uint64{0}, []int{250}},
		{"below the pool's limit", 100, []uint64{32}, []int{32}},
		{"above it", 16, []uint64{32}, []int{16}},
		{"without a pace and above it", 16, []uint64{0}, []int{16}},
		{"two at the same pace have together what one has", 0, []uint64{32, 32}, []int{16, 16}},
		{"four", 0, []uint64{32, 32, 32, 32}, []int{8, 8, 8, 8}},
		{"what one may not have the others share", 0, []uint64{10, 90, 90}, []int{10, 40, 40}},
		{"one may go as fast as it can", 0, []uint64{32, 0}, []int{32, 250}},
		{"and the pool has a limit", 80, []uint64{32, 0, 0}, []int{27, 27, 27}},
		{"which leaves to others what one may not have", 80, []uint64{10, 0, 0}, []int{10, 35, 35}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &paces{}
			s.setLimit(x.limit * mib)
			var all []*pace
			for _, r := range x.told {
				all = append(all, told(s, r))
			}
			about(t, x.what, moveAll(d, piece, all...), x.want...)
		})
	}
}

// TestPaceChanges has a rebuild hear of other paces on its way, another one come and go, and the limit change.
func TestPaceChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const piece = time.Millisecond
		s := &paces{}
		p := s.join()
		about(t, "not told anything", moveAll(10*time.Second, piece, p), paceUntold/mib)
		p.set(volume.Pace{BytesPerSec: 32 * mib})
		about(t, "told 32", moveAll(10*time.Second, piece, p), 32)
		q := told(s, 32)
		about(t, "another one has come", moveAll(10*time.Second, piece, p, q), 16, 16)
		q.leave()
		about(t, "and has gone", moveAll(10*time.Second, piece, p), 32)
		s.setLimit(8 * mib)
		about(t, "the pool has a limit", moveAll(10*time.Second, piece, p), 8)
		s.setLimit(0)
		p.set(volume.Pace{})
		about(t, "as fast as it can", moveAll(10*time.Second, piece, p), 250)
	})
}

// TestPaceSaysWhy looks at what a rebuild is said to wait for.
func TestPaceSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &paces{}
		p := told(s, 32)
		moveAll(10*time.Second, time.Millisecond, p)
		if why := p.waited(); why != "the application" {
			t.Errorf("waits for %q", why)
		}
		moveAll(10*time.Second, 9*time.Millisecond, p) // it could not move more
		if why := p.waited(); why != "" {
			t.Errorf("waits for %q and is as fast as it can", why)
		}
		s.setLimit(mib)
		moveAll(10*time.Second, time.Millisecond, p)
		if why := p.waited(); why != "its turn: the pool has a limit for rebuilds" {
			t.Errorf("waits for %q", why)
		}
	})
}

// TestPaceEnds ends a rebuild that waits.
func TestPaceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := told(&paces{}, 1)
		if err := p.take(ctx, 100*mib); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, cancel)
		if err := p.take(ctx, mib); err != context.Canceled {
			t.Errorf("%v", err)
		}
	})
}

// TestWindow asks a source for less ahead when less may be moved.
func TestWindow(t *testing.T) {
	s := &paces{}
	for rate, want := range map[uint64]int{0: 4, 32: 2, 150: 3, 1024: 4} {
		p := told(s, rate)
		if got := p.window(4, 2*mib); got != want {
			t.Errorf("at %d MiB/s %d chunks, want %d", rate, got, want)
		}
		p.leave()
	}
}

// TestPaceIsTaken has a target tell a replica how fast it may rebuild.
func TestPaceIsTaken(t *testing.T) {
	s, _ := newTestServer(t)
	source, err := net.Listen("tcp", "127.0.0.1:0") // which answers nothing
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	f := accept(t, attachTo(t, s))
	if !f.report.Paces {
		t.Error("the replica does not say that it knows paces")
	}
	f.claim(1)
	f.send(volume.Join{Attempt: 1, Source: volume.Peer{Name: "source", Addr: source.Addr().String()}, Size: 64 << 20})
	if m, ok := f.next().(volume.JoinReady); !ok {
		t.Fatalf("%+v", m)
	}
	f.send(volume.Stream{Attempt: 1, From: block.Version{Epoch: 1, N: 1}})
	f.send(volume.Pace{Attempt: 1, BytesPerSec: 5 * mib})
	f.send(volume.Pace{Attempt: 2, BytesPerSec: 7 * mib}) // of another attempt
	f.send(volume.Ping{At: 1, Lease: 1})
	for m := f.next(); m != volume.Message(volume.Pong{At: 1}); m = f.next() {
	}
	s.paces.mu.Lock()
	defer s.paces.mu.Unlock()
	if len(s.paces.all) != 1 {
		t.Fatalf("%d rebuilds", len(s.paces.all))
	}
	for p := range s.paces.all {
		if p.rate != 5*mib {
			t.Errorf("the rebuild has %d MiB/s", p.rate/mib)
		}
	}
}
