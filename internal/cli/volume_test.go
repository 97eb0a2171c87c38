package cli

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

func TestVolumeStatus(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := cstorv1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{Namespace: "ns", Name: "pvc-1"}
	volume := &cstorv1.CStorVolume{ObjectMeta: meta}
	volume.Status.Phase = cstorv1.VolumeHealthy
	volume.Status.ReplicaDetails.KnownReplicas = map[string]string{"1": "g"}
	config := &cstorv1.CStorVolumeConfig{ObjectMeta: meta}
	config.Status.Conditions = []cstorv1.CStorVolumeConfigCondition{{
		Type: cstorv1.ConfigScalingRefused, Reason: "Refused", Message: "pool typo does not exist"}}
	replica := func(name, id string, phase cstorv1.ReplicaPhase) *cstorv1.CStorVolumeReplica {
		r := &cstorv1.CStorVolumeReplica{ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: name, Labels: map[string]string{cstorv1.LabelPV: "pvc-1"}}}
		r.Spec.ReplicaID, r.Status.Phase = id, phase
		return r
	}
	filling := replica("pvc-1-b", "2", cstorv1.ReplicaReconstructing)
	filling.Status.Progress = cstorv1.NewRebuildProgress(1<<30, 4<<30, 256<<20, "")
	member := replica("pvc-1-a", "1", cstorv1.ReplicaHealthy)
	c := Cluster{Namespace: "ns", Client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(volume, config, member, filling).Build()}

	var out strings.Builder
	ok, err := c.VolumeStatus(t.Context(), &out, "pvc-1")
	if err != nil || !ok {
		t.Errorf("%v, %v although every member is Healthy", ok, err)
	}
	for _, want := range []string{"ScalingRefused, Refused: pool typo does not exist", "ReconstructingNewReplica", "25%", "256M/s", "12s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
	member.Status.Phase = cstorv1.ReplicaOffline
	if err := c.Client.Update(t.Context(), member); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.VolumeStatus(t.Context(), &out, "pvc-1"); ok || err != nil {
		t.Errorf("%v, %v although a member is Offline", ok, err)
	}
	if _, err := c.VolumeStatus(t.Context(), &out, "pvc-2"); err == nil {
		t.Error("a volume that does not exist has a status")
	}
}
