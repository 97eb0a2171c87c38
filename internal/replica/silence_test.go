package replica

import (
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// fakeTarget is the other end of a replica's session.
type fakeTarget struct {
	t    *testing.T
	conn net.Conn
	r    *wire.Reader

	report volume.Report // that the replica registered with
}

// attachTo attaches a replica to a listener of the test's.
func attachTo(t *testing.T, s *Server) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := s.Attach(Spec{Name: "r", Target: l.Addr().String(), Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	return l
}

// accept waits for the replica's next session and its first message.
func accept(t *testing.T, l net.Listener) *fakeTarget {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeTarget{t: t, conn: conn, r: wire.NewReader(conn)}
	t.Cleanup(func() { conn.Close(); f.r.Close() })
	m, ok := f.next().(volume.Register)
	if !ok {
		t.Fatalf("the first message is %T", m)
	}
	f.report = m.Report
	return f
}

func (f *fakeTarget) send(m volume.Message) {
	f.t.Helper()
	b, err := wire.AppendMessage(nil, m)
	if err == nil {
		_, err = f.conn.Write(b)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// next returns the next message; acknowledgements are passed over.
func (f *fakeTarget) next() volume.Message {
	f.t.Helper()
	for {
		frame, ok, err := f.r.Next()
		if err == nil && !ok {
			err = f.r.Fill()
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if !ok || frame.Type == wire.TypeAck {
			continue
		}
		m, err := frame.Message()
		if err != nil {
			f.t.Fatal(err)
		}
		return m
	}
}

// TestSilentTarget has a target be frozen, as its kernel still acknowledges what comes: the replica dials again once it has
// heard nothing for a while, since another target may be there.
func TestSilentTarget(t *testing.T) {
	t.Parallel()
	s, _ := newTestServer(t)
	l := attachTo(t, s)
	frozen := accept(t, l)
	frozen.send(volume.Ping{})
	if _, ok := frozen.next().(volume.Pong); !ok {
		t.Fatal("a ping is not answered")
	}
	accept(t, l)
}

// TestTargetTakesNothing has a target be frozen that a lot is to be sent to: that takes no longer to notice.
func TestTargetTakesNothing(t *testing.T) {
	t.Parallel()
	s, _ := newTestServer(t)
	l := attachTo(t, s)
	frozen := accept(t, l)
	a := s.find("r")
	a.mu.Lock()
	a.session.out.Append(make([]byte, 64<<20), nil)
	a.mu.Unlock()
	frozen.send(volume.Ping{})
	accept(t, l)
	if got := a.status().LastError; got != errSilent.Error() {
		t.Errorf("the session ended with %q", got)
	}
}

// TestSilenceAfterFailure checks that a session that ends for a failed pool is not taken for one whose target is silent: the
// replica does not dial again.
func TestSilenceAfterFailure(t *testing.T) {
	t.Parallel()
	s, _ := newTestServer(t)
	l := attachTo(t, s)
	accept(t, l)
	a := s.find("r")
	a.mu.Lock()
	a.session.failed.Store(&errPool)
	a.mu.Unlock()
	again := make(chan struct{})
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.Close()
			close(again)
		}
	}()
	select {
	case <-a.ended:
	case <-again:
		t.Error("the replica dials again")
	}
}

// TestPingsDuringFlush has the device's flush hang while a promise is made stable: it is given only afterwards, and pings are
// answered meanwhile.
func TestPingsDuringFlush(t *testing.T) {
	s, dev := newTestServer(t)
	l := attachTo(t, s)
	target := accept(t, l)
	_, resume := dev.HangIf(func(op string, _, _ int64) bool { return op == "flush" })
	defer resume()
	promise := volume.Promise{Epoch: 7, Nonce: 1}
	target.send(volume.Claim{Promise: promise})
	for range 3 {
		target.send(volume.Ping{})
		if _, ok := target.next().(volume.Pong); !ok {
			t.Fatal("a ping during a flush is not what is answered first")
		}
	}
	target.send(volume.Claim{Promise: promise}) // changes nothing, and relies on what is not stable all the same
	target.send(volume.Ping{})
	if _, ok := target.next().(volume.Pong); !ok {
		t.Fatal("a ping during a flush is not what is answered first")
	}
	resume()
	for range 2 {
		if m, ok := target.next().(volume.Promised); !ok || m.Promise != promise {
			t.Fatalf("%T", m)
		}
	}
}
