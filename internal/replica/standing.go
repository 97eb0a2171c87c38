package replica

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// Standing is what a replica itself has recorded of its place in the volume. The zero value is that of none.
type Standing struct {
	GUID   block.GUID
	Needed bool          // others may need what it has: it is complete, and the target has not spared it
	lists  []volume.List // that it is in
	epoch  uint64        // the newest that it has operations of
}

// StandingOf is the standing of a replica with this state. spared: see volume.Member.
func StandingOf(g block.GUID, st volume.State, spared bool) Standing {
	s := Standing{GUID: g, Needed: st.Complete && !spared}
	lists := []volume.List{st.Committed}
	if st.Pending != nil {
		lists = append(lists, *st.Pending)
	}
	for _, l := range lists {
		if l.Has(g) {
			s.lists = append(s.lists, l)
		}
	}
	if n := len(st.History); n > 0 {
		s.epoch = st.History[n-1].Epoch
	}
	return s
}

// Without reports whether a member list without the replica, of this epoch and generation, decides about it: it is newer
// than everything by which the replica may be a member. A replica becomes one only after it has recorded the list that
// makes it one; and when it has left there is a later list than any that it is in.
func (s Standing) Without(epoch, generation uint64) bool {
	shown := volume.List{Epoch: epoch, Generation: generation}
	for _, l := range s.lists {
		if l.Compare(shown) >= 0 {
			return false
		}
	}
	return s.epoch <= epoch
}

// isSpared reports whether the target has said that the volume does not need a replica, which may have been detached since.
func (s *Server) isSpared(name string) bool {
	if a := s.find(name); a != nil {
		return a.isSpared()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spared[name]
}

// Standing returns what a replica has recorded, whether it is served or not, and what its target has said.
func (s *Server) Standing(name string) (Standing, error) {
	r := s.cfg.Pool.Replica(name)
	if r == nil {
		return Standing{}, nil
	}
	st, err := decodeState(r.State())
	if err != nil {
		return Standing{}, fmt.Errorf("replica %s: %w", name, err)
	}
	return StandingOf(r.GUID(), st, s.isSpared(name)), nil
}
