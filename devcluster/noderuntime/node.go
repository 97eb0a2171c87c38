package noderuntime

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"github.com/cstor-go/cstor/devcluster/proc"
)

// node is one node of the cluster, powered on or off.
type node struct {
	rt     *Runtime
	cfg    NodeConfig
	dir    string
	log    *slog.Logger
	pool   *addressPool
	events record.EventRecorder
	logs   *logServer

	off   atomic.Bool // no power: nothing runs, nothing is reported
	power sync.Mutex  // held while the node is started or stopped

	mu     sync.Mutex
	pods   map[types.UID]*pod
	cancel context.CancelFunc // ends heartbeats and housekeeping; nil while off
	beats  sync.WaitGroup
}

func newNode(rt *Runtime, cfg NodeConfig, events record.EventBroadcaster) (*node, error) {
	n := &node{
		rt: rt, cfg: cfg, dir: filepath.Join(rt.cfg.Dir, cfg.Name), log: rt.cfg.Log.With("node", cfg.Name),
		pool: newAddressPool(cfg.Pods, cfg.Address), events: newRecorder(events, cfg.Name), pods: map[types.UID]*pod{},
	}
	n.off.Store(true)
	for _, d := range hostDirs {
		if err := os.MkdirAll(filepath.Join(n.dir, "root", d), 0o755); err != nil {
			return nil, fmt.Errorf("making root of node %s: %w", cfg.Name, err)
		}
	}
	for _, d := range []string{"pods", "logs"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("making directory of node %s: %w", cfg.Name, err)
		}
	}
	var err error
	n.logs, err = newLogServer(n)
	return n, err
}

func (n *node) isOff() bool { return n.off.Load() }

// logPath is where a container's output goes; it outlives the pod.
func (n *node) logPath(namespace, pod, container string) string {
	return filepath.Join(n.dir, "logs", namespace+"_"+pod+"_"+container+".log")
}

// start switches the node on: it registers, beats, and runs what is bound to it.
func (n *node) start(ctx context.Context) error {
	n.power.Lock()
	defer n.power.Unlock()
	if !n.isOff() {
		return nil
	}
	if err := n.register(ctx); err != nil {
		return err
	}
	// What the pods did before the power cut is in the API, and perhaps not yet in the informer's cache.
	bound, err := n.rt.cfg.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.cfg.Name})
	if err != nil {
		return fmt.Errorf("listing the pods of node %s: %w", n.cfg.Name, err)
	}
	n.removeOrphans(bound.Items)
	alive, cancel := context.WithCancel(context.Background())
	n.mu.Lock()
	n.cancel = cancel
	n.off.Store(false)
	for i := range bound.Items {
		n.take(&bound.Items[i])
	}
	n.mu.Unlock()
	n.beats.Go(func() { n.heartbeat(alive) })
	n.beats.Go(func() { n.housekeep(alive) })
	n.events.Event(n.reference(), v1.EventTypeNormal, "Starting", "Starting kubelet.")
	for _, obj := range n.rt.podsOf(n.cfg.Name) { // what came since the list, while the node was still off
		n.observe(obj)
	}
	return nil
}

// stop is a power cut: all at once, and nobody is told.
func (n *node) stop() {
	n.power.Lock()
	defer n.power.Unlock()
	pods := n.switchOff()
	for _, p := range pods {
		p.silence()
	}
	for _, p := range pods {
		p.cancel()
	}
	for _, p := range pods {
		<-p.done
	}
	n.beats.Wait()
}

// shutDown ends the node together with the cluster: the pods get grace to end by themselves, and nobody is told.
func (n *node) shutDown(grace time.Duration) {
	n.power.Lock()
	defer n.power.Unlock()
	pods := n.switchOff()
	for _, p := range pods {
		p.silence()
		p.terminate(grace)
	}
	for _, p := range pods {
		<-p.done
	}
	n.beats.Wait()
	n.logs.close()
}

// switchOff stops heartbeats and dispatching; it returns the pods that ran.
func (n *node) switchOff() []*pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off.Store(true)
	if n.cancel != nil {
		n.cancel()
		n.cancel = nil
	}
	var pods []*pod
	for _, p := range n.pods {
		pods = append(pods, p)
	}
	n.pods = map[types.UID]*pod{}
	return pods
}

// observe takes in the state of a pod that is bound to the node.
func (n *node) observe(obj *v1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.isOff() {
		n.take(obj)
	}
}

// take is observe for those who hold the node's mutex.
func (n *node) take(obj *v1.Pod) {
	p := n.pods[obj.UID]
	if p == nil {
		if podutil.IsPodTerminal(obj) && obj.DeletionTimestamp == nil {
			return
		}
		p = newPod(n, obj)
		n.pods[obj.UID] = p
		go p.run()
	}
	p.observe(obj)
}

// vanished ends a pod that is no longer in the API.
func (n *node) vanished(uid types.UID) {
	n.mu.Lock()
	p := n.pods[uid]
	n.mu.Unlock()
	if p != nil {
		p.terminate(goneGrace)
	}
}

func (n *node) forget(p *pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.pods, p.uid)
}

// removeOrphans removes what is left of pods that were deleted while the node was off.
func (n *node) removeOrphans(bound []v1.Pod) {
	alive := map[string]bool{}
	for i := range bound {
		alive[string(bound[i].UID)] = true
	}
	dirs, err := os.ReadDir(filepath.Join(n.dir, "pods"))
	for _, d := range dirs {
		if !alive[d.Name()] {
			if e := os.RemoveAll(filepath.Join(n.dir, "pods", d.Name())); e != nil {
				err = e
			}
		}
	}
	if err != nil {
		n.log.Warn("cannot remove directories of deleted pods", "error", err)
	}
}

// housekeep keeps logs small.
func (n *node) housekeep(ctx context.Context) {
	for pause(ctx, housekeepingPeriod) {
		files, _ := filepath.Glob(filepath.Join(n.dir, "logs", "*.log"))
		for _, f := range files {
			if err := proc.TrimLog(f, maxLog); err != nil {
				n.log.Warn("cannot trim a container's log", "error", err)
			}
		}
	}
}

// processes lists the containers of the node that run.
func (n *node) processes() []Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Process
	for _, p := range n.pods {
		p.mu.Lock()
		for _, c := range append(p.inits[:len(p.inits):len(p.inits)], p.containers...) {
			if c.process != nil {
				out = append(out, Process{
					Node: n.cfg.Name, Namespace: p.namespace, Pod: p.name, Container: c.spec.Name,
					PID: c.process.Pid, Restarts: int(c.restarts), IP: p.addr.String(), UID: string(p.uid),
				})
			}
		}
		p.mu.Unlock()
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		return a.Namespace+"/"+a.Pod+"/"+a.Container < b.Namespace+"/"+b.Pod+"/"+b.Container
	})
	return out
}
