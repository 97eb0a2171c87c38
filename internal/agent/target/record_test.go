package target

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

func TestTheRecordOfAnEarlierVolumeIsNotTaken(t *testing.T) {
	owned := func(uid types.UID) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: "cstor.openebs.io/v1", Kind: "CStorVolumeConfig", Name: pv, UID: uid}}
	}
	old := &cstorv1.CStorVolumeRecord{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, OwnerReferences: owned("earlier")}, Version: 7,
		List: &cstorv1.RecordedList{RecordedListID: cstorv1.RecordedListID{Epoch: 3, Generation: 2}, Members: []string{guid(8).String()}}}
	c := fake.NewClientBuilder().WithScheme(kube.Scheme()).WithObjects(old).Build()
	r := &Record{Client: c, Owner: &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, UID: "u", OwnerReferences: owned("now")}}}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if held, err := r.Read(ended); err == nil || !strings.Contains(err.Error(), "earlier volume") {
		t.Fatalf("read: %+v %v", held, err)
	}
	if err := c.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	l := volume.List{Epoch: 1, Generation: 1, Members: []block.GUID{guid(1)}}
	w := &Witness{Record: r}
	if held, err := w.Read(t.Context()); err != nil || !held.Equal(volume.Record{}) {
		t.Fatalf("read: %+v %v", held, err)
	}
	founded := volume.Record{Version: 1, List: &l}
	if got, err := w.Write(t.Context(), 0, founded); err != nil || !got.Equal(founded) {
		t.Fatalf("written: %+v %v", got, err)
	}
	// A CStorVolume that somebody made anew by hand does not know whose it is. The record does not belong to another one.
	r = &Record{Client: c, Owner: &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, UID: "by hand"}}}
	if held, err := r.Read(t.Context()); err != nil || !held.Record.Equal(founded) {
		t.Fatalf("read by hand: %+v %v", held, err)
	}
}

func TestRecordIsFoundedOnce(t *testing.T) {
	owner := &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, UID: "u", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: "cstor.openebs.io/v1", Kind: "CStorVolumeConfig", Name: pv, UID: "config"}}}}
	for name, there := range map[string]bool{"no record": false, "record without a list": true} {
		t.Run(name, func(t *testing.T) {
			b := fake.NewClientBuilder().WithScheme(kube.Scheme())
			if there {
				b.WithObjects(&cstorv1.CStorVolumeRecord{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv}})
			}
			r := &Record{Client: b.Build(), Owner: owner}
			w := &Witness{Record: r}
			held, err := w.Read(t.Context())
			if err != nil || !held.Equal(volume.Record{}) {
				t.Fatalf("before: %+v %v", held, err)
			}
			first := volume.Record{Version: 1, List: &volume.List{Epoch: 1, Generation: 1, Members: []block.GUID{guid(1), guid(2)}, Witness: true}}
			second := volume.Record{Version: 1, List: &volume.List{Epoch: 2, Generation: 1, Members: []block.GUID{guid(3)}}}
			other := &Witness{Record: &Record{Client: r.Client, Owner: owner}}
			if there {
				other.Read(t.Context())
			}
			if got, err := w.Write(t.Context(), 0, first); err != nil || !got.Equal(first) {
				t.Fatalf("written: %+v %v", got, err)
			}
			if got, err := other.Write(t.Context(), 0, second); err != nil || !got.Equal(first) {
				t.Fatalf("written by another: %+v %v, want the first list", got, err)
			}
			if got, err := w.Read(t.Context()); err != nil || !got.Equal(first) {
				t.Fatalf("read: %+v %v", got, err)
			}
			next := first
			next.Version, next.Epoch, next.Nonce, next.Set = 2, 7, 8, first.List.Members[:1]
			next.Claims = []volume.Noted{{Version: 1, By: volume.Promise{Epoch: 6, Nonce: 1<<64 - 1}}, {Version: 2, By: volume.Promise{Epoch: 7, Nonce: 8}}}
			if got, err := other.Write(t.Context(), 1, next); err != nil || !got.Equal(next) {
				t.Fatalf("the next by another: %+v %v", got, err)
			}
			if got, err := w.Write(t.Context(), 0, second); err != nil || !got.Equal(first) {
				t.Fatalf("a write for a version that is there: %+v %v", got, err)
			}
			if refs := w.held.object.OwnerReferences; !there && (len(refs) != 1 || refs[0].UID != "config") {
				t.Errorf("it lives as long as %+v", refs)
			}
		})
	}
}
