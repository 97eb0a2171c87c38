package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/replica"
)

// reportReplica writes what is true of a replica that is attached.
func (a *Agent) reportReplica(ctx context.Context, c *claim, s replica.Status) error {
	now, cr := a.Now(), c.cr
	switch {
	case !s.Connected:
		c.connectedAt = time.Time{}
	case c.connectedAt.IsZero():
		c.connectedAt = now
	}
	_, joining := cr.Annotations[annotationJoining]
	if joining && s.Member {
		if err := a.joined(ctx, cr); err != nil {
			return err
		}
		joining = false
	}
	switch {
	case s.Rebuilding:
		c.rebuiltAt = now
	case !s.Connected:
		c.rebuiltAt = time.Time{}
	}
	shown := s
	shown.Rebuilding = now.Sub(c.rebuiltAt) < settle // what was copied is not in sync at once
	phase := phaseOf(shown, joining, cr.Status.Phase, now.Sub(c.connectedAt))
	a.milestones(ctx, c, s, phase)
	if phase != cr.Status.Phase && !c.phase.due(phase, now) {
		return nil
	}

	// A replica is not complete again before its rebuild has compared every chunk and flushed.
	status := kube.Fields{"phase": phase, "guid": s.GUID.String(), "verified": s.Complete && !s.Rebuilding}
	every := statusEvery
	if s.Rebuilding {
		every = rebuildEvery
	}
	if phase != cr.Status.Phase || now.Sub(c.wrote) >= every {
		status["capacity"] = kube.Fields{"total": cstorv1.FormatSize(s.Allocated), "used": cstorv1.FormatSize(s.Used)}
		status["progress"] = progressOf(s, c.moves(s, now))
		if message := messageOf(cr, s, phase); message == "" || cr.Status.Message == "" || phase != cr.Status.Phase || now.Sub(c.explained) >= heartbeat {
			status["message"] = message // not more often: what every attempt to connect ends with differs
		}
	}
	if at := metav1.NewTime(now); now.Sub(cr.Status.LastUpdateTime.Time) >= heartbeat {
		status["lastUpdateTime"] = at
	}
	wrote, err := kube.Apply(ctx, a.Client, cr, kube.Fields{"status": status}, a.stamp(phase != cr.Status.Phase))
	if wrote {
		c.wrote = now
		c.phase.said(phase, now)
		if _, ok := status["message"]; ok {
			c.explained = now
		}
	}
	return err
}

// messageOf is why a replica is not Healthy, as far as it knows, and where to look.
func messageOf(cr *cstorv1.CStorVolumeReplica, s replica.Status, phase cstorv1.ReplicaPhase) string {
	switch {
	case phase == cstorv1.ReplicaHealthy, s.LastError == "":
		return ""
	case !s.Connected:
		return fmt.Sprintf("no session with the target, see the pod of Deployment %s: %s",
			cstorv1.TargetDeployment(cr.Labels[cstorv1.LabelVolumeName]), s.LastError)
	}
	return s.LastError
}

// stall is how long nothing of a rebuild may come before it is shown to wait: longer than progress takes to be reported.
const stall = 3 * time.Second

// moves reports whether the rebuild under way has got further lately.
func (c *claim) moves(s replica.Status, now time.Time) bool {
	if at := [...]uint64{s.Progress.Attempt, s.Progress.ChunksDone, s.Progress.Done}; at != c.reached || c.reachedAt.IsZero() || !s.Rebuilding {
		c.reached, c.reachedAt = at, now
	}
	return now.Sub(c.reachedAt) < stall
}

// progressOf is how far a rebuild is; nil, which removes the field, while there is none. A rebuild that does not know its
// total yet is one too. All fields are named, so that a rate or a reason to wait does not outlive its time.
func progressOf(s replica.Status, moves bool) any {
	if !s.Rebuilding {
		return nil
	}
	rate, waitingFor := int64(s.Progress.BytesPerSec), s.Progress.WaitingFor
	if !moves {
		rate, waitingFor = 0, cmp.Or(waitingFor, "data from its source")
	}
	p := cstorv1.NewRebuildProgress(int64(s.Progress.Done), int64(s.Progress.Total), rate, waitingFor)
	fields := kube.Fields{
		"bytesDone": p.BytesDone, "bytesTotal": p.BytesTotal, "bytesPerSecond": p.BytesPerSecond, "percent": p.Percent,
		"waitingFor": p.WaitingFor, "done": p.Done, "rate": p.Rate, "eta": p.ETA, "secondsLeft": nil,
	}
	if p.SecondsLeft != nil {
		fields["secondsLeft"] = *p.SecondsLeft
	}
	return fields
}

// joined notes that a replica which was added to its volume has become a member.
func (a *Agent) joined(ctx context.Context, cr *cstorv1.CStorVolumeReplica) error {
	return kube.Merge(ctx, a.Client, cr, kube.Fields{
		"metadata": kube.Fields{"annotations": kube.Fields{annotationJoining: nil}},
	})
}

