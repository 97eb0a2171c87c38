package target

import (
	"slices"
	"strings"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// TestPossibleLossIsTold: an epoch that may lack something is told once, by a condition that leaves others alone and by an
// event, and only by who serves; a later one is told again.
func TestPossibleLossIsTold(t *testing.T) {
	w := newWorld(t, 2)
	w.edit(func(cv *cstorv1.CStorVolume) {
		cv.Status.Conditions = []cstorv1.CStorVolumeCondition{{Type: cstorv1.VolumeResizing, Status: cstorv1.ResizeSuccess}}
	})
	told := func() (n int) {
		for _, e := range w.events() {
			if strings.HasPrefix(e, "Warning DataLossPossible Replicas lost power, or their pools failed, before epoch ") {
				n++
			}
		}
		return n
	}
	w.target.st.Lossy = 4
	w.pass()
	if c := lossOf(w.cv().Status.Conditions); c != nil || told() != 0 {
		t.Fatalf("told by a target that does not serve: %+v", c)
	}
	w.serve(1, 2)
	w.pass()
	first := lossOf(w.cv().Status.Conditions)
	if first == nil || first.Status != cstorv1.ConditionTrue || !strings.Contains(first.Message, "epoch 4 ") || told() != 1 {
		t.Fatalf("condition %+v, %d events", first, told())
	}
	w.now = w.now.Add(heartbeat)
	w.pass()
	if c := lossOf(w.cv().Status.Conditions); !c.LastTransitionTime.Equal(&first.LastTransitionTime) || told() != 1 {
		t.Errorf("told twice: %+v, %d events", c, told())
	}
	w.target.st.Lossy = 9
	w.now = w.now.Add(time.Second)
	w.pass()
	list := w.cv().Status.Conditions
	resizing := slices.ContainsFunc(list, func(c cstorv1.CStorVolumeCondition) bool { return c.Type == cstorv1.VolumeResizing })
	if c := lossOf(list); len(list) != 2 || !resizing || !strings.Contains(c.Message, "epoch 9 ") || told() != 2 {
		t.Errorf("conditions %+v, %d events", list, told())
	}
}
