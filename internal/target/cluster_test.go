package target_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/target"
	"github.com/cstor-go/cstor/internal/volume"
)

func TestMain(m *testing.M) {
	harness.Main()
	os.Exit(m.Run())
}

const (
	volumeSize = 64 << 20
	deviceSize = 1 << 30
	patience   = 60 * time.Second
)

// cluster is a volume whose target runs in this process, so that its requests need no front end, and whose pools do not.
type cluster struct {
	*harness.Cluster
	t      *testing.T
	target *target.Target
	client harness.Client
	seed   uint64
}

func newCluster(t *testing.T, replicas, pools int) *cluster {
	t.Helper()
	dir := t.TempDir()
	hc, err := harness.NewCluster(harness.ClusterSpec{
		Dir: dir, Size: volumeSize, Replicas: replicas, Pools: pools, DeviceSize: deviceSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	return adopt(t, hc, replicas)
}

// adopt runs a cluster until the end of the test.
func adopt(t *testing.T, hc *harness.Cluster, replicas int) *cluster {
	t.Helper()
	c := &cluster{Cluster: hc, t: t, seed: rand.Uint64()}
	t.Logf("seed %d", c.seed)
	t.Cleanup(func() {
		hc.Kill()
		for _, x := range append([]*harness.Process{hc.Target}, hc.Pools...) {
			if x.Raced() {
				t.Errorf("data race in %s", x.Spec.Name)
			}
		}
		if t.Failed() {
			for _, p := range hc.Pools {
				t.Logf("log of %s:\n%s", p.Spec.Name, p.Log())
			}
		}
	})
	c.startTarget()
	for _, p := range hc.Pools {
		c.must(p.Start())
	}
	c.waitHealthy(replicas)
	return c
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// startTarget runs the target in this process until stopTarget.
func (c *cluster) startTarget() {
	c.t.Helper()
	spec := c.Target.Spec.Target
	l, err := net.Listen("tcp", spec.ReplicaListen)
	c.must(err)
	c.target = target.New(target.Config{
		Volume: spec.Volume, Size: spec.Size, ReplicaListen: l, Record: harness.FileRecord(spec.Record),
		Settings: spec.Settings, Desired: spec.Desired,
	})
	c.client = harness.Client{Device: c.target}
	ended := make(chan struct{})
	tgt := c.target
	go func() {
		if err := tgt.Serve(context.Background()); err != nil {
			c.t.Error(err)
		}
		close(ended)
	}()
	c.t.Cleanup(func() { tgt.Close(); <-ended })
}

// waitHealthy waits until n members are in sync.
func (c *cluster) waitHealthy(n int) {
	c.t.Helper()
	c.must(harness.Eventually(patience, func() (bool, error) {
		st := c.target.Status()
		have, serving := harness.Healthy(st)
		return have == n && serving, fmt.Errorf("%+v", st)
	}))
}

// compare checks that the replicas on the given pools are equal.
func (c *cluster) compare(pools ...int) {
	c.t.Helper()
	for _, i := range pools[1:] {
		got, err := c.Compare(context.Background(), pools[0], i)
		c.must(err)
		c.t.Logf("pools %d and %d are equal at %v: %d chunks, %d blocks", pools[0], i, got.At, got.Chunks, got.Blocks)
	}
}

func (c *cluster) load(m *harness.Model, depth int) *harness.Load {
	return harness.NewLoad(m, depth, c.seed, func() harness.Client { return c.client })
}

// run lets a load make n more requests.
func (c *cluster) run(m *harness.Model, l *harness.Load, n int) {
	c.t.Helper()
	start, _ := m.Ops()
	c.must(harness.Eventually(patience, func() (bool, error) {
		ops, _ := m.Ops()
		err := fmt.Errorf("%d requests of %d; %+v", ops-start, n, c.target.Status())
		if l.Wrong() != nil {
			return true, nil
		}
		return ops-start >= n, err
	}))
	c.must(l.Wrong())
}

func TestReplicate(t *testing.T) {
	c := newCluster(t, 3, 3)
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	c.must(c.client.Write(data, 4096, false))
	c.must(c.client.Flush())
	got := make([]byte, len(data))
	c.must(c.client.Read(got, 4096))
	if string(got) != string(data) {
		t.Fatal("what was read is not what was written")
	}
	c.compare(0, 1, 2)
}

func TestRandomIO(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprintf("replicas=%d", replicas), func(t *testing.T) {
			c := newCluster(t, replicas, replicas)
			m := harness.NewModel(volumeSize)
			l := c.load(m, 32)
			c.run(m, l, 5000)
			c.must(l.Stop())
			c.must(m.Verify(c.client))
			for i := 1; i < replicas; i++ {
				c.compare(0, i)
			}
		})
	}
}

// TestKillReplica kills every replica in turn under load.
func TestKillReplica(t *testing.T) {
	c := newCluster(t, 3, 3)
	m := harness.NewModel(volumeSize)
	l := c.load(m, 16)
	for i, p := range c.Pools {
		c.run(m, l, 1000)
		p.Kill()
		c.run(m, l, 1000)
		c.must(p.Start())
		c.waitHealthy(3)
		_, failed := m.Ops()
		longest := m.Longest()
		t.Logf("pool %d: %d requests failed, longest %v", i, failed, longest)
	}
	c.must(l.Stop())
	c.must(m.Verify(c.client))
	c.compare(0, 1, 2)
}

// TestFreezeReplica stops one replica of three from running: the others go on within about the deadline.
func TestFreezeReplica(t *testing.T) {
	c := newCluster(t, 3, 3)
	m := harness.NewModel(volumeSize)
	l := c.load(m, 16)
	c.run(m, l, 1000)
	c.Pools[1].Freeze()
	c.run(m, l, 1000)
	_, failed := m.Ops()
	longest := m.Longest()
	c.Pools[1].Thaw()
	t.Logf("%d requests failed, longest %v", failed, longest)
	if failed > 0 || longest > 2500*time.Millisecond {
		t.Errorf("%d requests failed, longest %v", failed, longest)
	}
	c.waitHealthy(3)
	c.must(l.Stop())
	c.must(m.Verify(c.client))
	c.compare(0, 1, 2)
}

// TestScale adds a replica under load, with its source and then itself killed on the way, and removes another.
func TestScale(t *testing.T) {
	c := newCluster(t, 2, 3)
	m := harness.NewModel(volumeSize)
	l := c.load(m, 8)
	c.run(m, l, 2000)
	c.target.Want(volume.Desired{Founding: 2, Factor: 3})
	c.must(c.AddReplica(2))
	c.waitRebuild()
	c.Pools[0].Kill()
	c.must(c.Pools[0].Start())
	c.waitRebuild()
	c.Pools[2].Kill()
	c.must(c.Pools[2].Start())
	c.waitHealthy(3)
	c.run(m, l, 500)
	var removed volume.Replica
	for _, r := range c.target.Status().Replicas {
		if r.Name == c.Replica(1).Name {
			removed = r
		}
	}
	c.target.Want(volume.Desired{Founding: 2, Factor: 2, Remove: append(c.target.Status().Desired.Remove, removed.GUID)})
	c.must(harness.Eventually(patience, func() (bool, error) {
		st := c.target.Status()
		return len(st.Committed.Members) == 2 && st.Pending == nil, fmt.Errorf("%+v", st)
	}))
	c.must(c.Pools[1].Destroy(c.Replica(1).Name))
	c.waitHealthy(2)
	c.run(m, l, 500)
	c.must(l.Stop())
	_, failed := m.Ops()
	longest := m.Longest()
	t.Logf("%d requests failed, longest %v", failed, longest)
	c.must(m.Verify(c.client))
	c.compare(0, 2)
}

// waitRebuild waits until a rebuild has begun, or three members are in sync already.
func (c *cluster) waitRebuild() {
	c.t.Helper()
	c.must(harness.Eventually(patience, func() (bool, error) {
		st := c.target.Status()
		for _, r := range st.Replicas {
			if r.Mode == volume.Rebuilding {
				return true, nil
			}
		}
		n, _ := harness.Healthy(st)
		return n == 3, fmt.Errorf("%+v", st)
	}))
}
