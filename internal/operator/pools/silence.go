package pools

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// patience is how long a pool's process may be not ready before its status is not believed any more. It covers a restart.
const patience = 10 * time.Second

// heartbeat is when a pool's Lease was last seen to be renewed, by our clock: clocks of nodes are not compared.
type heartbeat struct {
	renewed metav1.MicroTime
	at      time.Time
}

// silence shows pools OFFLINE and their replicas Offline whose process is not ready or does not renew its Lease: a
// process that was killed, or whose node is without power, cannot say so itself. When it is back it reports anew. It
// returns when to look again.
func (r *Reconciler) silence(ctx context.Context, w *world) (again time.Duration, err error) {
	again = r.Resync
	for i := range w.instances {
		in := &w.instances[i]
		left, why, err := r.patienceLeft(ctx, w, in)
		if err != nil {
			return again, err
		}
		if left > 0 {
			again = min(again, left)
		}
		if left <= 0 {
			err = r.declareOffline(ctx, w, in, why)
		} else if why == "" {
			err = r.setUnheard(ctx, in, nil)
		}
		if err != nil {
			return again, err
		}
	}
	return again, nil
}

// patienceLeft returns how long in's status is still believed if nothing changes, and why no longer. The reason is empty
// while the pool is heard from.
func (r *Reconciler) patienceLeft(ctx context.Context, w *world, in *cstorv1.CStorPoolInstance) (left time.Duration, why string, err error) {
	left = r.Resync
	if d := w.deploymentOf(in); d == nil {
		left, why = patience-r.Now().Sub(in.CreationTimestamp.Time), "it has no Deployment"
	} else if w.ready(in) == 0 {
		since := unavailableSince(d)
		if back := r.backSince(in); back.After(since) {
			since = back
		}
		left, why = patience-r.Now().Sub(since), "its process is not ready"
	}
	lease := &coordinationv1.Lease{}
	err = r.Get(ctx, client.ObjectKeyFromObject(in), lease)
	if client.IgnoreNotFound(err) != nil {
		return 0, "", err
	}
	if err == nil && lease.Spec.RenewTime != nil {
		duration := time.Duration(ptr.Deref(lease.Spec.LeaseDurationSeconds, 40)) * time.Second
		if l := duration - r.Now().Sub(r.seen(in.UID, *lease.Spec.RenewTime)); l < left {
			if left = l; l <= 0 {
				why = "its process does not renew its Lease"
			}
		}
	}
	return left, why, nil
}

// seen returns when this renewal was first seen.
func (r *Reconciler) seen(uid types.UID, renewed metav1.MicroTime) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard == nil {
		r.heard = map[types.UID]heartbeat{}
	}
	h, ok := r.heard[uid]
	if !ok || !h.renewed.Equal(&renewed) {
		h = heartbeat{renewed: renewed, at: r.Now()}
		r.heard[uid] = h
	}
	return h.at
}

// hears notes when a pool's Lease is renewed. There is nothing to do then.
func (r *Reconciler) hears(_ context.Context, lease client.Object) []ctrl.Request {
	l, ok := lease.(*coordinationv1.Lease)
	if !ok || l.Spec.RenewTime == nil {
		return nil
	}
	for _, o := range l.OwnerReferences {
		if o.Kind == "CStorPoolInstance" {
			r.seen(o.UID, *l.Spec.RenewTime)
		}
	}
	return nil
}

// backSince returns when a pool was first seen to report again after it had been shown OFFLINE here: it reports before
// its Deployment knows that it is ready. Zero for other pools.
func (r *Reconciler) backSince(in *cstorv1.CStorPoolInstance) time.Time {
	unheard := slices.ContainsFunc(in.Status.Conditions, func(c cstorv1.CStorPoolInstanceCondition) bool { return c.Type == cstorv1.PoolUnheard })
	r.mu.Lock()
	defer r.mu.Unlock()
	if !unheard || in.Status.Phase == cstorv1.PoolOffline {
		delete(r.back, in.UID)
		return time.Time{}
	}
	if r.back == nil {
		r.back = map[types.UID]time.Time{}
	}
	if _, ok := r.back[in.UID]; !ok {
		r.back[in.UID] = r.Now()
	}
	return r.back[in.UID]
}

func unavailableSince(d *appsv1.Deployment) time.Time {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentAvailable && c.Status != corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
	}
	return d.CreationTimestamp.Time
}

func (r *Reconciler) declareOffline(ctx context.Context, w *world, in *cstorv1.CStorPoolInstance, why string) error {
	switch in.Status.Phase {
	case cstorv1.PoolOnline, cstorv1.PoolDegraded, cstorv1.PoolFaulted, cstorv1.PoolUnavail, cstorv1.PoolRemoved:
		message := fmt.Sprintf("pool has not been heard from: %s; check node %s", why, in.Spec.HostName)
		r.Events.Event(w.cluster, corev1.EventTypeWarning, cstorv1.PoolUnheard, fmt.Sprintf("%s: %s", in.Name, message))
		if err := r.setUnheard(ctx, in, &message); err != nil {
			return err
		}
	case cstorv1.PoolOffline:
	default:
		return nil // never made
	}
	for _, replica := range w.replicas[in.Name] {
		switch replica.Status.Phase {
		case cstorv1.ReplicaHealthy, cstorv1.ReplicaDegraded, cstorv1.ReplicaRebuilding, cstorv1.ReplicaNewDegraded, cstorv1.ReplicaReconstructing:
		default:
			continue
		}
		err := object.Update(ctx, r.Client, replica, func(c *cstorv1.CStorVolumeReplica) {
			now := metav1.NewTime(r.Now())
			c.Status.Phase, c.Status.Message = cstorv1.ReplicaOffline, fmt.Sprintf("pool %s has not been heard from", in.Name)
			c.Status.LastTransitionTime, c.Status.LastUpdateTime = now, now
		})
		if err := client.IgnoreNotFound(err); err != nil {
			return err
		}
	}
	return nil
}

// setUnheard sets phase and condition of a pool that is not heard from, or with nil drops the condition.
func (r *Reconciler) setUnheard(ctx context.Context, in *cstorv1.CStorPoolInstance, message *string) error {
	return client.IgnoreNotFound(object.Update(ctx, r.Client, in, func(in *cstorv1.CStorPoolInstance) {
		in.Status.Conditions = slices.DeleteFunc(in.Status.Conditions, func(c cstorv1.CStorPoolInstanceCondition) bool {
			return c.Type == cstorv1.PoolUnheard
		})
		if message == nil {
			return
		}
		now := metav1.NewTime(r.Now())
		in.Status.Phase, in.Status.HealthyReplicas = cstorv1.PoolOffline, 0
		in.Status.Conditions = append(in.Status.Conditions, cstorv1.CStorPoolInstanceCondition{
			Type: cstorv1.PoolUnheard, Status: corev1.ConditionTrue, Reason: cstorv1.PoolUnheard, Message: *message,
			LastTransitionTime: now, LastUpdateTime: now,
		})
	}))
}
