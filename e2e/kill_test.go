package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/workload"
)

// A migration with something to migrate: enough that a process dies in the middle of it.
const (
	extents     = 5
	extentBytes = 240 << 20
)

// load is what an application does meanwhile.
var load = workload.Load{Depth: 8, Rate: 300}

// rebuildLimit is how long a reconstruction may take, the restart of a process in its middle included.
const rebuildLimit = 3 * time.Minute

// TestKill kills a process without warning in the middle of a reconstruction, each in a volume of its own: the
// migration completes, the application sees a pause at most, the data is right and the replicas are equal.
func TestKill(t *testing.T) {
	ctx := interruptible(t)
	l := newLab(ctx, t)
	victims := map[string]func(context.Context, *migration) (lab.Process, error){
		"target": func(ctx context.Context, m *migration) (lab.Process, error) {
			return l.Process(ctx, cstorv1.TargetDeployment(m.volume)+"-")
		},
		"source pool": func(ctx context.Context, m *migration) (lab.Process, error) { return source(ctx, l) },
		"destination pool": func(ctx context.Context, m *migration) (lab.Process, error) {
			return l.Process(ctx, m.joining+"-")
		},
		"operator": func(ctx context.Context, m *migration) (lab.Process, error) { return l.Process(ctx, "cstor-operator-") },
	}
	for _, name := range []string{"target", "source pool", "destination pool", "operator"} {
		t.Run(name, func(t *testing.T) {
			m := begin(ctx, t, l)
			m.awaitMiddle(t)
			p, err := victims[name](m.ctx, m)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			m.stillRebuilding(t)
			m.finish(t)
			m.restarted(t, p)
		})
	}
}

// migration is a volume with an application on it, to which a replica is being added.
type migration struct {
	ctx     context.Context
	lab     *lab.Lab
	volume  string
	portal  string // of the target
	session *lab.Session
	app     *workload.App
	load    *workload.Running
	joining string // the pool that gets a replica
}

// serve creates a volume, fills bytes at each of some places, and starts a load in a phase of that name.
func serve(ctx context.Context, t *testing.T, l *lab.Lab, bytes int64, phase string) *migration {
	t.Helper()
	name, manifest, err := l.NewVolume()
	check(t, err)
	ctx, cancel := context.WithCancelCause(ctx)
	m := &migration{ctx: ctx, lab: l, volume: name}
	check(t, l.CreateVolume(ctx, manifest))
	t.Cleanup(func() {
		cancel(nil)
		if t.Failed() {
			m.explain(t)
		}
		check(t, l.DeleteVolume(context.WithoutCancel(ctx), name))
	})
	check(t, l.WaitBound(ctx, name))
	v := &cstorv1.CStorVolume{}
	check(t, l.Get(ctx, name, v))
	m.portal = v.Spec.TargetPortal
	m.session, err = lab.Attach(ctx, v)
	check(t, err)
	t.Cleanup(m.session.Close)
	m.app = workload.New(workload.Config{
		Device: m.session, Extents: workload.Spread(m.session.Size(), bytes, extents), Seed: 1, Phase: "fill",
	})
	go func() {
		select {
		case <-m.app.Failed():
			cancel(m.app.Err())
		case <-ctx.Done():
		}
	}()
	check(t, m.app.Fill(ctx, nil))
	m.app.Phase(phase)
	m.load = m.app.Start(ctx, load)
	return m
}

// begin asks for a third replica of a volume with something on it and a load.
func begin(ctx context.Context, t *testing.T, l *lab.Lab) *migration {
	t.Helper()
	m := serve(ctx, t, l, extentBytes, "migration")
	ctx, name := m.ctx, m.volume
	p, err := l.Placement(ctx, name)
	check(t, err)
	if len(p.Used) != 2 || len(p.Free) != 1 {
		t.Fatalf("%d pools are used and %d are free; wanted are 2 and 1", len(p.Used), len(p.Free))
	}
	m.joining = p.Free[0].Name
	c := &cstorv1.CStorVolumeConfig{}
	check(t, l.Get(ctx, name, c))
	check(t, l.EditPools(ctx, name, append(lab.PoolsOf(c), m.joining)))
	return m
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *migration) replica(ctx context.Context) (*cstorv1.CStorVolumeReplica, error) {
	r := &cstorv1.CStorVolumeReplica{}
	return r, m.lab.Get(ctx, cstorv1.ReplicaName(m.volume, m.joining), r)
}

// awaitMiddle waits until the new replica has something but not all.
func (m *migration) awaitMiddle(t *testing.T) {
	t.Helper()
	check(t, lab.Until(m.ctx, time.Minute, "the reconstruction to be under way", func(ctx context.Context) (bool, string, error) {
		r, err := m.replica(ctx)
		if err != nil {
			return false, err.Error(), nil // it does not exist yet
		}
		if r.Status.Phase == cstorv1.ReplicaHealthy {
			return false, "", fmt.Errorf("it was over before it was seen")
		}
		p := r.Status.Progress
		under := r.Status.Phase == cstorv1.ReplicaReconstructing && p != nil && p.Percent >= 10
		return under, fmt.Sprintf("%s %s", r.Status.Phase, r.Status.Message), nil
	}))
}