// milestones tells the story of a rebuild in events: its start, every quarter, its end.
func (a *Agent) milestones(ctx context.Context, c *claim, s replica.Status, phase cstorv1.ReplicaPhase) {
	say := func(reason, format string, args ...any) {
		message := fmt.Sprintf(format, args...)
		a.Log.Info(message, "replica", c.cr.Name)
		a.replicaEvents.Event(ctx, c.cr, corev1.EventTypeNormal, reason, message)
	}
	p := cstorv1.NewRebuildProgress(int64(s.Progress.Done), int64(s.Progress.Total), 0, "")
	quarter := p.Percent / 25 * 25
	switch {
	case s.Rebuilding && c.milestone < 0:
		c.milestone = quarter
		say("RebuildStarted", "Rebuild started")
	case s.Rebuilding && quarter > c.milestone && quarter < 100:
		c.milestone = quarter
		say("RebuildProgress", "Rebuild is %d%% done", quarter)
	case c.milestone >= 0 && phase == cstorv1.ReplicaHealthy:
		c.milestone = -1
		say("RebuildCompleted", "Rebuild completed, replica is in sync")
	}
}

// setPhase writes a phase and why.
func (a *Agent) setPhase(ctx context.Context, cr *cstorv1.CStorVolumeReplica, phase cstorv1.ReplicaPhase, why string) error {
	_, err := kube.Apply(ctx, a.Client, cr,
		kube.Fields{"status": kube.Fields{"phase": phase, "message": why}}, a.stamp(phase != cr.Status.Phase))
	return err
}

// stamp is the times that go with a patch of a replica's status.
func (a *Agent) stamp(transition bool) kube.Fields {
	at := metav1.NewTime(a.Now())
	status := kube.Fields{"lastUpdateTime": at}
	if transition {
		status["lastTransitionTime"] = at
	}
	return kube.Fields{"status": status}
}

// reported is what was last said of the pool.
type reported struct {
	at       time.Time
	phase    assertion[cstorv1.PoolPhase]
	readOnly bool
}

// report writes the pool's own status.
func (a *Agent) report(ctx context.Context, eng Engine, replicas Replicas) error {
	cr, now := a.instance, a.Now()
	if cr.DeletionTimestamp != nil {
		return nil
	}
	st := eng.Stats()
	phase := poolPhase(st.Health)
	if phase != cr.Status.Phase && !a.reported.phase.due(phase, now) {
		return nil
	}
	status := kube.Fields{
		"phase":               phase,
		"readOnly":            st.ReadOnly,
		"provisionedReplicas": int32(st.Replicas),
		"healthyReplicas":     a.healthy(),
	}
	if now.Sub(a.reported.at) >= statusEvery {
		var logical int64
		for _, s := range replicas.Status() {
			logical += s.Used
		}
		status["capacity"] = cstorv1.PoolCapacity(st.Allocated, st.Free, logical)
	}
	wrote, err := kube.Apply(ctx, a.Client, cr, kube.Fields{"status": status}, nil)
	if err != nil {
		return fmt.Errorf("report pool: %w", err)
	}
	if wrote {
		a.reported.at = now
		a.reported.phase.said(phase, now)
	}
	a.readOnlyEvent(ctx, st.ReadOnly, st.Allocated, st.Free)
	return a.clearLost(ctx)
}

// poolPhase is the phase of an open pool in that health.
func poolPhase(health string) cstorv1.PoolPhase {
	if p := cstorv1.PoolPhase(health); p != "" {
		return p
	}
	return cstorv1.PoolOnline
}

// healthy counts the replicas that are shown Healthy.
func (a *Agent) healthy() (n int32) {
	for _, c := range a.claims {
		if c.attached != nil && c.cr.Status.Phase == cstorv1.ReplicaHealthy {
			n++
		}
	}
	return n
}

func (a *Agent) readOnlyEvent(ctx context.Context, readOnly bool, used, free int64) {
	if readOnly == a.reported.readOnly {
		return
	}
	a.reported.readOnly = readOnly
	kind, message := corev1.EventTypeNormal, "Pool has space again and takes writes"
	if readOnly {
		kind = corev1.EventTypeWarning
		message = fmt.Sprintf("Pool is read-only: %d%% of its space is used, the limit is %d%%; remove replicas or data from it",
			used*100/max(used+free, 1), readOnlyLimit(a.instance))
	}
	a.Log.Warn(message)
	a.poolEvents.Event(ctx, a.instance, kind, "PoolReadOnlyThreshold", message)
}

// offline is the status of a pool that serves nothing.
var offline = kube.Fields{"phase": cstorv1.PoolOffline, "healthyReplicas": 0}

// reportOffline says that pool and replicas are not served any more.
func (a *Agent) reportOffline(ctx context.Context) error {
	if a.instance == nil {
		return nil
	}
	var errs []error
	if made(a.instance.Status.Phase) {
		_, err := kube.Apply(ctx, a.Client, a.instance, kube.Fields{"status": offline}, nil)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, a.replicasOffline(ctx, "pool is shutting down"))...)
}

// replicasOffline says why replicas are not served. Those that were never created stay as they are.
func (a *Agent) replicasOffline(ctx context.Context, why string) error {
	var errs []error
	for _, c := range a.claims {
		switch c.cr.Status.Phase {
		case cstorv1.ReplicaEmpty, cstorv1.ReplicaInit, cstorv1.ReplicaRecreate:
		default:
			errs = append(errs, a.setPhase(ctx, c.cr, cstorv1.ReplicaOffline, why))
		}
	}
	return errors.Join(errs...)
}
