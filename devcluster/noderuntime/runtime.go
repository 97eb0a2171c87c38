package noderuntime

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// Runtime runs the nodes.
type Runtime struct {
	cfg         Config
	host        hostInfo
	order       []string
	byName      map[string]*node
	nodes       corelisters.NodeLister
	pods        cache.Indexer
	broadcaster record.EventBroadcaster
}

// Process is a container that runs.
type Process struct {
	Node      string `json:"node"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
	PID       int    `json:"pid"`
	Restarts  int    `json:"restarts"`
	IP        string `json:"ip"`
	UID       string `json:"uid"`
}

const byNode = "node"

// New prepares the nodes. The informers of factory, started by the caller, feed the runtime.
func New(cfg Config, factory informers.SharedInformerFactory) (*Runtime, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making directory of the nodes: %w", err)
	}
	host, err := readHost(cfg.Dir)
	if err != nil {
		return nil, err
	}
	r := &Runtime{cfg: cfg, host: host, byName: map[string]*node{}, broadcaster: newBroadcaster(&cfg)}
	for _, nc := range cfg.Nodes {
		n, err := newNode(r, nc, r.broadcaster)
		if err != nil {
			return nil, err
		}
		r.byName[nc.Name] = n
		r.order = append(r.order, nc.Name)
	}
	r.nodes = factory.Core().V1().Nodes().Lister()
	factory.Core().V1().Nodes().Informer()
	informer := factory.Core().V1().Pods().Informer()
	err = informer.AddIndexers(cache.Indexers{byNode: func(obj any) ([]string, error) {
		return []string{obj.(*v1.Pod).Spec.NodeName}, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("indexing pods: %w", err)
	}
	r.pods = informer.GetIndexer()
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { r.observe(obj.(*v1.Pod)) },
		UpdateFunc: func(_, obj any) { r.observe(obj.(*v1.Pod)) },
		DeleteFunc: r.deleted,
	})
	if err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
	return r, nil
}

// Start switches all nodes on. The informers must have synced.
func (r *Runtime) Start(ctx context.Context) error {
	errs := make(chan error, len(r.order))
	for _, name := range r.order {
		go func() { errs <- r.byName[name].start(ctx) }()
	}
	var first error
	for range r.order {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// StartNode switches a node on; it does nothing if it is on.
func (r *Runtime) StartNode(ctx context.Context, name string) error {
	n, ok := r.byName[name]
	if !ok {
		return fmt.Errorf("there is no node %q (nodes: %v)", name, r.order)
	}
	return n.start(ctx)
}

// StopNode cuts a node's power; when it returns none of its processes exists any more.
func (r *Runtime) StopNode(name string) error {
	n, ok := r.byName[name]
	if !ok {
		return fmt.Errorf("there is no node %q (nodes: %v)", name, r.order)
	}
	n.stop()
	return nil
}

// Shutdown ends all nodes without telling the API.
func (r *Runtime) Shutdown(grace time.Duration) {
	var wg sync.WaitGroup
	for _, n := range r.byName {
		wg.Go(func() { n.shutDown(grace) })
	}
	wg.Wait()
	r.broadcaster.Shutdown()
}

// Processes lists the running containers of all nodes.
func (r *Runtime) Processes() []Process {
	var out []Process
	for _, name := range r.order {
		out = append(out, r.byName[name].processes()...)
	}
	return out
}

func (r *Runtime) observe(obj *v1.Pod) {
	if n, ok := r.byName[obj.Spec.NodeName]; ok {
		n.observe(obj)
	}
}

func (r *Runtime) deleted(obj any) {
	if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = d.Obj
	}
	if p, ok := obj.(*v1.Pod); ok {
		if n, ok := r.byName[p.Spec.NodeName]; ok {
			n.vanished(p.UID)
		}
	}
}

// podsOf returns the pods bound to a node.
func (r *Runtime) podsOf(node string) []*v1.Pod {
	objs, err := r.pods.ByIndex(byNode, node)
	if err != nil { // the index is always there
		panic(err)
	}
	pods := make([]*v1.Pod, 0, len(objs))
	for _, o := range objs {
		pods = append(pods, o.(*v1.Pod))
	}
	return pods
}

// Ready says whether all nodes are Ready and free of taints, as the API has it.
func (r *Runtime) Ready() bool {
	objs, err := r.nodes.List(labels.Everything())
	ready := 0
	for _, o := range objs {
		if isReady(o) && len(o.Spec.Taints) == 0 {
			ready++
		}
	}
	return err == nil && ready >= len(r.order)
}
