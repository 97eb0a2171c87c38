package volumes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// addReplica makes a replica on a pool. The phase tells the pool's process which way it goes: empty with the founders of
// a new volume, Recreate as one that joins a volume which exists.
func (r *Reconciler) addReplica(ctx context.Context, config *cstorv1.CStorVolumeConfig, volume *cstorv1.CStorVolume,
	policy *cstorv1.CStorVolumePolicySpec, name string, phase cstorv1.ReplicaPhase) error {
	pool := &cstorv1.CStorPoolInstance{}
	if err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: name}, pool); err != nil {
		return fmt.Errorf("[failed to get cstorpoolinstance %s error: %w]", name, err)
	}
	capacity := config.Spec.Provision.Capacity[corev1.ResourceStorage]
	replica := &cstorv1.CStorVolumeReplica{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: config.Namespace,
			Name:      cstorv1.ReplicaName(volume.Name, name),
			Labels: map[string]string{
				cstorv1.LabelPoolName:   pool.Name,
				cstorv1.LabelPoolUID:    string(pool.UID),
				cstorv1.LabelVolumeName: volume.Name,
				cstorv1.LabelPV:         volume.Name,
				cstorv1.LabelVersion:    cstorv1.Version,
			},
			Annotations: map[string]string{cstorv1.AnnotationPoolHost: pool.Spec.HostName},
			Finalizers:  []string{cstorv1.FinalizerReplica},
		},
		Spec: cstorv1.CStorVolumeReplicaSpec{
			TargetIP:    volume.Spec.TargetIP,
			Capacity:    capacity.String(),
			ZvolWorkers: policy.Replica.IOWorkers,
			ReplicaID:   cstorv1.ReplicaID(volume.Name, name),
		},
		Status:         cstorv1.CStorVolumeReplicaStatus{Phase: phase},
		VersionDetails: cstorv1.NewVersionDetails(metav1.NewTime(r.Now())),
	}
	_, err := object.Ensure(ctx, r.Client, r.Live, volume, replica)
	if err != nil && !object.IsWaiting(err) {
		return fmt.Errorf("[failed to create new replica on pool %s error: %w]", name, err)
	}
	return err
}

// replicasOf returns the replicas of a volume by pool, as the API server knows them.
func (r *Reconciler) replicasOf(ctx context.Context, config *cstorv1.CStorVolumeConfig) (map[string]*cstorv1.CStorVolumeReplica, error) {
	var list cstorv1.CStorVolumeReplicaList
	err := r.Live.List(ctx, &list, client.InNamespace(config.Namespace), client.MatchingLabels{cstorv1.LabelPV: volumeOf(config)})
	if err != nil {
		return nil, err
	}
	byPool := map[string]*cstorv1.CStorVolumeReplica{}
	for i := range list.Items {
		byPool[list.Items[i].PoolOf()] = &list.Items[i]
	}
	return byPool, nil
}
