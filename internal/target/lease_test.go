package target

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// leased starts a target with stubs for replicas, which give leases as long as gives says so. released returns, when all
// stubs have ended, how many were told that their lease is over.
func leased(t *testing.T, gives func() bool) (tgt *Target, released func() int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const size, replicas = 1 << 20, 3
	tgt = New(Config{
		Volume: "v", Size: size, ReplicaListen: l, Record: &memoryRecord{}, Desired: volume.Desired{Founding: replicas, Factor: replicas},
	})
	ended := make(chan struct{})
	go func() { tgt.Serve(context.Background()); close(ended) }()
	t.Cleanup(func() { tgt.Close(); <-ended })
	var stubs sync.WaitGroup
	var over atomic.Int64
	for range replicas {
		stubs.Go(func() {
			stub(l.Addr().String(), size, func(m volume.Message) bool {
				switch m.(type) {
				case volume.Ping:
					return gives()
				case volume.Release:
					over.Add(1)
				}
				return true
			})
		})
	}
	await(t, tgt, func(st volume.Status) bool { return st.Serving })
	return tgt, func() int64 { stubs.Wait(); return over.Load() }
}

// await waits for what the target tells of itself.
func await(t *testing.T, tgt *Target, want func(volume.Status) bool) {
	t.Helper()
	for tick := time.NewTicker(5 * time.Millisecond); !want(tgt.Status()); {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%+v", tgt.Status())
		}
	}
}

// ends is a client that wants to know how its requests ended.
type ends chan error

func (e ends) Complete(batch []*block.Request) {
	for _, r := range batch {
		r.Buf.Release()
		e <- r.Err
	}
}

// TestReadWithoutLease has replicas serve reads but no longer answer pings: what they read is shown only when they answer
// again, and the target does not say meanwhile that it serves.
func TestReadWithoutLease(t *testing.T) {
	var mute atomic.Bool
	tgt, _ := leased(t, func() bool { return !mute.Load() })
	read := func() ends {
		e := make(ends, 1)
		tgt.Submit([]*block.Request{{Op: block.Read, Length: block.Size, Client: e}})
		return e
	}
	if err := <-read(); err != nil {
		t.Fatal(err)
	}
	mute.Store(true)
	await(t, tgt, func(st volume.Status) bool { return !st.Serving })
	held := read()
	await(t, tgt, func(volume.Status) bool {
		select {
		case err := <-held:
			t.Fatalf("a read without a lease was answered: %v", err)
		default:
		}
		tgt.mu.Lock()
		defer tgt.mu.Unlock()
		return tgt.core.Counters().LeaseWaits == 1
	})
	mute.Store(false)
	if err := <-held; err != nil {
		t.Error(err)
	}
	await(t, tgt, func(st volume.Status) bool { return st.Serving })
}

// TestCloseReleases checks that a target that ends tells its replicas that it shows nothing any more.
func TestCloseReleases(t *testing.T) {
	tgt, released := leased(t, func() bool { return true })
	tgt.Close()
	if n := released(); n != 3 {
		t.Errorf("%d of 3 replicas were told", n)
	}
}
