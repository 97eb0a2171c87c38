package volumes

import (
	"cmp"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// statuses remembers how new the status of each volume was when it was last read. Targets write it only upwards; what
// brings an old one back is somebody who rewrites the object whole, or a restored backup.
type statuses struct {
	mu   sync.Mutex
	seen map[types.NamespacedName]seen
}

// seen is a member list that a status showed.
type seen struct {
	uid               types.UID // of the CStorVolume
	epoch, generation int64
}

func (s seen) compare(o seen) int {
	return cmp.Or(cmp.Compare(s.epoch, o.epoch), cmp.Compare(s.generation, o.generation))
}

// outdated says why v's status is not to be acted upon, empty if nothing is known against it.
func (s *statuses) outdated(v *cstorv1.CStorVolume) string {
	now := seen{uid: v.UID, epoch: v.Status.Epoch, generation: v.Status.Generation}
	key := client.ObjectKeyFromObject(v)
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.seen[key]
	switch {
	case last.uid == now.uid && now.compare(last) < 0:
		return fmt.Sprintf("the status of volume %s went back from epoch %d, change %d, to epoch %d, change %d: waiting for its target to report again",
			v.Name, last.epoch, last.generation, now.epoch, now.generation)
	case now.epoch == 0 && len(v.Status.ReplicaDetails.KnownReplicas) > 0:
		return fmt.Sprintf("the status of volume %s does not say of which epoch it is: waiting for its target to report", v.Name)
	}
	if s.seen == nil {
		s.seen = map[types.NamespacedName]seen{}
	}
	s.seen[key] = now
	return ""
}

// forget forgets a volume that is gone.
func (s *statuses) forget(key types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, key)
}
