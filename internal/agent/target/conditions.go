package target

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/volume"
)

// Reasons of the condition Redundant.
const (
	reasonRedundant      = "AllReplicasInSync"
	reasonReplicaMissing = "ReplicaMissing"
	reasonNoRedundancy   = "NoRedundancy" // one replica is left of several
	reasonOneReplica     = "OneReplica"   // the volume was made with one
)

// redundancy returns the reason of the condition Redundant, empty if nothing is known.
func redundancy(st volume.Status) string {
	healthy := 0
	for _, r := range st.Replicas {
		if r.Member && r.Mode == volume.Healthy {
			healthy++
		}
	}
	switch {
	case st.Redundant:
		return reasonRedundant
	case st.Lacks == "":
		return ""
	case len(st.Committed.Members) == 1:
		return reasonOneReplica
	case healthy <= 1:
		return reasonNoRedundancy
	}
	return reasonReplicaMissing
}

// conditions returns the conditions of the volume, those of others as they are.
func (a *Agent) conditions(ctx context.Context, st volume.Status) []cstorv1.CStorVolumeCondition {
	list := slices.Clone(a.cv.Status.Conditions)
	set := func(kind string, is bool, reason, message string) {
		c := cstorv1.CStorVolumeCondition{Type: kind, Status: string(corev1.ConditionFalse), Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(a.Now())}
		if is {
			c.Status = string(corev1.ConditionTrue)
		}
		i := slices.IndexFunc(list, func(o cstorv1.CStorVolumeCondition) bool { return o.Type == kind })
		if i < 0 {
			list = append(list, c)
			return
		}
		if list[i].Status == c.Status {
			c.LastTransitionTime = list[i].LastTransitionTime
		}
		list[i] = c
	}
	if reason := redundancy(st); reason != "" {
		message := st.Lacks
		if st.Redundant {
			message = fmt.Sprintf("%d replicas are in sync", len(st.Committed.Members))
		}
		set(cstorv1.VolumeRedundant, st.Redundant, reason, a.named(ctx, message))
	}
	back := func(c cstorv1.CStorVolumeCondition) bool { return c.Type == cstorv1.VolumeRecordWentBack }
	if st.WentBack != "" {
		set(cstorv1.VolumeRecordWentBack, true, "RestoredFromOldCopy", fmt.Sprintf("%s. To go on with the record as it is, though what was completed since may be lost: %s", a.named(ctx, st.WentBack), a.acceptance(st)))
	} else if slices.ContainsFunc(list, back) {
		set(cstorv1.VolumeRecordWentBack, false, "RecordIsCurrent", "")
	}
	return list
}

// acceptance is the command by which somebody accepts that the record went back, this once.
func (a *Agent) acceptance(st volume.Status) string {
	var noted []string
	for _, n := range st.Accept {
		noted = append(noted, n.String())
	}
	return fmt.Sprintf("kubectl -n %s annotate --overwrite cstorvolumes.cstor.openebs.io %s %s=%s", a.cv.Namespace, a.cv.Name, cstorv1.AnnotationAcceptRecord, strings.Join(noted, ","))
}

// conditionEvents tells of conditions that have changed.
func (a *Agent) conditionEvents(ctx context.Context, was, is []cstorv1.CStorVolumeCondition) {
	for _, c := range is {
		i := slices.IndexFunc(was, func(o cstorv1.CStorVolumeCondition) bool { return o.Type == c.Type })
		if i >= 0 && was[i].Reason == c.Reason || i < 0 && c.Reason == reasonRedundant {
			continue
		}
		switch {
		case c.Type == cstorv1.VolumeRedundant && c.Reason == reasonRedundant:
			a.events.Event(ctx, a.cv, corev1.EventTypeNormal, "Redundant", "Volume is redundant: "+c.Message)
		case c.Type == cstorv1.VolumeRedundant && c.Reason != reasonOneReplica:
			a.events.Event(ctx, a.cv, corev1.EventTypeWarning, c.Reason, "Volume is not redundant: "+c.Message)
		case c.Type == cstorv1.VolumeRecordWentBack && c.Status == string(corev1.ConditionTrue):
			a.events.Event(ctx, a.cv, corev1.EventTypeWarning, "RecordWentBack", c.Message)
		}
	}
}
