package walkthrough

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
)

// fact is something about the volume that became so at a resourceVersion, which orders everything in the cluster.
type fact struct {
	version uint64
	seen    time.Time
	text    string
}

// facts collects what happens to a volume's objects.
type facts struct {
	volume string
	hosts  map[string]string // pool name → host

	mu   sync.Mutex
	last map[string]string // what was last known, by aspect
	list []fact
}

// watchFacts collects until ctx ends.
func watchFacts(ctx context.Context, l *lab.Lab, volume string, hosts map[string]string) *facts {
	f := &facts{volume: volume, hosts: hosts, last: map[string]string{}}
	for _, kind := range []client.ObjectList{
		&cstorv1.CStorVolumeConfigList{}, &cstorv1.CStorVolumeList{}, &cstorv1.CStorVolumeReplicaList{}, &corev1.EventList{},
	} {
		go f.watch(ctx, l, kind)
	}
	return f
}

func (f *facts) watch(ctx context.Context, l *lab.Lab, kind client.ObjectList) {
	for ctx.Err() == nil {
		w, err := l.Client.Watch(ctx, kind, client.InNamespace(lab.Namespace))
		if err != nil {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		for e := range w.ResultChan() {
			f.note(e)
		}
		w.Stop()
	}
}

func (f *facts) note(e watch.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch o := e.Object.(type) {
	case *cstorv1.CStorVolumeConfig:
		if o.Name == f.volume {
			f.set(o, "pools", "CStorVolumeConfig has %d pools in status.poolInfo", len(o.Status.PoolInfo))
		}
	case *cstorv1.CStorVolume:
		if o.Name == f.volume {
			f.set(o, "drf", "CStorVolume wants %d replicas", o.Spec.DesiredReplicationFactor)
			f.set(o, "rf", "CStorVolume has replicationFactor %d, consistencyFactor %d", o.Spec.ReplicationFactor, o.Spec.ConsistencyFactor)
			f.set(o, "spec", "CStorVolume is to know %d replicas", len(o.Spec.ReplicaDetails.KnownReplicas))
			f.set(o, "status", "CStorVolume knows %d replicas", len(o.Status.ReplicaDetails.KnownReplicas))
		}
	case *cstorv1.CStorVolumeReplica:
		if o.Labels[cstorv1.LabelPV] == f.volume {
			f.noteReplica(e.Type, o)
		}
	case *corev1.Event:
		if o.InvolvedObject.Name == f.volume && o.InvolvedObject.Kind == "CStorVolumeConfig" {
			f.set(o, "event "+string(o.UID), "%s", eventFact(o.Type, o.Reason, o.Message))
		}
	}
}

func (f *facts) noteReplica(kind watch.EventType, r *cstorv1.CStorVolumeReplica) {
	host := f.hosts[r.PoolOf()]
	switch {
	case kind == watch.Deleted:
		f.set(r, r.Name, "%s", replicaFact(host, "gone"))
	case r.DeletionTimestamp != nil:
		f.set(r, r.Name, "%s", replicaFact(host, "deleted"))
	default:
		f.set(r, r.Name+" made", "%s", replicaFact(host, "made"))
		if r.Status.Phase != cstorv1.ReplicaEmpty {
			f.set(r, r.Name, "%s", replicaFact(host, string(r.Status.Phase)))
		}
	}
}

func replicaFact(host, what string) string { return "replica on " + host + " is " + what }

func eventFact(kind, reason, message string) string {
	return "event: " + kind + " " + reason + " " + message
}

// set records a fact if it is a new one about its aspect.
func (f *facts) set(o client.Object, aspect, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if f.last[aspect] == text {
		return
	}
	f.last[aspect] = text
	version, _ := strconv.ParseUint(o.GetResourceVersion(), 10, 64) // 0 sorts first and shows up in the order check
	f.list = append(f.list, fact{version, time.Now(), text})
}

// since returns the facts that were seen after t, in the order in which they became so.
func (f *facts) since(t time.Time) []fact {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := slices.Clone(f.list)
	list = slices.DeleteFunc(list, func(x fact) bool { return x.seen.Before(t) })
	slices.SortStableFunc(list, func(a, b fact) int { return int(int64(a.version) - int64(b.version)) })
	return list
}

// when returns when a fact was first seen after t.
func (f *facts) when(t time.Time, text string) (time.Time, bool) {
	for _, x := range f.since(t) {
		if x.text == text {
			return x.seen, true
		}
	}
	return time.Time{}, false
}

// order checks that the facts seen after t include those of each chain in their order.
func (f *facts) order(t time.Time, chains ...[]string) error {
	list := f.since(t)
	for _, chain := range chains {
		at := 0
		for _, x := range list {
			if at < len(chain) && x.text == chain[at] {
				at++
			}
		}
		if at < len(chain) {
			var story []string
			for _, x := range list {
				story = append(story, x.text)
			}
			return fmt.Errorf("%q is missing, or came too early; this should come in order:\n  %s\nand this is what came:\n  %s",
				chain[at], strings.Join(chain, "\n  "), strings.Join(story, "\n  "))
		}
	}
	return nil
}
