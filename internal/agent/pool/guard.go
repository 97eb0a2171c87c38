package pool

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/volume"
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
// replica only knows whether what the CStorVolume says is new enough to be a decision about it.
func (a *Agent) needed(ctx context.Context, cr *cstorv1.CStorVolumeReplica, own volume.Report) string {
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
	if g, member := cv.Status.ReplicaDetails.KnownReplicas[cr.Spec.ReplicaID]; member && (guid == "" || guid == g) {
		return fmt.Sprintf("replica is a member of volume %s and is kept; remove pool %s from spec.policy.replicaPoolInfo of CStorVolumeConfig %s to remove it",
			key.Name, cr.PoolOf(), key.Name)
	}
	if decided(cv, own) {
		return ""
	}
	return fmt.Sprintf("replica is kept until the target of volume %s has said whether it is a member: what CStorVolume %s shows, of epoch %d, is older than what the replica has recorded",
		key.Name, key.Name, cv.Status.Epoch)
}

// decided reports whether the status of a volume, which does not show the replica, is newer than everything by which the
// replica may be a member: a list with it, or operations of an epoch. A replica becomes a member only after it has
// recorded the epoch of the target that makes it one; and once it has left, the status shows a later list than any
// that it is in.
func decided(cv *cstorv1.CStorVolume, own volume.Report) bool {
	shown := volume.List{Epoch: uint64(cv.Status.Epoch), Generation: uint64(cv.Status.Generation)}
	lists := []volume.List{own.State.Committed}
	if p := own.State.Pending; p != nil {
		lists = append(lists, *p)
	}
	for _, l := range lists {
		if l.Has(own.GUID) && l.Compare(shown) >= 0 {
			return false
		}
	}
	h := own.State.History
	return len(h) == 0 || h[len(h)-1].Epoch <= shown.Epoch
}
