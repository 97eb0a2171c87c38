package volumes

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// patience is how long a target may be not ready before what it last wrote is not believed any more.
const patience = 10 * time.Second

// silence shows a volume Offline whose target is not ready: a target that was killed, or whose node is without power,
// cannot say so itself. When it is back it reports anew. It returns when to look again.
func (r *Reconciler) silence(ctx context.Context, config *cstorv1.CStorVolumeConfig) (again time.Duration, err error) {
	d := &appsv1.Deployment{}
	err = r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: cstorv1.TargetDeployment(volumeOf(config))}, d)
	if err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if d.Status.ReadyReplicas > 0 {
		return 0, nil
	}
	since := d.CreationTimestamp.Time
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentAvailable && c.Status != corev1.ConditionTrue {
			since = c.LastTransitionTime.Time
		}
	}
	v := &cstorv1.CStorVolume{}
	if err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: volumeOf(config)}, v); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	// A target that is back reports before its Deployment knows that it is ready.
	if t := v.Status.LastTransitionTime.Time; t.After(since) {
		since = t
	}
	if left := patience - r.Now().Sub(since); left > 0 {
		return left, nil
	}
	if v.Status.Phase != cstorv1.VolumeHealthy && v.Status.Phase != cstorv1.VolumeDegraded {
		return 0, nil
	}
	return 0, object.Update(ctx, r.Client, v, func(v *cstorv1.CStorVolume) {
		now := metav1.NewTime(r.Now())
		v.Status.Phase = cstorv1.VolumeOffline
		v.Status.Message = fmt.Sprintf("the target has not been ready for %s: look at the pod of Deployment %s", patience, d.Name)
		v.Status.LastTransitionTime, v.Status.LastUpdateTime = now, now
	})
}
