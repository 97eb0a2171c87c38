package target

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/volume"
)

func TestRedundancyIsShown(t *testing.T) {
	w := newWorld(t, 2)
	w.serve(1, 2)
	w.target.st.Redundant = true
	w.pass()
	is := func() string {
		for _, c := range w.agent.cv.Status.Conditions {
			if c.Type == cstorv1.VolumeRedundant {
				return fmt.Sprintf("%s %s since %d: %s", c.Status, c.Reason, c.LastTransitionTime.Unix()-1_800_000_000, c.Message)
			}
		}
		return "none"
	}
	expect := func(want string) {
		t.Helper()
		if got := is(); got != want {
			t.Errorf("condition %q, want %q", got, want)
		}
	}
	expect("True AllReplicasInSync since 0: 2 replicas are in sync")

	w.now = w.now.Add(time.Minute)
	w.target.st.Replicas[1].Mode = volume.Offline
	w.target.st.Redundant, w.target.st.Lacks = false, "runs without redundancy: only a has everything"
	w.pass()
	w.now = w.now.Add(time.Minute)
	w.pass()
	expect("False NoRedundancy since 60: runs without redundancy: only a has everything")
	if m := w.agent.cv.Status.Message; m != w.target.st.Lacks {
		t.Errorf("message %q", m)
	}
	// Before a target that takes over knows, what was found stays.
	st := w.target.st
	w.target.st = volume.Status{Holding: "waiting", Desired: st.Desired}
	w.pass()
	expect("False NoRedundancy since 60: runs without redundancy: only a has everything")

	w.target.st = volume.Status{
		Holding: "waiting", WentBack: guid(1).String() + " has noted version 5", Desired: st.Desired,
		Accept: []volume.Noted{{Version: 5, By: volume.Promise{Epoch: 3, Nonce: 0xab}}, {Version: 4}},
	}
	w.pass()
	back := func() string {
		i := slices.IndexFunc(w.agent.cv.Status.Conditions, func(c cstorv1.CStorVolumeCondition) bool { return c.Type == cstorv1.VolumeRecordWentBack })
		if i < 0 {
			return ""
		}
		return w.agent.cv.Status.Conditions[i].Status + " " + w.agent.cv.Status.Conditions[i].Message
	}
	const message = " has noted version 5. To go on with the record as it is, though what was completed since may be lost: kubectl -n " + ns +
		" annotate --overwrite cstorvolumes.cstor.openebs.io " + pv + " cstor.openebs.io/accept-record=5.3.ab,4.0.0"
	if got := back(); !strings.HasPrefix(got, "True ") || !strings.HasSuffix(got, message) {
		t.Errorf("of the record it is said: %s", got)
	}
	w.now = w.now.Add(time.Minute)
	w.serve(1, 2)
	w.target.st.Redundant, w.target.st.Lacks, w.target.st.WentBack = true, "", ""
	w.pass()
	expect("True AllReplicasInSync since 180: 2 replicas are in sync")
	if back() != "False " {
		t.Error("not told that the record is right again")
	}

	var events corev1.EventList
	if err := w.client.List(w.ctx, &events); err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range events.Items {
		if strings.Contains(e.Message, "redundan") || e.Reason == "RecordWentBack" {
			told = append(told, e.Type+" "+e.Reason)
		}
	}
	slices.Sort(told)
	if want := []string{"Normal Redundant", "Warning NoRedundancy", "Warning RecordWentBack"}; !slices.Equal(told, want) {
		t.Errorf("events %v, want %v", told, want)
	}
}

func TestWitnessIsWanted(t *testing.T) {
	w := newWorld(t, 2)
	if !w.agent.wanted.Witness {
		t.Error("not on by default")
	}
	w.serve(1, 2)
	w.agent.cv.Spec.Witness = cstorv1.WitnessDisabled
	w.agent.cv.Annotations = map[string]string{cstorv1.AnnotationAcceptRecord: "5.3.ab, 7, 9223372036854775807.1.1, 4.0.0"}
	if err := w.client.Update(w.ctx, w.agent.cv); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if len(w.target.wants) != 1 || w.target.wants[0].Witness || !slices.Equal(w.target.wants[0].AcceptRecord, []volume.Noted{{Version: 5, By: volume.Promise{Epoch: 3, Nonce: 0xab}}, {Version: 4}}) {
		t.Errorf("wanted %+v", w.target.wants)
	}
}

func TestRebuildLimitIsWanted(t *testing.T) {
	w := newWorld(t, 2)
	if w.agent.wanted.RebuildLimit != 0 {
		t.Error("there is one by default")
	}
	w.serve(1, 2)
	for said, want := range map[string]int64{"100M": 100 << 20, "1K": 4 << 20, "": 0} {
		w.agent.cv.Spec.RebuildBandwidth = said
		if err := w.client.Update(w.ctx, w.agent.cv); err != nil {
			t.Fatal(err)
		}
		w.pass()
		if got := w.agent.wanted.RebuildLimit; got != want {
			t.Errorf("%q: %d bytes/s, want %d", said, got, want)
		}
	}
}
