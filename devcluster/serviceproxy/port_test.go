package serviceproxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// server answers each connection with its name and then echoes.
func server(t *testing.T, name string) (addr backend, conns chan *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	conns = make(chan *net.TCPConn, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c.(*net.TCPConn)
			go func() {
				fmt.Fprintln(c, name)
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), conns
}

func newPort(t *testing.T, b ...backend) *port {
	t.Helper()
	p, err := listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	p.setBackends(b)
	return p
}

func dial(t *testing.T, p *port) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn), bufio.NewReader(c)
}

func TestForward(t *testing.T) {
	a, _ := server(t, "a")
	b, _ := server(t, "b")
	p := newPort(t, a, b)
	seen := map[string]int{}
	for range 4 {
		c, r := dial(t, p)
		name, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		seen[name]++
		fmt.Fprintln(c, "hello")
		_ = c.CloseWrite() // the client's end reaches the server, its answer still comes back
		if rest, err := io.ReadAll(r); err != nil || string(rest) != "hello\n" {
			t.Errorf("echo is %q, %v", rest, err)
		}
	}
	if seen["a\n"] != 2 || seen["b\n"] != 2 {
		t.Errorf("connections per pod: %v, want two each", seen)
	}
}

// A pod that does not answer is passed over; without any the connection breaks at once.
func TestForwardToDeadPods(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	a, _ := server(t, "a")
	p := newPort(t, dead, a)
	_, r := dial(t, p)
	if name, err := r.ReadString('\n'); err != nil || name != "a\n" {
		t.Errorf("got %q, %v", name, err)
	}
	p.setBackends([]backend{dead})
	c, err := net.Dial("tcp", p.listener.Addr().String())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connecting and reading gives %v, want a reset", err)
	}
}

// When the pod dies its clients notice, and the port is closed for those that go on sending.
func TestPodDies(t *testing.T) {
	a, conns := server(t, "a")
	c, r := dial(t, newPort(t, a))
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	reset(<-conns)
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection lives on")
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, err := c.Write([]byte("x")); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection still takes data")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestBackends(t *testing.T) {
	pod := func(ready v1.ConditionStatus, ip string) *v1.Pod {
		return &v1.Pod{
			Spec: v1.PodSpec{Containers: []v1.Container{{Ports: []v1.ContainerPort{{Name: "iscsi", ContainerPort: 3260}}}}},
			Status: v1.PodStatus{PodIP: ip, Phase: v1.PodRunning, Conditions: []v1.PodCondition{
				{Type: v1.PodReady, Status: ready},
			}},
		}
	}
	deleted := pod(v1.ConditionTrue, "127.0.0.3")
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	pods := []*v1.Pod{pod(v1.ConditionTrue, "127.0.0.1"), pod(v1.ConditionFalse, "127.0.0.2"), deleted}
	for target, want := range map[intstr.IntOrString]string{
		intstr.FromString("iscsi"): "[127.0.0.1:3260]",
		intstr.FromInt32(9000):     "[127.0.0.1:9000]",
		intstr.FromString("none"):  "[]",
		{}:                         "[127.0.0.1:80]", // the Service's own port
	} {
		got := fmt.Sprint(backendsOf(&v1.Service{}, &v1.ServicePort{Port: 80, TargetPort: target}, pods))
		if got != want {
			t.Errorf("target %v: %s, want %s", target, got, want)
		}
	}
}
