package target

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// Validate says what is wrong with a volume's factors, nil if nothing is.
func Validate(cv *cstorv1.CStorVolume) error {
	s := cv.Spec
	switch {
	case s.ReplicationFactor < 1 || s.ConsistencyFactor < 1 || s.DesiredReplicationFactor < 1:
		return fmt.Errorf("replicationFactor %d, consistencyFactor %d and desiredReplicationFactor %d must be at least 1",
			s.ReplicationFactor, s.ConsistencyFactor, s.DesiredReplicationFactor)
	case s.ReplicationFactor < s.ConsistencyFactor:
		return fmt.Errorf("consistencyFactor %d is more than replicationFactor %d", s.ConsistencyFactor, s.ReplicationFactor)
	case s.DesiredReplicationFactor > cstorv1.MaxReplicas:
		return fmt.Errorf("desiredReplicationFactor %d is more than %d", s.DesiredReplicationFactor, cstorv1.MaxReplicas)
	case s.Capacity.Value() < block.Size:
		return fmt.Errorf("capacity %s is less than a block of %d bytes", s.Capacity.String(), block.Size)
	}
	return nil
}

// Size returns the volume's size in bytes, whole blocks.
func Size(cv *cstorv1.CStorVolume) int64 {
	return (cv.Spec.Capacity.Value() + block.Size - 1) &^ (block.Size - 1)
}

// Told is a CStorVolume of which only that is known which does not change.
func Told(namespace, name, uid, config string, capacity resource.Quantity, iqn, portal string) *cstorv1.CStorVolume {
	return &cstorv1.CStorVolume{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID(uid),
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: cstorv1.GroupVersion.String(), Kind: "CStorVolumeConfig", Name: name, UID: types.UID(config),
			}},
		},
		Spec: cstorv1.CStorVolumeSpec{Capacity: capacity, Iqn: iqn, TargetPortal: portal},
	}
}

