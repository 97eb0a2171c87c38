package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/volume"
)

// began is an agent that has just started, of whose API server every read fails with *why unless that is nil.
func began(t *testing.T, why *error) (*world, *cstorv1.CStorVolume) {
	w := newWorld(t, 3)
	w.client = interceptor.NewClient(w.client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if *why != nil {
				return *why
			}
			return c.Get(ctx, key, obj, opts...)
		},
	})
	w.agent = New(Config{
		Client: w.client, Namespace: ns, Volume: pv, Pod: "target-pod", Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return w.now },
	})
	return w, Told(ns, pv, "cv-uid", "cvc-uid", resource.MustParse("5Gi"), "iqn.x:"+pv, "10.0.0.1:3260")
}

func TestStartsWithoutTheAPIServer(t *testing.T) {
	why := errors.New("connection refused")
	w, told := began(t, &why)
	cv, err := w.agent.Load(w.ctx, told)
	if err != nil || Size(cv) != 5<<30 || cv.Spec.Iqn != "iqn.x:"+pv || string(cv.UID) != "cv-uid" {
		t.Fatalf("%v %+v", err, cv)
	}
	if d := Desired(cv); d.Founding != 0 || d.Factor != 0 || d.Remove != nil {
		t.Errorf("of a volume that was not read is wanted: %+v", d)
	}
	if o := ownerOf(cv); o.Kind != "CStorVolumeConfig" || o.UID != "cvc-uid" {
		t.Errorf("its record would belong to %+v", o)
	}
	w.agent.target = w.target
	w.serve(1, 2, 3)
	w.target.st.Desired = volume.Desired{}
	if err := w.agent.Pass(w.ctx, true); err == nil || len(w.target.wants) != 0 || len(w.history) != 0 {
		t.Errorf("%v %+v %d", err, w.target.wants, len(w.history))
	}
	// What is wanted is told as soon as it is known.
	why = nil
	w.pass()
	if len(w.target.wants) != 1 || w.target.wants[0].Factor != 3 {
		t.Errorf("wanted: %+v", w.target.wants)
	}
	if cv := w.cv(); cv.Status.Phase != cstorv1.VolumeHealthy || cv.Status.DesiredReplicationFactor != 3 || len(cv.Status.ReplicaDetails.KnownReplicas) != 3 {
		t.Errorf("status %+v", cv.Status)
	}
}

// What the API server decides is waited for, as is what a target was told nothing of.
func TestWaitsForTheVolume(t *testing.T) {
	group := schema.GroupResource{Group: "cstor.openebs.io", Resource: "cstorvolumes"}
	for name, c := range map[string]struct {
		why  error
		told bool
	}{
		"deleted":   {apierrors.NewNotFound(group, pv), true},
		"forbidden": {apierrors.NewForbidden(group, pv, nil), true},
		"not told":  {errors.New("connection refused"), false},
	} {
		w, told := began(t, &c.why)
		if !c.told {
			told = nil
		}
		ctx, cancel := context.WithTimeout(w.ctx, 300*time.Millisecond)
		if cv, err := w.agent.Load(ctx, told); err == nil {
			t.Errorf("%s: served as %+v", name, cv.Spec)
		}
		cancel()
	}
}

// TestCutOff tells the target when the API server has not answered for long, and when it does again.
func TestCutOff(t *testing.T) {
	w := newWorld(t, 1)
	last := w.now
	for _, x := range []struct {
		later time.Duration
		want  bool
	}{{cutOff - time.Second, false}, {cutOff, true}, {2 * cutOff, true}} {
		w.now = last.Add(x.later)
		if w.agent.noteContact(last); w.target.cut != x.want {
			t.Errorf("%v after the last answer: cut off %v, want %v", x.later, w.target.cut, x.want)
		}
	}
	if w.agent.noteContact(w.now); w.target.cut {
		t.Error("cut off although it answers")
	}
}

// TestRefusedIsContact: whoever answers that something is not allowed, or not there, can be reached.
func TestRefusedIsContact(t *testing.T) {
	kind := schema.GroupResource{Group: cstorv1.GroupVersion.Group, Resource: "cstorvolumes"}
	for _, x := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{fmt.Errorf("status: %w", apierrors.NewForbidden(kind, "v", errors.New("quota"))), true},
		{apierrors.NewNotFound(kind, "v"), true},
		{fmt.Errorf("get: %w", context.DeadlineExceeded), false},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, false},
	} {
		if got := refused(x.err); got != x.want {
			t.Errorf("%v: answered %v, want %v", x.err, got, x.want)
		}
	}
}
