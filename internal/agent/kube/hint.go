package kube

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Hint is a coalesced "look again": any number of Give between two receives are one.
type Hint chan struct{}

// NewHint returns a Hint that is not given yet.
func NewHint() Hint { return make(Hint, 1) }

// Give never blocks.
func (h Hint) Give() {
	select {
	case h <- struct{}{}:
	default:
	}
}

// Watch gives hint whenever an object that opts select may have changed, until ctx is done. list is of the kind to
// watch. When the API server cannot be reached it tries again with a back-off of up to 15 s, and says so once.
func Watch(ctx context.Context, c client.WithWatch, list client.ObjectList, hint Hint, log *slog.Logger, opts ...client.ListOption) {
	backoff, failing := Backoff{}, false
	for ctx.Err() == nil {
		w, err := c.Watch(ctx, list, opts...)
		if err == nil {
			var started bool
			started, err = drain(ctx, w, hint)
			if started {
				backoff.Reset()
				if failing {
					log.Info("watching the API server again")
				}
				failing = false
			}
		}
		if err != nil && !failing && ctx.Err() == nil {
			log.Warn("cannot watch the API server, trying again", "err", err)
			failing = true
		}
		hint.Give() // something may have been missed
		if !Sleep(ctx, backoff.Next()) {
			return
		}
	}
}

// drain gives hints until the watch ends. started says whether anything came.
func drain(ctx context.Context, w watch.Interface, hint Hint) (started bool, err error) {
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return started, nil
		case ev, ok := <-w.ResultChan():
			switch {
			case !ok:
				return started, nil
			case ev.Type == watch.Error:
				return started, errorOf(ev)
			}
			started = true
			hint.Give()
		}
	}
}

// Backoff doubles from 250 ms to 15 s. The zero value is ready.
type Backoff struct{ last time.Duration }

// Next returns how long to wait before the next try.
func (b *Backoff) Next() time.Duration {
	b.last = min(max(2*b.last, 250*time.Millisecond), 15*time.Second)
	return b.last
}

// Reset starts over after a success.
func (b *Backoff) Reset() { b.last = 0 }

// Sleep waits for d and reports false if ctx was done first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
