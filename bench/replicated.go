package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/initiator"
	"github.com/cstor-go/cstor/internal/volume"
)

// start runs a volume and logs in to it.
func start(c *config, name string, replicas, pools int, device int64) (*harness.Cluster, *initiator.Session, error) {
	hc, err := harness.NewCluster(harness.ClusterSpec{
		Dir: clusterDir(c, name), Size: c.size, Replicas: replicas, Pools: pools, DeviceSize: device,
	})
	if err != nil {
		return nil, nil, err
	}
	if err := hc.Start(); err != nil {
		end(c, hc)
		return nil, nil, err
	}
	if err := waitHealthy(hc, replicas, time.Minute); err != nil {
		end(c, hc)
		return nil, nil, err
	}
	s, err := initiator.Dial(context.Background(), initiator.Config{
		Portal: hc.Target.Spec.Target.ISCSIListen, TargetName: hc.Target.Spec.Target.IQN(),
	})
	if err != nil {
		end(c, hc)
		return nil, nil, fmt.Errorf("log in: %w", err)
	}
	return hc, s, nil
}

func end(c *config, hc *harness.Cluster) {
	hc.Kill()
	if c.logs {
		for _, p := range append([]*harness.Process{hc.Target}, hc.Pools...) {
			fmt.Fprintf(os.Stderr, "--- %s\n%s", p.Spec.Name, p.Log())
		}
	}
	os.RemoveAll(hc.Dir)
}

func waitHealthy(hc *harness.Cluster, n int, limit time.Duration) error {
	return harness.Eventually(limit, func() (bool, error) {
		st, err := hc.Target.Volume()
		if err != nil {
			return false, err
		}
		have, serving := harness.Healthy(st)
		return have == n && serving, fmt.Errorf("%d of %d replicas in sync: %+v", have, n, st)
	})
}

// replicated measures a volume.
func replicated(c *config, n int) ([]result, error) {
	hc, s, err := start(c, fmt.Sprintf("replicas-%d", n), n, n, 4*c.size+4<<30)
	if err != nil {
		return nil, err
	}
	defer end(c, hc)
	defer s.Close()
	if err := fillDevice(s, c.size); err != nil {
		return nil, err
	}
	row := fmt.Sprintf("cStor, iSCSI, %d replica", n)
	if n > 1 {
		row += "s"
	}
	return cells(c, s, row, &usage{target: hc.Target, pools: hc.Pools}, func(w workload) {
		if c.profile == "" {
			return
		}
		for _, p := range []*harness.Process{hc.Target, hc.Pools[0]} {
			go func() {
				path := filepath.Join(c.profile, fmt.Sprintf("%d-%s-%d-%s.pprof", n, strings.ReplaceAll(w.name, " ", "-"), w.depth, p.Spec.Name))
				if err := p.Profile(path, time.Duration(c.seconds*float64(time.Second))); err != nil {
					fmt.Fprintln(os.Stderr, "bench: profile:", err)
				}
			}()
		}
	})
}

// rebuild measures the rebuild of a full replica from two others, idle and then, of another, under load.
func rebuild(c *config) error {
	hc, s, err := start(c, "rebuild", 2, 4, 4*c.size+4<<30)
	if err != nil {
		return err
	}
	defer end(c, hc)
	defer s.Close()
	if err := fillDevice(s, c.size); err != nil {
		return err
	}
	fmt.Println("| full rebuild | MB/s | CPU s per GiB | foreground IOPS before | during | p99 µs before | during | longest ms before | during |")
	fmt.Println("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
	u := &usage{target: hc.Target, pools: hc.Pools}
	add := func(i int) (took time.Duration, cpu time.Duration, err error) {
		if err := hc.Target.Want(volume.Desired{Founding: 2, Factor: i + 1}); err != nil {
			return 0, 0, err
		}
		before, err := u.read()
		if err != nil {
			return 0, 0, err
		}
		start := time.Now()
		if err := hc.AddReplica(i); err != nil {
			return 0, 0, err
		}
		if err := waitHealthy(hc, i+1, 10*time.Minute); err != nil {
			return 0, 0, err
		}
		took = time.Since(start)
		after, err := u.read()
		return took, after.target + after.pools - before.target - before.pools, err
	}
	rate := func(took time.Duration) float64 { return float64(c.size) / 1e6 / took.Seconds() }
	took, cpu, err := add(2)
	if err != nil {
		return err
	}
	gib := float64(c.size) / (1 << 30)
	fmt.Printf("| idle | %.0f | %.1f | | | | | | |\n", rate(took), cpu.Seconds()/gib)

	g := newGenerator(s, workload{write: true, bytes: 4 << 10, depth: 4}, c.size)
	g.start()
	time.Sleep(300 * time.Millisecond)
	g.lat.take()
	begin := time.Now()
	time.Sleep(time.Duration(c.seconds * float64(time.Second)))
	n0, _, before99, beforeMax := g.lat.take()
	iops0 := float64(n0) / time.Since(begin).Seconds()
	took, cpu, err = add(3)
	if err != nil {
		return err
	}
	n1, _, during99, duringMax := g.lat.take()
	if err := g.stop(); err != nil {
		return err
	}
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	fmt.Printf("| under 4 KiB writes at depth 4 | %.0f | %.1f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f |\n", rate(took), cpu.Seconds()/gib,
		iops0, float64(n1)/took.Seconds(), us(before99), us(during99), us(beforeMax)/1e3, us(duringMax)/1e3)
	return nil
}
