package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
)

// sweepEvery is how often sockets are looked for that are newer than a cut: those of processes that were started since.
const sweepEvery = 50 * time.Millisecond

// Network loses packets between addresses of a cluster, in one direction or both, as a network that is cut: nothing tells
// the two sides, connections neither end nor get on, and new ones are not made. What is sent again after the cut arrives.
//
// Every TCP socket of the cluster's processes gets a socket filter (SO_ATTACH_FILTER), which drops what it receives. It
// needs no privileges beyond those to debug the processes, no help of theirs, and nothing is left when they have ended.
type Network struct {
	pids func() ([]int, error)

	mu      sync.Mutex
	drops   map[drop]bool
	swept   map[string]bool // sockets that have the present filter
	stop    chan struct{}   // ends the sweeping; nil when nothing is cut
	stopped chan struct{}
}

// drop is a direction in which packets are lost.
type drop struct{ from, to netip.Addr }

// Network returns the network of a cluster that ends with this process.
func (l *Lab) Network() (*Network, error) {
	if l.supervisor == nil {
		return nil, errors.New("the cluster was left running by another process: its network cannot be cut")
	}
	return &Network{pids: func() ([]int, error) { return family(l.supervisor.cmd.Process.Pid) }}, nil
}

// APIServerAddr is where the API server listens.
func (l *Lab) APIServerAddr() (netip.Addr, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reading the cluster's kubeconfig: %w", err)
	}
	u, err := url.Parse(cfg.Host)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reading the cluster's kubeconfig: %w", err)
	}
	return netip.ParseAddr(u.Hostname())
}

// Cut loses all packets from each address of from to each of to, in addition to what is lost already, until Heal. It
// returns how many connections that exist are concerned.
func (n *Network) Cut(from, to []netip.Addr) (connections int, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.drops == nil {
		n.drops = map[drop]bool{}
	}
	added := map[drop]bool{}
	for _, f := range from {
		for _, t := range to {
			if f != t {
				n.drops[drop{f, t}], added[drop{f, t}] = true, true
			}
		}
	}
	n.swept = map[string]bool{}
	if connections, err = n.sweep(added); err != nil {
		return 0, err
	}
	if n.stop == nil {
		n.stop, n.stopped = make(chan struct{}), make(chan struct{})
		go n.keepSweeping(n.stop, n.stopped)
	}
	return connections, nil
}

// Heal ends all cuts.
func (n *Network) Heal() error {
	n.mu.Lock()
	stop, stopped := n.stop, n.stopped
	n.stop = nil
	n.mu.Unlock()
	if stop == nil {
		return nil
	}
	close(stop)
	<-stopped
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drops, n.swept = nil, map[string]bool{}
	_, err := n.sweep(nil)
	return err
}

func (n *Network) keepSweeping(stop, stopped chan struct{}) {
	defer close(stopped)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.mu.Lock()
			_, _ = n.sweep(nil) // what fails is tried again; processes come and go
			n.mu.Unlock()
		case <-stop:
			return
		}
	}
}

// sweep gives all sockets that have not got it yet the present filter, and counts the connections in these directions.
func (n *Network) sweep(of map[drop]bool) (connections int, err error) {
	pids, err := n.pids()
	if err != nil {
		return 0, err
	}
	connected, listening := n.filters()
	for _, pid := range pids {
		err := eachSocket(pid, n.swept, func(fd int, listens bool) error {
			filter := connected
			if listens {
				filter = listening
			} else if of[directionTo(fd)] {
				connections++
			}
			return setFilter(fd, filter)
		})
		if err != nil {
			return connections, fmt.Errorf("cutting the network of process %d: %w", pid, err)
		}
	}
	return connections, nil
}

// filters returns what connections and what listening sockets drop; nil for nothing. Without packets in one direction no
// connection is made in the other either: that is up to listeners, since the socket that dials exists only then.
func (n *Network) filters() (connected, listening []unix.SockFilter) {
	if len(n.drops) == 0 {
		return nil, nil
	}
	for d := range n.drops {
		connected = append(connected, d.filter()...)
		listening = append(listening, d.filter()...)
		listening = append(listening, drop{d.to, d.from}.filter()...)
	}
	keep := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}
	return append(connected, keep), append(listening, keep)
}

// filter drops a packet in this direction, by its IP header, and goes on behind for others.
func (d drop) filter() []unix.SockFilter {
	const network = 0xfff00000 // SKF_NET_OFF: the offset of the IP header
	number := func(a netip.Addr) uint32 { b := a.As4(); return binary.BigEndian.Uint32(b[:]) }
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: network + 12}, // source
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number(d.from), Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: network + 16}, // destination
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number(d.to), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

func setFilter(fd int, filter []unix.SockFilter) error {
	if filter == nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != unix.ENOENT {
			return err
		}
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
}

// directionTo returns from where to where packets go that a connection receives.
func directionTo(fd int) drop {
	local, err := unix.Getsockname(fd)
	remote, err2 := unix.Getpeername(fd)
	l, ok := local.(*unix.SockaddrInet4)
	r, ok2 := remote.(*unix.SockaddrInet4)
	if err != nil || err2 != nil || !ok || !ok2 {
		return drop{}
	}
	return drop{netip.AddrFrom4(r.Addr), netip.AddrFrom4(l.Addr)}
}

// eachSocket calls do for the TCP sockets of a process that are not in seen, and notes them there. A process that ends
// meanwhile has none.
func eachSocket(pid int, seen map[string]bool, do func(fd int, listens bool) error) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(pidfd)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return gone(err)
	}
	for _, e := range entries {
		socket, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(socket, "socket:") || seen[socket] {
			continue
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if err == unix.EBADF || err == unix.ESRCH {
			continue // it was closed meanwhile
		}
		if err != nil {
			return err
		}
		err = onSocket(fd, do)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		seen[socket] = true
	}
	return nil
}

func onSocket(fd int, do func(fd int, listens bool) error) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_INET {
		return nil // the number may be another file's by now
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	switch {
	case err != nil:
		return err
	case protocol == unix.IPPROTO_MPTCP: // as Go programs listen by default; devcluster tells its children not to
		return errors.New("a multipath TCP socket takes no filter")
	case protocol != unix.IPPROTO_TCP:
		return nil
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return err
	}
	return do(fd, listens != 0)
}

// gone returns err unless it says that the process has ended.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// family returns a process and its children.
func family(pid int) ([]int, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(err, fmt.Errorf("process %d has ended, or the kernel does not tell children", pid))
	}
	pids := []int{pid}
	for _, file := range files {
		children, err := os.ReadFile(file)
		if gone(err) != nil {
			return nil, fmt.Errorf("listing the cluster's processes: %w", err)
		}
		for _, c := range strings.Fields(string(children)) {
			child, err := strconv.Atoi(c)
			if err != nil {
				return nil, fmt.Errorf("listing the cluster's processes: %w", err)
			}
			pids = append(pids, child)
		}
	}
	return pids, nil
}
