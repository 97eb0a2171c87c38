package kube

import (
	"log/slog"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

func replica() *cstorv1.CStorVolumeReplica {
	return &cstorv1.CStorVolumeReplica{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r", Annotations: map[string]string{"a": "1", "b": "2"}},
		Status:     cstorv1.CStorVolumeReplicaStatus{Phase: "Healthy", Progress: &cstorv1.RebuildProgress{Percent: 3}},
	}
}

func TestEventsThatRepeatAreCounted(t *testing.T) {
	obj := replica()
	c := fake.NewClientBuilder().WithScheme(Scheme()).WithObjects(obj).Build()
	now := time.Unix(1_800_000_000, 0)
	r := &Recorder{Client: c, Component: "x", Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}
	for range 3 {
		now = now.Add(time.Minute)
		r.Event(t.Context(), obj, corev1.EventTypeNormal, "Created", "it was made")
	}
	r.Event(t.Context(), obj, corev1.EventTypeNormal, "Created", "another")
	list := &corev1.EventList{}
	if err := c.List(t.Context(), list); err != nil || len(list.Items) != 2 {
		t.Fatalf("%d events, %v", len(list.Items), err)
	}
	for _, e := range list.Items {
		if e.Message == "it was made" && (e.Count != 3 || e.LastTimestamp.Sub(e.FirstTimestamp.Time) != 2*time.Minute) {
			t.Errorf("count %d, from %s to %s", e.Count, e.FirstTimestamp, e.LastTimestamp)
		}
		if e.InvolvedObject.Kind != "CStorVolumeReplica" || e.InvolvedObject.APIVersion != "cstor.openebs.io/v1" {
			t.Errorf("object %+v", e.InvolvedObject)
		}
	}
}

func TestMergeForgetsWhatItRemoves(t *testing.T) {
	c := fake.NewClientBuilder().WithScheme(Scheme()).WithObjects(replica()).Build()
	obj := replica()
	wrote, err := Apply(t.Context(), c, obj, Fields{
		"metadata": Fields{"annotations": Fields{"a": nil}},
		"status":   Fields{"progress": nil, "phase": "Healthy"},
	}, Fields{"status": Fields{"message": "stamped"}})
	if err != nil || !wrote {
		t.Fatal(wrote, err)
	}
	if obj.Status.Progress != nil || len(obj.Annotations) != 1 || obj.Status.Message != "stamped" || obj.Status.Phase != "Healthy" {
		t.Errorf("%+v", obj)
	}
	if wrote, err = Apply(t.Context(), c, obj, Fields{"status": Fields{"progress": nil}}, Fields{"status": Fields{"message": "again"}}); wrote || err != nil {
		t.Errorf("wrote %v, %v although nothing differs", wrote, err)
	}
}

func TestNewFieldsAreWrittenWhole(t *testing.T) {
	obj := replica()
	obj.Status.Progress, obj.Annotations = nil, nil
	got, err := Diff(obj, Fields{
		"metadata": Fields{"annotations": Fields{"a": nil}},
		"status":   Fields{"progress": cstorv1.NewRebuildProgress(0, 0, 0, "")},
	})
	want := Fields{"status": Fields{"progress": Fields{"bytesDone": 0.0, "bytesTotal": 0.0, "percent": 0.0, "done": "0%"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; the schema requires fields that are zero", got, err)
	}
}

func TestFinalizersAreChangedUnderTheirVersion(t *testing.T) {
	c := fake.NewClientBuilder().WithScheme(Scheme()).WithObjects(replica()).Build()
	old := &cstorv1.CStorVolumeReplica{}
	key := client.ObjectKey{Namespace: "ns", Name: "r"}
	if err := c.Get(t.Context(), key, old); err != nil {
		t.Fatal(err)
	}
	now := old.DeepCopy()
	if err := AddFinalizer(t.Context(), c, now, "x/first"); err != nil {
		t.Fatal(err)
	}
	if err := AddFinalizer(t.Context(), c, old, "x/second"); !apierrors.IsConflict(err) {
		t.Errorf("an outdated object: %v, want a conflict", err)
	}
	if err := RemoveFinalizer(t.Context(), c, now, "x/first"); err != nil || len(now.Finalizers) != 0 {
		t.Errorf("%v %v", now.Finalizers, err)
	}
}

func TestClientNeedsNoDiscovery(t *testing.T) {
	c, err := NewClient(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	for obj, want := range map[client.Object]string{
		&cstorv1.CStorPoolInstance{}: "cstorpoolinstances", &cstorv1.CStorVolumeReplica{}: "cstorvolumereplicas",
		&cstorv1.CStorVolumeRecord{}: "cstorvolumerecords", &corev1.Event{}: "events",
	} {
		gvk, err := c.GroupVersionKindFor(obj)
		if err != nil {
			t.Fatal(err)
		}
		m, err := c.RESTMapper().RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil || m.Resource.Resource != want {
			t.Errorf("%s: %v, %v", gvk, m, err)
		}
	}
}
