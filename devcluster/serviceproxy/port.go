package serviceproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// dialTimeout is long for a connection within one machine: only an overloaded one needs it.
	dialTimeout = 2 * time.Second
	// lingerTimeout is how long a client may go on sending after the pod has closed its side.
	lingerTimeout = time.Second
	// maxConns bounds the connections through one port; more are reset.
	maxConns = 4096
)

// port is one listening port of a Service.
type port struct {
	listener *net.TCPListener

	mu       sync.Mutex
	backends []backend
	next     int // round robin
	conns    int
}

func listen(addr netip.AddrPort) (*port, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("listening for a Service: %w", err)
	}
	p := &port{listener: l}
	go p.accept()
	return p, nil
}

// setBackends changes where new connections go. Connections to pods that are not among them any more live on: a pod
// that is merely not ready finishes what it does, and a dead one's connections are closed by the kernel.
func (p *port) setBackends(b []backend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backends = b
}

// close stops listening. Connections that exist live on until an end closes, as with kube-proxy.
func (p *port) close() {
	_ = p.listener.Close()
}

func (p *port) accept() {
	for {
		c, err := p.listener.AcceptTCP()
		if err != nil {
			if temporary(err) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return // closed
		}
		go p.serve(c)
	}
}

// serve forwards one connection to one pod until either end is done with it.
func (p *port) serve(client *net.TCPConn) {
	defer p.leave()
	if !p.enter() {
		reset(client)
		return
	}
	server := p.dial(client)
	if server == nil {
		reset(client)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		forward(server, client)
	}()
	forward(client, server)
	// The pod has ended the connection, perhaps by dying: the client, which knows, gets little time to do the same.
	_ = client.SetReadDeadline(time.Now().Add(lingerTimeout))
	<-done
	_ = client.Close()
	_ = server.Close()
}

// dial connects to the next pod that answers, from the client's address.
func (p *port) dial(client *net.TCPConn) *net.TCPConn {
	dialer := net.Dialer{Timeout: dialTimeout}
	if from, ok := client.RemoteAddr().(*net.TCPAddr); ok && from.IP.IsLoopback() {
		dialer.LocalAddr = &net.TCPAddr{IP: from.IP}
	}
	p.mu.Lock()
	backends := p.backends
	first := p.next
	p.next++
	p.mu.Unlock()
	for i := range backends {
		b := backends[(first+i)%len(backends)]
		c, err := dialer.Dial("tcp", b.String())
		if err == nil {
			return c.(*net.TCPConn)
		}
	}
	return nil
}

func (p *port) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns++
	return p.conns <= maxConns
}

func (p *port) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns--
}

// forward moves bytes within the kernel (splice) from one connection to the other until src ends, and passes that end
// on. When either connection breaks, both are reset, so that neither end waits for the other.
func forward(dst, src *net.TCPConn) {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		reset(dst)
		reset(src)
	}
}
