package replica

import (
	"bytes"
	"log/slog"
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// newTestServer returns a server over a pool in memory.
func newTestServer(t *testing.T) (*Server, *disk.Mem) {
	t.Helper()
	dev := disk.NewMem("mem", 256<<20)
	p, err := pool.Create(pool.Stripe(dev), pool.Config{Name: "p", Owner: "p"}, pool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Pool: p, PullListen: l, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() {
		s.shut()
		s.tasks.Wait()
		p.Close()
	})
	return s, dev
}

// newPull returns a pull for a new replica that nobody runs.
func newPull(t *testing.T, s *Server) *pull {
	t.Helper()
	r, err := s.cfg.Pool.CreateReplica("r", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAttached(s, Spec{Name: "r"}, r)
	if err != nil {
		t.Fatal(err)
	}
	return &pull{a: a}
}

func filled(b byte) []byte { return bytes.Repeat([]byte{b}, block.Size) }
