package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// rebuild measures the rebuild of a full replica from two others, idle and then, of another, under load that comes at half of
// the rate that the volume can take.
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
	fmt.Println("| full rebuild | MB/s | CPU s per GiB | foreground IOPS before | during | p50 µs before | during | p99 µs before | during | ratio | longest ms before | during |")
	fmt.Println("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
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
	fmt.Printf("| idle | %.0f | %.1f | | | | | | | | | |\n", rate(took), cpu.Seconds()/gib)

	peak, err := measure(c, s, "", workload{write: true, bytes: 4 << 10, depth: 32}, u)
	if err != nil {
		return err
	}
	g := newGenerator(s, workload{write: true, bytes: 4 << 10}, c.size)
	g.rate = peak.iops / 2
	g.start()
	time.Sleep(time.Second)
	g.lat.take()
	begin := time.Now()
	time.Sleep(time.Duration(c.seconds * float64(time.Second)))
	n0, before50, before99, beforeMax := g.lat.take()
	iops0 := float64(n0) / time.Since(begin).Seconds()
	took, cpu, err = add(3)
	if err != nil {
		return err
	}
	n1, during50, during99, duringMax := g.lat.take()
	if err := g.stop(); err != nil {
		return err
	}
	us := func(d time.Duration) float64 { return float64(d) / 1e3 }
	fmt.Printf("| under 4 KiB writes at half of the peak | %.0f | %.1f | %.0f | %.0f | %.0f | %.0f | %.0f | %.0f | %.2f | %.0f | %.0f |\n\n", rate(took),
		cpu.Seconds()/gib, iops0, float64(n1)/took.Seconds(), us(before50), us(during50), us(before99), us(during99), us(during99)/us(before99),
		us(beforeMax)/1e3, us(duringMax)/1e3)
	return nil
}

// delta measures how long a replica that was away takes to be in sync again, when a 64th of the volume changed meanwhile, in
// single blocks at random. Every block was written by itself before, so that lists of versions are as long as they get.
func delta(c *config) error {
	hc, s, err := start(c, "delta", 3, 3, 4*c.size+4<<30)
	if err != nil {
		return err
	}
	defer end(c, hc)
	defer s.Close()
	write := func(sequential bool, data []byte, bytes int64) error {
		g := newGenerator(s, workload{write: true, sequential: sequential, bytes: block.Size, depth: 64}, c.size)
		g.bytes, g.limit = data, bytes
		g.start()
		<-g.idle
		return g.err
	}
	if err := write(true, sparse, c.size); err != nil {
		return err
	}
	if err := s.Flush(context.Background()); err != nil {
		return err
	}
	away := hc.Pools[2]
	away.Stop()
	if err := waitHealthy(hc, 2, time.Minute); err != nil {
		return err
	}
	if err := write(false, incompressible, c.size/64); err != nil {
		return err
	}
	u := &usage{target: hc.Target, pools: hc.Pools[:2]}
	before, err := u.read()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := away.Start(); err != nil {
		return err
	}
	started := time.Since(begin)
	if err := waitHealthy(hc, 3, 10*time.Minute); err != nil {
		return err
	}
	took := time.Since(begin)
	after, err := u.read()
	if err != nil {
		return err
	}
	cpu, err := away.CPU()
	if err != nil {
		return err
	}
	fmt.Println("| delta rebuild | s from start of the pool to in sync | of that, opening the pool | CPU s |")
	fmt.Println("|---|---:|---:|---:|")
	fmt.Printf("| %d MiB of random 4 KiB in %d MiB | %.2f | %.2f | %.2f |\n\n", c.size/64>>20, c.size>>20, took.Seconds(), started.Seconds(),
		(cpu + after.target + after.pools - before.target - before.pools).Seconds())
	return nil
}
