package volumes

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// delete takes a volume down: the target first, so that nobody writes any more, then the replicas, whose pools give the
// space back, then the PodDisruptionBudget if nobody else uses it. CStorVolume and Service belong to the
// CStorVolumeConfig and are collected with it.
//
// A pool that is not online cannot destroy its replica now. It is not waited for: the CStorVolumeReplica keeps its
// finalizer, and the pool destroys the data when it is back.
func (r *Reconciler) delete(ctx context.Context, config *cstorv1.CStorVolumeConfig) error {
	if err := r.deleteTarget(ctx, config); err != nil {
		return err
	}
	left, err := r.deleteReplicas(ctx, config)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return object.Waiting{For: strings.Join(left, ", ") + " to be destroyed"}
	}
	if err := r.dropBudget(ctx, config, config.Labels[cstorv1.LabelPDB]); err != nil {
		return err
	}
	return object.DropFinalizer(ctx, r.Client, config, cstorv1.FinalizerVolumeConfig)
}

func (r *Reconciler) deleteTarget(ctx context.Context, config *cstorv1.CStorVolumeConfig) error {
	d := &appsv1.Deployment{}
	err := r.Live.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: cstorv1.TargetDeployment(volumeOf(config))}, d)
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	if d.Labels[cstorv1.LabelPV] != volumeOf(config) {
		return nil // somebody else's
	}
	return object.Delete(ctx, r.Client, d)
}

// deleteReplicas deletes the replicas and returns those that are waited for.
func (r *Reconciler) deleteReplicas(ctx context.Context, config *cstorv1.CStorVolumeConfig) (left []string, err error) {
	replicas, err := r.replicasOf(ctx, config)
	if err != nil {
		return nil, err
	}
	for name, replica := range replicas {
		if err := object.Delete(ctx, r.Client, replica); err != nil {
			return nil, err
		}
		pool := &cstorv1.CStorPoolInstance{}
		err := r.Live.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: name}, pool)
		if client.IgnoreNotFound(err) != nil {
			return nil, err
		}
		switch {
		case err != nil || string(pool.UID) != replica.Labels[cstorv1.LabelPoolUID]:
			// The pool is gone, and with it the data and whoever would drop the finalizer.
			if err := r.Live.Get(ctx, client.ObjectKeyFromObject(replica), replica); err != nil {
				if client.IgnoreNotFound(err) != nil {
					return nil, err
				}
				continue
			}
			if err := object.DropFinalizer(ctx, r.Client, replica, cstorv1.FinalizerReplica); err != nil {
				return nil, err
			}
		case pool.Status.Phase == cstorv1.PoolOnline || pool.Status.Phase == cstorv1.PoolDegraded:
			err := r.Live.Get(ctx, client.ObjectKeyFromObject(replica), &cstorv1.CStorVolumeReplica{})
			if client.IgnoreNotFound(err) != nil {
				return nil, err
			}
			if err == nil {
				left = append(left, "replica "+replica.Name)
			}
		default:
			r.warn(config, reasonDeprovisioning, fmt.Sprintf(
				"replica %s is destroyed when pool %s, which is %s, is back", replica.Name, name, pool.Status.Phase))
		}
	}
	return left, nil
}
