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

// outageLimit is how long what is waited for here may take.
const outageLimit = time.Minute

// TestOutage stops the API server, and kills the target and all pools of a volume meanwhile: they are started again, as a
// kubelet does, and serve by themselves. When the API server goes on, everything is as it was.
func TestOutage(t *testing.T) {
	ctx := interruptible(t)
	l := newLab(ctx, t)
	m := serve(ctx, t, l, 16<<20, "load")
	before := m.awaitHealthy(t, 0)
	pools := m.pools(t)
	target := m.process(t, cstorv1.TargetDeployment(m.volume)+"-")
	server, err := l.APIServer(ctx)
	check(t, err)
	check(t, server.Freeze())
	t.Cleanup(func() { check(t, server.Thaw()) }) // or else nothing can be cleaned up

	m.app.Phase("outage")
	for _, round := range []struct {
		name    string
		victims []lab.Process
	}{
		{"the target", []lab.Process{target}},
		{"a pool", pools[:1]},
		{"all pools", pools},
		{"all", append(slices.Clone(pools), target)},
	} {
		var again []lab.Process
		for _, p := range round.victims {
			p = m.process(t, p.Pod) // it may have been started again
			check(t, p.Kill())
			again = append(again, p)
		}
		begin := time.Now()
		for _, p := range again {
			m.restarted(t, p)
		}
		check(t, m.goesOn(outageLimit))
		t.Logf("%s: goes on %.1f s after the kill", round.name, time.Since(begin).Seconds())
	}
	check(t, server.Thaw())

	m.awaitHealthy(t, before.Status.Epoch)
	m.load.Stop()
	check(t, m.app.Err())
	p := m.app.Report().Phase("outage")
	t.Logf("application: %d I/Os, longest stall %v", p.Ops, p.Stall)
	check(t, m.app.Verify(m.ctx, nil))
	m.session.Close()
	placed, err := l.Placement(m.ctx, m.volume)
	check(t, err)
	equal, err := l.CompareReplicas(m.ctx, m.volume, placed.Used[0].Name, placed.Used[1].Name)
	check(t, err)
	t.Log("replicas: ", equal)
}

// pools returns the processes of the pools that hold a replica.
func (m *migration) pools(t *testing.T) (all []lab.Process) {
	t.Helper()
	p, err := m.lab.Placement(m.ctx, m.volume)
	check(t, err)
	for _, in := range p.Used {
		all = append(all, m.process(t, in.Name+"-"))
	}
	return all
}

// process returns the process of a pod.
func (m *migration) process(t *testing.T, prefix string) lab.Process {
	t.Helper()
	p, err := m.lab.Process(m.ctx, prefix)
	check(t, err)
	return p
}

// goesOn waits until the application has got on.
func (m *migration) goesOn(within time.Duration) error {
	done := m.app.Report().Ops()
	return lab.Until(m.ctx, within, "the application to go on", func(context.Context) (bool, string, error) {
		ops := m.app.Report().Ops() - done
		return ops > 100, fmt.Sprintf("%d I/Os since then", ops), m.app.Err()
	})
}

// awaitHealthy waits until everything is shown as good, and the volume in an epoch above the one given.
func (m *migration) awaitHealthy(t *testing.T, above int64) *cstorv1.CStorVolume {
	t.Helper()
	v := &cstorv1.CStorVolume{}
	check(t, lab.Until(m.ctx, outageLimit, "the volume, its replicas and their pools to be shown as good", func(ctx context.Context) (bool, string, error) {
		if err := m.lab.Get(ctx, m.volume, v); err != nil {
			return false, err.Error(), nil
		}
		good := v.Status.Phase == cstorv1.VolumeHealthy && v.Status.Epoch > above
		state := fmt.Sprintf("volume %s in epoch %d", v.Status.Phase, v.Status.Epoch)
		config := &cstorv1.CStorVolumeConfig{}
		if err := m.lab.Get(ctx, m.volume, config); err != nil {
			return false, err.Error(), nil
		}
		replicas, err := m.lab.Replicas(ctx, m.volume)
		if err != nil {
			return false, err.Error(), nil
		}
		for _, r := range replicas {
			in := &cstorv1.CStorPoolInstance{}
			if err := m.lab.Get(ctx, r.PoolOf(), in); err != nil {
				return false, err.Error(), nil
			}
			good = good && r.Status.Phase == cstorv1.ReplicaHealthy && in.Status.Phase == cstorv1.PoolOnline
			state += fmt.Sprintf(", %s %s on a pool %s", r.Name, r.Status.Phase, in.Status.Phase)
		}
		return good && len(replicas) == len(lab.PoolsOf(config)), state, nil
	}))
	return v
}
