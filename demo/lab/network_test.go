package lab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestNetwork cuts addresses of this process from each other: a connection that exists is silent in the directions that
// are cut, and goes on when they are healed; new ones are not made, whoever makes them, and third parties notice nothing.
func TestNetwork(t *testing.T) {
	a, b, c := netip.MustParseAddr("127.201.7.1"), netip.MustParseAddr("127.201.7.2"), netip.MustParseAddr("127.201.7.3")
	listen := func(at netip.Addr) net.Listener {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		l, err := config.Listen(t.Context(), "tcp", netip.AddrPortFrom(at, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	la, lb := listen(a), listen(b)
	dial := func(from netip.Addr, to net.Listener) (net.Conn, error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 300 * time.Millisecond}
		return d.Dial("tcp", to.Addr().String())
	}
	connect := func(from netip.Addr, to net.Listener) (here, there net.Conn) {
		t.Helper()
		here, err := dial(from, to)
		if err != nil {
			t.Fatal(err)
		}
		there, err = to.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { here.Close(); there.Close() })
		return here, there
	}
	arrives := func(from, to net.Conn, within time.Duration) bool {
		t.Helper()
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(within))
		_, err := to.Read(make([]byte, 1))
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a connection that is cut ends: %v", err)
		}
		return err == nil
	}
	const soon, long = 200 * time.Millisecond, 10 * time.Second
	n := &Network{pids: func() ([]int, error) { return []int{os.Getpid()}, nil }}
	t.Cleanup(func() { _ = n.Heal() })
	atA, atB := connect(a, lb)
	third, atB2 := connect(c, lb)

	connections, err := n.Cut([]netip.Addr{a}, []netip.Addr{b})
	if err != nil {
		t.Fatal(err)
	}
	if connections != 1 {
		t.Errorf("%d connections are cut, not one", connections)
	}
	if arrives(atA, atB, soon) {
		t.Error("it arrives from a at b")
	}
	if !arrives(atB, atA, long) {
		t.Error("nothing arrives from b at a, which is not cut")
	}
	if !arrives(third, atB2, long) || !arrives(atB2, third, long) {
		t.Error("a third party is cut off")
	}
	for name, err := range map[string]error{"from a to b": second(dial(a, lb)), "from b to a": second(dial(b, la))} {
		if e := net.Error(nil); !errors.As(err, &e) || !e.Timeout() {
			t.Errorf("a new connection %s: %v; wanted is silence", name, err)
		}
	}
	connect(c, la)

	if _, err := n.Cut([]netip.Addr{b}, []netip.Addr{a}); err != nil {
		t.Fatal(err)
	}
	if arrives(atB, atA, soon) {
		t.Error("it arrives from b at a")
	}
	if err := n.Heal(); err != nil {
		t.Fatal(err)
	}
	if !arrives(atA, atB, long) || !arrives(atB, atA, long) {
		t.Error("nothing arrives after the cut")
	}
	connect(a, lb)
}

func second(_ net.Conn, err error) error { return err }
