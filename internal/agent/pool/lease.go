package pool

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
)

// lease is what the process knows of its Lease.
type lease struct {
	mu      sync.Mutex // held while it is renewed
	renewed time.Time
	looked  atomic.Int64 // when the last pass ended, in nanoseconds
}

func (l *lease) passed(now time.Time) { l.looked.Store(now.UnixNano()) }

// keepLease renews the Lease also while a pass takes long, as long as passes end.
func (a *Agent) keepLease(ctx context.Context, uid types.UID) {
	for kube.Sleep(ctx, leaseEvery/4) {
		if a.Now().Sub(time.Unix(0, a.lease.looked.Load())) > passTimeout+leaseDuration {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, leaseDuration)
		if err := a.renewLease(limited, uid); err != nil {
			a.Log.Debug("cannot renew the lease", "err", err) // a pass says so too
		}
		cancel()
	}
}

// renewLease says in a Lease named after the CStorPoolInstance that this process is alive and keeps the status: while
// the Lease has run out, what the status says is old. It goes away with the CStorPoolInstance.
func (a *Agent) renewLease(ctx context.Context, uid types.UID) error {
	a.lease.mu.Lock()
	defer a.lease.mu.Unlock()
	now := a.Now()
	if now.Sub(a.lease.renewed) < leaseEvery {
		return nil
	}
	at := metav1.NewMicroTime(now)
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Instance},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       ptr.To(a.Identity),
			LeaseDurationSeconds: ptr.To(int32(leaseDuration.Seconds())),
			RenewTime:            &at,
		},
	}
	err := kube.Merge(ctx, a.Client, lease.DeepCopy(), kube.Fields{"spec": lease.Spec})
	if apierrors.IsNotFound(err) {
		lease.Spec.AcquireTime = &at
		lease.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: cstorv1.GroupVersion.String(), Kind: "CStorPoolInstance", Name: a.Instance, UID: uid,
		}}
		err = a.Client.Create(ctx, lease)
	}
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	a.lease.renewed = now
	return nil
}
