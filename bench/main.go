// Command bench measures the data path and prints one table: what the disk gives, what the protocol gives without a
// disk, and what a volume gives through iSCSI with one and with three replicas, target and pools being processes of
// their own. Then it measures a full rebuild, idle and under load, and one of a replica that was away. CPU time per operation is the figure to compare
// between runs; rates depend on the machine and on what else it does.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cstor-go/cstor/internal/harness"
)

type config struct {
	dir     string
	size    int64
	seconds float64
	profile string
	only    string
	logs    bool
}

func main() {
	harness.Main()
	var c config
	var quick bool
	var sizeMiB int64
	flag.StringVar(&c.dir, "dir", "", "directory for the devices (default: a new one in the temporary directory)")
	flag.Int64Var(&sizeMiB, "size", 1024, "MiB of a volume")
	flag.Float64Var(&c.seconds, "seconds", 4, "for each cell of the table")
	flag.StringVar(&c.profile, "profile", "", "directory for CPU profiles of target and first pool")
	flag.StringVar(&c.only, "only", "", "comma-separated rows: raw,echo,1,3,rebuild,delta (default: all)")
	flag.BoolVar(&c.logs, "logs", false, "show what the processes logged")
	flag.BoolVar(&quick, "quick", false, "a small volume and a second for each cell")
	flag.Parse()
	if quick {
		sizeMiB, c.seconds = 256, 1
	}
	c.size = sizeMiB << 20
	if err := run(&c); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (c *config) wants(row string) bool {
	if c.only == "" {
		return true
	}
	for _, r := range strings.Split(c.only, ",") {
		if r == row {
			return true
		}
	}
	return false
}

func run(c *config) error {
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "cstor-bench-")
		if err != nil {
			return err
		}
		c.dir = dir
		defer os.RemoveAll(dir)
	}
	var rows []result
	add := func(r []result, err error) error {
		rows = append(rows, r...)
		return err
	}
	if c.wants("raw") {
		if err := add(raw(c)); err != nil {
			return err
		}
	}
	if c.wants("echo") {
		if err := add(echo(c)); err != nil {
			return err
		}
	}
	for _, n := range []int{1, 3} {
		if c.wants(fmt.Sprint(n)) {
			if err := add(replicated(c, n)); err != nil {
				return err
			}
		}
	}
	print(rows)
	if c.wants("rebuild") {
		if err := rebuild(c); err != nil {
			return err
		}
	}
	if c.wants("delta") {
		return delta(c)
	}
	return nil
}

// workload is one cell of the table.
type workload struct {
	name       string
	write      bool
	sequential bool
	bytes      int
	depth      int
}

var workloads = []workload{
	{"4k random write", true, false, 4 << 10, 1},
	{"4k random write", true, false, 4 << 10, 32},
	{"1m sequential write", true, true, 1 << 20, 4},
	{"4k random read", false, false, 4 << 10, 1},
	{"4k random read", false, false, 4 << 10, 32},
	{"1m sequential read", false, true, 1 << 20, 4},
}

// result is one line of the table. CPU times are per operation; negative: not measured.
type result struct {
	row                   string
	w                     workload
	iops                  float64
	p50, p99, max         time.Duration
	target, pools, system time.Duration
}

func print(rows []result) {
	fmt.Println("| | workload | depth | IOPS | MB/s | p50 µs | p99 µs | longest ms | CPU µs/op target | pools | target+pools | system less load generator |")
	fmt.Println("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	us := func(d time.Duration) string {
		if d < 0 {
			return "–"
		}
		return fmt.Sprintf("%.1f", float64(d)/1e3)
	}
	for _, r := range rows {
		sum := r.target + r.pools
		if r.target < 0 {
			sum = -1
		}
		fmt.Printf("| %s | %s | %d | %.0f | %.0f | %.0f | %.0f | %.0f | %s | %s | %s | %s |\n", r.row, r.w.name, r.w.depth, r.iops,
			r.iops*float64(r.w.bytes)/1e6, float64(r.p50)/1e3, float64(r.p99)/1e3, float64(r.max)/1e6, us(r.target), us(r.pools), us(sum), us(r.system))
	}
	fmt.Println()
}

func clusterDir(c *config, name string) string { return filepath.Join(c.dir, name) }
