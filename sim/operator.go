package sim

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	replicas "github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/volume"
)

// operator is the control plane: it wants a number of replicas, changes it now and then, and destroys a replica only
// when the target says that it cannot be a member any more.
type operator struct {
	want   volume.Desired // as the API server has it: what a new target starts with
	adding *replica
	leaves *replica // being removed, or cancelled
}

func (o *operator) idle() bool { return o.adding == nil && o.leaves == nil }

// act is one decision. There is none in a run with second targets: what one target says that it has adopted binds no
// other one that goes on, and nothing here defends against that.
func (w *world) act() {
	o := &w.operator
	if w.target == nil || w.record.is().List == nil || w.two {
		return
	}
	members := w.target.status.Committed.Members
	switch {
	case o.adding != nil && w.chance(0.2):
		w.logf("operator cancels %s", o.adding.name)
		w.cover.Cancels++
		o.want.Factor--
		o.leaves, o.adding = o.adding, nil
	case o.adding != nil || o.leaves != nil:
		return
	case len(members) == 0 || len(members) != o.want.Factor:
		return
	case len(members) < 5 && (len(members) < 2 || w.chance(0.72)):
		r := w.newReplica()
		o.adding = r
		o.want.Factor++
		w.logf("operator adds %s", r.name)
		w.after(w.between(0, 30*ms), nil, r.start)
	case len(members) > 1:
		r := w.replica(members[w.rng.IntN(len(members))])
		o.leaves = r
		o.want.Factor--
		o.want.Remove = append(o.want.Remove, r.disk.report.GUID)
		w.logf("operator removes %s", r.name)
	}
	w.tell()
}

// tell lets the target know what is wanted, a little later.
func (w *world) tell() {
	if t := w.target; t != nil {
		w.after(w.between(0, 10*ms), &t.process, func() {
			d := w.operator.want
			d.Remove = slices.Clone(d.Remove)
			t.core.Want(t.clock(w), d)
			t.ready()
		})
	}
}

// reconcile looks at the status that the target shows.
func (w *world) reconcile() {
	o := &w.operator
	w.after(w.between(5*ms, 15*ms), nil, w.reconcile)
	t := w.target
	if t == nil {
		return
	}
	st := t.status
	if len(st.Accept) > 0 && w.record.lost && w.now >= w.record.back && !slices.Equal(st.Accept, o.want.AcceptRecord) && w.chance(0.02) {
		w.accept(st.Accept)
	}
	if r := o.adding; r != nil && st.Committed.Has(r.disk.report.GUID) && st.Pending == nil {
		w.logf("operator: %s is a member", r.name)
		w.cover.ScaleUps++
		o.adding = nil
	}
	r := o.leaves
	if r == nil || st.Desired.Factor != o.want.Factor || !slices.Equal(st.Desired.Remove, o.want.Remove) {
		return
	}
	g := r.disk.report.GUID
	if st.Committed.Has(g) {
		if !slices.Contains(o.want.Remove, g) { // cancelled too late: it became a member, so it has to be removed
			o.want.Remove = append(o.want.Remove, g)
			w.cover.CancelledLate++
			w.tell()
		}
		return
	}
	if !w.mayDestroy(r) {
		return
	}
	if slices.Contains(o.want.Remove, g) {
		w.cover.ScaleDowns++
	}
	w.logf("operator destroys %s", r.name)
	w.destroyed(r)
	o.want.Remove = slices.DeleteFunc(slices.Clone(o.want.Remove), func(x block.GUID) bool { return x == g })
	o.leaves = nil
	w.tell()
}

// mayDestroy reports whether the pool of a replica whose object is deleted lets it go: package agent/pool, guard.
func (w *world) mayDestroy(r *replica) bool {
	own, list := r.disk.report, w.shown.Committed
	standing := replicas.StandingOf(own.GUID, own.State, r.alive && r.member.Spared())
	return !list.Has(own.GUID) && standing.Without(w.shown.Epoch, list.Generation) && !standing.Needed
}

// destroyed takes a replica out of the world.
func (w *world) destroyed(r *replica) {
	r.kill()
	w.destroy[r.disk.report.GUID] = true
	w.replicas = slices.DeleteFunc(w.replicas, func(x *replica) bool { return x == r })
}

// deleteByHand is somebody who deletes the object of a complete replica that is no member yet, which is what the volume has to go on from
// when the members lose power and take from it what they have lost; its pool has to refuse that.
func (w *world) deleteByHand() {
	w.after(w.between(2*ms, 10*ms), nil, w.deleteByHand)
	r := w.operator.adding
	if w.two || w.calm || r == nil || !r.disk.report.State.Complete || w.shown.Committed.Has(r.disk.report.GUID) {
		return
	}
	switch serving := w.target != nil && w.target.status.Serving; {
	case serving && w.chance(0.03):
		w.logf("members lose power beside %s", r.name)
		for _, g := range w.shown.Committed.Members {
			if m := w.replica(g); m != nil {
				m.powerCut(w.rng)
			}
		}
		w.after(w.between(20*ms, 200*ms), nil, w.killTarget)
	case !serving && w.chance(0.4):
		w.cover.HandDeletions++
		if w.mayDestroy(r) {
			w.logf("%s is destroyed", r.name)
			w.destroyed(r)
			w.operator.want.Factor--
			w.operator.adding = nil
			w.tell()
		}
	}
}
