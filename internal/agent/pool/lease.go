package pool

import (
	"context"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
)

// renewLease says in a Lease named after the CStorPoolInstance that this process is alive and keeps the status: while
// the Lease has run out, what the status says is old. It goes away with the CStorPoolInstance.
func (a *Agent) renewLease(ctx context.Context) error {
	now := a.Now()
	if now.Sub(a.renewed) < leaseEvery {
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
			APIVersion: cstorv1.GroupVersion.String(), Kind: "CStorPoolInstance", Name: a.Instance, UID: a.instance.UID,
		}}
		err = a.Client.Create(ctx, lease)
	}
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	a.renewed = now
	return nil
}
