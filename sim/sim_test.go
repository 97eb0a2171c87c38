package sim

import (
	"flag"
	"os"
	"testing"
)

var (
	seeds = flag.Uint64("seeds", 500, "number of seeds to run")
	seed  = flag.Uint64("seed", 0, "run this seed only, with a trace under -v")
	most  = flag.Int("failures", 5, "failures after which to stop")
	first = flag.Uint64("first", 1, "first of -seeds")
)

// floors is what 500 runs must have reached, or they showed nothing: about a third of what they do reach.
var floors = Coverage{
	Completed: 100_000, Retries: 2500, NoSpace: 5000, Damaged: 20, Takeovers: 1500, Restarts: 50, SecondTargets: 100, Superseded: 50, Ejections: 1000,
	Suspensions: 2500, Resends: 4000, Joins: 3000, Pulls: 3000, DeltaPulls: 2000, Promotions: 1500, Interrupted: 1000,
	Divergent: 35, NotYet: 150, OldFrames: 25, HeldReads: 3000, ReadRetries: 200,
	LeaseWaits: 350, StandDowns: 300, PromiseWaits: 3000, SecondAnswers: 3500, ScaleUps: 300, ScaleDowns: 300,
	Cancels: 100, CancelledLate: 5, Finished: 30,
}

func TestSeeds(t *testing.T) {
	if *seed != 0 {
		o := Options{Seed: *seed}
		if testing.Verbose() {
			o.Trace = os.Stdout
		}
		c, err := Run(o)
		t.Log(c)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var sum Coverage
	failed := 0
	for s := *first; s < *first+*seeds; s++ {
		c, err := Run(Options{Seed: s})
		sum.Add(c)
		if err != nil {
			t.Errorf("seed %d: %v\nreplay: go test ./sim -run TestSeeds -v -seed %d", s, err, s)
			if failed++; failed == *most {
				break
			}
		}
	}
	t.Logf("coverage: %v", sum)
	if *seeds >= 500 && failed == 0 {
		for _, m := range sum.Missing(floors) {
			t.Errorf("coverage: %s", m)
		}
	}
}
