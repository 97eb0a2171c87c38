// Command pool measures the pool engine by itself, without network and iSCSI, and prints one table: what the engine
// does, and beside it, measured in turns in the same run, what the raw device does with requests of the same size in
// the same I/O mode, and what a directory of files on the same file system does. Rates depend on the machine and on
// what else it does; ratios within a run and CPU per 4 KiB are the figures to compare.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cstor-go/cstor/internal/pool"
)

// config is what the flags say. Sizes are bytes.
type config struct {
	dir     string
	only    string
	quick   bool
	keep    bool
	profile string
	seed    uint64

	device  int64 // size of the pool's device
	raw     int64 // size of the file that stands for the raw device
	volume  int64 // logical size of the volume that most rows write to
	slice   time.Duration
	rounds  int
	column  int64 // size of each of the six devices of the row raidz2
	logged  int64 // written before the kill that the open row makes
	cleaned int64 // size of the pool that the cleaning rows use
	passes  float64
	indexed int64  // logical size of the volume of the index row
	updates uint64 // random updates of the index row

	out, progress io.Writer
}

func flags(args []string) (*config, error) {
	c := &config{out: os.Stdout, progress: os.Stderr}
	f := flag.NewFlagSet("pool", flag.ContinueOnError)
	f.StringVar(&c.dir, "dir", "", "directory for the devices (default: a new one in the temporary directory)")
	f.StringVar(&c.only, "run", "", "comma-separated rows (default: all): "+strings.Join(rowNames(), ","))
	f.BoolVar(&c.quick, "quick", false, "everything small and short: shows that it works, the figures mean nothing")
	f.BoolVar(&c.keep, "keep", false, "leave the prepared files in -dir, so that the next run need not write them again")
	f.StringVar(&c.profile, "profile", "", "directory for a CPU profile of each line of the table")
	f.Uint64Var(&c.seed, "seed", 1, "of everything random")
	f.DurationVar(&c.slice, "slice", 2*time.Second, "of each side, in turns")
	f.IntVar(&c.rounds, "rounds", 3, "turns of each line")
	gib := func(p *int64, name string, gib int64, usage string) {
		*p = gib << 30
		f.Func(name, fmt.Sprintf("GiB %s (default %d)", usage, gib), func(s string) error {
			var n float64
			_, err := fmt.Sscan(s, &n)
			*p = int64(n*(1<<30)) &^ (1<<20 - 1)
			return err
		})
	}
	gib(&c.device, "device", 12, "of the pool's device")
	gib(&c.raw, "raw", 4, "of the file that stands for the raw device")
	gib(&c.volume, "volume", 4, "of the volume")
	gib(&c.column, "column", 1, "of each of the six devices of the row raidz2")
	gib(&c.logged, "logged", 10, "written before the kill (row open)")
	gib(&c.cleaned, "cleaned", 2, "of the pool of the row clean")
	gib(&c.indexed, "index", 256, "of the volume of the row index")
	f.Float64Var(&c.passes, "passes", 2, "how often the row clean overwrites everything before it measures, and again half of that while it does")
	f.Uint64Var(&c.updates, "updates", 4<<20, "random updates of the row index")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if c.quick {
		c.device, c.raw, c.volume, c.column = 256<<20, 16<<20, 32<<20, 32<<20
		c.logged, c.cleaned, c.indexed = 48<<20, 64<<20, 128<<20
		c.slice, c.rounds, c.passes, c.updates = 20*time.Millisecond, 1, 1, 1<<13
	}
	for name := range strings.SplitSeq(c.only, ",") {
		if name != "" && find(name) == nil {
			return nil, fmt.Errorf("no row %q; there are %s", name, strings.Join(rowNames(), ", "))
		}
	}
	return c, nil
}

func main() {
	pool.Processors() // as a pool's process does; so do all sides
	if child() {
		return
	}
	c, err := flags(os.Args[1:])
	if err == nil {
		err = run(c)
	}
	if err != nil {
		if err != flag.ErrHelp {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

// row is a part of the table that -run selects.
type row struct {
	name string
	run  func(*bench) error
}

func rows() []row {
	return []row{
		{"seq", (*bench).sequential},
		{"rand", (*bench).random},
		{"large", (*bench).large},
		{"comp", (*bench).compressing},
		{"snap", (*bench).snapshots},
		{"flush", (*bench).flushes},
		{"read", (*bench).reads},
		{"raidz2", (*bench).raidz2},
		{"clean", (*bench).cleaning},
		{"open", (*bench).open},
		{"index", (*bench).index},
	}
}

func rowNames() (names []string) {
	for _, r := range rows() {
		names = append(names, r.name)
	}
	return names
}

func find(name string) *row {
	for _, r := range rows() {
		if r.name == name {
			return &r
		}
	}
	return nil
}

// bench is one run.
type bench struct {
	*config
	table    table
	prepared map[string]bool
	errs     []error
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) say(format string, a ...any) { fmt.Fprintf(b.progress, format+"\n", a...) }

// run measures what was asked for and prints the table.
func run(c *config) error {
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "cstor-bench-pool-")
		if err != nil {
			return err
		}
		c.dir = dir
		defer os.RemoveAll(dir)
	}
	b := &bench{config: c, table: table{progress: c.progress}, prepared: map[string]bool{}}
	if !c.keep {
		defer func() {
			for name := range b.prepared {
				os.Remove(b.path(name))
			}
		}()
	}
	if err := b.checkSpace(); err != nil {
		return err
	}
	begin, load := time.Now(), readSystem()
	for _, r := range rows() {
		if c.only == "" || strings.Contains(","+c.only+",", ","+r.name+",") {
			at := time.Now()
			if err := r.run(b); err != nil {
				b.failed(r.name, "", err)
			}
			b.say("row %s took %v", r.name, time.Since(at).Round(time.Second))
		}
	}
	fmt.Fprintf(c.out, "%s\n\n", b.header(begin, load))
	b.table.print(c.out)
	fmt.Fprintln(c.out)
	b.table.summary(c.out)
	fmt.Fprintf(c.out, "- the run took %v\n", time.Since(begin).Round(time.Second))
	return errors.Join(b.errs...)
}

// failed notes what could not be measured; the rest of the run goes on.
func (b *bench) failed(row, what string, err error) {
	b.say("row %s %s: %v", row, what, err)
	b.table.add(line{row: row, what: what, note: "failed: " + err.Error()})
	b.errs = append(b.errs, fmt.Errorf("row %s %s: %w", row, what, err))
}

// header says where the figures come from.
func (b *bench) header(begin time.Time, from system) string {
	return fmt.Sprintf("%s; %s\nSeed %d; %d turns of %v; device %s, raw file %s, volume %s, in %s",
		machine(b.dir), load(from, readSystem(), time.Since(begin)), b.seed, b.rounds, b.slice,
		size(b.device), size(b.raw), size(b.volume), cmp.Or(fileSystem(b.dir), "an unknown file system"))
}
