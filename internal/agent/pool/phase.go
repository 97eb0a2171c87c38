package pool

import (
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/replica"
)

// settle is how long a member that connects may take to come into sync before that is shown as Degraded. Until then it
// stays Offline, which claims less.
const settle = 2 * time.Second

// phaseOf is what the status of a replica that exists in the pool says. joining is true for one that was added to a
// volume which existed before it; connected is for how long it has had a session.
func phaseOf(s replica.Status, joining bool, now cstorv1.ReplicaPhase, connected time.Duration) cstorv1.ReplicaPhase {
	switch {
	case !s.Connected:
		return cstorv1.ReplicaOffline
	case s.Member && s.Complete && s.InSync:
		return cstorv1.ReplicaHealthy
	case s.Member && s.Rebuilding:
		return cstorv1.ReplicaRebuilding
	case s.Member && now == cstorv1.ReplicaOffline && connected < settle:
		return cstorv1.ReplicaOffline
	case s.Member:
		return cstorv1.ReplicaDegraded
	case s.Rebuilding, s.Complete && joining: // the latter: filled, not in the member list yet
		return cstorv1.ReplicaReconstructing
	case joining:
		return cstorv1.ReplicaNewDegraded
	default:
		return cstorv1.ReplicaOffline // the volume waits for its other founders
	}
}
