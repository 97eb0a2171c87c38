package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// destroyed reports that this pool needs no opening any more.
func (a *Agent) destroyed() bool {
	return a.instance.DeletionTimestamp != nil && !hasFinalizer(a.instance)
}

func hasFinalizer(cr *cstorv1.CStorPoolInstance) bool {
	for _, f := range cr.Finalizers {
		if f == cstorv1.FinalizerPoolProtection {
			return true
		}
	}
	return false
}

// destroy gives the devices of a pool that is being deleted back, once no replica is left, and lets the object go.
func (a *Agent) destroy(ctx context.Context) error {
	if a.destroyed() || a.Now().Before(a.farewell.notUntil) {
		return nil
	}
	eng, _ := a.open()
	if why := a.inUse(eng); why != "" {
		return a.notDestroyed(ctx, errors.New(why))
	}
	if eng != nil {
		if err := eng.Destroy(); err != nil {
			return a.notDestroyed(ctx, err)
		}
		a.setOpen(nil, nil, "pool has been destroyed")
		a.unremember()
		a.Log.Info("pool destroyed", "pool", poolName(a.instance))
	} else if left, err := a.mayHoldData(ctx); err != nil {
		return err
	} else if left != nil {
		return a.notDestroyed(ctx, left)
	}
	return client.IgnoreNotFound(kube.RemoveFinalizer(ctx, a.Client, a.instance, cstorv1.FinalizerPoolProtection))
}

// inUse says why the pool cannot be destroyed yet.
func (a *Agent) inUse(eng Engine) string {
	if len(a.claims) > 0 {
		return fmt.Sprintf("%d CStorVolumeReplicas are on the pool; move them first", len(a.claims))
	}
	if eng == nil {
		return ""
	}
	if names := eng.Names(); len(names) > 0 {
		return "the pool holds replicas without a CStorVolumeReplica: " + strings.Join(names, ", ")
	}
	return ""
}

// mayHoldData says which devices of a pool that is not open could still hold its data. One that is blank, or somebody
// else's, cannot.
func (a *Agent) mayHoldData(ctx context.Context) (left, err error) {
	if !made(a.instance.Status.Phase) {
		return nil, nil
	}
	devices, err := a.findDevices(ctx, nil)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, d := range devices {
		var foreign *engine.ErrForeign
		switch {
		case errors.Is(d.err, engine.ErrBlank), errors.As(d.err, &foreign), apierrors.IsNotFound(d.err):
		case d.err == nil && d.label.Owner != string(a.instance.UID):
		case d.err == nil:
			errs = append(errs, fmt.Errorf("%s: device %s holds the pool, which could not be opened: %s", d.name, d.path, a.why))
		default:
			errs = append(errs, fmt.Errorf("%s: %w", d.name, d.err))
		}
	}
	return errors.Join(errs...), nil
}

// farewell is how far the destruction of the pool is.
type farewell struct {
	backoff  kube.Backoff
	notUntil time.Time // the next attempt
	why      string    // the last failure reported
}

// notDestroyed reports why a pool that is being deleted is still there.
func (a *Agent) notDestroyed(ctx context.Context, cause error) error {
	a.farewell.notUntil = a.Now().Add(min(a.farewell.backoff.Next(), statusEvery))
	if why := cause.Error(); why != a.farewell.why {
		a.farewell.why = why
		a.Log.Warn("pool cannot be destroyed yet", "pool", poolName(a.instance), "why", why)
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, "FailDestroy", fmt.Sprintf("Failed to delete pool %s: %v", poolName(a.instance), cause))
	}
	_, err := kube.Apply(ctx, a.Client, a.instance, kube.Fields{"status": kube.Fields{"phase": cstorv1.PoolDeletionFailed}}, nil)
	return err
}
