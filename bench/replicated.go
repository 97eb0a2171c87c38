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
