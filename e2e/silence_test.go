package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
)

// silenceLimit is how long a frozen process may pass for one that works; on a machine that does nothing else it is less than
// ten seconds.
const silenceLimit = 20 * time.Second

// TestSilence freezes processes, which nothing but their silence tells: what depends on them is not shown as good any more.
// When they go on, it is.
func TestSilence(t *testing.T) {
	ctx := interruptible(t)
	l := newLab(ctx, t)
	m := serve(ctx, t, l, 1<<20, "load")
	m.awaitHealthy(t, 0)
	target := m.process(t, cstorv1.TargetDeployment(m.volume)+"-")
	pools := m.pools(t)
	all, err := l.Processes(ctx)
	check(t, err)
	at := pools[0].Node
	if slices.ContainsFunc(pools, func(p lab.Process) bool { return p.Node == target.Node }) {
		at = target.Node
	}
	node := slices.DeleteFunc(all, func(p lab.Process) bool {
		return p.Node != at || p.Container != pools[0].Container && p.Pod != target.Pod
	})
	for _, c := range []struct {
		name   string
		frozen []lab.Process
	}{
		{"pool", pools[:1]},
		{"target", []lab.Process{target}},
		{"node", node},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, p := range c.frozen {
				check(t, p.Freeze())
				t.Cleanup(func() { _ = p.Thaw() }) // it may have been killed, since it does not answer
			}
			m.awaitSilence(t, c.frozen)
			for _, p := range c.frozen {
				check(t, p.Thaw())
			}
			m.awaitHealthy(t, 0)
			check(t, m.goesOn(outageLimit))
		})
	}
}

// awaitSilence waits until nothing that needs these processes is shown as good.
func (m *migration) awaitSilence(t *testing.T, frozen []lab.Process) {
	t.Helper()
	begin := time.Now()
	seen := map[string]time.Duration{}
	check(t, lab.Until(m.ctx, silenceLimit, "all to be shown as it is", func(ctx context.Context) (bool, string, error) {
		v := &cstorv1.CStorVolume{}
		if err := m.lab.Get(ctx, m.volume, v); err != nil {
			return false, "", err
		}
		replicas, err := m.lab.Replicas(ctx, m.volume)
		if err != nil {
			return false, "", err
		}
		good := map[string]bool{"volume": v.Status.Phase == cstorv1.VolumeHealthy}
		for _, p := range frozen {
			for _, r := range replicas {
				in := &cstorv1.CStorPoolInstance{}
				if err := m.lab.Get(ctx, r.PoolOf(), in); err != nil {
					return false, "", err
				}
				lost := p.Pod[:min(len(p.Pod), len(in.Name)+1)] == in.Name+"-"
				if lost {
					good["pool "+in.Name] = in.Status.Phase == cstorv1.PoolOnline
				}
				if lost || p.Container != cstorv1.AppPool {
					good["replica "+r.Name] = r.Status.Phase == cstorv1.ReplicaHealthy
				}
			}
		}
		done := true
		for what, is := range good {
			if _, ok := seen[what]; !ok && !is {
				seen[what] = time.Since(begin)
			}
			done = done && !is
		}
		return done, fmt.Sprint(good), nil
	}))
	for what, after := range seen {
		t.Logf("%s after %.1f s", what, after.Seconds())
	}
}
