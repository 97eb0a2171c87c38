package proc

import (
	"net"
	"net/netip"
	"os"
	"testing"
)

// A child connects from the address that it is given; without one the kernel chooses.
func TestSource(t *testing.T) {
	if to := os.Getenv("CONNECT_TO"); to != "" { // the child
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	launcher := NewLauncher(t.Name())
	for _, source := range []netip.Addr{netip.MustParseAddr("127.5.6.7"), {}} {
		p, err := launcher.Start(Spec{
			Path: self, Args: []string{self, "-test.run=^TestSource$"}, Env: []string{"CONNECT_TO=" + l.Addr().String()}, Source: source,
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		want := source
		if !want.IsValid() {
			want = netip.MustParseAddr("127.0.0.1")
		}
		if from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != want {
			t.Errorf("it connects from %v, wanted is %v", from, want)
		}
		c.Close()
		if e := p.Exit(); e.Code != 0 {
			t.Errorf("the child ended with %+v", e)
		}
	}
}
