package replica

import (
	"encoding/json"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// TestStandingIsWhatIsInThePool asks about replicas that nobody serves: one that there is not, a new one, a member.
func TestStandingIsWhatIsInThePool(t *testing.T) {
	s, _ := newTestServer(t)
	if st, err := s.Standing("r"); err != nil || !st.GUID.IsZero() || !st.Without(0, 0) {
		t.Errorf("of none: %+v %v", st, err)
	}
	r := newPull(t, s).a.r
	if st, err := s.Standing("r"); err != nil || st.GUID != r.GUID() || !st.Without(0, 0) {
		t.Errorf("of a new one: %+v %v", st, err)
	}
	state, err := json.Marshal(volume.State{
		Committed: volume.List{Epoch: 2, Generation: 3, Members: []block.GUID{r.GUID()}}, History: volume.History{{Epoch: 4, First: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetState(state, block.Version{Epoch: 4, N: 1}); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Standing("r"); err != nil || st.Without(3, 9) || !st.Without(4, 0) {
		t.Errorf("of a member: %+v %v", st, err)
	}
	if err := r.SetState([]byte("{"), block.Version{Epoch: 4, N: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Standing("r"); err == nil {
		t.Error("a state that cannot be read says nothing")
	}
}
