package pool

import (
	"context"
	"errors"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// deleting is a replica whose object is being deleted, of a volume that lives.
func deleting(t *testing.T, volume func(*cstorv1.CStorVolume)) *world {
	w := newWorld(t, "", engine.ErrBlank)
	w.addReplica(cstorv1.ReplicaInit)
	w.pass()
	w.phases(connected, inSync)
	w.addVolume("")
	w.editVolume(func(cv *cstorv1.CStorVolume) { cv.Status.ReplicaDetails.KnownReplicas = nil })
	w.editVolume(volume)
	if err := w.client.Delete(w.ctx, w.replica()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) editVolume(change func(*cstorv1.CStorVolume)) {
	w.t.Helper()
	cv := get(w, pv, &cstorv1.CStorVolume{})
	change(cv)
	if err := w.client.Update(w.ctx, cv); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) wantKept(why string) {
	w.t.Helper()
	if len(w.disks.pool.replicas) != 1 || len(w.disks.pool.attached) != 1 {
		w.t.Fatalf("replicas %v, attached %v: it must be kept and go on", w.disks.pool.replicas, w.disks.pool.attached)
	}
	w.wantEvents("Warning FailDestroy " + why)
}

func at(epoch, generation int64) func(*cstorv1.CStorVolume) {
	return func(cv *cstorv1.CStorVolume) { cv.Status.Epoch, cv.Status.Generation = epoch, generation }
}

func TestAStatusFromThePastDestroysNothing(t *testing.T) {
	self := block.GUID{1}
	with := func(epoch, generation uint64) volume.List {
		return volume.List{Epoch: epoch, Generation: generation, Members: []block.GUID{{9}, self}}
	}
	pending := with(2, 4)
	for name, c := range map[string]struct {
		recorded  volume.State
		old, late func(*cstorv1.CStorVolume)
	}{
		"it is a member since":        {volume.State{Committed: with(2, 3)}, at(2, 1), at(2, 5)},
		"it is a member of this list": {volume.State{Committed: with(2, 3)}, at(2, 3), at(3, 1)},
		"it is about to be one":       {volume.State{Committed: volume.List{Epoch: 2, Generation: 3, Members: []block.GUID{{9}}}, Pending: &pending}, at(2, 3), at(2, 5)},
		"another target took over":    {volume.State{History: volume.History{{Epoch: 1, First: 1}, {Epoch: 2, First: 9}}}, at(1, 7), at(2, 1)},
		"nobody has said anything":    {volume.State{History: volume.History{{Epoch: 1, First: 1}}}, at(0, 0), at(1, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			w := deleting(t, c.old)
			w.disks.pool.recorded = c.recorded
			w.pass()
			w.wantKept("replica is kept until the target of volume pvc-1 has said whether it is a member")
			w.editVolume(c.late)
			w.pass()
			w.wantGone()
		})
	}
}

func TestAReplicaIsLookedAtAgainWhenNobodyCanChangeItAnyMore(t *testing.T) {
	w := deleting(t, at(2, 1))
	w.disks.pool.left = func() { // the target has made it a member in the last moment
		w.disks.pool.left = nil
		w.disks.pool.recorded = volume.State{Committed: volume.List{Epoch: 2, Generation: 3, Members: []block.GUID{{1}}}}
	}
	w.pass()
	w.wantKept("replica is kept until")
}

func TestWhatCannotBeReadDestroysNothing(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "cstorvolumes"}, pv, errors.New("no"))
	refuse := func(refused client.Object) func(*world) {
		return func(w *world) {
			w.agent.Client = interceptor.NewClient(w.client, interceptor.Funcs{
				Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
					_, cv := obj.(*cstorv1.CStorVolume)
					if _, also := refused.(*cstorv1.CStorVolume); cv && also {
						return forbidden
					}
					_, config := obj.(*cstorv1.CStorVolumeConfig)
					if _, also := refused.(*cstorv1.CStorVolumeConfig); config && also {
						return forbidden
					}
					return c.Get(ctx, key, obj, opts...)
				},
			})
		}
	}
	for name, fail := range map[string]func(*world){
		"volume":  refuse(&cstorv1.CStorVolume{}),
		"config":  refuse(&cstorv1.CStorVolumeConfig{}),
		"replica": func(w *world) { w.disks.pool.standingErr = errDisk },
	} {
		t.Run(name, func(t *testing.T) {
			w := deleting(t, at(2, 1))
			fail(w)
			w.pass()
			w.wantKept("cannot tell")
			w.agent.Client, w.disks.pool.standingErr = w.client, nil
			w.pass()
			w.wantGone()
		})
	}
}

func TestAVolumeLivesAsLongAsItsConfig(t *testing.T) {
	w := deleting(t, at(2, 1))
	if err := w.client.Delete(w.ctx, get(w, pv, &cstorv1.CStorVolume{})); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantKept("replica is kept: somebody deleted CStorVolume pvc-1")
	if err := w.client.Delete(w.ctx, get(w, pv, &cstorv1.CStorVolumeConfig{})); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.wantGone()
}

func TestAMemberThatIsNotKnownByItsIDIsKept(t *testing.T) {
	self := block.GUID{1}
	w := deleting(t, func(cv *cstorv1.CStorVolume) {
		at(2, 1)(cv)
		cv.Status.ReplicaDetails.KnownReplicas = map[string]string{"1002": block.GUID{2}.String(), self.String(): self.String()}
	})
	w.disks.pool.recorded = volume.State{Committed: volume.List{Epoch: 1, Generation: 1, Members: []block.GUID{{2}, self}}}
	w.pass()
	w.wantKept("replica is a member of volume pvc-1 and is kept")
	w.editVolume(func(cv *cstorv1.CStorVolume) {
		at(2, 3)(cv)
		delete(cv.Status.ReplicaDetails.KnownReplicas, self.String())
	})
	w.pass()
	w.wantGone()
}

func TestACompleteReplicaIsKeptUntilNobodyNeedsIt(t *testing.T) {
	w := deleting(t, at(2, 1))
	w.disks.pool.recorded = volume.State{Complete: true, History: volume.History{{Epoch: 2, First: 1}}}
	w.pass()
	w.wantKept("replica is no member of volume pvc-1, but it is complete, and kept as long as the members may need what it has")
	w.disks.pool.spared = true
	w.disks.pool.left = func() { w.disks.pool.left, w.disks.pool.spared = nil, false } // another target has come in the last moment
	w.pass()
	w.wantEvents() // it has said so before
	w.disks.pool.spared = true
	w.pass()
	w.wantGone()
}
