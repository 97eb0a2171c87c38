package pools

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// claimName is the name of a device's claim.
func claimName(d *ndmv1.BlockDevice) string { return "bdc-cstor-" + string(d.UID) }

// claim makes a device the cluster's. Where a node disk manager runs it binds claims; here the operator does. The claim of
// a device that replaces another names that one, until the pool has its data on the new one.
func (r *Reconciler) claim(ctx context.Context, cluster *cstorv1.CStorPoolCluster, d *ndmv1.BlockDevice, predecessor string) error {
	c := &ndmv1.BlockDeviceClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:  cluster.Namespace,
			Name:       claimName(d),
			Labels:     map[string]string{cstorv1.LabelPoolCluster: cluster.Name},
			Finalizers: []string{cstorv1.FinalizerPoolCluster},
		},
		Spec: ndmv1.DeviceClaimSpec{
			BlockDeviceName:           d.Name,
			HostName:                  deviceHost(d),
			BlockDeviceNodeAttributes: ndmv1.BlockDeviceNodeAttributes{NodeName: d.Spec.NodeAttributes.NodeName, HostName: deviceHost(d)},
			Resources: ndmv1.DeviceClaimResources{Requests: corev1.ResourceList{
				corev1.ResourceStorage: *resource.NewQuantity(d.Spec.Capacity.Storage, resource.BinarySI)}},
		},
		Status: ndmv1.DeviceClaimStatus{Phase: ndmv1.ClaimPending},
	}
	if tag := d.Labels[ndmv1.LabelTag]; tag != "" {
		c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{ndmv1.LabelTag: tag}}
	}
	if _, err := object.Ensure(ctx, r.Client, r.Live, cluster, c); err != nil {
		return err
	}
	// Before the pool hears of the device: it must not take a substitute for an addition, nor the other way round.
	err := object.Update(ctx, r.Client, c, func(c *ndmv1.BlockDeviceClaim) {
		if predecessor == "" {
			delete(c.Annotations, cstorv1.AnnotationPredecessor)
			return
		}
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[cstorv1.AnnotationPredecessor] = predecessor
	})
	if err != nil {
		return err
	}
	if ref := d.Spec.ClaimRef; d.Status.ClaimState == ndmv1.Claimed && ref != nil && ref.UID != c.UID {
		return fmt.Errorf("can't use claimed blockdevice %s: claim %s holds it", d.Name, ref.Name)
	}
	err = object.Update(ctx, r.Client, d, func(d *ndmv1.BlockDevice) {
		d.Spec.ClaimRef = &corev1.ObjectReference{
			APIVersion: ndmv1.GroupVersion.String(), Kind: "BlockDeviceClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID}
		d.Status.ClaimState = ndmv1.Claimed
	})
	if err != nil {
		return err
	}
	return object.Update(ctx, r.Client, c, func(c *ndmv1.BlockDeviceClaim) { c.Status.Phase = ndmv1.ClaimBound })
}

// release gives a device back. Its pool must have been destroyed, or never have been made.
func (r *Reconciler) release(ctx context.Context, c *ndmv1.BlockDeviceClaim) error {
	d := &ndmv1.BlockDevice{}
	err := r.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: c.Spec.BlockDeviceName}, d)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return err
	case err == nil && (d.Spec.ClaimRef == nil || d.Spec.ClaimRef.UID == c.UID):
		err := object.Update(ctx, r.Client, d, func(d *ndmv1.BlockDevice) {
			d.Spec.ClaimRef = nil
			d.Status.ClaimState = ndmv1.Unclaimed
		})
		if err != nil {
			return err
		}
	}
	if err := object.Delete(ctx, r.Client, c); err != nil {
		return err
	}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(c), c); err != nil {
		return client.IgnoreNotFound(err)
	}
	return object.DropFinalizer(ctx, r.Client, c, cstorv1.FinalizerPoolCluster)
}

// devLink returns the by-id link of a device, or nothing.
func devLink(d *ndmv1.BlockDevice) string {
	for _, l := range d.Spec.DevLinks {
		if strings.EqualFold(l.Kind, "by-id") && len(l.Links) > 0 {
			return l.Links[0]
		}
	}
	return ""
}
