// Package lab sets up what the walk-through and the end-to-end tests work on: a cluster of plain processes with a real
// Kubernetes control plane, the manifests of deploy/, a disk per node, pools, and volumes. It does everything as a
// user would, with kubectl and the API, and leaves no process and no file behind when it is closed.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

// Namespace is where everything of cStor lives.
const Namespace = "openebs"

// Nodes are the nodes of the cluster.
var Nodes = []string{"e2e1-node1", "e2e1-node2", "e2e1-node3"}

// Image is the name of the container image in the manifests of deploy/.
const Image = "cstor:dev"

// Options say where things are.
type Options struct {
	Root     string    // of the repository: bin/, deploy/, examples/
	Dir      string    // of the cluster: empty or absent; it is removed with the cluster
	Raid     string    // type of the pools' raid groups; empty: stripe
	Pools    string    // the pools' manifest, below Root; empty: the example of Raid
	Detach   bool      // the cluster outlives this process; Close leaves it alone
	Progress io.Writer // what is going on while the cluster starts
}

// Lab is a running cluster.
type Lab struct {
	opts       Options
	supervisor *supervisor
	Kubeconfig string
	Client     client.WithWatch
}

// Start starts a cluster. If it fails or ctx ends, nothing is left.
func Start(ctx context.Context, opts Options) (*Lab, error) {
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	if opts.Raid != "" && !slices.Contains(RaidTypes, opts.Raid) {
		return nil, fmt.Errorf("raid type %q: there are %s", opts.Raid, strings.Join(RaidTypes, ", "))
	}
	l := &Lab{opts: opts, Kubeconfig: filepath.Join(opts.Dir, "kubeconfig")}
	for _, program := range []string{l.devcluster(), l.binary()} {
		if err := executable(program); err != nil {
			removeEmpty(opts.Dir)
			return nil, err
		}
	}
	if err := l.start(ctx); err != nil {
		// A devcluster that fails to start cleans up itself; one that was there before is none of ours.
		l.supervisor.stop()
		removeEmpty(opts.Dir)
		return nil, err
	}
	if err := l.connect(); err != nil {
		return nil, errors.Join(err, l.Remove())
	}
	return l, nil
}

// NewDir makes a directory for a cluster: below $TMPDIR if that is set, else below .run in the repository, since the disks
// need space that a /tmp in memory does not have.
func NewDir(root string) (string, error) {
	base := os.Getenv("TMPDIR")
	if base == "" {
		base = filepath.Join(root, ".run")
		if err := os.MkdirAll(base, 0o755); err != nil {
			return "", fmt.Errorf("making a directory for the cluster: %w", err)
		}
	}
	dir, err := os.MkdirTemp(base, "cstor-")
	if err != nil {
		return "", fmt.Errorf("making a directory for the cluster: %w", err)
	}
	return dir, nil
}

// removeEmpty removes a directory that was made for a cluster in which nothing was started.
func removeEmpty(dir string) { _ = os.Remove(dir) }

func (l *Lab) start(ctx context.Context) error {
	args := []string{"up", "--dir", l.opts.Dir, "--nodes", strings.Join(Nodes, ","), "--image", Image + "=" + l.binary()}
	if l.opts.Detach {
		cmd := exec.CommandContext(ctx, l.devcluster(), append(args, "--detach")...)
		cmd.Stdout, cmd.Stderr = l.opts.Progress, l.opts.Progress
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("starting the cluster: %w", err)
		}
	} else {
		var err error
		if l.supervisor, err = startSupervisor(l.devcluster(), args, l.opts.Progress, ctx.Done()); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) connect() error {
	cfg, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the cluster's kubeconfig: %w", err)
	}
	cfg.QPS, cfg.Burst = 200, 400
	log.SetLogger(logr.Discard()) // the client would complain on the terminal that nobody reads its log
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, cstorv1.AddToScheme, openebsv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return fmt.Errorf("making a scheme: %w", err)
		}
	}
	if l.Client, err = client.NewWithWatch(cfg, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("making an API client: %w", err)
	}
	return nil
}

func (l *Lab) devcluster() string { return filepath.Join(l.opts.Root, "bin", "devcluster") }
func (l *Lab) binary() string     { return filepath.Join(l.opts.Root, "bin", "cstor") }

// Dir is the cluster's directory.
func (l *Lab) Dir() string { return l.opts.Dir }

// Close stops the cluster and removes its directory, unless it was started to be left running.
func (l *Lab) Close() error {
	if l.opts.Detach {
		return nil
	}
	return l.Remove()
}

// Remove stops the cluster and removes its directory.
func (l *Lab) Remove() error {
	l.supervisor.stop()
	return Down(l.opts.Root, l.opts.Dir)
}

// Down stops the cluster in dir, whoever started it, and removes the directory. It is no error if there is none.
func Down(root, dir string) error {
	cmd := exec.Command(filepath.Join(root, "bin", "devcluster"), "down", "--dir", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a second Ctrl-C must not stop the cleaning
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("stopping the cluster in %s: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	removeEmpty(dir)
	return nil
}

// Kubectl runs kubectl on the cluster and returns what it prints.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.devcluster(), append([]string{"kubectl", "--kubeconfig", l.Kubeconfig}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// Ended is closed when the cluster's supervisor has ended, which it does not do by itself; nil if it is detached.
func (l *Lab) Ended() <-chan struct{} {
	if l.supervisor == nil {
		return nil
	}
	return l.supervisor.done
}

// pollEvery is how often the cluster is asked for what is being waited for.
const pollEvery = 100 * time.Millisecond

// Until calls check until it is done, fails, or limit has passed; state is what it is at, for the message.
func Until(ctx context.Context, limit time.Duration, what string, check func(context.Context) (done bool, state string, err error)) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		done, state, err := check(limited)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case limited.Err() != nil:
			return fmt.Errorf("%s: not within %v; the state is: %s", what, limit, state)
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		case done:
			return nil
		}
		select {
		case <-tick.C:
		case <-limited.Done():
		}
	}
}

// Get reads an object of our namespace.
func (l *Lab) Get(ctx context.Context, name string, obj client.Object) error {
	return l.Client.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: name}, obj)
}

// podReady reports whether a pod is ready to serve.
func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}