// Desired reads from a CStorVolume what is wanted of the membership. A member is to be removed when fewer are wanted
// and the operator took its id out of spec; that it is in status tells it from one that is not in spec yet.
func Desired(cv *cstorv1.CStorVolume) volume.Desired {
	known := cv.Status.ReplicaDetails.KnownReplicas
	d := volume.Desired{
		Founding: cv.Spec.ReplicationFactor, Factor: cv.Spec.DesiredReplicationFactor,
		Witness: cv.Spec.Witness != cstorv1.WitnessDisabled,
	}
	for s := range strings.SplitSeq(cv.Annotations[cstorv1.AnnotationAcceptRecord], ",") {
		if n, err := volume.ParseNoted(strings.TrimSpace(s)); err == nil {
			d.AcceptRecord = append(d.AcceptRecord, n)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if _, stays := cv.Spec.ReplicaDetails.KnownReplicas[id]; stays || len(known)-len(d.Remove) <= d.Factor {
			continue
		}
		if g, err := block.ParseGUID(known[id]); err == nil {
			d.Remove = append(d.Remove, g)
		}
	}
	return d
}

// members returns the committed members by the id of their place. One that never connected to this target is known
// from what an earlier one wrote; if none did it has no id but its GUID, until it connects: it is a member all the same.
func members(cv *cstorv1.CStorVolume, st volume.Status) map[string]string {
	ids := map[string]string{}
	for id, g := range cv.Spec.ReplicaDetails.KnownReplicas {
		ids[g] = id
	}
	for id, g := range cv.Status.ReplicaDetails.KnownReplicas {
		ids[g] = id
	}
	for _, r := range st.Replicas {
		if r.ReplicaID != "" {
			ids[r.GUID.String()] = r.ReplicaID
		}
	}
	out := map[string]string{}
	for _, g := range st.Committed.Members {
		out[cmp.Or(ids[g.String()], g.String())] = g.String()
	}
	return out
}

// added returns the members that the volume's status does not show yet; none while the volume is founded, whose first
// members are shown at once.
func added(cv *cstorv1.CStorVolume, st volume.Status) map[string]string {
	known := cv.Status.ReplicaDetails.KnownReplicas
	if len(known) == 0 {
		return nil
	}
	out := members(cv, st)
	maps.DeleteFunc(out, func(_, g string) bool { return slices.Contains(slices.Collect(maps.Values(known)), g) })
	return out
}

// phaseOf is the volume's phase. One that has never served is Init; Healthy takes a quorum of replicas in sync.
func phaseOf(cv *cstorv1.CStorVolume, st volume.Status) cstorv1.VolumePhase {
	healthy := 0
	for _, r := range st.Replicas {
		if r.Member && r.Mode == volume.Healthy {
			healthy++
		}
	}
	switch {
	case !st.Serving && len(cv.Status.ReplicaDetails.KnownReplicas) == 0:
		return cstorv1.VolumeInit
	case !st.Serving:
		return cstorv1.VolumeOffline
	case healthy >= st.Committed.Quorum():
		return cstorv1.VolumeHealthy
	default:
		return cstorv1.VolumeDegraded
	}
}

// fields is what the CStorVolume should say of st. Members in hide are not shown yet.
//
// Membership goes into one patch with the adopted desiredReplicationFactor, so that nobody ever sees a member without its
// factor, or the adoption without the members promoted before it, and with the epoch and the list that say how new it is. It
// is written only while the volume serves: a target that has not heard a quorum yet may hold an old list.
func fields(cv *cstorv1.CStorVolume, st volume.Status, hide map[string]string) (spec, status kube.Fields) {
	spec = kube.Fields{}
	status = kube.Fields{
		"phase":    phaseOf(cv, st),
		"message":  message(st),
		"capacity": cv.Spec.Capacity,
	}
	if !st.Serving || len(st.Committed.Members) == 0 {
		return spec, status
	}
	wanted, known := membership(cv, st, hide)
	count := len(st.Committed.Members) - len(hide)
	spec["replicationFactor"], spec["consistencyFactor"] = count, cstorv1.ConsistencyFactor(count)
	spec["replicaDetails"] = kube.Fields{"knownReplicas": wanted}
	status["replicaDetails"] = kube.Fields{"knownReplicas": known}
	if st.Desired.Factor != 0 { // nothing is adopted yet while an earlier target's change is finished
		status["desiredReplicationFactor"] = st.Desired.Factor
	}
	status["epoch"] = st.Committed.Epoch
	switch {
	case len(hide) == 0:
		status["generation"] = st.Committed.Generation
	case cv.Status.Epoch != int64(st.Committed.Epoch):
		status["generation"] = 0 // that of what is shown is not known in this epoch
	}
	return spec, status
}

// membership returns the changes to the members wanted (in spec) and known (in status); nil values remove.
func membership(cv *cstorv1.CStorVolume, st volume.Status, hide map[string]string) (wanted, known kube.Fields) {
	wanted, known = kube.Fields{}, kube.Fields{}
	shown := members(cv, st)
	had := cv.Status.ReplicaDetails.KnownReplicas
	for id, g := range shown {
		if _, hidden := hide[id]; hidden {
			continue
		}
		known[id] = g
		if had[id] != g && (had[g] != g || cv.Spec.ReplicaDetails.KnownReplicas[g] == g) {
			wanted[id] = g // new, or under its GUID until now; what status had already and spec has not, the operator took away
		}
	}
	for id, g := range had {
		if _, ok := shown[id]; ok {
			continue
		}
		known[id] = nil
		if cv.Spec.ReplicaDetails.KnownReplicas[id] == g {
			wanted[id] = nil // the operator took the removal back when it was done already
		}
	}
	return wanted, known
}

func message(st volume.Status) string {
	switch {
	case !st.Serving:
		return st.Holding
	case st.Removing == "" && redundancy(st) == reasonNoRedundancy:
		return st.Lacks
	default:
		return st.Removing
	}
}

// replicaStatuses lists the connected replicas. up says for how long each has been connected.
func replicaStatuses(st volume.Status, up func(block.GUID) time.Duration) []cstorv1.ReplicaStatus {
	list := []cstorv1.ReplicaStatus{}
	for _, r := range st.Replicas {
		if r.Mode == volume.Offline {
			continue
		}
		s := cstorv1.ReplicaStatus{
			ID: r.GUID.String(), Mode: cstorv1.ModeDegraded, Quorum: "0", CheckpointedIOSeq: strconv.FormatUint(r.Applied, 10),
			InflightRead: "0", InflightWrite: "0", InflightSync: "0", UpTime: int(up(r.GUID).Seconds()),
		}
		if r.Mode == volume.Healthy {
			s.Mode = cstorv1.ModeHealthy
		}
		if r.Member {
			s.Quorum = "1"
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b cstorv1.ReplicaStatus) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// sameReplicas reports whether two lists differ in their counters only.
func sameReplicas(a, b []cstorv1.ReplicaStatus) bool {
	return slices.EqualFunc(a, b, func(x, y cstorv1.ReplicaStatus) bool {
		return x.ID == y.ID && x.Mode == y.Mode && x.Quorum == y.Quorum
	})
}
