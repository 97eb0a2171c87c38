package volumes

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// users is an error that somebody has to do something about.
type users struct{ error }

func isUsers(err error) bool {
	var u users
	return errors.As(err, &u)
}

// unusable says why a pool takes no new replica, or nothing when it does.
func unusable(p *cstorv1.CStorPoolInstance) string {
	switch {
	case p.DeletionTimestamp != nil:
		return "is being deleted"
	case p.Status.Phase == cstorv1.PoolEmpty:
		return "is not made yet"
	case p.Status.Phase != cstorv1.PoolOnline && p.Status.Phase != cstorv1.PoolDegraded: // which has all its data
		return "is " + string(p.Status.Phase)
	case p.Status.ReadOnly:
		return "is read-only because it is nearly full"
	}
	return ""
}

// placement is what decides on which pools a new volume's replicas go.
type placement struct {
	cluster  string
	count    int      // replicas wanted
	pinned   []string // pools that the policy names; none: any
	node     string   // host to put the first replica on, if there is a pool; may be empty
	existing []string // pools that hold a replica of the volume already, after an operator was killed half-way
	pools    []cstorv1.CStorPoolInstance
	replicas []cstorv1.CStorVolumeReplica // of all volumes
}

// choose returns the pools, the existing ones first. The same world gives the same choice: pools on hosts that have no
// replica of the volume yet come first, of those the ones that lack no redundancy, then those with the most space that nobody has
// been promised, then those with the fewest replicas.
func (p *placement) choose() ([]string, error) {
	candidates := slices.DeleteFunc(slices.Clone(p.pools), func(c cstorv1.CStorPoolInstance) bool {
		return c.Labels[cstorv1.LabelPoolCluster] != p.cluster
	})
	if len(candidates) == 0 {
		return nil, users{fmt.Errorf("no pools are available of provided CSPC: %q", p.cluster)}
	}
	if n := len(p.pinned); n > 0 {
		if n != p.count {
			return nil, users{fmt.Errorf("failed to distribute cvrs: incorrect number of pool names in cvc policy: expected %d got %d", p.count, n)}
		}
		if d := duplicates(p.pinned); len(d) > 0 {
			return nil, users{fmt.Errorf("failed to distribute cvrs: duplicate pool names %v in cvc policy", d)}
		}
		candidates = slices.DeleteFunc(candidates, func(c cstorv1.CStorPoolInstance) bool { return !slices.Contains(p.pinned, c.Name) })
	}
	chosen := slices.Clone(p.existing)
	hosts := map[string]int{}
	for _, c := range candidates {
		if slices.Contains(chosen, c.Name) {
			hosts[c.Spec.HostName]++
		}
	}
	var unused []string // pools, and why
	candidates = slices.DeleteFunc(candidates, func(c cstorv1.CStorPoolInstance) bool {
		if slices.Contains(chosen, c.Name) {
			return true
		}
		why := unusable(&c)
		if why != "" {
			unused = append(unused, fmt.Sprintf("pool %s %s", c.Name, why))
		}
		return why != ""
	})
	free, count := p.unpromised(candidates), map[string]int{}
	for i := range p.replicas {
		count[p.replicas[i].PoolOf()]++
	}
	usable := len(candidates)
	first := len(chosen) == 0
	for len(chosen) < p.count {
		if len(candidates) == 0 {
			err := fmt.Errorf("not enough pools are available of provided CSPC: %q, usable pool count: %d pending replica count: %d",
				p.cluster, usable, p.count-len(p.existing))
			if len(unused) > 0 {
				err = fmt.Errorf("%w (%s)", err, strings.Join(unused, ", "))
			}
			return nil, users{err}
		}
		best := slices.MinFunc(candidates, func(a, b cstorv1.CStorPoolInstance) int {
			near := 0
			if first && p.node != "" {
				near = cmp.Compare(away(a, p.node), away(b, p.node))
			}
			return cmp.Or(near,
				cmp.Compare(hosts[a.Spec.HostName], hosts[b.Spec.HostName]),
				cmp.Compare(lacking(a), lacking(b)),
				cmp.Compare(free[b.Name], free[a.Name]),
				cmp.Compare(count[a.Name], count[b.Name]),
				cmp.Compare(a.Spec.HostName, b.Spec.HostName), // pools' names are random
				cmp.Compare(a.Name, b.Name))
		})
		first = false
		chosen = append(chosen, best.Name)
		hosts[best.Spec.HostName]++
		candidates = slices.DeleteFunc(candidates, func(c cstorv1.CStorPoolInstance) bool { return c.Name == best.Name })
	}
	return chosen, nil
}

func away(p cstorv1.CStorPoolInstance, node string) int {
	if p.Spec.HostName == node {
		return 0
	}
	return 1
}

// lacking is 1 for a pool some of whose disks are missing or being copied to.
func lacking(p cstorv1.CStorPoolInstance) int {
	if p.Status.Phase == cstorv1.PoolDegraded {
		return 1
	}
	return 0
}

// unpromised returns each pool's free bytes less what its thin replicas may still grow by. It may be negative: pools may
// be over-committed.
func (p *placement) unpromised(pools []cstorv1.CStorPoolInstance) map[string]int64 {
	free := map[string]int64{}
	for i := range pools {
		free[pools[i].Name] = cstorv1.PoolBytes(pools[i].Status.Capacity.Free)
	}
	for i := range p.replicas {
		r := &p.replicas[i]
		capacity, err := resource.ParseQuantity(r.Spec.Capacity)
		if err != nil {
			continue // of a replica that is invalid and grows no more
		}
		taken, err := cstorv1.ParseSize(r.Status.Capacity.Total)
		if err != nil {
			taken = 0 // not reported yet
		}
		free[r.PoolOf()] -= max(capacity.Value()-taken, 0)
	}
	return free
}

// duplicates returns the names that stand in a list more than once.
func duplicates(names []string) (twice []string) {
	seen := map[string]int{}
	for _, n := range names {
		if seen[n]++; seen[n] == 2 {
			twice = append(twice, n)
		}
	}
	return twice
}

// names returns the pools of a list.
func names(list []cstorv1.ReplicaPoolInfo) []string {
	out := make([]string, len(list))
	for i := range list {
		out[i] = list[i].PoolName
	}
	return out
}
