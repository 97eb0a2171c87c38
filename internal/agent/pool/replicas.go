package pool

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/replica"
)

// annotationJoining marks a replica that was added to a volume which existed already, from the moment when it is
// created until it is a member for the first time: the phase alone would not survive a restart.
const annotationJoining = "cstorvolumereplica.openebs.io/joining"

// claim is a replica that the API asks for.
type claim struct {
	cr       *cstorv1.CStorVolumeReplica
	attached *replica.Spec // nil: not attached
	retry    kube.Backoff
	notUntil time.Time // after a failure
	problem  string    // the last failure reported

	connectedAt time.Time // zero: not connected
	rebuiltAt   time.Time // when it was last being rebuilt in this session
	wrote       time.Time // its status
	explained   time.Time // when its message was written
	reached     [3]uint64 // by the rebuild under way: attempt, chunks, bytes
	reachedAt   time.Time
	phase       assertion[cstorv1.ReplicaPhase]
	milestone   int32 // of the rebuild under way, in per cent; -1: none is
}

// readClaims reads the CStorVolumeReplicas of this pool.
func (a *Agent) readClaims(ctx context.Context) error {
	list := &cstorv1.CStorVolumeReplicaList{}
	labels := client.MatchingLabels{cstorv1.LabelPoolUID: string(a.instance.UID)}
	if err := a.Client.List(ctx, list, client.InNamespace(a.Namespace), labels); err != nil {
		return fmt.Errorf("list CStorVolumeReplicas: %w", err)
	}
	seen := map[string]bool{}
	for i := range list.Items {
		cr := &list.Items[i]
		seen[cr.Name] = true
		if c := a.claims[cr.Name]; c == nil || c.cr.UID != cr.UID {
			a.replicaEvents.Event(ctx, cr, corev1.EventTypeNormal, "Synced", "Received Resource create event")
			a.claims[cr.Name] = &claim{cr: cr, milestone: -1}
		} else {
			c.cr = cr
		}
	}
	for name := range a.claims {
		if !seen[name] {
			a.forget(name)
		}
	}
	return nil
}

// forget ends the session of a replica whose object is gone. Its data, if any is left, stays: only a deletion that was
// seen through the finalizer destroys.
func (a *Agent) forget(name string) {
	delete(a.claims, name)
	eng, replicas := a.open()
	if eng == nil {
		return
	}
	replicas.Forget(name)
	if slices.Contains(eng.Names(), name) {
		a.Log.Warn("replica has no CStorVolumeReplica any more; its data is kept", "replica", name)
	}
}

