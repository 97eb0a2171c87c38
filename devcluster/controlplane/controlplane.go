// Package controlplane runs a real Kubernetes control plane as child processes of the supervisor: etcd, API server,
// controller manager and scheduler, all of them the supervisor's own multicall executable. It relies on the address
// it is given being the cluster's alone; it promises that the API server answers when Start returns, that a component
// that ends is started again, and that nothing is left running after Stop.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/cstor-go/cstor/devcluster/proc"
)

const (
	// startTimeout is how long the API server may take on a busy machine.
	startTimeout = 2 * time.Minute
	// restartDelay keeps a component that cannot run from busying the machine.
	restartDelay = time.Second
	// maxLog is the size in bytes at which a component's log is cut.
	maxLog = 64 << 20
)

// Config describes a control plane.
type Config struct {
	Executable string       // the multicall binary
	Dir        string       // everything is kept below it
	Address    netip.Addr   // where the components listen; the cluster's own
	Services   netip.Prefix // ClusterIPs
	Launcher   *proc.Launcher
	Log        *slog.Logger
}

// ControlPlane is a running control plane.
type ControlPlane struct {
	cfg        Config
	pki        *authority
	etcdPort   int
	apiPort    int
	components []*component // in the order of their start
}

// New prepares keys, certificates and kubeconfigs; nothing runs yet.
func New(cfg Config) (*ControlPlane, error) {
	c := &ControlPlane{cfg: cfg}
	var err error
	if c.pki, err = newAuthority(filepath.Join(cfg.Dir, "pki")); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.logDir(), 0o755); err != nil {
		return nil, fmt.Errorf("making log directory: %w", err)
	}
	ports, err := freePorts(cfg.Address, 2)
	if err != nil {
		return nil, err
	}
	c.etcdPort, c.apiPort = ports[0], ports[1]
	_, _, err = c.pki.issue("apiserver", "kube-apiserver", nil,
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		[]netip.Addr{cfg.Address, cfg.Services.Addr().Next(), netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		return nil, err
	}
	if _, _, err := c.pki.issue("kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil, nil); err != nil {
		return nil, err
	}
	if err := c.pki.signingKey("sa"); err != nil {
		return nil, err
	}
	for _, id := range []struct{ file, user, group string }{
		{c.AdminKubeconfig(), "devcluster-admin", "system:masters"},
		{c.path("nodes.kubeconfig"), "devcluster-nodes", "system:masters"},
		{c.path("controller-manager.kubeconfig"), "system:kube-controller-manager", ""},
		{c.path("scheduler.kubeconfig"), "system:kube-scheduler", ""},
	} {
		var groups []string
		if id.group != "" {
			groups = append(groups, id.group)
		}
		if err := c.pki.kubeconfig(id.file, c.URL(), id.user, groups...); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// AdminKubeconfig is the path of the administrator's kubeconfig.
func (c *ControlPlane) AdminKubeconfig() string { return c.path("kubeconfig") }

// URL is where the API server answers.
func (c *ControlPlane) URL() string { return "https://" + c.Endpoint().String() }

// Endpoint is where the API server listens.
func (c *ControlPlane) Endpoint() netip.AddrPort {
	return netip.AddrPortFrom(c.cfg.Address, uint16(c.apiPort))
}

// CA is the cluster's certificate authority, PEM encoded.
func (c *ControlPlane) CA() []byte { return c.pki.pem }

// CAFile is the file that holds CA.
func (c *ControlPlane) CAFile() string { return c.pki.path("ca.crt") }

// NodeServingCert issues the certificate that the nodes' log servers present to the API server.
func (c *ControlPlane) NodeServingCert(addrs []netip.Addr) (cert, key []byte, err error) {
	return c.pki.issue("nodes", "system:nodes", nil, nil, addrs)
}

// NodesConfig is the client configuration of the process runtime.
func (c *ControlPlane) NodesConfig() (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.path("nodes.kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig of the nodes: %w", err)
	}
	return cfg, nil
}

func (c *ControlPlane) path(name string) string { return filepath.Join(c.cfg.Dir, name) }
func (c *ControlPlane) logDir() string          { return c.path("logs") }

// Start starts all components; it returns when the API server is ready. onPhase is told when a step is done.
func (c *ControlPlane) Start(ctx context.Context, onPhase func(name string)) error {
	if err := c.run("etcd", c.etcdArgs()); err != nil {
		return err
	}
	if err := c.run("kube-apiserver", c.apiserverArgs()); err != nil {
		return err
	}
	if err := c.waitDial(ctx, c.etcdPort); err != nil {
		return fmt.Errorf("waiting for etcd: %w", err)
	}
	onPhase("etcd")
	if err := c.waitReady(ctx); err != nil {
		return err
	}
	onPhase("kube-apiserver")
	ports, err := freePorts(c.cfg.Address, 2)
	if err != nil {
		return err
	}
	if err := c.run("kube-controller-manager", c.controllerManagerArgs(ports[0])); err != nil {
		return err
	}
	return c.run("kube-scheduler", c.schedulerArgs(ports[1]))
}

// Stop ends all components, last started first. Their state is about to be removed, so nothing is awaited but the end.
func (c *ControlPlane) Stop() {
	for i := len(c.components) - 1; i >= 0; i-- {
		c.components[i].stop()
	}
}

// Process is a component that runs.
type Process struct {
	Name string
	PID  int
}

// Processes lists the components in the order of their start.
func (c *ControlPlane) Processes() []Process {
	var out []Process
	for _, k := range c.components {
		out = append(out, Process{Name: k.name, PID: k.pid()})
	}
	return out
}

// waitReady polls until the API server reports that all its start-up hooks are done.
func (c *ControlPlane) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cfg, err := c.NodesConfig()
	if err != nil {
		return err
	}
	cfg.Timeout = 2 * time.Second
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return fmt.Errorf("making API client: %w", err)
	}
	defer client.CloseIdleConnections()
	return poll(ctx, "kube-apiserver to be ready (see "+c.logDir()+")", func() bool {
		resp, err := client.Get(c.URL() + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (c *ControlPlane) waitDial(ctx context.Context, port int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return poll(ctx, "a listener", func() bool {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(c.cfg.Address.String(), strconv.Itoa(port)), time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// poll asks done every 20 ms until it says yes.
func poll(ctx context.Context, what string, done func() bool) error {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for !done() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}

// freePorts returns n different ports that nobody listens on at addr, be it through a wildcard address. Since addr is
// the cluster's alone they stay free until our own component takes them.
func freePorts(addr netip.Addr, n int) ([]int, error) {
	var ports []int
	var errs error
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
		defer func() { errs = errors.Join(errs, l.Close()) }()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, errs
}

// component is one process that is started again when it ends.
type component struct {
	name string
	log  *slog.Logger
	quit chan struct{}
	done chan struct{}
	mu   sync.Mutex
	cur  *proc.Process
}

func (c *ControlPlane) run(name string, args []string) error {
	logPath := filepath.Join(c.logDir(), name+".log")
	spec := proc.Spec{
		Path: c.cfg.Executable,
		Args: append([]string{c.cfg.Executable, name}, args...),
		Env:  []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + c.cfg.Dir, "HOME=" + c.cfg.Dir},
		Dir:  c.cfg.Dir,
	}
	k := &component{name: name, log: c.cfg.Log, quit: make(chan struct{}), done: make(chan struct{})}
	start := func() (*proc.Process, error) {
		if err := proc.TrimLog(logPath, maxLog); err != nil {
			return nil, err
		}
		f, err := proc.OpenLog(logPath)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		spec.Log = f
		return c.cfg.Launcher.Start(spec)
	}
	p, err := start()
	if err != nil {
		return err
	}
	k.cur = p
	c.components = append(c.components, k)
	go k.keep(p, start)
	return nil
}

// keep restarts the component until it is stopped.
func (k *component) keep(p *proc.Process, start func() (*proc.Process, error)) {
	defer close(k.done)
	for {
		select {
		case <-k.quit:
			if p != nil {
				p.Stop(0)
			}
			return
		case <-doneOf(p):
			if p != nil {
				k.log.Warn("control plane component ended, starting it again", "component", k.name, "exitCode", p.Exit().Code)
			}
		}
		select {
		case <-k.quit:
			return
		case <-time.After(restartDelay):
		}
		var err error
		if p, err = start(); err != nil {
			k.log.Error("cannot start control plane component", "component", k.name, "error", err)
			p = nil
			continue
		}
		k.mu.Lock()
		k.cur = p
		k.mu.Unlock()
	}
}

// doneOf treats a process that could not be started as one that ended.
func doneOf(p *proc.Process) <-chan struct{} {
	if p == nil {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return p.Done()
}

func (k *component) pid() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cur.Pid
}

func (k *component) stop() {
	close(k.quit)
	<-k.done
}
