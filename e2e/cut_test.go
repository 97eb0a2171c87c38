package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
)

// A way is in which directions packets are lost.
type way int

const (
	bothWays way = iota
	outward      // what the one that is cut off sends
	inward       // what is sent to it
	ways
)

func (w way) String() string { return [...]string{"both ways", "outward", "inward"}[w] }

// A cut is two parties of the cluster that do not reach each other.
type cut struct{ whom, from string }

func (c cut) String() string { return "cut " + c.whom + " from " + c.from }

// cuts are those that there are.
var cuts = []cut{
	{"pool", "target"},
	{"target", "most pools"},
	{"pool", "API server"},
	{"target", "API server"},
	{"operator", "API server"},
	{"pool", "pools"},
	{"pool", "everything"},
	{"target", "everything"},
}

// addresses are where the parts of the cluster are.
type addresses struct {
	target, operator, apiServer []netip.Addr
	pools                       []netip.Addr // of those with a replica, by name
	others                      []netip.Addr // of the other pools
}

// addresses finds the parts of the cluster, of which these pools hold a replica. It does not ask the API server.
func (m *migration) addresses(t *testing.T, used []string) (a addresses) {
	t.Helper()
	server, err := m.lab.APIServerAddr()
	check(t, err)
	a.apiServer = []netip.Addr{server}
	all, err := m.lab.Processes(m.ctx)
	check(t, err)
	slices.SortFunc(all, func(a, b lab.Process) int { return strings.Compare(a.Pod, b.Pod) })
	for _, p := range all {
		ip, err := netip.ParseAddr(p.IP)
		if err != nil {
			continue // it has none yet
		}
		switch {
		case strings.HasPrefix(p.Pod, cstorv1.TargetDeployment(m.volume)+"-"):
			a.target = append(a.target, ip)
		case strings.HasPrefix(p.Pod, "cstor-operator-"):
			a.operator = append(a.operator, ip)
		case p.Container == cstorv1.AppPool && slices.ContainsFunc(used, func(pool string) bool { return strings.HasPrefix(p.Pod, pool+"-") }):
			a.pools = append(a.pools, ip)
		case p.Container == cstorv1.AppPool:
			a.others = append(a.others, ip)
		}
	}
	portal, err := netip.ParseAddrPort(m.portal)
	check(t, err)
	a.target = append(a.target, portal.Addr())
	return a
}

// parties returns the addresses of one that is cut off, and of what it is cut off from.
func (c cut) parties(a addresses, random *rand.Rand) (one, other []netip.Addr) {
	everything := slices.Concat(a.target, a.operator, a.apiServer, a.pools, a.others)
	all := slices.Concat(a.pools, a.others)
	switch c.whom {
	case "pool":
		if len(a.pools) > 0 {
			one = []netip.Addr{a.pools[random.IntN(len(a.pools))]}
		}
	case "target":
		one = a.target
	case "operator":
		one = a.operator
	}
	switch c.from {
	case "target":
		other = a.target
	case "most pools":
		if len(a.pools) > 0 {
			i := random.IntN(len(a.pools))
			other = slices.Concat(a.others, a.pools[:i], a.pools[i+1:])
		}
	case "API server":
		other = a.apiServer
	case "pools":
		other = all
	case "everything":
		other = everything
	}
	return one, slices.DeleteFunc(slices.Clone(other), func(a netip.Addr) bool { return slices.Contains(one, a) })
}

// do cuts two parties off from each other, and returns how many connections that concerns.
func (c cut) do(network *lab.Network, w way, a addresses, random *rand.Rand) (connections int, err error) {
	one, other := c.parties(a, random)
	if len(one) == 0 || len(other) == 0 {
		return 0, fmt.Errorf("%s: there is none", c)
	}
	if w != inward {
		if connections, err = network.Cut(one, other); err != nil {
			return 0, err
		}
	}
	if w != outward {
		n, err := network.Cut(other, one)
		return connections + n, err
	}
	return connections, nil
}

