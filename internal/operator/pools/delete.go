package pools

import (
	"context"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// delete takes a cluster down: instances, whose processes destroy the pools, then claims, then the cluster itself. While
// a volume has a replica on one of its pools nothing is deleted, and the pools are looked after as ever.
func (r *Reconciler) delete(ctx context.Context, w *world) error {
	cluster := w.cluster
	for i := range w.instances {
		if in := &w.instances[i]; len(w.replicas[in.Name]) > 0 {
			r.warn(cluster, "CSPC Cleanup", fmt.Sprintf(
				"invalid cspc %s deletion: volume still exists on pool %s: the deletion goes on when its replicas (%d) are moved or deleted",
				cluster.Name, in.Name, len(w.replicas[in.Name])))
			return r.sync(ctx, w)
		}
	}
	for i := range w.instances {
		if err := object.Delete(ctx, r.Client, &w.instances[i]); err != nil {
			r.warn(cluster, "CSPC Cleanup", err.Error())
			return err
		}
	}
	// What was deleted has a deletion time from now on; a cache may not say so yet.
	for i := range w.instances {
		err := r.Live.Get(ctx, client.ObjectKeyFromObject(&w.instances[i]), &w.instances[i])
		if client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	if err := r.cleanup(ctx, w); err != nil {
		return err
	}
	if left, err := r.instancesLeft(ctx, cluster); err != nil || left > 0 {
		return err // the watch of instances tells when they go
	}
	for _, c := range w.claims {
		if c.Labels[cstorv1.LabelPoolCluster] != cluster.Name {
			continue
		}
		if err := r.release(ctx, c); err != nil {
			r.warn(cluster, "CSPC Cleanup", err.Error())
			return err
		}
	}
	return object.DropFinalizer(ctx, r.Client, cluster, cstorv1.FinalizerPoolCluster)
}

// cleanup lets instances go whose pool has been destroyed, and gives their devices back.
func (r *Reconciler) cleanup(ctx context.Context, w *world) error {
	for i := range w.instances {
		in := &w.instances[i]
		if in.DeletionTimestamp == nil {
			continue
		}
		if controllerutil.ContainsFinalizer(in, cstorv1.FinalizerPoolProtection) {
			if n := len(w.replicas[in.Name]); n > 0 {
				r.warn(w.cluster, "Pool Cleanup", fmt.Sprintf(
					"volume still exists on pool %s: it is deleted when its replicas (%d) are moved or deleted", in.Name, n))
			}
			continue
		}
		if err := r.releaseAll(ctx, w, in); err != nil {
			r.warn(w.cluster, "Pool Cleanup", err.Error())
			return err
		}
		if err := object.DropFinalizer(ctx, r.Client, in, cstorv1.FinalizerPoolCluster); err != nil {
			r.warn(w.cluster, "Pool Cleanup", err.Error())
			return err
		}
		r.mu.Lock()
		delete(r.heard, in.UID)
		delete(r.back, in.UID)
		r.mu.Unlock()
	}
	return nil
}

func (r *Reconciler) releaseAll(ctx context.Context, w *world, in *cstorv1.CStorPoolInstance) error {
	for name := range devicesOf(in.Spec.DataRaidGroups, in.Spec.WriteCacheRaidGroups) {
		if c := w.claims[name]; c != nil && c.Labels[cstorv1.LabelPoolCluster] == w.cluster.Name {
			if err := r.release(ctx, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Reconciler) instancesLeft(ctx context.Context, cluster *cstorv1.CStorPoolCluster) (int, error) {
	var list cstorv1.CStorPoolInstanceList
	err := r.Live.List(ctx, &list, client.InNamespace(cluster.Namespace), client.MatchingLabels{cstorv1.LabelPoolCluster: cluster.Name})
	return len(list.Items), err
}
