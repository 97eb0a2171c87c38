package target

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// mayReport reports whether it is this target that may write the status. There may be two for a while: one on a node
// that was cut off, or whose process was frozen, and its successor. Whoever serves, in an epoch that is not older than
// the status, knows best. One that does not serve may say so as long as it was the last that reported, when it has just
// started, since then it is the newest, and when nobody confirmed the status for long. What it writes then is never about
// the members. As every patch is for the version of the object that was looked at here, none comes too late.
func (a *Agent) mayReport(st volume.Status) bool {
	if st.Serving {
		return int64(st.Committed.Epoch) >= a.cv.Status.Epoch
	}
	return a.cv.Status.Target == a.Pod || !a.told || a.Now().Sub(a.renewed) >= abandoned
}

// epochLimit is far above every epoch that a volume gets to.
const epochLimit = 1 << 62

// outrank lets the target begin an epoch above that of the status. It held leases after the status was read, so that no target
// had served in that epoch: the pools went back in time, the status is that of another volume, or somebody edited it. Whoever
// remembers it takes what is said in lower epochs for old, so that this volume would never be heard again.
func (a *Agent) outrank(st volume.Status) {
	shown := a.cv.Status.Epoch
	if shown >= epochLimit {
		if a.Now().Sub(a.warned) >= heartbeat {
			a.warned = a.Now()
			a.Log.Warn("the volume cannot be reported: the CStorVolume shows an epoch that no target can have had; set status.epoch to that of the target",
				"shown", shown, "epoch", st.Committed.Epoch)
		}
		return
	}
	a.Log.Warn("the CStorVolume shows an epoch that the replicas know nothing of: beginning one above it", "shown", shown, "epoch", st.Committed.Epoch)
	a.target.Above(uint64(shown))
}

// noteUpdate notes that the status was confirmed by whoever reports, by this process's clock.
func (a *Agent) noteUpdate() {
	if at := a.cv.Status.LastUpdateTime.Time; a.renewed.IsZero() || !at.Equal(a.updated) {
		a.updated, a.renewed = at, a.Now()
	}
}

// report writes what the target says.
func (a *Agent) report(ctx context.Context, st volume.Status) error {
	if st.Serving && a.cv.Status.Epoch > int64(st.Committed.Epoch) {
		a.outrank(st)
		return nil
	}
	if !a.mayReport(st) {
		return nil
	}
	before := a.cv.DeepCopy()
	hide := a.hold(ctx, st)
	spec, status := fields(a.cv, st, hide)
	status["message"] = a.named(ctx, message(st))
	conditions := a.cv.Status.Conditions
	if list := a.conditions(ctx, st); len(list) > 0 {
		conditions, status["conditions"] = list, list
	}
	a.noteConnections(st)
	now := a.Now()
	list := replicaStatuses(st, func(g block.GUID) time.Duration { return now.Sub(a.connected[g]) })
	if !sameReplicas(list, a.cv.Status.ReplicaStatuses) || now.Sub(a.cv.Status.LastUpdateTime.Time) >= heartbeat {
		status["replicaStatuses"] = list
		if len(list) == 0 {
			status["replicaStatuses"] = nil
		}
	}
	if list, ok := withLoss(conditions, st, now); ok {
		status["conditions"] = list
	}
	want := kube.Fields{"status": status}
	if len(spec) > 0 {
		want["spec"] = spec
	}
	wrote, err := a.write(ctx, want)
	if err != nil {
		if apierrors.IsConflict(err) {
			return err
		}
		return fmt.Errorf("report volume: %w", err)
	}
	if wrote {
		a.tell(ctx, before)
	}
	a.warnRemoval(ctx, st)
	return nil
}

// write patches what is not so yet. The patch holds only for the version of the volume that was read: others write it too.
func (a *Agent) write(ctx context.Context, want kube.Fields) (wrote bool, err error) {
	status := want["status"].(kube.Fields)
	status["target"] = a.Pod
	stamp := kube.Fields{
		"metadata": kube.Fields{"resourceVersion": a.cv.ResourceVersion},
		"status":   a.times(status["phase"].(cstorv1.VolumePhase)),
	}
	if wrote, err = kube.Apply(ctx, a.Client, a.cv, want, stamp); err == nil {
		a.told = true
		a.noteUpdate()
	}
	return wrote, err
}

// times stamps a patch of the status.
func (a *Agent) times(phase cstorv1.VolumePhase) kube.Fields {
	at := metav1.NewTime(a.Now())
	f := kube.Fields{"lastUpdateTime": at}
	if phase != a.cv.Status.Phase {
		f["lastTransitionTime"] = at
	}
	return f
}

// reportPhase writes a phase that does not come from the target, and why.
func (a *Agent) reportPhase(ctx context.Context, phase cstorv1.VolumePhase, why string) {
	if a.cv == nil || a.cv.DeletionTimestamp != nil {
		return
	}
	for a.mayReport(volume.Status{}) {
		before := a.cv.Status.Phase
		_, err := a.write(ctx, kube.Fields{"status": kube.Fields{"phase": phase, "message": why}})
		if apierrors.IsConflict(err) {
			if err = a.read(ctx); err == nil {
				continue
			}
		}
		switch {
		case err != nil && !apierrors.IsNotFound(err) && !errors.Is(err, context.Canceled):
			a.Log.Warn("cannot report the volume", "phase", phase, "err", err)
		case err == nil && before != phase:
			a.phaseEvent(ctx, phase)
		}
		return
	}
}
