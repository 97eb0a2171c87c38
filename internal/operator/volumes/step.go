package volumes

import (
	"fmt"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// verb is what is to be done next with a volume's replicas.
type verb int

const (
	settled   verb = iota // nothing: what is wanted is so
	refuse                // tell why the edit is not carried out
	wait                  // for somebody else; tell for what
	setFactor             // let the volume have factor replicas
	keep                  // take the removal of members back
	remove                // ask the target to remove members and to admit no more than factor replicas
	create                // make replicas
	publish               // tell that the replicas exist
	destroy               // delete the replicas, which can never be members again, and tell that they are gone
)

func (v verb) String() string {
	return [...]string{"settled", "refuse", "wait", "setFactor", "keep", "remove", "create", "publish", "destroy"}[v]
}

// step is one thing to do.
type step struct {
	do      verb
	factor  int
	pools   []string // that it is about
	reason  string   // of the condition, while it lasts
	message string   // why, or for what is waited
	down    bool     // a replica is being removed: say so in an event
}

// next returns what to do in this world, which is to wait as long as the volume's status cannot be trusted.
func (w *world) next() step {
	s := w.nextTrusted()
	if w.outdated == "" || s.do == settled || s.do == refuse {
		return s
	}
	return step{do: wait, reason: s.reason, message: w.outdated, down: s.down}
}

// nextTrusted returns what to do if everything is as it is said to be. Replicas that have to go go first, then new ones come; the order of what can be
// observed is that of the reference: factor, replica, status, event; and factor, members, replica, status, event.
func (w *world) nextTrusted() step {
	if why := w.refusal(); why != "" {
		return step{do: refuse, message: why}
	}
	if leaving := w.leaving(); len(leaving) > 0 {
		return w.nextDown(leaving)
	}
	if added := without(w.want(), w.have()); len(added) > 0 {
		return w.nextUp(added)
	}
	return w.nextSettled()
}

// nextUp adds replicas.
func (w *world) nextUp(added []string) step {
	s := step{reason: cstorv1.ReasonScalingUp, factor: len(w.want())}
	if s, done := w.gone(added, s); !done {
		return s
	}
	if w.volume.Spec.DesiredReplicationFactor < s.factor {
		return w.change(s, setFactor)
	}
	for _, p := range added {
		if w.replicas[p] == nil {
			s.pools = append(s.pools, p)
		}
	}
	if len(s.pools) > 0 {
		s.do = create
		return s
	}
	s.do, s.pools = publish, append(append([]string{}, w.have()...), added...)
	return s
}

// nextDown removes replicas: members by asking the target, others by making sure that they cannot become members. For
// that the target must not admit more replicas than the members that stay.
func (w *world) nextDown(leaving []string) step {
	if len(w.members()) == 0 {
		return step{do: wait, reason: cstorv1.ReasonScalingDown, message: w.notInService()}
	}
	members := 0
	asked := true
	for _, p := range leaving {
		if why := w.unclear(p); why != "" {
			return step{do: wait, reason: cstorv1.ReasonScalingDown, message: why}
		}
		if w.isMember(p) {
			members++
		}
		if w.isWanted(p) {
			asked = false
		}
	}
	s := step{
		reason: cstorv1.ReasonCancellingScaleUp,
		factor: len(w.members()) - members,
		pools:  leaving,
		down:   len(without(w.have(), w.want())) > 0,
	}
	if members > 0 {
		s.reason = cstorv1.ReasonScalingDown
	}
	if w.volume.Spec.DesiredReplicationFactor != s.factor || !asked {
		if members > 0 {
			for _, p := range w.want() {
				if !w.isMember(p) {
					s.do, s.message = wait, w.describe(p)+"; the other replica is removed when it is Healthy"
					return s
				}
			}
		}
		if !w.adopted() {
			return w.waitForTarget(s)
		}
		s.do = remove
		return s
	}
	switch {
	case members > 0:
		s.do, s.message = wait, w.whyNotRemoved()
	case !w.adopted():
		return w.waitForTarget(s)
	default:
		s.do = destroy
	}
	return s
}

// nextSettled puts right what a reverted edit, or an operator that was killed, left behind.
func (w *world) nextSettled() step {
	s := step{reason: cstorv1.ReasonScalingUp, factor: len(w.want())}
	for _, p := range w.want() {
		if w.isMember(p) && !w.isWanted(p) {
			s.pools = append(s.pools, p)
		}
	}
	if len(s.pools) > 0 {
		s.do = keep
		return s
	}
	if w.volume.Spec.DesiredReplicationFactor != s.factor {
		return w.change(s, setFactor)
	}
	if s, done := w.gone(w.want(), s); !done {
		return s
	}
	for _, p := range w.want() {
		if w.replicas[p] == nil {
			s.pools = append(s.pools, p)
		}
	}
	if len(s.pools) > 0 {
		s.do = create
		return s
	}
	if len(w.members()) > 0 {
		for _, p := range w.want() {
			if !w.isMember(p) {
				s.do, s.message = wait, w.describe(p)
				return s
			}
		}
	}
	return s // settled
}

// change makes s change the factor, once the target has adopted the present one.
func (w *world) change(s step, do verb) step {
	if !w.mayChangeFactor() {
		return w.waitForTarget(s)
	}
	s.do = do
	return s
}

// gone makes s wait for replicas that are still being destroyed on pools which are to have one.
func (w *world) gone(pools []string, s step) (_ step, done bool) {
	for _, p := range pools {
		if r := w.replicas[p]; r != nil && r.DeletionTimestamp != nil {
			s.do, s.message = wait, fmt.Sprintf("the earlier replica %s is still being destroyed", r.Name)
			if w.isMember(p) { // its pool does not destroy it as long as it is one
				s.message = fmt.Sprintf("replica %s was deleted by hand and is kept, since the volume needs it: remove pool %s to let it go", r.Name, p)
			}
			return s, false
		}
	}
	return s, true
}

func (w *world) waitForTarget(s step) step {
	s.do = wait
	s.message = fmt.Sprintf("the target of volume %s has not adopted desiredReplicationFactor %d yet", w.volume.Name, w.volume.Spec.DesiredReplicationFactor)
	if w.volume.Status.Phase != cstorv1.VolumeHealthy {
		s.message += fmt.Sprintf(" (the volume is %s)", w.volume.Status.Phase)
	}
	return s
}

// whyNotRemoved says what the target waits for before it removes a member.
func (w *world) whyNotRemoved() string {
	for _, p := range w.want() {
		if r := w.replicas[p]; r == nil || r.Status.Phase != cstorv1.ReplicaHealthy {
			return w.describe(p) + "; a replica is removed when all others are Healthy"
		}
	}
	if m := w.volume.Status.Message; m != "" {
		return m
	}
	return "the target removes the replica from the member list"
}
