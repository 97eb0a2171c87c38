package walkthrough

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

func newFacts() *facts {
	return &facts{volume: "pv", hosts: map[string]string{"pool-a": "node1"}, last: map[string]string{}}
}

func TestFactsAreOrderedByVersion(t *testing.T) {
	f := newFacts()
	replica := func(version, phase string) {
		r := &cstorv1.CStorVolumeReplica{ObjectMeta: metav1.ObjectMeta{
			Name: "pv-pool-a", ResourceVersion: version,
			Labels: map[string]string{cstorv1.LabelPV: "pv", cstorv1.LabelPoolName: "pool-a"},
		}}
		r.Status.Phase = cstorv1.ReplicaPhase(phase)
		f.note(watch.Event{Type: watch.Modified, Object: r})
	}
	replica("10", "Recreate")
	replica("30", "Healthy")
	replica("31", "Healthy")                                     // nothing new
	f.note(watch.Event{Type: watch.Added, Object: &corev1.Event{ // seen late
		ObjectMeta:     metav1.ObjectMeta{ResourceVersion: "20", UID: "1"},
		InvolvedObject: corev1.ObjectReference{Kind: "CStorVolumeConfig", Name: "pv"},
		Type:           "Normal", Reason: "Synced", Message: "done",
	}})
	f.note(watch.Event{Type: watch.Added, Object: &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Name: "another"}}})

	var got []string
	for _, x := range f.since(time.Time{}) {
		got = append(got, x.text)
	}
	want := "replica on node1 is made, replica on node1 is Recreate, event: Normal Synced done, replica on node1 is Healthy"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if err := f.order(time.Time{}, []string{"replica on node1 is Recreate", "event: Normal Synced done", "replica on node1 is Healthy"}); err != nil {
		t.Error(err)
	}
	err := f.order(time.Time{}, []string{"replica on node1 is Healthy", "event: Normal Synced done"})
	if err == nil || !strings.Contains(err.Error(), `"event: Normal Synced done" is missing, or came too early`) {
		t.Errorf("a wrong order was reported as: %v", err)
	}
}

func TestGrowth(t *testing.T) {
	var g growth
	for _, size := range []string{"10M", "10M", "5M"} {
		if err := g.add(cstorv1.CStorVolumeReplicaCapacity{Used: size, Total: size}); err != nil {
			t.Fatal(err)
		}
	}
	if g.err() == nil {
		t.Error("sizes that do not grow were accepted")
	}
	if err := g.add(cstorv1.CStorVolumeReplicaCapacity{Used: "20M", Total: "11M"}); err != nil || g.err() != nil {
		t.Errorf("sizes that grow were not accepted: %v, %v", err, g.err())
	}
	if g.add(cstorv1.CStorVolumeReplicaCapacity{Used: "a lot", Total: "1M"}) == nil {
		t.Error("a size that is none was accepted")
	}
}

func TestCommandLine(t *testing.T) {
	got := commandLine([]string{"patch", "cvc", "pv", "-p", `{"spec":{}}`})
	if want := `kubectl patch cvc pv -p '{"spec":{}}'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
