package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/cstor-go/cstor/devcluster/controlplane"
	"github.com/cstor-go/cstor/devcluster/noderuntime"
	"github.com/cstor-go/cstor/devcluster/proc"
	"github.com/cstor-go/cstor/devcluster/serviceproxy"
)

const (
	// podGrace is what pods get to end when the whole cluster goes down.
	podGrace = 2 * time.Second
	// maxClusters is how many devclusters fit on one machine: each has a /16 for Services and one for everything else
	// out of 127.96.0.0/11 and 127.128.0.0/11.
	maxClusters = 32
	// maxNodes is limited by one /24 of pod addresses per node.
	maxNodes = 250
)

// options describe the cluster to make.
type options struct {
	dir    string // absolute
	nodes  []string
	images noderuntime.Images
}

// addresses are the loopback addresses that a cluster has for itself.
type addresses struct {
	lock     net.Listener // held while the addresses are ours; the kernel releases it when we die
	services netip.Prefix
	control  netip.Addr
	block    [2]byte
}

// reserveAddresses finds a block of addresses that no other devcluster of this machine uses. An abstract socket is the
// lock: it lives in the network namespace, just as the addresses do, and dies with its holder.
func reserveAddresses() (*addresses, error) {
	for i := range byte(maxClusters) {
		l, err := net.Listen("unix", fmt.Sprintf("@devcluster/%d", i))
		if err != nil {
			continue
		}
		a := &addresses{
			lock:     l,
			services: netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 96 + i, 0, 0}), 16),
			control:  netip.AddrFrom4([4]byte{127, 128 + i, 0, 1}),
			block:    [2]byte{127, 128 + i},
		}
		return a, nil
	}
	return nil, fmt.Errorf("all %d address blocks are taken by other devclusters on this machine", maxClusters)
}

// node returns the addresses of the i-th node.
func (a *addresses) node(i int, name string) noderuntime.NodeConfig {
	at := func(last byte) netip.Addr {
		return netip.AddrFrom4([4]byte{a.block[0], a.block[1], byte(i + 1), last})
	}
	return noderuntime.NodeConfig{Name: name, Address: at(1), Pods: netip.PrefixFrom(at(0), 24)}
}

// cluster is a running devcluster.
type cluster struct {
	opts      options
	log       *slog.Logger
	launcher  *proc.Launcher
	addrs     *addresses
	plane     *controlplane.ControlPlane
	runtime   *noderuntime.Runtime
	proxy     *serviceproxy.Proxy
	control   *controlServer
	stopWatch context.CancelFunc
}

// phaseIndent begins every line of phases.
const phaseIndent = "  "

// phases prints how long each step of the start took.
type phases struct {
	out         io.Writer
	begin, last time.Time
}

func (p *phases) done(name string) {
	t := time.Now()
	fmt.Fprintf(p.out, phaseIndent+"%-24s %5.1f s\n", name, t.Sub(p.last).Seconds())
	p.last = t
}

// start brings the cluster up; whatever it returns, stop must be called.
func (c *cluster) start(ctx context.Context, out io.Writer) error {
	ph := &phases{out: out, begin: time.Now(), last: time.Now()}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding our own executable: %w", err)
	}
	c.launcher = proc.NewLauncher(c.opts.dir)
	if c.addrs, err = reserveAddresses(); err != nil {
		return err
	}
	c.plane, err = controlplane.New(controlplane.Config{
		Executable: executable, Dir: c.opts.dir, Address: c.addrs.control, Services: c.addrs.services,
		Launcher: c.launcher, Log: c.log,
	})
	if err != nil {
		return err
	}
	ph.done("keys and certificates")
	if err := c.plane.Start(ctx, ph.done); err != nil {
		return err
	}
	client, err := c.startNodes(ctx)
	if err != nil {
		return err
	}
	ph.done("nodes registered")
	if err := c.waitUsable(ctx, client); err != nil {
		return err
	}
	ph.done("nodes and accounts ready")
	if c.control, err = serveControl(c); err != nil {
		return err
	}
	fmt.Fprintf(out, "devcluster ready in %.1f s: KUBECONFIG=%s\n", time.Since(ph.begin).Seconds(), c.plane.AdminKubeconfig())
	return nil
}

// startNodes starts the process runtime and the forwarding of Services.
func (c *cluster) startNodes(ctx context.Context) (kubernetes.Interface, error) {
	rc, err := c.plane.NodesConfig()
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = 500, 1000
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("making API client: %w", err)
	}
	cfg := noderuntime.Config{
		Client: client, Launcher: c.launcher, Dir: filepath.Join(c.opts.dir, "nodes"), Images: c.opts.images,
		APIServer: c.plane.Endpoint(), CA: c.plane.CA(), Version: version(), Log: c.log,
	}
	var addrs []netip.Addr
	for i, name := range c.opts.nodes {
		n := c.addrs.node(i, name)
		cfg.Nodes = append(cfg.Nodes, n)
		addrs = append(addrs, n.Address)
	}
	if cfg.ServingCert, cfg.ServingKey, err = c.plane.NodeServingCert(addrs); err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	if c.runtime, err = noderuntime.New(cfg, factory); err != nil {
		return nil, err
	}
	if c.proxy, err = serviceproxy.New(factory, c.log); err != nil {
		return nil, err
	}
	watchCtx, stop := context.WithCancel(context.Background())
	c.stopWatch = stop
	factory.Start(watchCtx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	go c.proxy.Run(watchCtx)
	return client, c.runtime.Start(ctx)
}

// waitUsable waits until pods can be created and scheduled.
func (c *cluster) waitUsable(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("it takes longer than a minute"))
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	account := false
	for !account || !c.runtime.Ready() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for nodes and the default ServiceAccount: %w", context.Cause(ctx))
		}
		if account {
			continue
		}
		_, err := client.CoreV1().ServiceAccounts(corev1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			return fmt.Errorf("looking for the default ServiceAccount: %w", err)
		}
		account = err == nil
	}
	return nil
}

// stop ends everything and removes the directory. It can be called at any stage of the start.
func (c *cluster) stop() error {
	if c.control != nil {
		c.control.close()
	}
	if c.runtime != nil {
		c.runtime.Shutdown(podGrace)
	}
	if c.stopWatch != nil {
		c.stopWatch()
	}
	if c.plane != nil {
		c.plane.Stop()
	}
	proc.KillMarked(c.opts.dir)
	if c.addrs != nil {
		_ = c.addrs.lock.Close()
	}
	if err := os.RemoveAll(c.opts.dir); err != nil {
		return fmt.Errorf("removing the cluster's directory: %w", err)
	}
	return nil
}
