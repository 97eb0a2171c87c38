package volumes

import (
	"context"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// progressEvery is how often the condition of what is under way is written again because only its message has changed.
const progressEvery = 5 * time.Second

// conclude makes the conditions about scaling say what is going on: the one given, or none, and no other. It returns when
// to come back to say more.
func (r *Reconciler) conclude(ctx context.Context, config *cstorv1.CStorVolumeConfig, kind, reason, message string) (again time.Duration, err error) {
	now := metav1.NewTime(r.Now())
	err = object.Update(ctx, r.Client, config, func(c *cstorv1.CStorVolumeConfig) {
		for _, k := range []string{cstorv1.ConfigScaling, cstorv1.ConfigScalingRefused} {
			if k != kind {
				dropCondition(c, k)
			}
		}
		if kind == "" {
			return
		}
		want := cstorv1.CStorVolumeConfigCondition{
			Type: kind, Reason: reason, Message: message, LastProbeTime: now, LastTransitionTime: now}
		i := slices.IndexFunc(c.Status.Conditions, func(c cstorv1.CStorVolumeConfigCondition) bool { return c.Type == kind })
		if i < 0 {
			c.Status.Conditions = append(c.Status.Conditions, want)
			return
		}
		switch have := &c.Status.Conditions[i]; {
		case have.Reason != reason:
			*have = want
		case have.Message == message:
		case kind == cstorv1.ConfigScaling && now.Sub(have.LastProbeTime.Time) < progressEvery:
			again = progressEvery - now.Sub(have.LastProbeTime.Time)
		default:
			have.Message, have.LastProbeTime = message, now
		}
	})
	return again, err
}

func dropCondition(c *cstorv1.CStorVolumeConfig, kind string) {
	c.Status.Conditions = slices.DeleteFunc(c.Status.Conditions, func(o cstorv1.CStorVolumeConfigCondition) bool { return o.Type == kind })
	if len(c.Status.Conditions) == 0 {
		c.Status.Conditions = nil
	}
}
