// Package serviceproxy makes ClusterIPs work without privileges: since they are loopback addresses, it listens on each
// port of each Service and forwards connections to ready pods, which is what kube-proxy does inside the kernel.
//
// It relies on ClusterIPs being this cluster's alone. A port listens only while a ready pod is behind it, so that
// connecting to a Service without one is refused at once.
package serviceproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sort"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// retryPeriod is how often ports that could not be listened on are tried again.
const retryPeriod = 2 * time.Second

// Proxy forwards the connections of all Services.
type Proxy struct {
	services corelisters.ServiceLister
	pods     corelisters.PodLister
	log      *slog.Logger
	changed  chan struct{}
	ports    map[netip.AddrPort]*port // belongs to Run
}

// backend is where a pod serves a port.
type backend = netip.AddrPort

// New watches Services and pods through factory, whose informers the caller starts.
func New(factory informers.SharedInformerFactory, log *slog.Logger) (*Proxy, error) {
	p := &Proxy{
		services: factory.Core().V1().Services().Lister(),
		pods:     factory.Core().V1().Pods().Lister(),
		log:      log,
		changed:  make(chan struct{}, 1),
		ports:    map[netip.AddrPort]*port{},
	}
	poke := func(any) {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	for _, i := range []cache.SharedIndexInformer{factory.Core().V1().Services().Informer(), factory.Core().V1().Pods().Informer()} {
		_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, obj any) { poke(obj) }, DeleteFunc: poke})
		if err != nil {
			return nil, fmt.Errorf("watching services and pods: %w", err)
		}
	}
	return p, nil
}

// Run forwards until ctx ends; connections that exist then live on until the process ends.
func (p *Proxy) Run(ctx context.Context) {
	retry := time.NewTicker(retryPeriod)
	defer retry.Stop()
	failed := false
	for {
		select {
		case <-p.changed:
			failed = p.reconcile(failed)
		case <-retry.C:
			if failed {
				failed = p.reconcile(failed)
			}
		case <-ctx.Done():
			for _, l := range p.ports {
				l.close()
			}
			return
		}
	}
}

// reconcile makes the listeners match Services and pods. It returns whether one could not be made; that is logged the
// first time.
func (p *Proxy) reconcile(failedBefore bool) (failed bool) {
	want, err := p.wanted()
	if err != nil {
		p.log.Error("cannot list services and pods", "error", err)
		return true
	}
	for addr, l := range p.ports {
		if len(want[addr]) == 0 {
			l.close()
			delete(p.ports, addr)
		}
	}
	for addr, backends := range want {
		if len(backends) == 0 {
			continue
		}
		l := p.ports[addr]
		if l == nil {
			if l, err = listen(addr); err != nil {
				failed = true
				if !failedBefore {
					p.log.Warn("cannot serve a Service's port; something else listens there, perhaps a pod on the wildcard address",
						"address", addr, "error", err)
				}
				continue
			}
			p.ports[addr] = l
		}
		l.setBackends(backends)
	}
	return failed
}

// wanted computes the ready pods behind every port of every Service.
func (p *Proxy) wanted() (map[netip.AddrPort][]backend, error) {
	services, err := p.services.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	want := map[netip.AddrPort][]backend{}
	for _, s := range services {
		ip, err := netip.ParseAddr(s.Spec.ClusterIP)
		if err != nil || len(s.Spec.Selector) == 0 {
			continue // headless, external, or without pods
		}
		pods, err := p.pods.Pods(s.Namespace).List(labels.SelectorFromSet(s.Spec.Selector))
		if err != nil {
			return nil, err
		}
		sort.Slice(pods, func(i, j int) bool { return pods[i].Name < pods[j].Name })
		for i := range s.Spec.Ports {
			sp := &s.Spec.Ports[i]
			if sp.Protocol != v1.ProtocolTCP {
				continue
			}
			addr := netip.AddrPortFrom(ip, uint16(sp.Port))
			want[addr] = backendsOf(s, sp, pods)
		}
	}
	return want, nil
}

func backendsOf(s *v1.Service, sp *v1.ServicePort, pods []*v1.Pod) []backend {
	var out []backend
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil || podutil.IsPodTerminal(pod) || !podutil.IsPodReady(pod) && !s.Spec.PublishNotReadyAddresses {
			continue
		}
		ip, err := netip.ParseAddr(pod.Status.PodIP)
		number := targetPort(sp, pod)
		if err != nil || number == 0 {
			continue
		}
		out = append(out, netip.AddrPortFrom(ip, uint16(number)))
	}
	return out
}

// targetPort resolves a Service port's target in a pod; 0 if the pod has no such port.
func targetPort(sp *v1.ServicePort, pod *v1.Pod) int {
	if sp.TargetPort.Type == intstr.Int {
		if n := sp.TargetPort.IntValue(); n != 0 {
			return n
		}
		return int(sp.Port)
	}
	for _, c := range pod.Spec.Containers {
		for _, k := range c.Ports {
			if k.Name == sp.TargetPort.StrVal && (k.Protocol == v1.ProtocolTCP || k.Protocol == "") {
				return int(k.ContainerPort)
			}
		}
	}
	return 0
}

// temporary says whether accepting may be tried again after err.
func temporary(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) ||
		errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// reset closes a connection so that the other end sees an error, not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