// syncReplicas attaches, destroys and reports the replicas.
func (a *Agent) syncReplicas(ctx context.Context, eng Engine, replicas Replicas) error {
	if limit, err := cstorv1.RebuildBandwidth(a.instance.Spec.PoolConfig.RebuildBandwidth); err == nil { // else the operator refused it
		replicas.SetRebuildLimit(limit)
	}
	present := map[string]bool{}
	for _, n := range eng.Names() {
		present[n] = true
	}
	var errs []error
	for name, c := range a.claims {
		if a.Now().Before(c.notUntil) {
			continue
		}
		var err error
		if c.cr.DeletionTimestamp != nil {
			err = a.remove(ctx, c, replicas, present[name])
		} else {
			err = a.attach(ctx, c, replicas, present[name])
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("replica %s: %w", name, err))
		}
	}
	states := map[string]replica.Status{}
	for _, s := range replicas.Status() {
		states[s.Name] = s
	}
	for name, c := range a.claims {
		s, ok := states[name]
		if !ok || c.attached == nil {
			continue
		}
		if err := a.reportReplica(ctx, c, s); err != nil {
			errs = append(errs, fmt.Errorf("replica %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// attach makes the replica exist and dial its target.
func (a *Agent) attach(ctx context.Context, c *claim, replicas Replicas, present bool) error {
	cr := c.cr
	spec, err := specOf(cr)
	if err != nil {
		a.failed(ctx, c, "FailValidate", "Resource validation failed", err)
		return a.setPhase(ctx, cr, cstorv1.ReplicaOffline, "Resource validation failed: "+err.Error())
	}
	if c.attached != nil && *c.attached == spec {
		return nil
	}
	if !present {
		if err := a.prepare(ctx, cr); err != nil {
			return err
		}
	}
	if c.attached != nil {
		replicas.Detach(spec.Name)
	}
	if err := replicas.Attach(spec); err != nil {
		a.failed(ctx, c, "FailCreate", "failed to create volume replica error: "+err.Error(), err)
		return a.setPhase(ctx, cr, cr.Status.Phase, err.Error())
	}
	first := c.attached == nil
	c.attached = &spec
	c.retry.Reset()
	c.problem = ""
	switch {
	case !present:
		a.Log.Info("replica created", "replica", spec.Name, "size", spec.Size, "target", spec.Target)
		a.replicaEvents.Event(ctx, cr, corev1.EventTypeNormal, "Created", "Resource created successfully")
	case first:
		a.Log.Info("replica imported", "replica", spec.Name, "target", spec.Target)
		a.replicaEvents.Event(ctx, cr, corev1.EventTypeNormal, "Imported", "Resource imported successfully")
	}
	return nil
}

// prepare notes, before a replica is created, which way it has to go: with the founders of a new volume, or as one that
// joins. One that was created before and is not in the pool any more has lost its data and joins.
func (a *Agent) prepare(ctx context.Context, cr *cstorv1.CStorVolumeReplica) error {
	want := kube.Fields{}
	switch cr.Status.Phase {
	case cstorv1.ReplicaEmpty:
		want["status"] = kube.Fields{"phase": cstorv1.ReplicaInit}
	case cstorv1.ReplicaInit:
	default:
		want["metadata"] = kube.Fields{"annotations": kube.Fields{annotationJoining: "true"}}
		if cr.Status.GUID != "" {
			a.Log.Error("replica is not in the pool any more and is created anew", "replica", cr.Name, "lost", cr.Status.GUID)
			want["status"] = kube.Fields{"phase": cstorv1.ReplicaRecreate}
		}
	}
	_, err := kube.Apply(ctx, a.Client, cr, want, nil)
	return err
}

// remove destroys a replica whose object is being deleted, and lets the object go.
func (a *Agent) remove(ctx context.Context, c *claim, replicas Replicas, present bool) error {
	cr := c.cr
	if !slices.Contains(cr.Finalizers, cstorv1.FinalizerReplica) {
		return nil // another finalizer holds it, or it is gone
	}
	if present || c.attached != nil {
		why := a.keep(ctx, cr, replicas)
		if why == "" { // look once more when no target can make it a member any longer
			replicas.Detach(cr.Name)
			c.attached = nil
			why = a.keep(ctx, cr, replicas)
		}
		if why != "" {
			var err error
			if present { // it goes on as the member that it is
				err = a.attach(ctx, c, replicas, present)
			}
			a.failed(ctx, c, "FailDestroy", why, nil)
			c.notUntil = a.Now().Add(statusEvery) // no hint tells when the volume gives it up
			return err
		}
		a.replicaEvents.Event(ctx, cr, corev1.EventTypeNormal, "Synced", "Received Resource destroy event")
		if err := replicas.Destroy(cr.Name); err != nil {
			a.failed(ctx, c, "FailDestroy", "failed to destroy volume replica error: "+err.Error(), err)
			return a.setPhase(ctx, cr, cstorv1.ReplicaDeletionFailed, err.Error())
		}
		a.Log.Info("replica destroyed", "replica", cr.Name)
	}
	if err := client.IgnoreNotFound(kube.RemoveFinalizer(ctx, a.Client, cr, cstorv1.FinalizerReplica)); err != nil {
		a.failed(ctx, c, "FailRemoveFinalizer", "failed to remove finalizer error: "+err.Error(), err)
		return err
	}
	return nil
}

// keep says why a replica must not be destroyed yet, by what it has recorded itself and what the API server says.
func (a *Agent) keep(ctx context.Context, cr *cstorv1.CStorVolumeReplica, replicas Replicas) string {
	own, err := replicas.Standing(cr.Name)
	if err != nil {
		return fmt.Sprintf("cannot tell whether the volume needs the replica: %v", err)
	}
	return a.needed(ctx, cr, own)
}

// failed reports a problem once, and puts the next attempt off.
func (a *Agent) failed(ctx context.Context, c *claim, reason, message string, cause error) {
	c.notUntil = a.Now().Add(c.retry.Next())
	if c.problem == reason+message {
		return
	}
	c.problem = reason + message
	a.Log.Warn(message, "replica", c.cr.Name, "err", cause)
	a.replicaEvents.Event(ctx, c.cr, corev1.EventTypeWarning, reason, message)
}

// specOf validates a CStorVolumeReplica and says what the replica server has to serve.
func specOf(cr *cstorv1.CStorVolumeReplica) (spec replica.Spec, err error) {
	size, err := resource.ParseQuantity(cr.Spec.Capacity)
	switch {
	case cr.Labels[cstorv1.LabelVolumeName] == "":
		return spec, fmt.Errorf("label %s is missing", cstorv1.LabelVolumeName)
	case cr.Spec.TargetIP == "":
		return spec, errors.New("spec.targetIP is missing")
	case cr.Spec.ReplicaID == "":
		return spec, errors.New("spec.replicaid is missing")
	case err != nil:
		return spec, fmt.Errorf("spec.capacity %q: %w", cr.Spec.Capacity, err)
	case size.Value() <= 0:
		return spec, fmt.Errorf("spec.capacity %q is not a size", cr.Spec.Capacity)
	}
	return replica.Spec{
		Name:      cr.Name,
		ReplicaID: cr.Spec.ReplicaID,
		Target:    net.JoinHostPort(cr.Spec.TargetIP, strconv.Itoa(cstorv1.PortReplica)),
		Size:      (size.Value() + block.Size - 1) &^ (block.Size - 1),
	}, nil
}
