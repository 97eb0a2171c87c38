// Package pools turns a CStorPoolCluster into pools: it claims the block devices that its entries list, makes a
// CStorPoolInstance and a Deployment for each entry, keeps both in line with the entry, counts what is healthy, and
// takes everything down in the right order. What the admission webhook refuses is refused here too, as an event and
// before anything is changed.
//
// The pool itself is made, reported and destroyed by the process in the Deployment. It holds the finalizer
// openebs.io/pool-protection on its CStorPoolInstance until it has destroyed the pool; block devices are given back
// after that.
package pools

import (
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// EventSource is the component that the events name.
const EventSource = "cspc-controller"

const (
	repeat = 5 * time.Minute // how often an event about what lasts is recorded again
	lag    = 5 * time.Second // longer than a cache is behind
)

// Reconciler reconciles CStorPoolClusters.
type Reconciler struct {
	client.Client
	Live   client.Reader // asks the API server, not a cache
	Events *object.Repeater
	Image  string // of the pools
	Resync time.Duration
	Now    func() time.Time

	mu    sync.Mutex
	heard map[types.UID]heartbeat // by the CStorPoolInstance
	back  map[types.UID]time.Time // when one that was shown OFFLINE reported again
}

// SetupWithManager makes mgr run r.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	deleted := predicate.Funcs{
		CreateFunc:  func(event.CreateEvent) bool { return false },
		UpdateFunc:  func(event.UpdateEvent) bool { return false },
		GenericFunc: func(event.GenericEvent) bool { return false },
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("cstorpoolcluster").
		For(&cstorv1.CStorPoolCluster{}).
		Owns(&cstorv1.CStorPoolInstance{}).
		Owns(&ndmv1.BlockDeviceClaim{}).
		Watches(&appsv1.Deployment{}, handler.EnqueueRequestsFromMapFunc(ofLabel)).
		Watches(&ndmv1.BlockDevice{}, handler.EnqueueRequestsFromMapFunc(r.ofDevice)).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		Watches(&cstorv1.CStorVolumeReplica{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(deleted)).
		Watches(&coordinationv1.Lease{}, handler.EnqueueRequestsFromMapFunc(r.hears)).
		Complete(r)
}

// ofLabel maps an object to the cluster that its label names.
func ofLabel(_ context.Context, obj client.Object) []ctrl.Request {
	name := obj.GetLabels()[cstorv1.LabelPoolCluster]
	if name == "" {
		return nil
	}
	return []ctrl.Request{{NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: name}}}
}

// ofDevice maps a device to the clusters that list it.
func (r *Reconciler) ofDevice(ctx context.Context, obj client.Object) []ctrl.Request {
	return r.requests(ctx, func(c *cstorv1.CStorPoolCluster) bool {
		for i := range c.Spec.Pools {
			if devicesOf(c.Spec.Pools[i].DataRaidGroups, c.Spec.Pools[i].WriteCacheRaidGroups).Has(obj.GetName()) {
				return true
			}
		}
		return false
	})
}

func (r *Reconciler) all(ctx context.Context, _ client.Object) []ctrl.Request {
	return r.requests(ctx, func(*cstorv1.CStorPoolCluster) bool { return true })
}

func (r *Reconciler) requests(ctx context.Context, of func(*cstorv1.CStorPoolCluster) bool) []ctrl.Request {
	var list cstorv1.CStorPoolClusterList
	if err := r.List(ctx, &list); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "list CStorPoolClusters")
		return nil
	}
	var out []ctrl.Request
	for i := range list.Items {
		if of(&list.Items[i]) {
			out = append(out, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return out
}

// Reconcile brings one cluster a step further.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	cluster := &cstorv1.CStorPoolCluster{}
	if err := r.Get(ctx, req.NamespacedName, cluster); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	after, err := r.reconcile(ctx, cluster)
	switch {
	case object.IsWaiting(err):
		ctrl.LoggerFrom(ctx).V(1).Info(err.Error())
		return ctrl.Result{RequeueAfter: time.Second}, nil
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: 50 * time.Millisecond}, nil
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("CStorPoolCluster %s: %w", req.Name, err)
	}
	return ctrl.Result{RequeueAfter: min(after, r.Resync)}, nil
}

