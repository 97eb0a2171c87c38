package volumes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// world is everything that decides what happens to the replicas of a volume that is bound. All of it but the pools is
// read from the API server, not from a cache.
type world struct {
	config   *cstorv1.CStorVolumeConfig
	volume   *cstorv1.CStorVolume
	replicas map[string]*cstorv1.CStorVolumeReplica // by pool
	pools    map[string]*cstorv1.CStorPoolInstance  // all in the namespace
	outdated string                                 // why the volume's status is not to be acted upon; empty: it may be
}

// want returns the pools that the user asks for, have those that replicas exist on as far as the status says.
func (w *world) want() []string { return names(w.config.Spec.Policy.ReplicaPoolInfo) }
func (w *world) have() []string { return w.config.Status.PoolInfo }

// id returns the replica id of the volume's replica on a pool.
func (w *world) id(pool string) string {
	if r := w.replicas[pool]; r != nil && r.Spec.ReplicaID != "" {
		return r.Spec.ReplicaID
	}
	return cstorv1.ReplicaID(w.volume.Name, pool)
}

// members returns the volume's members: what is recorded by the members themselves.
func (w *world) members() map[string]string { return w.volume.Status.ReplicaDetails.KnownReplicas }

// place returns under which id the members list the replica on a pool, if they do. That is its GUID as long as the target
// has not heard of its id.
func (w *world) place(pool string) string {
	id := w.id(pool)
	if _, ok := w.members()[id]; ok {
		return id
	}
	if r := w.replicas[pool]; r != nil && r.Status.GUID != "" {
		return cmp.Or(w.members()[r.Status.GUID], id)
	}
	if pools, members := w.strangers(); len(members) == 1 && slices.Equal(pools, []string{pool}) {
		return members[0]
	}
	return id
}

// strangers returns the pools whose replicas may be any member that has no id, and the members with no id whose replicas
// may be on any of these pools.
func (w *world) strangers() (pools, members []string) {
	told := map[string]bool{}
	for _, pool := range append(slices.Clone(w.have()), without(slices.Sorted(maps.Keys(w.replicas)), w.have())...) {
		r := w.replicas[pool]
		_, named := w.members()[w.id(pool)]
		switch {
		case named:
		case r != nil && r.Status.GUID != "":
			told[r.Status.GUID] = true
		default:
			pools = append(pools, pool)
		}
	}
	for id, guid := range w.members() {
		if id == guid && !told[guid] {
			members = append(members, id)
		}
	}
	slices.Sort(members)
	return pools, members
}

// unclear says why it cannot be told yet whether the replica on a pool is a member, empty if it can.
func (w *world) unclear(pool string) string {
	pools, members := w.strangers()
	if !slices.Contains(pools, pool) || len(members) == 0 || w.isMember(pool) {
		return ""
	}
	return fmt.Sprintf("pool %s has to be back before it is known whether its replica is one of the members %s", pool, strings.Join(members, ", "))
}

func (w *world) isMember(pool string) bool {
	_, ok := w.members()[w.place(pool)]
	return ok
}

// isWanted reports whether the target may take the replica on a pool for a member to keep.
func (w *world) isWanted(pool string) bool {
	_, ok := w.volume.Spec.ReplicaDetails.KnownReplicas[w.place(pool)]
	return ok
}

// leaving returns the pools whose replicas have to go: those that the user removed, and those that were added by an
// edit which was reverted before the status told of them.
func (w *world) leaving() []string {
	gone := without(w.have(), w.want())
	var more []string
	for pool, r := range w.replicas {
		if r.DeletionTimestamp == nil && !slices.Contains(w.want(), pool) && !slices.Contains(gone, pool) {
			more = append(more, pool)
		}
	}
	slices.Sort(more)
	return append(gone, more...)
}

// adopted reports whether the target has taken over the desired number of replicas as it stands in the spec. The number
// is changed only after that, so that what the status says always answers what was asked last. Before a target has
// said anything there is nothing to mix up.
func (w *world) adopted() bool {
	return w.volume.Status.DesiredReplicationFactor == w.volume.Spec.DesiredReplicationFactor
}

func (w *world) mayChangeFactor() bool {
	return w.adopted() || w.volume.Status.DesiredReplicationFactor == 0
}

// describe says in what state the replica on a pool is.
func (w *world) describe(pool string) string {
	r := w.replicas[pool]
	if r == nil {
		return fmt.Sprintf("replica on pool %s does not exist yet", pool)
	}
	s := fmt.Sprintf("replica %s is %s", r.Name, r.Status.Phase)
	if r.Status.Phase == "" {
		s = fmt.Sprintf("replica %s has not been taken up by its pool", r.Name)
	}
	if p := r.Status.Progress; p != nil {
		s += " (" + p.Done
		if p.ETA != "" {
			s += ", " + p.ETA + " left"
		}
		if p.WaitingFor != "" {
			s += ", waiting for " + p.WaitingFor
		}
		s += ")"
	}
	if p := w.pools[pool]; p != nil && p.Status.Phase != cstorv1.PoolOnline && r.Status.Phase != cstorv1.ReplicaHealthy {
		s += fmt.Sprintf(" and pool %s is %s", pool, cmp.Or(p.Status.Phase, "not made yet"))
	}
	return s
}

// without returns the elements of a that are not in b, in their order.
func without(a, b []string) []string {
	var out []string
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}
