// Package object makes the objects that controllers make from others. Names are deterministic, so that a controller
// that was killed half-way finds what it made; what is found is taken over only if it belongs to the same owner and is
// not on its way out.
package object

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// Waiting is the error of what cannot be done yet and will be possible without anybody doing anything wrong: nothing is
// reported, the controller comes back.
type Waiting struct{ For string }

func (w Waiting) Error() string { return "waiting for " + w.For }

// IsWaiting reports whether err is a Waiting.
func IsWaiting(err error) bool {
	var w Waiting
	return errors.As(err, &w)
}

// Ensure makes want exist, owned by owner, and reads into want what exists: created now, or found. live must not be a
// cache. An object of the same name that is being deleted, or whose owner was an earlier object with the owner's name,
// is waited for; one that belongs to somebody else is an error.
func Ensure(ctx context.Context, c client.Client, live client.Reader, owner, want client.Object) (created bool, err error) {
	gvk, err := apiutil.GVKForObject(want, c.Scheme())
	if err != nil {
		return false, err
	}
	if err := controllerutil.SetControllerReference(owner, want, c.Scheme()); err != nil {
		return false, err
	}
	err = c.Create(ctx, want)
	if err == nil {
		return true, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("create %s %s: %w", gvk.Kind, want.GetName(), err)
	}
	found := want.DeepCopyObject().(client.Object)
	if err := live.Get(ctx, client.ObjectKeyFromObject(want), found); err != nil {
		if apierrors.IsNotFound(err) {
			return false, Waiting{fmt.Sprintf("%s %s to be gone", gvk.Kind, want.GetName())}
		}
		return false, fmt.Errorf("read %s %s: %w", gvk.Kind, want.GetName(), err)
	}
	ours, theirs := metav1.GetControllerOf(want), metav1.GetControllerOf(found)
	switch {
	case found.GetDeletionTimestamp() != nil:
		return false, Waiting{fmt.Sprintf("an earlier %s %s to be gone", gvk.Kind, want.GetName())}
	case theirs != nil && theirs.UID == ours.UID:
	case theirs != nil && theirs.Kind == ours.Kind && theirs.Name == ours.Name:
		return false, Waiting{fmt.Sprintf("%s %s of an earlier %s to be gone", gvk.Kind, want.GetName(), ours.Kind)}
	default:
		return false, fmt.Errorf("%s %s exists and does not belong to %s %s: delete or rename it", gvk.Kind, want.GetName(), ours.Kind, ours.Name)
	}
	reflect.ValueOf(want).Elem().Set(reflect.ValueOf(found).Elem())
	return false, nil
}

// Delete deletes obj as it was read, and nothing that has taken its name since. It is fine if obj is gone or going.
func Delete(ctx context.Context, c client.Client, obj client.Object) error {
	if obj.GetDeletionTimestamp() != nil {
		return nil
	}
	uid := obj.GetUID()
	err := c.Delete(ctx, obj, client.Preconditions{UID: &uid}, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if err := client.IgnoreNotFound(err); err != nil {
		return fmt.Errorf("delete %s: %w", obj.GetName(), err)
	}
	return nil
}

// DropFinalizer removes a finalizer from obj as it was read. It is fine if obj is gone.
func DropFinalizer(ctx context.Context, c client.Client, obj client.Object, name string) error {
	before := obj.DeepCopyObject().(client.Object)
	if !controllerutil.RemoveFinalizer(obj, name) {
		return nil
	}
	err := c.Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err := client.IgnoreNotFound(err); err != nil {
		return fmt.Errorf("drop finalizer %s of %s: %w", name, obj.GetName(), err)
	}
	return nil
}

// Update patches obj with what change does to it. It fails with a conflict when obj is outdated, and asks nothing of the
// API server when change does nothing.
func Update[T client.Object](ctx context.Context, c client.Client, obj T, change func(T)) error {
	before := obj.DeepCopyObject().(client.Object)
	change(obj)
	if equality.Semantic.DeepEqual(before, obj) {
		return nil
	}
	return c.Patch(ctx, obj, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}
