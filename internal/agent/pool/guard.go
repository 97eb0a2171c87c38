package pool

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// needed says why a replica whose object is being deleted must not be destroyed yet: its volume lives on and still
// counts it as a member, which happens when somebody deletes the object by hand. Empty: it may go. The volume decides,
// not the replica, which cannot know of a member list that was made without it.
func (a *Agent) needed(ctx context.Context, cr *cstorv1.CStorVolumeReplica) string {
	key := types.NamespacedName{Namespace: cr.Namespace, Name: cr.Labels[cstorv1.LabelVolumeName]}
	volume, config := &cstorv1.CStorVolume{}, &cstorv1.CStorVolumeConfig{}
	if err := a.Client.Get(ctx, key, volume); err != nil {
		return a.unknown(key.Name, err)
	}
	if volume.DeletionTimestamp != nil {
		return ""
	}
	guid, member := volume.Status.ReplicaDetails.KnownReplicas[cr.Spec.ReplicaID]
	if !member || cr.Status.GUID != "" && cr.Status.GUID != guid {
		return ""
	}
	if err := a.Client.Get(ctx, key, config); err != nil {
		return a.unknown(key.Name, err)
	}
	if config.DeletionTimestamp != nil {
		return ""
	}
	return fmt.Sprintf("replica is a member of volume %s and is kept; remove pool %s from spec.policy.replicaPoolInfo of CStorVolumeConfig %s to remove it",
		key.Name, cr.PoolOf(), key.Name)
}

// unknown says what it means that the volume could not be read.
func (a *Agent) unknown(volume string, err error) string {
	switch {
	case apierrors.IsNotFound(err):
		return "" // the volume is gone
	case apierrors.IsForbidden(err):
		a.Log.Warn("not allowed to read the volume of a replica that is to be destroyed, going on", "volume", volume, "err", err)
		return ""
	}
	return fmt.Sprintf("cannot tell yet whether volume %s needs the replica: %v", volume, err)
}
