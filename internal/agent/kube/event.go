package kube

import (
	"context"
	"encoding/hex"
	"hash/fnv"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// eventTimeout bounds what a slow API server can cost the one who reports.
const eventTimeout = 5 * time.Second

// Recorder writes events. The same object, type, reason and message make one Event whose count grows, which is what
// `kubectl describe` shows as "(x2 over 5m)".
type Recorder struct {
	Client    client.Client
	Component string // the events' source
	Host      string // the events' node
	Log       *slog.Logger
	Now       func() time.Time // default time.Now
}

// Event records what happened to obj. Events inform people; one that cannot be written is logged and forgotten.
func (r *Recorder) Event(ctx context.Context, obj client.Object, kind, reason, message string) {
	h := fnv.New64a()
	h.Write([]byte(strings.Join([]string{string(obj.GetUID()), r.Component, kind, reason, message}, "\x00")))
	r.Named(ctx, obj.GetName()+"."+hex.EncodeToString(h.Sum(nil)), obj, kind, reason, message)
}

// Named is Event with the name of the Event object chosen by the caller.
func (r *Recorder) Named(ctx context.Context, name string, obj client.Object, kind, reason, message string) {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	if err := r.write(ctx, name, obj, kind, reason, message); err != nil {
		r.Log.Warn("event not recorded", "object", obj.GetName(), "reason", reason, "message", message, "err", err)
	}
}

func (r *Recorder) write(ctx context.Context, name string, obj client.Object, kind, reason, message string) error {
	gvk, err := apiutil.GVKForObject(obj, r.Client.Scheme())
	if err != nil {
		return err
	}
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	at := metav1.NewTime(now())
	ev := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: obj.GetNamespace(), Name: name},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: obj.GetNamespace(), Name: obj.GetName(),
			UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(),
		},
		Type: kind, Reason: reason, Message: Line(message),
		Source:              corev1.EventSource{Component: r.Component, Host: r.Host},
		ReportingController: r.Component, ReportingInstance: r.Host,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
	}
	err = r.Client.Create(ctx, ev)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	old := &corev1.Event{}
	if err := r.Client.Get(ctx, client.ObjectKeyFromObject(ev), old); err != nil {
		return err
	}
	return Merge(ctx, r.Client, old, Fields{"count": old.Count + 1, "lastTimestamp": at})
}

// errorOf turns the last event of a broken watch into an error.
func errorOf(ev watch.Event) error { return apierrors.FromObject(ev.Object) }

// Line makes one line of a message: errors that were joined are a line each, which nobody can read in a table or a list.
func Line(message string) string { return strings.ReplaceAll(message, "\n", "; ") }