// cutStall is how long I/O may stop when a member of a volume at rest is cut off: one deadline, which is a second, and what a
// busy machine adds.
const cutStall = 4 * time.Second

// TestCut cuts the parts of a volume at rest off from each other. The application goes on after a deadline, what is cut off
// is not shown as good any more, what is not is, and when the cut is healed everything is good again.
func TestCut(t *testing.T) {
	ctx := interruptible(t)
	l := newLab(ctx, t)
	network, err := l.Network()
	check(t, err)
	m := serve(ctx, t, l, 1<<20, "load")
	for _, c := range []struct {
		cut
		way
		bad, good []string // what is shown as bad, and what must be good then
	}{
		{cut{"pool", "target"}, bothWays, []string{"volume", "replica"}, []string{"pool"}},
		{cut{"pool", "target"}, outward, []string{"volume", "replica"}, []string{"pool"}},
		{cut{"pool", "target"}, inward, []string{"volume", "replica"}, []string{"pool"}},
		{cut{"pool", "API server"}, bothWays, []string{"replica", "pool"}, nil},
		{cut{"pool", "everything"}, outward, []string{"volume", "replica", "pool"}, nil},
		{cut{"target", "API server"}, bothWays, nil, []string{"volume", "replica", "pool"}}, // nothing needs it now
	} {
		t.Run(fmt.Sprintf("%s %s", c.cut, c.way), func(t *testing.T) {
			m.awaitHealthy(t, 0)
			placed, err := l.Placement(m.ctx, m.volume)
			check(t, err)
			pool := placed.Used[0].Name // the only one that can be chosen
			m.app.Phase(t.Name())
			connections, err := c.do(network, c.way, m.addresses(t, []string{pool}), rand.New(rand.NewPCG(0, 0)))
			t.Cleanup(func() { check(t, network.Heal()) })
			check(t, err)
			if connections == 0 {
				t.Error("it concerns no connection")
			}
			m.awaitShown(t, pool, c.bad, c.good)
			check(t, m.goesOn(outageLimit))
			stall := m.app.Report().Phase(t.Name()).Stall
			t.Logf("longest stall %v", stall)
			if stall > cutStall {
				t.Errorf("I/O stopped for %v, at most %v is allowed", stall, cutStall)
			}
			check(t, network.Heal())
			m.awaitHealthy(t, 0)
		})
	}
}

// awaitShown waits until the volume, and the replica on a pool and the pool, are shown as bad or good.
func (m *migration) awaitShown(t *testing.T, pool string, bad, good []string) {
	t.Helper()
	begin := time.Now()
	seen := map[string]time.Duration{}
	check(t, lab.Until(m.ctx, silenceLimit, "all to be shown as it is", func(ctx context.Context) (bool, string, error) {
		v, r, in := &cstorv1.CStorVolume{}, &cstorv1.CStorVolumeReplica{}, &cstorv1.CStorPoolInstance{}
		if err := m.lab.Get(ctx, m.volume, v); err != nil {
			return false, "", err
		}
		if err := m.lab.Get(ctx, cstorv1.ReplicaName(m.volume, pool), r); err != nil {
			return false, "", err
		}
		if err := m.lab.Get(ctx, pool, in); err != nil {
			return false, "", err
		}
		is := map[string]bool{
			"volume":  v.Status.Phase == cstorv1.VolumeHealthy,
			"replica": r.Status.Phase == cstorv1.ReplicaHealthy,
			"pool":    in.Status.Phase == cstorv1.PoolOnline,
		}
		done := true
		for _, what := range bad {
			if _, ok := seen[what]; !ok && !is[what] {
				seen[what] = time.Since(begin)
			}
			done = done && !is[what]
		}
		for _, what := range good {
			done = done && is[what]
		}
		return done, fmt.Sprint(is), nil
	}))
	for what, after := range seen {
		t.Logf("%s after %.1f s", what, after.Seconds())
	}
}
