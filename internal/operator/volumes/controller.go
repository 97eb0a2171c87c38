// Package volumes turns a CStorVolumeConfig into a volume: it chooses pools, makes the Service, the CStorVolume, the
// target's Deployment and the replicas, adds and removes replicas when spec.policy.replicaPoolInfo is edited, and takes
// everything down in the right order.
//
// The list of members, the replicas that count, belongs to the volume's target and its replicas. This package says what
// is wanted in CStorVolume.spec and reads in CStorVolume.status what has become true; a replica is destroyed only after
// the status says that it is not a member and cannot become one. What the status says counts only with the epoch of the
// target that says it, and only as long as nothing newer has been seen.
package volumes

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// EventSource is the component that the events name.
const EventSource = "cstorvolumeclaim-controller"

// The reasons of events.
const (
	reasonSynced         = "Synced"
	reasonProvisioning   = "Provisioning"
	reasonDeprovisioning = "DeProvisioning"
	reasonReconcile      = "CVC Reconcile"
	reasonScaling        = "ScalingVolumeReplicas"
	reasonResizeFailed   = "VolumeResizeFailed"
)

const (
	repeat        = 5 * time.Minute        // of events about what lasts until somebody does something
	repeatScaling = 30 * time.Second       // of those about what is under way
	soon          = 50 * time.Millisecond  // after a conflict
	later         = 500 * time.Millisecond // for what no watch tells
)

// Reconciler reconciles CStorVolumeConfigs.
type Reconciler struct {
	client.Client
	Live   client.Reader // asks the API server, not a cache
	Events *object.Repeater
	Image  string // of the targets
	Resync time.Duration
	Now    func() time.Time

	statuses statuses   // of the volumes
	cut      cut        // volumes whose target nobody hears
	budgets  sync.Mutex // held while a PodDisruptionBudget that volumes share is looked for, made or deleted
}

// SetupWithManager makes mgr run r.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("cstorvolumeconfig").
		For(&cstorv1.CStorVolumeConfig{}).
		Owns(&cstorv1.CStorVolume{}).
		Owns(&corev1.Service{}).
		Watches(&appsv1.Deployment{}, handler.EnqueueRequestsFromMapFunc(ofVolume)).
		Watches(&cstorv1.CStorVolumeReplica{}, handler.EnqueueRequestsFromMapFunc(ofVolume)).
		Watches(&cstorv1.CStorPoolInstance{}, handler.EnqueueRequestsFromMapFunc(r.ofPool), builder.WithPredicates(usability)).
		Watches(&cstorv1.CStorVolumePolicy{}, handler.EnqueueRequestsFromMapFunc(r.ofPolicy)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(r)
}

// usability lets through what changes whether a pool can take replicas.
var usability = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		old, ok1 := e.ObjectOld.(*cstorv1.CStorPoolInstance)
		now, ok2 := e.ObjectNew.(*cstorv1.CStorPoolInstance)
		return !ok1 || !ok2 || (unusable(old) == "") != (unusable(now) == "")
	},
}

// ofVolume maps an object to the volume that its label names.
func ofVolume(_ context.Context, obj client.Object) []ctrl.Request {
	name := cmp.Or(obj.GetLabels()[cstorv1.LabelPV], obj.GetLabels()[cstorv1.LabelVolumeName])
	if name == "" {
		return nil
	}
	return []ctrl.Request{{NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: name}}}
}

// ofPool maps a pool to the volumes of its cluster that wait for pools: those not bound, and those being scaled.
func (r *Reconciler) ofPool(ctx context.Context, obj client.Object) []ctrl.Request {
	return r.requests(ctx, func(c *cstorv1.CStorVolumeConfig) bool {
		return c.Labels[cstorv1.LabelPoolCluster] == obj.GetLabels()[cstorv1.LabelPoolCluster] &&
			(c.Status.Phase != cstorv1.ConfigBound || len(c.Status.Conditions) > 0 || c.DeletionTimestamp != nil)
	})
}

// ofPolicy maps a policy to the volumes that wait for it.
func (r *Reconciler) ofPolicy(ctx context.Context, obj client.Object) []ctrl.Request {
	return r.requests(ctx, func(c *cstorv1.CStorVolumeConfig) bool {
		return c.Annotations[cstorv1.AnnotationVolumePolicy] == obj.GetName() && c.Status.Phase != cstorv1.ConfigBound
	})
}

func (r *Reconciler) requests(ctx context.Context, of func(*cstorv1.CStorVolumeConfig) bool) []ctrl.Request {
	var list cstorv1.CStorVolumeConfigList
	if err := r.List(ctx, &list); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "list CStorVolumeConfigs")
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

