package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// Fields is a JSON merge patch (RFC 7386): what it names is replaced, null removes, everything else stays as others
// wrote it.
type Fields map[string]any

// Merge applies f to the object that obj names and reads the result back into obj.
func Merge(ctx context.Context, c client.Client, obj client.Object, f Fields) error {
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("patch of %T %s: %w", obj, obj.GetName(), err)
	}
	// The answer is decoded into a fresh object: decoding into obj would keep what the patch removed.
	into := reflect.New(reflect.TypeOf(obj).Elem())
	fresh := into.Interface().(client.Object)
	fresh.SetNamespace(obj.GetNamespace())
	fresh.SetName(obj.GetName())
	if err := c.Patch(ctx, fresh, client.RawPatch(types.MergePatchType, b)); err != nil {
		return err
	}
	reflect.ValueOf(obj).Elem().Set(into.Elem())
	return nil
}

// AddFinalizer adds a finalizer unless obj has it or is being deleted. It fails with a conflict when obj is outdated.
func AddFinalizer(ctx context.Context, c client.Client, obj client.Object, name string) error {
	if obj.GetDeletionTimestamp() != nil || controllerutil.ContainsFinalizer(obj, name) {
		return nil
	}
	return setFinalizers(ctx, c, obj, append(slices.Clone(obj.GetFinalizers()), name))
}

// RemoveFinalizer removes a finalizer if obj has it. It fails with a conflict when obj is outdated.
func RemoveFinalizer(ctx context.Context, c client.Client, obj client.Object, name string) error {
	if !controllerutil.ContainsFinalizer(obj, name) {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == name })
	return setFinalizers(ctx, c, obj, rest)
}

// setFinalizers replaces the list, which a merge patch cannot do by element, under the object's resourceVersion.
func setFinalizers(ctx context.Context, c client.Client, obj client.Object, list []string) error {
	return Merge(ctx, c, obj, Fields{"metadata": Fields{"finalizers": list, "resourceVersion": obj.GetResourceVersion()}})
}
