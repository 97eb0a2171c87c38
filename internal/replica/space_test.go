package replica

import "testing"

// TestReserve checks that what all volumes may have in flight fits into the reserve, as far as the pool is large enough.
func TestReserve(t *testing.T) {
	const inFlight = 64 << 20
	for _, n := range []int{1, 2, 10} {
		if got := reserve(100<<30, n); got < int64(n)*inFlight+checkBytes {
			t.Errorf("reserve for %d volumes is %d bytes", n, got)
		}
	}
	if got := reserve(1<<30, 10); got != 128<<20 {
		t.Errorf("reserve of a small pool is %d bytes", got)
	}
}
