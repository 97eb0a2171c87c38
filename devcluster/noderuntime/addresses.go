package noderuntime

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// addressPool hands out a node's pod addresses in turn, so that an address is reused as late as possible.
type addressPool struct {
	prefix netip.Prefix
	mu     sync.Mutex
	last   netip.Addr
	used   map[netip.Addr]bool
}

// newAddressPool hands out the addresses of prefix except the first, the last and reserved.
func newAddressPool(prefix netip.Prefix, reserved netip.Addr) *addressPool {
	first := prefix.Masked().Addr()
	return &addressPool{prefix: prefix, last: first, used: map[netip.Addr]bool{first: true, reserved: true}}
}

var errNoAddress = errors.New("all pod addresses of the node are in use")

// take returns a free address that processes can listen on.
func (p *addressPool) take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.last
	for {
		if a = a.Next(); !p.prefix.Contains(a) || !p.prefix.Contains(a.Next()) {
			a = p.prefix.Masked().Addr()
		}
		if !p.used[a] && bindable(a) {
			p.used[a] = true
			p.last = a
			return a, nil
		}
		if a == p.last {
			return netip.Addr{}, errNoAddress
		}
	}
}

func (p *addressPool) release(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, a)
}

func bindable(a netip.Addr) bool {
	l, err := net.Listen("tcp", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return false
	}
	return l.Close() == nil
}
