package object

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Repeater records events, and those about what lasts at once when it is new, then again after a while as long as it
// is said again. Equal events of one object become one Event with a count. What is recorded is logged too.
type Repeater struct {
	Recorder record.EventRecorder
	Log      *slog.Logger
	Now      func() time.Time

	mu   sync.Mutex
	said map[saying]time.Time
}

// Event records an event.
func (r *Repeater) Event(obj client.Object, kind, reason, message string) {
	level := slog.LevelInfo
	if kind == corev1.EventTypeWarning {
		level = slog.LevelWarn
	}
	r.Log.Log(context.Background(), level, strings.TrimSpace(message), "object", obj.GetName(), "reason", reason)
	r.Recorder.Event(obj, kind, reason, message)
}

type saying struct {
	object          types.UID
	reason, message string
}

// forget is how long after it was last said something counts as new again, at least.
const forget = 10 * time.Minute

// Say records the event unless the same was recorded less than every ago.
func (r *Repeater) Say(obj client.Object, every time.Duration, kind, reason, message string) {
	now, s := r.Now(), saying{obj.GetUID(), reason, message}
	r.mu.Lock()
	last, known := r.said[s]
	due := !known || now.Sub(last) >= every
	if due {
		if r.said == nil {
			r.said = map[saying]time.Time{}
		}
		for k, at := range r.said {
			if now.Sub(at) > forget {
				delete(r.said, k)
			}
		}
		r.said[s] = now
	}
	r.mu.Unlock()
	if due {
		r.Event(obj, kind, reason, message)
	}
}

// Forget makes what was said about obj with that reason new again.
func (r *Repeater) Forget(obj client.Object, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for s := range r.said {
		if s.object == obj.GetUID() && s.reason == reason {
			delete(r.said, s)
		}
	}
}
