package pools

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// count brings the cluster's counters and its condition up to date.
func (r *Reconciler) count(ctx context.Context, w *world) error {
	var provisioned, healthy int32
	var unavailable []string
	for i := range w.instances {
		in := &w.instances[i]
		if in.DeletionTimestamp != nil {
			continue
		}
		provisioned++
		switch {
		case w.ready(in) < 1:
			unavailable = append(unavailable, in.Name)
		case in.Status.Phase == cstorv1.PoolOnline:
			healthy++
		}
	}
	slices.Sort(unavailable)
	condition := cstorv1.CStorPoolClusterCondition{
		Type: cstorv1.PoolManagerAvailable, Status: corev1.ConditionTrue,
		Reason: cstorv1.ReasonPoolManagersAvailable, Message: cstorv1.MessagePoolManagersAvailable,
	}
	if len(unavailable) > 0 || provisioned == 0 {
		condition.Status, condition.Reason = corev1.ConditionFalse, cstorv1.ReasonPoolManagersUnavailable
		condition.Message = fmt.Sprintf("Pool manager(s) without an available pod: [%s]", strings.Join(unavailable, " "))
	}
	return object.Update(ctx, r.Client, w.cluster, func(c *cstorv1.CStorPoolCluster) {
		c.Status.DesiredInstances = int32(len(c.Spec.Pools))
		c.Status.ProvisionedInstances = provisioned
		c.Status.HealthyInstances = healthy
		setCondition(c, condition, metav1.NewTime(r.Now()))
	})
}

func setCondition(c *cstorv1.CStorPoolCluster, want cstorv1.CStorPoolClusterCondition, now metav1.Time) {
	want.LastUpdateTime, want.LastTransitionTime = now, now
	for i := range c.Status.Conditions {
		have := &c.Status.Conditions[i]
		if have.Type != want.Type {
			continue
		}
		if have.Status == want.Status {
			want.LastTransitionTime = have.LastTransitionTime
		}
		if have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message {
			want.LastUpdateTime = have.LastUpdateTime
		}
		*have = want
		return
	}
	c.Status.Conditions = append(c.Status.Conditions, want)
}
