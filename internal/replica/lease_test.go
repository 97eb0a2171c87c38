package replica

import (
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/volume"
)

// claim asks for the promise of an epoch and returns the answer.
func (f *fakeTarget) claim(epoch uint64) volume.Message {
	f.t.Helper()
	f.send(volume.Claim{Promise: volume.Promise{Epoch: epoch, Nonce: epoch}})
	return f.next()
}

// TestPromiseWaitsForLease has targets follow each other: a replica gives its promise to the next one when the lease of the
// one before has run out, however quickly that one comes, and answers its pings meanwhile.
func TestPromiseWaitsForLease(t *testing.T) {
	t.Parallel()
	s, _ := newTestServer(t)
	l := attachTo(t, s)
	first := accept(t, l)
	if m, ok := first.claim(1).(volume.Promised); !ok {
		t.Fatalf("a new replica answers a claim with %T", m)
	}
	const lease = 700 * time.Millisecond
	asked := time.Now()
	first.send(volume.Ping{At: 1, Lease: lease})
	if m := first.next(); m != volume.Message(volume.Pong{At: 1}) {
		t.Fatalf("asked for a lease: %+v", m)
	}
	first.send(volume.Ping{At: 2, Lease: volume.LeaseTime + 1})
	if m := first.next(); m != volume.Message(volume.Pong{}) {
		t.Fatalf("asked for a lease that is too long: %+v", m)
	}
	first.conn.Close()

	second := accept(t, l)
	second.send(volume.Claim{Promise: volume.Promise{Epoch: 2, Nonce: 2}})
	second.send(volume.Ping{At: 3, Lease: lease}) // it has no promise yet
	if m := second.next(); m != volume.Message(volume.Pong{}) {
		t.Fatalf("while a promise waits: %+v", m)
	}
	if m, ok := second.next().(volume.Promised); !ok {
		t.Fatalf("claimed: %+v", m)
	}
	if d := time.Since(asked); d < lease {
		t.Errorf("a lease of %v was over after %v", lease, d)
	}
	second.send(volume.Ping{At: 4, Lease: lease})
	if m := second.next(); m != volume.Message(volume.Pong{At: 4}) {
		t.Fatalf("asked for a lease: %+v", m)
	}
}