func (r *Reconciler) reconcile(ctx context.Context, cluster *cstorv1.CStorPoolCluster) (again time.Duration, err error) {
	if cluster.Annotations[cstorv1.AnnotationDisable] == "true" {
		r.warn(cluster, operation(cluster), fmt.Sprintf("reconcile is disabled via %q annotation", cstorv1.AnnotationDisable))
		return r.Resync, nil
	}
	if cluster.DeletionTimestamp != nil {
		w, err := r.gather(ctx, r.Client, cluster)
		if err != nil {
			return 0, err
		}
		return r.observe(ctx, w, r.delete(ctx, w))
	}
	var mismatch error
	err = object.Update(ctx, r.Client, cluster, func(c *cstorv1.CStorPoolCluster) {
		controllerutil.AddFinalizer(c, cstorv1.FinalizerPoolCluster)
		_, mismatch = object.CheckVersion(&c.VersionDetails, metav1.NewTime(r.Now()))
	})
	if err != nil {
		return 0, err
	}
	if mismatch != nil {
		r.warn(cluster, "CSPC Reconcile", fmt.Sprintf("Can not reconcile CSPC %s as %v", cluster.Name, mismatch))
		return r.Resync, nil
	}

	w, err := r.gather(ctx, r.Client, cluster)
	if err != nil {
		return 0, err
	}
	// Trouble with one step must not keep the others from reporting; the first is what the caller hears of.
	err = r.cleanup(ctx, w)
	if err == nil {
		err = r.releaseStrays(ctx, w)
	}
	if err == nil {
		err = r.change(ctx, w)
	}
	if e := r.sync(ctx, w); err == nil {
		err = e
	}
	return r.observe(ctx, w, err)
}

// observe reports what can be seen of a cluster, after whatever was done to it, which may have ended in err. It returns
// when to look again, and the first error.
func (r *Reconciler) observe(ctx context.Context, w *world, err error) (again time.Duration, _ error) {
	again, e := r.silence(ctx, w)
	if err == nil {
		err = e
	}
	if e := r.count(ctx, w); err == nil {
		err = client.IgnoreNotFound(e) // the last step of a deletion
	}
	return again, err
}

// change makes and removes pools as the entries say, all of which must be valid.
func (r *Reconciler) change(ctx context.Context, w *world) error {
	if problem := w.problem(); problem != nil {
		r.warn(w.cluster, operation(w.cluster), "invalid cspc specification: "+problem.Error())
		return nil
	}
	for i := range w.surplus {
		in := &w.surplus[i]
		r.Events.Say(w.cluster, lag, corev1.EventTypeNormal, "ScaleDown", "De-provisioning pool "+in.Name)
		if err := object.Delete(ctx, r.Client, in); err != nil {
			r.warn(w.cluster, "DownScale", err.Error())
			return err
		}
	}
	for _, p := range w.pools {
		if p.instance == nil || p.instance.Annotations[cstorv1.AnnotationDisable] == "true" {
			continue
		}
		if err := r.regroup(ctx, w, p); err != nil {
			if !object.IsWaiting(err) && !apierrors.IsConflict(err) {
				r.warn(w.cluster, "Update", err.Error())
			}
			return err
		}
	}
	missing := w.missing()
	for i, entry := range missing {
		created, err := r.provision(ctx, w, entry)
		if object.IsWaiting(err) {
			return err
		}
		if err != nil {
			r.warn(w.cluster, "Create", fmt.Sprintf("Pool provisioning failed for %d/%d ", i+1, len(missing)))
			r.warn(w.cluster, "Pool Create", err.Error())
			return err
		}
		if created {
			r.Events.Event(w.cluster, corev1.EventTypeNormal, "Create", fmt.Sprintf("Pool Provisioned %d/%d ", i+1, len(missing)))
		}
	}
	return nil
}

// warn reports what lasts until somebody does something.
func (r *Reconciler) warn(obj client.Object, reason, message string) {
	r.Events.Say(obj, repeat, corev1.EventTypeWarning, reason, message)
}

// operation is what an event about a cluster's specification is about.
func operation(c *cstorv1.CStorPoolCluster) string {
	switch {
	case c.DeletionTimestamp != nil:
		return "Delete"
	case c.Status.ProvisionedInstances == 0:
		return "Create"
	}
	return "Update"
}
