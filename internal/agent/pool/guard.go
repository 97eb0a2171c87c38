package pool

import (
	"context"
	"fmt"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/replica"
)

// needed says why a replica whose object is being deleted must not be destroyed yet. Empty: it may go, since its volume
// is being deleted, or lives on without it.
//
// A volume lives as long as its CStorVolumeConfig is there and is not being deleted. That is never taken back, an answer
// that it is not there comes from a quorum of the API server's store, and the operator lets it go only after it has
// deleted the replicas: so without it they may go, whoever deleted them. A CStorVolume that is gone alone was deleted by
// hand, and takes the replicas' objects with it; their data is kept.
//
// While the volume lives it decides, not the replica, which cannot know of a member list that was made without it. The
// replica only knows whether what the CStorVolume says is new enough to be a decision about it; and, if it is complete, whether the
// target has told it since that nobody will need what it has.
func (a *Agent) needed(ctx context.Context, cr *cstorv1.CStorVolumeReplica, own replica.Standing) string {
	key := types.NamespacedName{Namespace: cr.Namespace, Name: cr.Labels[cstorv1.LabelVolumeName]}
	config, cv := &cstorv1.CStorVolumeConfig{}, &cstorv1.CStorVolume{}
	err := a.Client.Get(ctx, key, config)
	switch {
	case apierrors.IsNotFound(err) || err == nil && config.DeletionTimestamp != nil:
		return ""
	case err != nil:
		return fmt.Sprintf("cannot tell yet whether volume %s needs the replica: %v", key.Name, err)
	}
	err = a.Client.Get(ctx, key, cv)
	switch {
	case apierrors.IsNotFound(err) || err == nil && cv.DeletionTimestamp != nil:
		return fmt.Sprintf("replica is kept: somebody deleted CStorVolume %s, but the volume lives as long as CStorVolumeConfig %s; delete that to let the replica go",
			key.Name, key.Name)
	case err != nil:
		return fmt.Sprintf("cannot tell yet whether volume %s needs the replica: %v", key.Name, err)
	}
	guid := cr.Status.GUID
	if !own.GUID.IsZero() {
		guid = own.GUID.String()
	}
	known := cv.Status.ReplicaDetails.KnownReplicas
	_, member := known[cr.Spec.ReplicaID]
	if guid != "" { // under whatever name
		member = slices.Contains(slices.Collect(maps.Values(known)), guid)
	}
	if member {
		return fmt.Sprintf("replica is a member of volume %s and is kept; remove pool %s from spec.policy.replicaPoolInfo of CStorVolumeConfig %s to remove it",
			key.Name, cr.PoolOf(), key.Name)
	}
	switch {
	case !own.Without(uint64(cv.Status.Epoch), uint64(cv.Status.Generation)):
		return fmt.Sprintf("replica is kept until the target of volume %s has said whether it is a member: what CStorVolume %s shows, of epoch %d, is older than what the replica has recorded",
			key.Name, key.Name, cv.Status.Epoch)
	case own.Needed:
		return fmt.Sprintf("replica is no member of volume %s, but it is complete, and kept as long as the members may need what it has: until all of them are healthy, and pool %s is not in spec.policy.replicaPoolInfo of CStorVolumeConfig %s",
			key.Name, cr.PoolOf(), key.Name)
	}
	return ""
}
