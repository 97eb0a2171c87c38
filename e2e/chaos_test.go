package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
)

var (
	chaosFor  = flag.Duration("chaos", time.Minute, "how long TestChaos goes on after it has done everything once")
	chaosSeed = flag.Uint64("chaos-seed", 0, "the `seed` of what TestChaos does; 0 takes a new one")
)

// restEvery is after how many faults TestChaos lets everything come to rest, and compares.
const restEvery = 8

// deckLimit bounds how many faults are done in turn.
const deckLimit = 40

// TestChaos kills and freezes processes, and cuts them off from each other, alone and together, in an order that a seed gives, while an application checks
// what it reads and the volume's data moves from pool to pool. The application sees pauses, and nothing else; when the
// faults stop everything becomes good, and the replicas are equal.
func TestChaos(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-chaos-seed %d", seed)
	ctx := interruptible(t)
	l := newLab(ctx, t)
	network, err := l.Network()
	check(t, err)
	c := &chaos{
		migration: serve(ctx, t, l, 16<<20, "quiet"),
		random:    rand.New(rand.NewPCG(seed, 0)),
		network:   network,
		silenced:  map[cut]int{},
		cutWays:   map[way]int{},
	}
	c.awaitHealthy(t, 0)

	deck := c.everything()
	for n, begin := 0, time.Now(); n < len(deck) || time.Since(begin) < *chaosFor; n++ {
		faults := []fault{c.any()}
		if n < len(deck) {
			faults[0] = deck[n]
		} else if c.random.IntN(2) == 0 {
			faults = append(faults, c.any())
		}
		c.disturb(t, n+1, faults)
		if n < len(deck) && len(deck) < deckLimit && !c.met(faults[0]) {
			deck = append(deck, faults[0]) // who was to be cut off had been killed just before
		}
		if n%3 == 0 {
			c.move(t)
		}
		if (n+1)%restEvery == 0 {
			c.rest(t)
		}
	}
	c.rest(t)
	c.covered(t)
}

// chaos is a volume to which everything happens.
type chaos struct {
	*migration
	random   *rand.Rand
	network  *lab.Network
	used     []string    // pools with a replica, as far as was last known
	silenced map[cut]int // connections that a cut was seen to concern
	cutWays  map[way]int // cuts made
}

// A fault is something that happens to processes at once: they are killed, or for a time frozen, or cut off.
type fault struct {
	whom string
	kill bool
	cut  *cut // if it is one
	way  way  // of the cut
}

func (f fault) String() string {
	switch {
	case f.cut != nil:
		return fmt.Sprintf("%s %s", f.cut, f.way)
	case f.kill:
		return "kill " + f.whom
	}
	return "freeze " + f.whom
}

// whom is to whom something happens.
var whom = []string{"target", "pool", "all pools", "operator", "API server", "node", "everything"}

// everything returns each fault once, in any order; of cuts one way each, and all ways together.
func (c *chaos) everything() (deck []fault) {
	for _, w := range whom {
		deck = append(deck, fault{whom: w, kill: true}, fault{whom: w})
	}
	first := c.random.IntN(int(ways))
	for i := range cuts {
		deck = append(deck, fault{cut: &cuts[i], way: way((first + i) % int(ways))})
	}
	c.random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
	return deck
}

func (c *chaos) any() fault {
	if c.random.IntN(2) == 0 {
		return fault{cut: &cuts[c.random.IntN(len(cuts))], way: way(c.random.IntN(int(ways)))}
	}
	return fault{whom: whom[c.random.IntN(len(whom))], kill: c.random.IntN(2) == 0}
}

// disturb lets faults happen one soon after the other, and waits until the application goes on.
func (c *chaos) disturb(t *testing.T, n int, faults []fault) {
	t.Helper()
	phase := fmt.Sprintf("%d %v", n, faults)
	c.app.Phase(phase)
	c.place()
	at := c.addresses(t, c.used)
	begin := time.Now()
	var frozen []lab.Process
	lasting := false
	thaw := func() {
		check(t, c.network.Heal())
		for _, p := range frozen {
			_ = p.Thaw() // it may have been killed meanwhile, also since it did not answer
		}
		frozen = nil
	}
	defer thaw()
	for _, f := range faults {
		if f.cut != nil {
			silenced, err := f.cut.do(c.network, f.way, at, c.random)
			if err != nil {
				t.Logf("%s: %v", f, err) // it did not run
			} else {
				lasting = true
				c.silenced[*f.cut] += silenced
				c.cutWays[f.way]++
			}
			c.sleep(t, time.Duration(c.random.Int64N(int64(time.Second))))
			continue
		}
		for _, p := range c.victims(t, f.whom) {
			act := p.Freeze
			if f.kill {
				act = p.Kill
			}
			if err := act(); err != nil {
				t.Logf("%s: %v", f, err) // it has just ended by itself, as those do that were killed before
			} else if !f.kill {
				frozen = append(frozen, p)
			}
		}
		c.sleep(t, time.Duration(c.random.Int64N(int64(time.Second))))
	}
	if lasting || len(frozen) > 0 {
		c.sleep(t, time.Duration(c.random.Int64N(int64(6*time.Second))))
	}
	thaw()
	check(t, c.goesOn(outageLimit))
	t.Logf("%s: %.1f s, longest stall %v", phase, time.Since(begin).Seconds(), c.app.Report().Phase(phase).Stall)
}

// place looks which pools hold a replica. When the API server does not answer what was known counts.
func (c *chaos) place() {
	ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
	defer cancel()
	config := &cstorv1.CStorVolumeConfig{}
	if err := c.lab.Get(ctx, c.volume, config); err == nil {
		c.used = config.Status.PoolInfo
	}
}

