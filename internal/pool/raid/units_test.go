package raid

import "testing"

// TestAddBesideAdd adds a unit while somebody else does, who has not come to the summary yet: the unit is found.
func TestAddBesideAdd(t *testing.T) {
	var s unitSet
	s.add(70)
	s.chunks[0].Load().summary[0].Store(0)
	s.add(70)
	var found []int
	s.drain(func(u int) { found = append(found, u) })
	if len(found) != 1 || s.has(70) || s.n.Load() != 0 {
		t.Errorf("found %d, %d are left", found, s.n.Load())
	}
}
