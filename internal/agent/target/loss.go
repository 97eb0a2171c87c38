package target

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/volume"
)

// lossOf returns the condition that says that data may have been lost, nil if there is none.
func lossOf(list []cstorv1.CStorVolumeCondition) *cstorv1.CStorVolumeCondition {
	i := slices.IndexFunc(list, func(c cstorv1.CStorVolumeCondition) bool { return c.Type == cstorv1.DataLossPossible })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// withLoss returns the volume's conditions with that of the newest epoch that may lack something; ok is false if they say so
// already, or there is none. Only who serves knows for certain.
func withLoss(list []cstorv1.CStorVolumeCondition, st volume.Status, now time.Time) (with []cstorv1.CStorVolumeCondition, ok bool) {
	if !st.Serving || st.Lossy == 0 {
		return nil, false
	}
	at := metav1.NewTime(now)
	c := cstorv1.CStorVolumeCondition{
		Type: cstorv1.DataLossPossible, Status: cstorv1.ConditionTrue, Reason: cstorv1.ReasonPowerLoss, LastProbeTime: at, LastTransitionTime: at,
		Message: fmt.Sprintf("Replicas lost power, or their pools failed, before epoch %d began: what had been written before that and not flushed may be lost; what had been flushed is there", st.Lossy),
	}
	with = slices.Clone(list)
	if old := lossOf(with); old == nil {
		with = append(with, c)
	} else if old.Message != c.Message {
		*old = c
	} else {
		return nil, false
	}
	return with, true
}
