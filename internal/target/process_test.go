package target_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/initiator"
	"github.com/cstor-go/cstor/internal/volume"
)

// processes is a volume all of whose parts are processes, used through iSCSI.
type processes struct {
	*harness.Cluster
	t       *testing.T
	session *initiator.Session
	client  harness.Client
	seed    uint64
}

func newProcesses(t *testing.T, replicas, pools int) *processes {
	t.Helper()
	hc, err := harness.NewCluster(harness.ClusterSpec{
		Dir: t.TempDir(), Size: volumeSize, Replicas: replicas, Pools: pools, DeviceSize: deviceSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &processes{Cluster: hc, t: t, seed: rand.Uint64()}
	t.Logf("seed %d", p.seed)
	t.Cleanup(func() {
		hc.Kill()
		for _, x := range append([]*harness.Process{hc.Target}, hc.Pools...) {
			if x.Raced() {
				t.Errorf("data race in %s", x.Spec.Name)
			}
		}
		if t.Failed() {
			for _, x := range append([]*harness.Process{hc.Target}, hc.Pools...) {
				t.Logf("log of %s:\n%s", x.Spec.Name, x.Log())
			}
		}
	})
	p.must(hc.Start())
	p.waitHealthy(replicas)
	p.session, err = initiator.Dial(context.Background(), initiator.Config{
		Portal: hc.Target.Spec.Target.ISCSIListen, TargetName: hc.Target.Spec.Target.IQN(), Reconnect: true,
	})
	p.must(err)
	t.Cleanup(func() { p.session.Close() })
	p.client = harness.Client{Device: p.session}
	return p
}

func (p *processes) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *processes) waitHealthy(n int) {
	p.t.Helper()
	p.must(harness.Eventually(patience, func() (bool, error) {
		st, err := p.Target.Volume()
		if err != nil {
			return false, err
		}
		have, serving := harness.Healthy(st)
		return have == n && serving, fmt.Errorf("%+v", st)
	}))
}

func (p *processes) load(m *harness.Model, depth int) *harness.Load {
	return harness.NewLoad(m, depth, p.seed, func() harness.Client { return p.client })
}

func (p *processes) run(m *harness.Model, l *harness.Load, n int) {
	p.t.Helper()
	start, _ := m.Ops()
	p.must(harness.Eventually(patience, func() (bool, error) {
		ops, _ := m.Ops()
		return ops-start >= n || l.Wrong() != nil, fmt.Errorf("%d requests of %d", ops-start, n)
	}))
	p.must(l.Wrong())
}

func (p *processes) finish(m *harness.Model, l *harness.Load, pools ...int) {
	p.t.Helper()
	p.must(l.Stop())
	p.must(m.Verify(p.client))
	for _, i := range pools[1:] {
		got, err := p.Compare(context.Background(), pools[0], i)
		p.must(err)
		p.t.Logf("pools %d and %d are equal at %v: %d chunks, %d blocks", pools[0], i, got.At, got.Chunks, got.Blocks)
	}
	if _, failed := m.Ops(); failed > 0 {
		p.t.Errorf("%d requests failed", failed)
	}
}

func TestISCSI(t *testing.T) {
	p := newProcesses(t, 3, 3)
	m := harness.NewModel(volumeSize)
	l := p.load(m, 32)
	p.run(m, l, 5000)
	p.finish(m, l, 0, 1, 2)
}

// TestKillAnything kills target and replicas, one after the other and together, under load through iSCSI.
func TestKillAnything(t *testing.T) {
	p := newProcesses(t, 3, 3)
	m := harness.NewModel(volumeSize)
	l := p.load(m, 16)
	rnd := rand.New(rand.NewPCG(p.seed, 1))
	for round := range 6 {
		p.run(m, l, 500)
		var victims []*harness.Process
		for _, x := range append([]*harness.Process{p.Target}, p.Pools...) {
			if rnd.IntN(2) == 0 {
				victims = append(victims, x)
			}
		}
		for _, x := range victims {
			x.Kill()
		}
		for _, x := range victims {
			p.must(x.Start())
		}
		p.waitHealthy(3)
		p.run(m, l, 100)
		t.Logf("round %d: %d killed, longest pause %v", round, len(victims), m.Longest())
	}
	p.finish(m, l, 0, 1, 2)
}

// TestMigrate moves a volume of two replicas to two other pools under load.
func TestMigrate(t *testing.T) {
	p := newProcesses(t, 2, 4)
	m := harness.NewModel(volumeSize)
	l := p.load(m, 8)
	p.run(m, l, 2000)
	m.Longest()
	var removed []block.GUID
	for step, add := range []int{2, 3} {
		p.must(p.Target.Want(volume.Desired{Founding: 2, Factor: 3, Remove: removed}))
		p.must(p.AddReplica(add))
		p.waitHealthy(3)
		st, err := p.Target.Volume()
		p.must(err)
		for _, r := range st.Replicas {
			if r.Name == p.Replica(step).Name {
				removed = append(removed, r.GUID)
			}
		}
		p.must(p.Target.Want(volume.Desired{Founding: 2, Factor: 2, Remove: removed}))
		p.must(harness.Eventually(patience, func() (bool, error) {
			st, err := p.Target.Volume()
			return err == nil && len(st.Committed.Members) == 2 && st.Pending == nil, fmt.Errorf("%+v, %w", st, err)
		}))
		p.must(p.Pools[step].Destroy(p.Replica(step).Name))
		p.Pools[step].Kill()
		p.run(m, l, 300)
	}
	t.Logf("longest pause %v", m.Longest())
	p.finish(m, l, 2, 3)
}
