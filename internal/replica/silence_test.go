package replica

import (
	"net"
	"testing"

	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// TestSilentTarget has a target accept a replica's connection and then be frozen, as its kernel still acknowledges what
// comes: the replica dials again, since another target may be there, once it has heard nothing for a while.
func TestSilentTarget(t *testing.T) {
	s, _ := newTestServer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := s.Attach(Spec{Name: "r", Target: l.Addr().String(), Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	frozen, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer frozen.Close()
	b, err := wire.AppendMessage(nil, volume.Ping{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := frozen.Write(b); err != nil { // the last that is heard of it
		t.Fatal(err)
	}
	next, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	r := wire.NewReader(next)
	defer r.Close()
	for {
		f, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			if m, err := f.Message(); err != nil {
				t.Fatal(err)
			} else if _, ok := m.(volume.Register); !ok {
				t.Fatalf("the first message is %T", m)
			}
			return
		}
		if err := r.Fill(); err != nil {
			t.Fatal(err)
		}
	}
}
