package volumes

import (
	"fmt"
	"slices"
	"strings"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// refusal says why an edit of spec.policy.replicaPoolInfo is not carried out, and what to do; empty when it is. Nothing
// has been changed for an edit that is refused. It is looked at again whenever something changes, so an edit that has
// become possible goes on.
func (w *world) refusal() string {
	var (
		want, have = w.want(), w.have()
		added      = without(want, have)
		removed    = without(have, want)
		name       = w.config.Name
	)
	if d := duplicates(want); len(d) > 0 {
		return fmt.Sprintf("duplicate pool names %v found under spec of cvc %s: name each pool once", d, name)
	}
	switch n := len(want); {
	case len(added) == 0 && len(removed) == 0:
		return ""
	case n == 0:
		return "the last replica cannot be removed: delete the volume, or put back " + strings.Join(have, ", ")
	case len(added) > 0 && len(removed) > 0:
		return fmt.Sprintf("volume replica migration directly by modifying pool names %v is not yet supported: "+
			"keep %s, add the new pool, and remove the old one when the new replica is Healthy", want, strings.Join(removed, ", "))
	case n > cstorv1.MaxReplicas:
		return fmt.Sprintf("a volume has at most %d replicas: remove %s", cstorv1.MaxReplicas, strings.Join(added, ", "))
	case len(added) > 0:
		return w.refuseAdded(added)
	case w.volume.Spec.DesiredReplicationFactor <= n:
		return "" // under way
	}
	if len(w.members()) == 0 {
		return w.notInService()
	}
	members := slices.ContainsFunc(removed, w.isMember)
	if k := len(removed); k > 1 && members {
		return fmt.Sprintf("Can't perform more than one replica scale down requested scale down count %d: put back all but one of %s",
			k, strings.Join(removed, ", "))
	}
	return ""
}

func (w *world) refuseAdded(added []string) string {
	cluster := w.config.Labels[cstorv1.LabelPoolCluster]
	for _, name := range added {
		pool := w.pools[name]
		if pool == nil {
			return fmt.Sprintf("pool %s does not exist: `kubectl get cspi -n %s -l %s=%s` lists the pools; correct the name or remove it",
				name, w.config.Namespace, cstorv1.LabelPoolCluster, cluster)
		}
		if c := pool.Labels[cstorv1.LabelPoolCluster]; c != cluster {
			return fmt.Sprintf("pool %s belongs to CStorPoolCluster %s: choose a pool of %s, or remove it", name, c, cluster)
		}
		if why := unusable(pool); why != "" {
			return fmt.Sprintf("pool %s %s: choose a pool that is ONLINE and not read-only, or remove it", name, why)
		}
	}
	if len(w.members()) == 0 {
		return w.notInService()
	}
	for _, p := range w.have() {
		if !w.isMember(p) {
			return fmt.Sprintf("scaling of CVC %s is already in progress: %s; wait until it is Healthy, or remove %s to cancel",
				w.config.Name, w.describe(p), p)
		}
	}
	return ""
}

func (w *world) notInService() string {
	why := "its target has not reported any member"
	for _, p := range w.have() {
		if r := w.replicas[p]; r == nil || r.Status.Phase != cstorv1.ReplicaHealthy {
			why = w.describe(p)
			break
		}
	}
	return fmt.Sprintf("volume %s has not been in service yet: %s; wait until its replicas are Healthy", w.config.Name, why)
}
