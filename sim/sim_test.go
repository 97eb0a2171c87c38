package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var (
	seeds   = flag.Uint64("seeds", floorRuns, "number of seeds to run")
	seed    = flag.Uint64("seed", 0, "run this seed only, with a trace under -v")
	most    = flag.Int("failures", 5, "failures after which to stop")
	first   = flag.Uint64("first", 1, "first of -seeds")
	workers = flag.Int("workers", 1, "runs at a time")

	only    = flag.String("only", "", "with -seed: let only the faults with these numbers happen, such as 3,17-20")
	without = flag.String("without", "", "with -seed: let all but these happen")
	shrink  = flag.Int("shrink", 150, "runs in which to look for the faults that make a seed fail")
)

const floorRuns = 500

// floors is what floorRuns runs must have reached, or they showed nothing: about a third of what they do reach.
var floors = Coverage{
	Completed: 100_000, Retries: 2500, NoSpace: 5000, Damaged: 80, PowerCuts: 1400, PowerCutsInside: 325, Reboots: 90, LossyEpochs: 300, Losses: 25, FailedFlushes: 250, Cycles: 17_000,
	Takeovers: 1500, Restarts: 50, SecondTargets: 100, LastingTargets: 15, Oversleeps: 25, Superseded: 30, Ejections: 1000, Suspensions: 2500, Resends: 4000,
	Stages: 550, Staged: 240, StageCuts: 21, Joins: 3250, Pulls: 3000, DeltaPulls: 2300, Promotions: 1500, Interrupted: 1850, Divergent: 35, NotYet: 150, OldFrames: 25,
	HeldReads: 3000, LeaseWaits: 350, StandDowns: 300, PromiseWaits: 3750, SecondAnswers: 3500, ReadRetries: 550,
	ScaleUps: 300, ScaleDowns: 300, Cancels: 100, HandDeletions: 800, CancelledLate: 5, Finished: 20, Withdrawn: 12,
	RecordWrites: 2900, RecordDoubts: 490, Reduced: 700, ByRecord: 450, Bare: 80, Restores: 60, LostRecords: 9, Accepted: 9,
}

// options of a run of one seed.
func options(t *testing.T, seed uint64) Options {
	o := Options{Seed: seed}
	if *only == "" && *without == "" {
		return o
	}
	o.Only = []int{}
	chosen, left := numbers(t, *only), numbers(t, *without)
	for _, f := range Faults(o) {
		if (*only == "" || chosen[f.Number]) && !left[f.Number] {
			o.Only = append(o.Only, f.Number)
		}
	}
	return o
}

// numbers reads a list of numbers and ranges.
func numbers(t *testing.T, s string) map[int]bool {
	m := map[int]bool{}
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		a, err := strconv.Atoi(first)
		if err != nil {
			t.Fatal(err)
		}
		b, err := strconv.Atoi(last)
		if err != nil {
			t.Fatal(err)
		}
		for ; a <= b; a++ {
			m[a] = true
		}
	}
	return m
}

// explain says with which faults a seed fails, and how to see it.
func explain(o Options, failed error) string {
	if *shrink == 0 {
		return fmt.Sprintf("replay: go test ./sim -run TestSeeds -v -seed %d", o.Seed)
	}
	all := len(Faults(o))
	faults := Shrink(o, failed, *shrink)
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d faults are enough:\n", len(faults), all)
	list := ""
	for _, f := range faults {
		fmt.Fprintf(&b, "  %9.3fms %d: %s\n", float64(f.At)/1e6, f.Number, f.Name)
		list += fmt.Sprintf(",%d", f.Number)
	}
	if list == "" {
		list = ",-1"
	}
	fmt.Fprintf(&b, "replay: go test ./sim -run TestSeeds -v -seed %d -only %s", o.Seed, list[1:])
	return b.String()
}

func TestSeeds(t *testing.T) {
	// What a pool leaves in a sync.Pool of its own keeps all of it alive for two collections, so that the heap would grow and
	// grow.
	debug.SetMemoryLimit(512 << 20)
	if *seed != 0 {
		o := options(t, *seed)
		if testing.Verbose() {
			o.Trace = os.Stdout
		}
		c, err := Run(o)
		t.Log(c)
		if err != nil {
			t.Fatalf("%v\n%s", err, explain(o, err))
		}
		return
	}
	var sum Coverage
	var mu sync.Mutex
	var wg sync.WaitGroup
	failed, next := 0, *first
	for range *workers {
		wg.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for next < *first+*seeds && failed < *most {
				s := next
				next++
				mu.Unlock()
				o := Options{Seed: s}
				c, err := Run(o)
				if err != nil {
					err = fmt.Errorf("seed %d: %w\n%s", s, err, explain(o, err))
				}
				mu.Lock()
				sum.Add(c)
				if err != nil {
					t.Error(err)
					failed++
				}
			}
		})
	}
	wg.Wait()
	t.Logf("coverage: %v", sum)
	if *seeds >= floorRuns && failed == 0 {
		for _, m := range sum.Missing(floors, floorRuns) {
			t.Errorf("coverage: %s", m)
		}
	}
}

// TestFound runs what TestSeeds has found, with the faults that it took: a hint what each is about, as long as the simulator
// does not change, and one more run afterwards.
func TestFound(t *testing.T) {
	for _, x := range []struct {
		name string
		seed uint64
		only []int
	}{
		{"a joiner gives up what its source then loses with the power", 463, []int{4}},
		{"one that is being removed is the only one that the record names, and nobody can read it", 1660, []int{1, 4, 12, 15, 20, 21, 34}},
		{"one that is being added is the only one in sync, and nobody can read the record", 8086, nil},
		{"a target that was stopped reads acknowledgements of what was lost, and another one has gone on without", 20, []int{4}},
		{"a replica that contradicts the record, as was accepted, comes late: what the record names since counts", 1915, nil},
		{"a replica that is no member yet is deleted by hand, and the members have given up what it has", 1083, nil},
		{"of two lines, since the record went back, one is told of a record that nobody can read now", 41136, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			if _, err := Run(Options{Seed: x.seed, Only: x.only}); err != nil {
				t.Errorf("seed %d: %v", x.seed, err)
			}
		})
	}
}
