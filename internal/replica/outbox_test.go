package replica

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/wire"
)

// TestOutboxesShare: what may wait for targets is shared by the replicas, whose number changes.
func TestOutboxesShare(t *testing.T) {
	s, _ := newTestServer(t)
	if got := s.share.Load(); got != outboxPause {
		t.Errorf("%d bytes by default", got)
	}
	s.cfg.OutboxBytes = 32 << 20
	spec := func(i int) Spec { return Spec{Name: fmt.Sprint("r", i), Target: "127.0.0.1:1", Size: 1 << 20} }
	for i, want := range []int64{16 << 20, 16 << 20, 32 << 20 / 3, 8 << 20} {
		if err := s.Attach(spec(i)); err != nil {
			t.Fatal(err)
		}
		if got := s.share.Load(); got != want {
			t.Errorf("%d bytes for each of %d replicas", got, i+1)
		}
	}
	s.Detach("r0")
	if got := s.share.Load(); got != 32<<20/3 {
		t.Errorf("%d bytes for each of 3 replicas", got)
	}
	s.cfg.OutboxBytes = 1
	s.Detach("r1")
	if got := s.share.Load(); got != outboxLeast {
		t.Errorf("%d bytes at least", got)
	}
}

// TestAnswersWait has requests for more come at once than may wait for the target.
func TestAnswersWait(t *testing.T) {
	s, _ := newTestServer(t)
	s.share.Store(outboxLeast)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	target, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	const answers, size = 64, 256 << 10
	out, err := wire.NewOutbox(conn.(*net.TCPConn), outboxLeast+2*size)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	read := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, target, answers*size)
		read <- err
	}()
	x := &session{a: &attached{server: s}, out: out}
	for i := range answers {
		if x.answer(make([]byte, size), nil); out.Err() != nil {
			t.Fatalf("answer %d: %v", i, out.Err())
		}
	}
	out.Flush()
	if err := <-read; err != nil {
		t.Error(err)
	}
}