// stillRebuilding checks that the kill came in the middle.
func (m *migration) stillRebuilding(t *testing.T) {
	t.Helper()
	r, err := m.replica(m.ctx)
	check(t, err)
	if r.Status.Phase == cstorv1.ReplicaHealthy {
		t.Fatal("the reconstruction was over before the process was killed: the volume is too small for this machine")
	}
}

// finish waits for the migration's end and checks everything.
func (m *migration) finish(t *testing.T) {
	t.Helper()
	begin := time.Now()
	check(t, lab.Until(m.ctx, rebuildLimit, "the new replica to be Healthy", func(ctx context.Context) (bool, string, error) {
		r, err := m.replica(ctx)
		if err != nil {
			return false, "", err
		}
		state := fmt.Sprintf("%s %s", r.Status.Phase, r.Status.Message)
		if p := r.Status.Progress; p != nil {
			state += fmt.Sprintf(", %d of %d bytes, waiting for %q", p.BytesDone, p.BytesTotal, p.WaitingFor)
		}
		return r.Status.Phase == cstorv1.ReplicaHealthy, state, nil
	}))
	t.Logf("Healthy %.1f s after the kill", time.Since(begin).Seconds())

	// The application has to get on with all three.
	done := m.app.Report().Ops()
	check(t, lab.Until(m.ctx, time.Minute, "the application to go on", func(context.Context) (bool, string, error) {
		ops := m.app.Report().Ops() - done
		return ops > 200, fmt.Sprintf("%d I/Os since then", ops), nil
	}))
	m.load.Stop()
	check(t, m.app.Err())
	p := m.app.Report().Phase("migration")
	t.Logf("application: %d I/Os, p50 %v, p99 %v, longest stall %v", p.Ops, p.P50, p.P99, p.Stall)
	check(t, m.app.Verify(m.ctx, nil))
	m.session.Close()

	pools, err := m.lab.Placement(m.ctx, m.volume)
	check(t, err)
	if len(pools.Used) != 3 {
		t.Fatalf("%d pools hold a replica, not three", len(pools.Used))
	}
	for _, other := range []int{1, 2} {
		equal, err := m.lab.CompareReplicas(m.ctx, m.volume, pools.Used[0].Name, pools.Used[other].Name)
		check(t, err)
		t.Logf("replicas on %s and %s: %s", pools.Used[0].Spec.HostName, pools.Used[other].Spec.HostName, equal)
	}
}

// restarted checks that the process that was killed runs again, in the same pod.
func (m *migration) restarted(t *testing.T, killed lab.Process) {
	t.Helper()
	check(t, lab.Until(m.ctx, time.Minute, killed.Pod+" to run again", func(ctx context.Context) (bool, string, error) {
		all, err := m.lab.Processes(ctx)
		if err != nil {
			return false, "", err
		}
		i := slices.IndexFunc(all, func(p lab.Process) bool { return p.Pod == killed.Pod })
		if i < 0 {
			return false, "no such pod", nil
		}
		return all[i].PID != 0 && all[i].PID != killed.PID && all[i].Restarts > killed.Restarts, fmt.Sprintf("%+v", all[i]), nil
	}))
}

// explain logs what the cluster says about a volume whose test failed.
func (m *migration) explain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{{"get", "pods,cspi,cvr", "-o", "wide"}, {"describe", "cvc,cv"}} {
		if out, err := m.lab.Kubectl(ctx, append(args, "-n", lab.Namespace)...); err == nil {
			t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
		}
	}
	if logs, err := m.lab.Logs(ctx, "", 40); err == nil {
		t.Log(logs)
	}
}

// source finds the pool that another pulls from: connections to its pull port are to its pod's address.
func source(ctx context.Context, l *lab.Lab) (found lab.Process, err error) {
	err = lab.Until(ctx, 10*time.Second, "a connection to a source", func(ctx context.Context) (bool, string, error) {
		table, err := os.ReadFile("/proc/self/net/tcp")
		if err != nil {
			return false, "", err
		}
		all, err := l.Processes(ctx)
		if err != nil {
			return false, "", err
		}
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != "01" { // ESTABLISHED
				continue
			}
			for _, p := range all {
				if p.Container == cstorv1.AppPool && fields[2] == hexAddress(p.IP, cstorv1.PortPull) {
					found = p
					return true, "", nil
				}
			}
		}
		return false, "there is none", nil
	})
	return found, err
}

// hexAddress is how /proc/net/tcp writes an address on little-endian machines.
func hexAddress(ip string, port int) string {
	var a, b, c, d byte
	if n, _ := fmt.Sscanf(ip, "%d.%d.%d.%d", &a, &b, &c, &d); n != 4 {
		return ""
	}
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", d, c, b, a, port)
}