// met reports whether a fault was met by what it is meant for. Pools have connections with each other only while data is rebuilt.
func (c *chaos) met(f fault) bool {
	return f.cut == nil || c.silenced[*f.cut] > 0 || f.cut.from == "pools"
}

// covered checks that every cut was made and concerned somebody.
func (c *chaos) covered(t *testing.T) {
	t.Helper()
	for _, k := range cuts {
		t.Logf("%s: %d connections", k, c.silenced[k])
		if _, made := c.silenced[k]; !made || !c.met(fault{cut: &k}) {
			t.Errorf("%s: it concerned no connection", k)
		}
	}
	for w := range ways {
		t.Logf("cut %s: %d times", w, c.cutWays[w])
		if c.cutWays[w] < 2 {
			t.Errorf("cut %s: %d times only", w, c.cutWays[w])
		}
	}
}

// victims returns the processes that run now.
func (c *chaos) victims(t *testing.T, whom string) []lab.Process {
	t.Helper()
	all, err := c.lab.Processes(c.ctx)
	check(t, err)
	all = slices.DeleteFunc(all, func(p lab.Process) bool { return p.PID == 0 })
	slices.SortFunc(all, func(a, b lab.Process) int { return strings.Compare(a.Pod, b.Pod) })
	named := func(prefix string) (some []lab.Process) {
		for _, p := range all {
			if strings.HasPrefix(p.Pod, prefix) {
				some = append(some, p)
			}
		}
		return some
	}
	pools := slices.DeleteFunc(slices.Clone(all), func(p lab.Process) bool { return p.Container != cstorv1.AppPool })
	switch whom {
	case "target":
		return named(cstorv1.TargetDeployment(c.volume) + "-")
	case "pool":
		if len(pools) == 0 {
			return nil
		}
		return []lab.Process{pools[c.random.IntN(len(pools))]}
	case "all pools":
		return pools
	case "operator":
		return named("cstor-operator-")
	case "API server":
		p, err := c.lab.APIServer(c.ctx)
		if err != nil || p.PID == 0 {
			return nil // it was killed a moment ago
		}
		return []lab.Process{p}
	case "node":
		if len(all) == 0 {
			return nil
		}
		node := all[c.random.IntN(len(all))].Node
		return slices.DeleteFunc(all, func(p lab.Process) bool { return p.Node != node })
	}
	if p, err := c.lab.APIServer(c.ctx); err == nil && p.PID != 0 {
		all = append(all, p)
	}
	return all
}

// sleep is a pause in which things happen.
func (c *chaos) sleep(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-c.ctx.Done():
		t.Fatal(context.Cause(c.ctx))
	}
}

// move asks for a replica more or for one less, whatever is under way: the one less may be the one that is being made. It is
// that one when the operator has not seen yet that it is wanted: another one instead would be a move in one step, which is refused.
func (c *chaos) move(t *testing.T) {
	t.Helper()
	check(t, lab.Until(c.ctx, outageLimit, "the API server to take a change of the volume's pools", func(ctx context.Context) (bool, string, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		config := &cstorv1.CStorVolumeConfig{}
		if err := c.lab.Get(ctx, c.volume, config); err != nil {
			return false, err.Error(), nil
		}
		pools, err := c.lab.Pools(ctx, config.Labels[cstorv1.LabelPoolCluster])
		if err != nil {
			return false, err.Error(), nil
		}
		want := lab.PoolsOf(config)
		free := slices.DeleteFunc(pools, func(p cstorv1.CStorPoolInstance) bool { return slices.Contains(want, p.Name) })
		if len(free) > 0 {
			want = append(want, free[c.random.IntN(len(free))].Name)
		} else {
			less := slices.DeleteFunc(slices.Clone(want), func(p string) bool { return slices.Contains(config.Status.PoolInfo, p) })
			if len(less) == 0 {
				less = want
			}
			i := slices.Index(want, less[c.random.IntN(len(less))])
			want = slices.Delete(want, i, i+1)
		}
		if err := c.lab.EditPools(ctx, c.volume, want); err != nil {
			return false, err.Error(), nil
		}
		t.Logf("wanted are replicas on %v", want)
		return true, "", nil
	}))
}

// rest waits until everything is good, and checks everything.
func (c *chaos) rest(t *testing.T) {
	t.Helper()
	begin := time.Now()
	check(t, lab.Until(c.ctx, rebuildLimit, "the volume to be where it is wanted", func(ctx context.Context) (bool, string, error) {
		config := &cstorv1.CStorVolumeConfig{}
		if err := c.lab.Get(ctx, c.volume, config); err != nil {
			return false, err.Error(), nil
		}
		want, have := lab.PoolsOf(config), slices.Clone(config.Status.PoolInfo)
		slices.Sort(want)
		slices.Sort(have)
		return slices.Equal(want, have), fmt.Sprintf("wanted are %v, it is on %v", want, have), nil
	}))
	c.awaitHealthy(t, 0)
	c.load.Stop()
	check(t, c.app.Err())
	check(t, c.app.Verify(c.ctx, nil))
	pools, err := c.lab.Placement(c.ctx, c.volume)
	check(t, err)
	for _, other := range pools.Used[1:] {
		equal, err := c.lab.CompareReplicas(c.ctx, c.volume, pools.Used[0].Name, other.Name)
		check(t, err)
		t.Logf("at rest after %.1f s; replicas on %s and %s: %s", time.Since(begin).Seconds(), pools.Used[0].Spec.HostName, other.Spec.HostName, equal)
	}
	c.load = c.app.Start(c.ctx, load)
}
