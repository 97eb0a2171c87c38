package target

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/volume"
)

// slowly is a record in an API server that does everything right, and answers every request as late as late says at that
// moment. It does what nobody waits for any more, too.
func slowly(late *atomic.Int64) *Witness {
	server := fake.NewClientBuilder().WithScheme(kube.Scheme()).Build()
	answer := func(ctx context.Context, do func(context.Context) error) error {
		answers := make(chan error, 1)
		go func() {
			time.Sleep(time.Duration(late.Load()))
			answers <- do(context.WithoutCancel(ctx))
		}()
		select {
		case err := <-answers:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c := interceptor.NewClient(server, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			into := obj.DeepCopyObject().(*cstorv1.CStorVolumeRecord)
			err := answer(ctx, func(ctx context.Context) error { return c.Get(ctx, key, into, opts...) })
			if err == nil {
				into.DeepCopyInto(obj.(*cstorv1.CStorVolumeRecord))
			}
			return err
		},
		Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			made := obj.DeepCopyObject().(*cstorv1.CStorVolumeRecord)
			err := answer(ctx, func(ctx context.Context) error { return c.Create(ctx, made, opts...) })
			if err == nil {
				made.DeepCopyInto(obj.(*cstorv1.CStorVolumeRecord))
			}
			return err
		},
		Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			changed := obj.DeepCopyObject().(*cstorv1.CStorVolumeRecord)
			err := answer(ctx, func(ctx context.Context) error { return c.Update(ctx, changed, opts...) })
			if err == nil {
				changed.DeepCopyInto(obj.(*cstorv1.CStorVolumeRecord))
			}
			return err
		},
	})
	return &Witness{Record: &Record{Client: c, Owner: &cstorv1.CStorVolume{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: pv, UID: "u"}}}}
}

// heard asks again, as a core does, until there is an answer, and returns in what time there was one.
func heard(t *testing.T, ask func(context.Context) (volume.Record, error)) (is volume.Record, took time.Duration) {
	t.Helper()
	start := time.Now()
	for range 20 {
		is, err := ask(t.Context())
		if err == nil {
			return is, time.Since(start)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("not heard in %v", time.Since(start))
	return is, 0
}

// An API server is heard however slow it is; one that is quick is asked again as soon as ever when an answer is lost. Time
// is that of the test alone.
func TestASlowAPIServerIsHeard(t *testing.T) {
	const quick = 5 * time.Millisecond
	for _, late := range []time.Duration{quick, 290 * time.Millisecond, 350 * time.Millisecond, time.Second, 2 * time.Second, 4900 * time.Millisecond} {
		t.Run(late.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var now atomic.Int64
				now.Store(int64(late))
				w := slowly(&now)
				if is, took := heard(t, w.Read); !is.Equal(volume.Record{}) || took > 6*late+time.Second {
					t.Errorf("read %+v in %v", is, took)
				}
				want := volume.Record{Version: 1, Epoch: 1, Nonce: 7}
				for n := range uint64(4) {
					want.Version, want.Epoch = n+1, n+1
					is, took := heard(t, func(ctx context.Context) (volume.Record, error) { return w.Write(ctx, n, want) })
					if !is.Equal(want) || took > 3*late+time.Second || n > 1 && took > 2*late {
						t.Errorf("write %d: %+v in %v", n, is, took)
					}
				}
				// What it does not answer for a while ends in time, first and last.
				now.Store(int64(time.Hour))
				start := time.Now()
				if _, err := w.Read(t.Context()); err == nil || time.Since(start) > max(6*late, recordPatience) {
					t.Errorf("silence was noticed after %v: %v", time.Since(start), err)
				}
				for range 20 {
					w.Read(t.Context())
				}
				start = time.Now()
				if _, err := w.Read(t.Context()); err == nil || time.Since(start) > 3*recordLongest {
					t.Errorf("silence was noticed after %v: %v", time.Since(start), err)
				}
				now.Store(int64(quick))
				for range 10 {
					heard(t, w.Read)
				}
				now.Store(int64(time.Hour))
				time.AfterFunc(recordAttempt-time.Millisecond, func() { now.Store(int64(quick)) })
				if _, took := heard(t, w.Read); took > 2*recordAttempt {
					t.Errorf("an answer is lost: asked again after %v", took)
				}
				time.Sleep(2 * time.Hour) // what nobody waits for ends
			})
		})
	}
}
