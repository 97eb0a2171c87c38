package sim

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
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
	if slices.Contains(o.want.Remove, g) {
		w.cover.ScaleDowns++
	}
	w.logf("operator destroys %s", r.name)
	r.kill()
	w.destroy[g] = true
	w.replicas = slices.DeleteFunc(w.replicas, func(x *replica) bool { return x == r })
	o.want.Remove = slices.DeleteFunc(slices.Clone(o.want.Remove), func(x block.GUID) bool { return x == g })
	o.leaves = nil
	w.tell()
}
