package pool

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
)

// setCondition puts c in the place of the pool's condition of that type. The list is shared with the operator, so it
// is replaced under the resourceVersion that was read: a conflict is an error, and the next pass reads again.
func (a *Agent) setCondition(ctx context.Context, c cstorv1.CStorPoolInstanceCondition) error {
	list := slices.Clone(a.instance.Status.Conditions)
	now := metav1.NewTime(a.Now())
	c.Message = kube.Line(c.Message)
	c.LastUpdateTime, c.LastTransitionTime = now, now
	i := slices.IndexFunc(list, func(o cstorv1.CStorPoolInstanceCondition) bool { return o.Type == c.Type })
	if i < 0 {
		list = append(list, c)
	} else {
		if old := list[i]; old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return nil
		} else if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		list[i] = c
	}
	return a.writeConditions(ctx, list)
}

func (a *Agent) writeConditions(ctx context.Context, list []cstorv1.CStorPoolInstanceCondition) error {
	return kube.Merge(ctx, a.Client, a.instance, kube.Fields{
		"metadata": kube.Fields{"resourceVersion": a.instance.ResourceVersion},
		"status":   kube.Fields{"conditions": list},
	})
}

// clearLost removes the condition PoolLost after the pool was found.
func (a *Agent) clearLost(ctx context.Context) error {
	list := slices.DeleteFunc(slices.Clone(a.instance.Status.Conditions), func(c cstorv1.CStorPoolInstanceCondition) bool {
		return c.Type == cstorv1.PoolLost
	})
	if len(list) == len(a.instance.Status.Conditions) {
		return nil
	}
	return a.writeConditions(ctx, list)
}

// disksCondition says whether the devices take writes; it appears with the first trouble only.
func (a *Agent) disksCondition(ctx context.Context, failure string) error {
	c := cstorv1.CStorPoolInstanceCondition{
		Type: cstorv1.DiskUnavailable, Status: corev1.ConditionTrue, Reason: cstorv1.ReasonDisksUnavailable, Message: failure,
	}
	if failure == "" {
		known := slices.ContainsFunc(a.instance.Status.Conditions, func(o cstorv1.CStorPoolInstanceCondition) bool { return o.Type == c.Type })
		if !known {
			return nil
		}
		c.Status, c.Reason = corev1.ConditionFalse, cstorv1.ReasonDisksAvailable
	}
	return a.setCondition(ctx, c)
}

// disksBehind says that all devices take writes, and how far those are that lack some.
func (a *Agent) disksBehind(ctx context.Context, progress string) error {
	now := a.condition(cstorv1.DiskUnavailable)
	if now == nil || now.Status == corev1.ConditionFalse && a.Now().Sub(now.LastUpdateTime.Time) < statusEvery {
		return nil // no trouble before, or not more often for the sake of progress
	}
	return a.setCondition(ctx, cstorv1.CStorPoolInstanceCondition{
		Type: cstorv1.DiskUnavailable, Status: corev1.ConditionFalse, Reason: cstorv1.ReasonDisksAvailable, Message: progress,
	})
}
