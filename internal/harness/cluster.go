package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/volume"
)

// Cluster is one volume with its target and some pools, each with at most one replica of it.
type Cluster struct {
	Dir    string
	Target *Process
	Pools  []*Process
}

// ClusterSpec says what NewCluster makes.
type ClusterSpec struct {
	Dir        string
	Size       int64 // of the volume, bytes
	Replicas   int   // to found the volume with
	Pools      int   // at least Replicas
	DeviceSize int64 // of each pool, bytes
	Settings   volume.Settings
}

// NewCluster makes the specs of a volume's processes. None of them runs yet.
func NewCluster(s ClusterSpec) (*Cluster, error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, err
	}
	addrs, err := FreeAddresses(2 + s.Pools)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: s.Dir}
	c.Target = NewProcess(Spec{Name: "target", Dir: s.Dir, Target: &TargetSpec{
		Volume: "pvc-1", Size: s.Size, ReplicaListen: addrs[0], ISCSIListen: addrs[1], Record: filepath.Join(s.Dir, "record"),
		Settings: s.Settings, Desired: volume.Desired{Founding: s.Replicas, Factor: s.Replicas},
	}})
	for i := range s.Pools {
		name := fmt.Sprintf("pool-%c", 'a'+i)
		p := &PoolSpec{
			Devices: []string{filepath.Join(s.Dir, name+".img")}, DeviceSize: s.DeviceSize, PullListen: addrs[2+i],
		}
		c.Pools = append(c.Pools, NewProcess(Spec{Name: name, Dir: s.Dir, Pool: p}))
		if i < s.Replicas {
			p.Replicas = []replica.Spec{c.Replica(i)}
		}
	}
	return c, nil
}

// FreeAddresses returns addresses of this machine on which nothing listens.
func FreeAddresses(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// Replica is the spec of the volume's replica on pool i.
func (c *Cluster) Replica(i int) replica.Spec {
	t := c.Target.Spec.Target
	name := t.Volume + "-" + c.Pools[i].Spec.Name
	return replica.Spec{Name: name, ReplicaID: name, Target: t.ReplicaListen, Size: t.Size}
}

// AddReplica has pool i serve a replica, now and whenever it is started again.
func (c *Cluster) AddReplica(i int) error {
	p := c.Pools[i]
	p.Spec.Pool.Replicas = []replica.Spec{c.Replica(i)}
	return p.Attach(c.Replica(i))
}

// Start runs everything.
func (c *Cluster) Start() error {
	for _, p := range append([]*Process{c.Target}, c.Pools...) {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Kill ends everything.
func (c *Cluster) Kill() {
	for _, p := range append([]*Process{c.Target}, c.Pools...) {
		p.Kill()
	}
}

// Compare compares the replicas on two pools.
func (c *Cluster) Compare(ctx context.Context, i, j int) (replica.Compared, error) {
	return replica.Compare(ctx, c.Pools[i].Spec.Pool.PullListen, c.Replica(i).Name,
		c.Pools[j].Spec.Pool.PullListen, c.Replica(j).Name)
}

// Healthy counts the replicas in sync that are members, and says whether the volume serves.
func Healthy(st volume.Status) (n int, serving bool) {
	for _, r := range st.Replicas {
		if r.Mode == volume.Healthy && r.Member {
			n++
		}
	}
	return n, st.Serving
}

// Eventually asks until ok, at most for the given time.
func Eventually(limit time.Duration, ok func() (bool, error)) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		done, err := ok()
		if done {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
	}
}
