package noderuntime

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// newRecorder records events the way the kubelet of that node does.
func newRecorder(b record.EventBroadcaster, node string) record.EventRecorder {
	return b.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: node})
}

func newBroadcaster(cfg *Config) record.EventBroadcaster {
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: cfg.Client.CoreV1().Events("")})
	return b
}

// event records something about the pod or, if named, about one of its containers. It takes no lock.
func (p *pod) event(kind, reason, container, message string) {
	if p.node.isOff() {
		return
	}
	ref := &v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.namespace, Name: p.name, UID: p.uid}
	if container != "" {
		ref.FieldPath = fmt.Sprintf("spec.containers{%s}", container)
	}
	p.node.events.Event(ref, kind, reason, message)
}
