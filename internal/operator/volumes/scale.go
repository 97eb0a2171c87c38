package volumes

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// steps is more than any scaling takes in one go; the rest waits for somebody.
const steps = 8

// scale brings the replicas of a bound volume to where the user wants them, as far as that is possible now.
func (r *Reconciler) scale(ctx context.Context, config *cstorv1.CStorVolumeConfig) (again time.Duration, err error) {
	for range steps {
		w, err := r.gather(ctx, config)
		if err != nil {
			return 0, err
		}
		s := w.next()
		switch s.do {
		case settled:
			if err := r.ensureBudget(ctx, config); err != nil {
				return 0, err
			}
			return r.conclude(ctx, config, "", "", "")
		case refuse:
			r.warn(config, reasonScaling, s.message)
			return r.conclude(ctx, config, cstorv1.ConfigScalingRefused, "Refused", s.message)
		case wait:
			if s.down {
				r.sayDown(config)
				again = repeatScaling
			}
			after, err := r.conclude(ctx, config, cstorv1.ConfigScaling, s.reason, s.message)
			if after > 0 && (again == 0 || after < again) {
				again = after
			}
			return again, err
		}
		if err := r.act(ctx, w, s); err != nil {
			return 0, err
		}
	}
	return later, nil
}

func (r *Reconciler) gather(ctx context.Context, config *cstorv1.CStorVolumeConfig) (*world, error) {
	w := &world{config: config, volume: &cstorv1.CStorVolume{}, pools: map[string]*cstorv1.CStorPoolInstance{}}
	err := r.Live.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: volumeOf(config)}, w.volume)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("CStorVolume %s is gone though the volume is Bound: somebody deleted it", volumeOf(config))
	}
	if err != nil {
		return nil, err
	}
	w.outdated = r.statuses.outdated(w.volume)
	if w.replicas, err = r.replicasOf(ctx, config); err != nil {
		return nil, err
	}
	var pools cstorv1.CStorPoolInstanceList
	if err := r.List(ctx, &pools, client.InNamespace(config.Namespace)); err != nil {
		return nil, err
	}
	for i := range pools.Items {
		w.pools[pools.Items[i].Name] = &pools.Items[i]
	}
	return w, nil
}

// act does one step.
func (r *Reconciler) act(ctx context.Context, w *world, s step) error {
	switch s.do {
	case setFactor:
		return object.Update(ctx, r.Client, w.volume, func(v *cstorv1.CStorVolume) {
			v.Spec.DesiredReplicationFactor = s.factor
		})
	case keep:
		return object.Update(ctx, r.Client, w.volume, func(v *cstorv1.CStorVolume) {
			for _, p := range s.pools {
				if v.Spec.ReplicaDetails.KnownReplicas == nil {
					v.Spec.ReplicaDetails.KnownReplicas = map[string]string{}
				}
				v.Spec.ReplicaDetails.KnownReplicas[w.place(p)] = w.members()[w.place(p)]
			}
		})
	case remove:
		err := object.Update(ctx, r.Client, w.volume, func(v *cstorv1.CStorVolume) {
			v.Spec.DesiredReplicationFactor = s.factor
			for _, p := range s.pools {
				delete(v.Spec.ReplicaDetails.KnownReplicas, w.place(p))
			}
		})
		if err == nil && s.down {
			r.sayDown(w.config)
		}
		return err
	case create:
		for _, p := range s.pools {
			err := r.addReplica(ctx, w.config, w.volume, &w.config.Spec.Policy, p, cstorv1.ReplicaRecreate)
			if err != nil {
				if !object.IsWaiting(err) {
					r.warn(w.config, reasonScaling, err.Error())
				}
				return err
			}
		}
		return nil
	case publish:
		return r.publish(ctx, w.config, s.pools)
	case destroy:
		if s.down {
			r.sayDown(w.config) // it has to be seen once, however fast the target was
		}
		for _, p := range s.pools {
			if replica := w.replicas[p]; replica != nil {
				if err := object.Delete(ctx, r.Client, replica); err != nil {
					return err
				}
			}
		}
		if stay := without(w.have(), s.pools); len(stay) < len(w.have()) {
			return r.publish(ctx, w.config, stay)
		}
		return nil
	}
	return fmt.Errorf("no way to %s", s.do)
}

// sayDown says that replicas are being removed.
func (r *Reconciler) sayDown(config *cstorv1.CStorVolumeConfig) {
	r.Events.Say(config, repeatScaling, corev1.EventTypeWarning, reasonScaling, fmt.Sprintf(
		"Scaling down volume replicas from %d to %d is in progress", len(config.Status.PoolInfo), len(config.Spec.Policy.ReplicaPoolInfo)))
}

// publish tells on which pools replicas exist, and that the scaling has been done.
func (r *Reconciler) publish(ctx context.Context, config *cstorv1.CStorVolumeConfig, pools []string) error {
	budget, err := r.budget(ctx, config, pools)
	if err != nil {
		return err
	}
	// Before the label goes, without which nobody would find it.
	if old := config.Labels[cstorv1.LabelPDB]; old != budget {
		if err := r.dropBudget(ctx, config, old); err != nil {
			return err
		}
	}
	err = object.Update(ctx, r.Client, config, func(c *cstorv1.CStorVolumeConfig) {
		c.Status.PoolInfo = pools
		setBudget(c, budget)
		dropCondition(c, cstorv1.ConfigScaling)
		dropCondition(c, cstorv1.ConfigScalingRefused)
	})
	if err != nil {
		return err
	}
	r.Events.Event(config, corev1.EventTypeNormal, reasonScaling, fmt.Sprintf("successfully scaled volume replicas to %d", len(pools)))
	r.Events.Forget(config, reasonScaling)
	return nil
}

// ensureBudget makes the volume's PodDisruptionBudget again if it is missing.
func (r *Reconciler) ensureBudget(ctx context.Context, config *cstorv1.CStorVolumeConfig) error {
	name := config.Labels[cstorv1.LabelPDB]
	if name == "" {
		return nil
	}
	err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: name}, &policyv1.PodDisruptionBudget{})
	if apierrors.IsNotFound(err) {
		_, err = r.budget(ctx, config, config.Status.PoolInfo)
	}
	return err
}
