package volumes

import (
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// patience is how long a target may be not ready before what it last wrote is not believed any more.
const patience = 10 * time.Second

// cutPatience is how long too few replicas may have a session with their target until it is taken for gone. It covers a
// restart in place.
const cutPatience = 3 * time.Second

// cut is the volumes whose replicas have no session with their target, and since when that was seen, by our clock.
type cut struct {
	mu    sync.Mutex
	since map[types.NamespacedName]time.Time
}

func (c *cut) note(key types.NamespacedName, is bool, now time.Time) (since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !is {
		delete(c.since, key)
		return now
	}
	if c.since == nil {
		c.since = map[types.NamespacedName]time.Time{}
	}
	if _, ok := c.since[key]; !ok {
		c.since[key] = now
	}
	return c.since[key]
}

// silence shows a volume Offline whose target is not ready, or has lost its replicas and does not say so: a target that
// was killed or frozen, or whose node is without power, cannot say that itself. When it is back it reports anew. It returns
// when to look again.
func (r *Reconciler) silence(ctx context.Context, config *cstorv1.CStorVolumeConfig) (again time.Duration, err error) {
	key := client.ObjectKey{Namespace: config.Namespace, Name: volumeOf(config)}
	v, d := &cstorv1.CStorVolume{}, &appsv1.Deployment{}
	if err := r.Get(ctx, key, v); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: cstorv1.TargetDeployment(v.Name)}, d); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	alone, err := r.alone(ctx, v)
	if err != nil {
		return 0, err
	}
	now := r.Now()
	since := r.cut.note(key, alone, now)
	if v.Status.Phase != cstorv1.VolumeHealthy && v.Status.Phase != cstorv1.VolumeDegraded {
		return 0, nil
	}
	// A target that is back reports before its Deployment, and the replicas' objects, show that.
	left := func(since time.Time, patience time.Duration) time.Duration {
		if t := v.Status.LastTransitionTime.Time; t.After(since) {
			since = t
		}
		return patience - now.Sub(since)
	}
	why := ""
	if alone {
		again = left(since, cutPatience)
		why = fmt.Sprintf("too few replicas have had a session with the target for %s, and it does not say so", cutPatience)
	}
	if d.Status.ReadyReplicas == 0 {
		if l := left(unavailableSince(d), patience); why == "" || l < again {
			again, why = l, fmt.Sprintf("the target has not been ready for %s", patience)
		}
	}
	if why == "" || again > 0 {
		return again, nil
	}
	return 0, object.Update(ctx, r.Client, v, func(v *cstorv1.CStorVolume) {
		at := metav1.NewTime(now)
		v.Status.Phase = cstorv1.VolumeOffline
		v.Status.Message = why + ": look at the pod of Deployment " + d.Name
		v.Status.LastTransitionTime, v.Status.LastUpdateTime = at, at
	})
}

// alone reports whether fewer replicas have a session with their target than what the volume shows takes, as they say
// themselves.
func (r *Reconciler) alone(ctx context.Context, v *cstorv1.CStorVolume) (bool, error) {
	list := &cstorv1.CStorVolumeReplicaList{}
	if err := r.List(ctx, list, client.InNamespace(v.Namespace), client.MatchingLabels{cstorv1.LabelPV: v.Name}); err != nil {
		return false, err
	}
	need := 1
	if v.Status.Phase == cstorv1.VolumeHealthy {
		need = max(v.Spec.ConsistencyFactor, 1)
	}
	connected := 0
	for i := range list.Items {
		switch list.Items[i].Status.Phase {
		case cstorv1.ReplicaHealthy, cstorv1.ReplicaDegraded, cstorv1.ReplicaRebuilding, cstorv1.ReplicaNewDegraded, cstorv1.ReplicaReconstructing:
			connected++
		}
	}
	return connected < need, nil
}

func unavailableSince(d *appsv1.Deployment) time.Time {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentAvailable && c.Status != corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return d.CreationTimestamp.Time
}