// Reconcile brings one volume a step further.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	// What is decided here destroys data, so nothing is decided from a cache that may be behind.
	config := &cstorv1.CStorVolumeConfig{}
	if err := r.Live.Get(ctx, req.NamespacedName, config); err != nil {
		if apierrors.IsNotFound(err) {
			r.statuses.forget(req.NamespacedName)
			r.cut.note(req.NamespacedName, false, r.Now())
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	again, err := r.reconcile(ctx, config)
	switch {
	case object.IsWaiting(err):
		ctrl.LoggerFrom(ctx).V(1).Info(err.Error())
		return ctrl.Result{RequeueAfter: later}, nil
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: soon}, nil
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("CStorVolumeConfig %s: %w", req.Name, err)
	case again == 0:
		again = r.Resync
	}
	return ctrl.Result{RequeueAfter: min(again, r.Resync)}, nil
}

func (r *Reconciler) reconcile(ctx context.Context, config *cstorv1.CStorVolumeConfig) (again time.Duration, err error) {
	if config.DeletionTimestamp != nil {
		err := r.delete(ctx, config)
		if err != nil && !object.IsWaiting(err) && !apierrors.IsConflict(err) {
			r.warn(config, reasonDeprovisioning, err.Error())
		}
		return 0, err
	}
	details := config.VersionDetails
	if _, err := object.CheckVersion(&details, metav1.Time{}); err != nil {
		r.warn(config, reasonReconcile, fmt.Sprintf("can not reconcile CVC %s as cvc %v", config.Name, err))
		return 0, nil
	}
	if config.Status.Phase != cstorv1.ConfigBound {
		err := r.provision(ctx, config)
		if err != nil && !object.IsWaiting(err) && !apierrors.IsConflict(err) {
			r.warn(config, reasonProvisioning, err.Error())
			if isUsers(err) {
				return 0, nil // the watches tell when it has become possible
			}
		}
		return 0, err
	}
	r.refuseResize(config)
	if err := r.setTarget(ctx, config); err != nil {
		return 0, err
	}
	if err := r.setService(ctx, config); err != nil {
		return 0, err
	}
	again, err = r.scale(ctx, config)
	if err != nil {
		return again, err
	}
	left, err := r.silence(ctx, config)
	if left > 0 && (again == 0 || left < again) {
		again = left
	}
	return again, err
}

// warn reports what lasts until somebody does something.
func (r *Reconciler) warn(obj client.Object, reason, message string) {
	r.Events.Say(obj, repeat, corev1.EventTypeWarning, reason, message)
}

// refuseResize says that volumes cannot grow yet.
func (r *Reconciler) refuseResize(config *cstorv1.CStorVolumeConfig) {
	want, have := config.Spec.Capacity[corev1.ResourceStorage], config.Status.Capacity[corev1.ResourceStorage]
	if want.Cmp(have) > 0 {
		r.warn(config, reasonResizeFailed, fmt.Sprintf(
			"volume stays at %s: this release cannot resize volumes, set spec.capacity.storage back", have.String()))
	}
}

// setTarget hands on to the target what the policy says about its work.
func (r *Reconciler) setTarget(ctx context.Context, config *cstorv1.CStorVolumeConfig) error {
	v := &cstorv1.CStorVolume{}
	if err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: volumeOf(config)}, v); err != nil {
		return client.IgnoreNotFound(err)
	}
	if v.DeletionTimestamp != nil {
		return nil
	}
	return object.Update(ctx, r.Client, v, func(v *cstorv1.CStorVolume) { follow(v, &config.Spec.Policy) })
}

// follow makes a volume say what its policy says about its target's work.
func follow(v *cstorv1.CStorVolume, policy *cstorv1.CStorVolumePolicySpec) {
	v.Spec.Witness, v.Spec.RebuildBandwidth = policy.Target.Witness, policy.Target.RebuildBandwidth
}

// setService makes the Service lead where newService says, if an earlier release or somebody made it otherwise.
func (r *Reconciler) setService(ctx context.Context, config *cstorv1.CStorVolumeConfig) error {
	s := &corev1.Service{}
	if err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: volumeOf(config)}, s); err != nil {
		return client.IgnoreNotFound(err)
	}
	if s.DeletionTimestamp != nil || !metav1.IsControlledBy(s, config) {
		return nil
	}
	return object.Update(ctx, r.Client, s, func(s *corev1.Service) {
		s.Spec.PublishNotReadyAddresses = newService(config).Spec.PublishNotReadyAddresses
	})
}

// volumeOf returns the name of the volume: the CStorVolumeConfig's own, whatever an annotation may come to say.
func volumeOf(config *cstorv1.CStorVolumeConfig) string { return config.Name }
