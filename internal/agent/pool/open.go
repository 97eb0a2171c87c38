package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// device is a disk of the pool and what was found on it.
type device struct {
	name  string // of the BlockDevice
	path  string // on this node
	label *engine.Label
	err   error // of finding or probing it
}

// verdict is what may be done with a pool's devices.
type verdict int

const (
	impossible verdict = iota
	create             // all blank, and the pool was never made
	imports            // all carry this pool
)

// judge decides from what is on the devices. made says that the pool existed before; a pool that did is never made
// again, whatever the devices look like. The error says why nothing can be done, and what could.
func judge(devices []device, owner string, made bool) (verdict, error) {
	var blank, ours []string
	var errs []error
	for _, d := range devices {
		switch {
		case errors.Is(d.err, engine.ErrBlank):
			blank = append(blank, d.name)
		case d.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", d.name, d.err))
		case d.label.Owner != owner:
			errs = append(errs, fmt.Errorf("%s: device %s belongs to pool %q of another owner (%s); wipe it if it may be used",
				d.name, d.path, d.label.Name, d.label.Owner))
		default:
			ours = append(ours, d.name)
		}
	}
	switch {
	case len(errs) > 0:
		return impossible, errors.Join(errs...)
	case len(devices) == 0:
		return impossible, errors.New("the pool lists no devices")
	case len(ours) == len(devices):
		return imports, nil
	case len(ours) > 0:
		return impossible, fmt.Errorf("%s carry the pool but %s are blank; put the missing devices back", strings.Join(ours, ", "), strings.Join(blank, ", "))
	case made:
		return impossible, fmt.Errorf("%s are blank, but the pool was made before and its data was on them; put the right devices back", strings.Join(blank, ", "))
	default:
		return create, nil
	}
}

// openPool makes or imports the pool, and reports what came of it.
func (a *Agent) openPool(ctx context.Context) error {
	cr := a.instance
	if cr.DeletionTimestamp != nil && !made(cr.Status.Phase) {
		return nil // destroy has nothing to do
	}
	if kind := cr.Spec.PoolConfig.DataRaidGroupType; kind != cstorv1.RaidStripe {
		return a.openFailed(ctx, fmt.Errorf("raid group type %q is not supported by this release, use %q", kind, cstorv1.RaidStripe))
	}
	devices, err := a.findDevices(ctx)
	if err != nil {
		return err // the API server, not the devices
	}
	what, err := judge(devices, string(cr.UID), made(cr.Status.Phase))
	if err != nil {
		return a.openFailed(ctx, err)
	}
	paths := make([]string, len(devices))
	for i, d := range devices {
		paths[i] = d.path
	}
	opt := engine.Options{ReadOnlyPercent: readOnlyLimit(cr), Log: a.Log}
	var eng Engine
	var replicas Replicas
	reason, message := "Pool Imported", "Pool Import successful: "+poolName(cr)
	if what == create {
		reason, message = "Created", "Pool created successfully"
		eng, replicas, err = a.Storage.Create(paths, engine.Config{Name: poolName(cr), Owner: string(cr.UID)}, opt)
	} else {
		eng, replicas, err = a.Storage.Open(paths, opt)
	}
	if err != nil {
		return a.openFailed(ctx, err)
	}
	a.setOpen(eng, replicas, "")
	a.backoff.Reset()
	a.Log.Info("pool is served", "pool", poolName(cr), "how", reason, "devices", paths)
	a.poolEvents.Event(ctx, cr, corev1.EventTypeNormal, reason, message)
	return a.clearLost(ctx)
}

// openFailed reports why the pool is not there, and sets the time of the next attempt.
func (a *Agent) openFailed(ctx context.Context, cause error) error {
	cr := a.instance
	a.nextOpen = a.Now().Add(a.backoff.Next())
	news := cause.Error() != a.why
	if news {
		a.Log.Error("pool cannot be opened, trying again", "pool", poolName(cr), "err", cause)
		a.setOpen(nil, nil, cause.Error())
	}
	say := func(reason, format string, args ...any) {
		if news {
			a.poolEvents.Event(ctx, cr, corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...))
		}
	}
	if !made(cr.Status.Phase) {
		say("FailCreate", "Failed to create pool due to '%v'", cause)
		_, err := kube.Apply(ctx, a.Client, cr, kube.Fields{"status": kube.Fields{"phase": cstorv1.PoolCreationFailed}}, nil)
		return err
	}
	say("FailedSync", "Failed to import pool %s: %v", poolName(cr), cause)
	if err := a.setCondition(ctx, cstorv1.CStorPoolInstanceCondition{
		Type: cstorv1.PoolLost, Status: corev1.ConditionTrue, Reason: cstorv1.ReasonPoolLost, Message: cause.Error(),
	}); err != nil {
		return err
	}
	_, err := kube.Apply(ctx, a.Client, cr, kube.Fields{"status": offline}, nil)
	return err
}

// made reports whether a pool in that phase has existed on its devices.
func made(phase cstorv1.PoolPhase) bool {
	switch phase {
	case cstorv1.PoolEmpty, cstorv1.PoolPending, cstorv1.PoolInit, cstorv1.PoolCreationFailed:
		return false
	}
	return true
}

// findDevices resolves the pool's BlockDevices to paths on this node and probes them.
func (a *Agent) findDevices(ctx context.Context) ([]device, error) {
	var found []device
	for _, group := range a.instance.Spec.DataRaidGroups {
		for _, bd := range group.BlockDevices {
			cr := &openebsv1alpha1.BlockDevice{}
			if err := a.Client.Get(ctx, types.NamespacedName{Namespace: a.Namespace, Name: bd.BlockDeviceName}, cr); err != nil {
				return nil, fmt.Errorf("read BlockDevice %s: %w", bd.BlockDeviceName, err)
			}
			d := device{name: cr.Name, path: devicePath(cr)}
			d.label, d.err = a.Storage.Probe(d.path)
			found = append(found, d)
		}
	}
	return found, nil
}

// devicePath prefers a by-id link that exists: it survives the renaming of devices at boot.
func devicePath(bd *openebsv1alpha1.BlockDevice) string {
	for _, l := range bd.Spec.DevLinks {
		if l.Kind != "by-id" {
			continue
		}
		for _, link := range l.Links {
			if _, err := os.Stat(link); err == nil {
				return link
			}
		}
	}
	return bd.Spec.Path
}

// poolName is cstor-<uid of the CStorPoolCluster>, the same on every node.
func poolName(cr *cstorv1.CStorPoolInstance) string {
	owner := metav1.GetControllerOf(cr)
	if owner == nil && len(cr.OwnerReferences) > 0 {
		owner = &cr.OwnerReferences[0]
	}
	if owner == nil {
		return "cstor-" + string(cr.UID)
	}
	return "cstor-" + string(owner.UID)
}

func readOnlyLimit(cr *cstorv1.CStorPoolInstance) int {
	if l := cr.Spec.PoolConfig.ROThresholdLimit; l != nil {
		return cmp.Or(*l, cstorv1.DefaultROThreshold)
	}
	return cstorv1.DefaultROThreshold
}
