package target

import (
	"maps"
	"slices"
	"testing"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// nameless is a volume of three whose third member's pool is away and whose object says nothing of members: its first target
// died before it told of them, or somebody made the object anew.
func nameless(t *testing.T) (*world, volume.Replica) {
	w := newWorld(t, 3)
	w.serve(1, 2, 3)
	third := w.target.st.Replicas[2]
	w.target.st.Replicas[2] = volume.Replica{GUID: guid(3), Member: true, Mode: volume.Offline}
	w.pass()
	return w, third
}

func TestAMemberWithoutAnIDIsAMember(t *testing.T) {
	w, third := nameless(t)
	g := guid(3).String()
	w.wantMembers(3, g, id(1), id(2))

	// Its id is known as soon as it connects; it is a member all the time.
	w.replica(3, cstorv1.ReplicaOffline)
	w.target.st.Replicas[2] = third
	w.history = nil
	w.pass()
	w.wantMembers(3, id(1), id(2), id(3))
	for _, cv := range w.history {
		if !slices.Contains(slices.Collect(maps.Values(cv.Status.ReplicaDetails.KnownReplicas)), g) {
			t.Errorf("for a while the members were %v", cv.Status.ReplicaDetails.KnownReplicas)
		}
	}
}

func TestAMemberWithoutAnIDCanBeRemoved(t *testing.T) {
	w, third := nameless(t)
	w.edit(func(cv *cstorv1.CStorVolume) {
		cv.Spec.DesiredReplicationFactor = 2
		delete(cv.Spec.ReplicaDetails.KnownReplicas, guid(3).String())
	})
	w.pass()
	w.target.st.Replicas[2] = third // that its id becomes known takes nothing back
	w.pass()
	w.pass()
	for _, d := range w.target.wants {
		if !slices.Equal(d.Remove, []block.GUID{guid(3)}) {
			t.Errorf("wanted %+v", d)
		}
	}
	if cv := w.cv(); len(cv.Spec.ReplicaDetails.KnownReplicas) != 2 {
		t.Errorf("wanted members %v", cv.Spec.ReplicaDetails.KnownReplicas)
	}
}
