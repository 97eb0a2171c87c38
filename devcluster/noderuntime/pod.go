package noderuntime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// goneGrace is what the processes of a pod get to end when the pod has vanished from the API (force deleted).
const goneGrace = time.Second

// pod runs one pod of a node from its start to its end.
//
// There are two ways to end: gracefully (terminate), after which the pod is reported and removed from the API; and at
// once and silently (powerOff), which leaves the API as it is.
type pod struct {
	rt              *Runtime
	node            *node
	namespace, name string
	uid             types.UID
	dir             string
	log             *slog.Logger
	credentials     *credentials

	ctx      context.Context // cancelled: processes are killed, nothing is reported any more
	cancel   context.CancelFunc
	stopping chan struct{} // closed by terminate
	done     chan struct{} // closed when nothing is left running
	dirty    chan struct{} // the status may differ from what the API has

	mu         sync.Mutex
	api        *v1.Pod   // newest state seen in the API
	silent     bool      // nothing may be started or reported
	deadline   time.Time // when a terminating pod is killed; zero until then
	addr       netip.Addr
	sandbox    bool // address, volumes and credentials exist
	finished   bool // all containers have ended for good
	startTime  metav1.Time
	where      map[string]string // volumes
	inits      []*container
	containers []*container
}

func newPod(n *node, obj *v1.Pod) *pod {
	ctx, cancel := context.WithCancel(context.Background())
	p := &pod{
		rt: n.rt, node: n, namespace: obj.Namespace, name: obj.Name, uid: obj.UID,
		dir:       filepath.Join(n.dir, "pods", string(obj.UID)),
		log:       n.log.With("pod", obj.Namespace+"/"+obj.Name),
		ctx:       ctx,
		cancel:    cancel,
		stopping:  make(chan struct{}),
		done:      make(chan struct{}),
		dirty:     make(chan struct{}, 1),
		api:       obj,
		startTime: now(),
	}
	if obj.Status.StartTime != nil {
		p.startTime = *obj.Status.StartTime
	}
	p.credentials = newCredentials(p)
	for i := range obj.Spec.InitContainers {
		p.inits = append(p.inits, newContainer(p, &obj.Spec.InitContainers[i], obj.Status.InitContainerStatuses, true))
	}
	for i := range obj.Spec.Containers {
		p.containers = append(p.containers, newContainer(p, &obj.Spec.Containers[i], obj.Status.ContainerStatuses, false))
	}
	return p
}

func (p *pod) object() *v1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api
}

func (p *pod) address() netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// observe takes in a newer state of the pod.
func (p *pod) observe(obj *v1.Pod) {
	p.mu.Lock()
	if newer(obj, p.api) {
		p.api = obj
	}
	p.mu.Unlock()
	if obj.DeletionTimestamp != nil {
		grace := time.Duration(0)
		if s := obj.DeletionGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		p.terminate(grace)
	}
	p.changed()
}

// newer compares resource versions, so that an answer of ours is not undone by an event that was under way.
func newer(a, b *v1.Pod) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX != nil || errY != nil || x >= y
}

// changed asks for the status to be reported.
func (p *pod) changed() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

// terminate ends the pod gracefully; a second call can only shorten the grace.
func (p *pod) terminate(grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	deadline := time.Now().Add(grace)
	if p.deadline.IsZero() {
		close(p.stopping)
	}
	if p.deadline.IsZero() || deadline.Before(p.deadline) {
		p.deadline = deadline
	}
}

func (p *pod) isStopping() bool {
	select {
	case <-p.stopping:
		return true
	case <-p.ctx.Done():
		return true
	default:
		return false
	}
}

// silence stops all reporting and starting, without yet touching the processes.
func (p *pod) silence() {
	p.mu.Lock()
	p.silent = true
	p.mu.Unlock()
}

// run lives as long as the pod.
func (p *pod) run() {
	defer close(p.done)
	reporting := make(chan struct{})
	go func() {
		defer close(reporting)
		p.reportStatus()
	}()
	p.changed()
	if obj := p.object(); obj.DeletionTimestamp == nil && !podutil.IsPodTerminal(obj) {
		p.live()
	}
	p.mu.Lock()
	p.finished = true
	p.mu.Unlock()
	p.changed()
	select {
	case <-p.stopping: // deleted
		p.finish()
	case <-p.ctx.Done():
	}
	p.cancel()
	<-reporting
	p.node.pool.release(p.address())
}

// live takes the pod from nothing to the end of its last container.
func (p *pod) live() {
	if !p.prepare() {
		return
	}
	go p.refresh()
	for _, c := range p.inits {
		if !c.keep() {
			return
		}
	}
	var wg sync.WaitGroup
	for _, c := range p.containers {
		wg.Go(func() { c.keep() })
	}
	wg.Wait()
}

// prepare makes address, volumes and credentials, trying until it succeeds or the pod is to end.
func (p *pod) prepare() bool {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		err := p.setUp(p.ctx)
		if err == nil {
			p.changed()
			return true
		}
		if p.isStopping() {
			return false
		}
		if delay > 300*time.Millisecond { // what is being created at the same time needs no mention
			p.event(v1.EventTypeWarning, "FailedMount", "", err.Error())
		}
		select {
		case <-time.After(delay):
		case <-p.stopping:
			return false
		case <-p.ctx.Done():
			return false
		}
	}
}

func (p *pod) setUp(ctx context.Context) error {
	for _, c := range p.inits {
		if c.spec.RestartPolicy != nil {
			return fmt.Errorf("init container %s has a restartPolicy, which the process runtime does not support", c.spec.Name)
		}
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return fmt.Errorf("making pod directory: %w", err)
	}
	if err := p.takeAddress(); err != nil {
		return err
	}
	if err := p.credentials.write(ctx); err != nil {
		return err
	}
	where, err := p.mountVolumes(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.where = where
	p.sandbox = true
	return nil
}

func (p *pod) takeAddress() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.addr.IsValid() {
		return nil
	}
	if p.api.Spec.HostNetwork {
		p.addr = p.node.cfg.Address
		return nil
	}
	a, err := p.node.pool.take()
	p.addr = a
	return err
}

// refresh keeps tokens and the contents of volumes up to date.
func (p *pod) refresh() {
	t := time.NewTicker(refreshPeriod)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-p.ctx.Done():
			return
		case <-p.stopping:
			return
		}
		err := p.credentials.write(p.ctx)
		if err == nil {
			_, err = p.mountVolumes(p.ctx)
		}
		if err != nil && !p.isStopping() {
			p.log.Warn("cannot bring the pod's volumes up to date", "error", err)
		}
	}
}

// finish reports the end of a deleted pod and removes it.
func (p *pod) finish() {
	p.mu.Lock()
	silent := p.silent
	p.mu.Unlock()
	if silent {
		return
	}
	p.pushStatus()
	zero := int64(0)
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, 2*time.Second) {
		err := p.rt.cfg.Client.CoreV1().Pods(p.namespace).Delete(p.ctx, p.name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &p.uid},
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || errors.Is(err, context.Canceled) {
			break
		}
		p.log.Warn("cannot remove the deleted pod, trying again", "error", err)
		select {
		case <-time.After(delay):
		case <-p.ctx.Done():
			return
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		p.log.Warn("cannot remove the pod's directory", "error", err)
	}
	p.node.forget(p)
}

func now() metav1.Time { return metav1.NewTime(time.Now().Truncate(time.Second)) }
