package replica

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/pool"
)

// Suspect makes stable that every replica in a pool may lack what it acknowledged, as after a loss of power: the pool failed
// while it was open before. No replica is served yet.
func Suspect(p *pool.Pool) error {
	for _, r := range p.Replicas() {
		st, err := decodeState(r.State())
		if err != nil {
			continue // it cannot be served: Attach says why
		}
		if !st.Failed() {
			continue
		}
		if err := putState(r, st); err != nil {
			return fmt.Errorf("replica %s: note that it may lack what it acknowledged: %w", r.Name(), err)
		}
	}
	return p.Sync()
}
