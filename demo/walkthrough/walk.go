// Package walkthrough shows how a live volume moves from node to node, from an empty machine to the comparison of the
// replicas, the way a user does it: with kubectl, on a real control plane, while an application writes. It checks what
// it shows; anything missing or wrong ends it with an error that says what.
package walkthrough

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/screen"
	"github.com/cstor-go/cstor/demo/transcript"
	"github.com/cstor-go/cstor/demo/workload"
)

// Config says where and how to walk.
type Config struct {
	Root     string         // of the repository
	Dir      string         // of the cluster
	Raid     string         // type of the pools' raid groups; empty: stripe
	Screen   *screen.Screen // what people see
	Keep     bool           // leave the cluster running at the end
	Expected string         // file with the expected transcript
	Update   bool           // write that file instead of comparing with it
	Seed     uint64         // of the application
	Load     workload.Load  // steady load of the application
	Before   time.Duration  // how long the application is watched before the migration, and after it
}

// Defaults fills in what is not set.
func (c Config) Defaults() Config {
	if c.Expected == "" {
		name := "transcript.txt"
		if c.Raid != "" && c.Raid != cstorv1.RaidStripe {
			name = "transcript-" + c.Raid + ".txt"
		}
		c.Expected = filepath.Join(c.Root, "demo", "testdata", name)
	}
	if c.Load.Depth == 0 {
		c.Load = workload.Load{Depth: 8, Rate: 600}
	}
	if c.Before == 0 {
		c.Before = 8 * time.Second
	}
	if c.Seed == 0 {
		c.Seed = 1
	}
	return c
}

// walk is one run.
type walk struct {
	Config
	lab    *lab.Lab
	cancel context.CancelCauseFunc
	done   []func() // undone in reverse order at the end

	cluster string            // name of the CStorPoolCluster
	hosts   map[string]string // pool name → host
	fresh   map[string]int64  // pool name → bytes allocated when it was empty

	volume  string
	app     *workload.App
	session *lab.Session
	load    *workload.Running
	facts   *facts
	memory  *memory

	migration migration
	verdict   string // of the comparison of the replicas
}

// Run walks. Whatever happens, nothing is left behind, unless Keep is set.
func Run(ctx context.Context, cfg Config) (err error) {
	w := &walk{Config: cfg.Defaults(), hosts: map[string]string{}, fresh: map[string]int64{}}
	ctx, w.cancel = context.WithCancelCause(ctx)
	defer func() { err = errors.Join(err, w.close(ctx)) }()
	steps := []struct {
		title string
		run   func(context.Context) error
	}{
		{"A Kubernetes control plane and three nodes", w.startCluster},
		{"cStor: the manifests that any cluster gets", w.install},
		{"Disks for the nodes, and pools on them", w.createPools},
		{"A volume of 5 GiB with two replicas", w.createVolume},
		{"An application writes, reads, discards and flushes, and checks every block", w.startApplication},
		{"Scale up: a third replica, on the pool that has none", w.scaleUp},
		{"Scale down: the replica on " + leaving + " goes", w.scaleDown},
		{"The application stops; every block is checked once more", w.verify},
		{"Summary", w.summary},
	}
	for i, s := range steps {
		w.Screen.Step(i+1, s.title)
		if err := s.run(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w (%w)", cause, err)
			}
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return w.compare()
}

// compare compares the transcript with the expected one.
func (w *walk) compare() error {
	got := w.Screen.Transcript.String()
	if w.Update {
		if err := os.WriteFile(w.Expected, []byte(got), 0o644); err != nil {
			return fmt.Errorf("writing the expected transcript: %w", err)
		}
		w.Screen.Note("\nThe expected transcript is now that of this run.")
		return nil
	}
	want, err := os.ReadFile(w.Expected)
	if err != nil {
		return fmt.Errorf("reading the expected transcript: %w", err)
	}
	if d := transcript.Diff(string(want), got); d != "" {
		return fmt.Errorf("what was shown differs from what is expected:\n%s", d)
	}
	w.Screen.Note("\nThe order, columns and events of this run are the expected ones.")
	return nil
}

// close undoes everything.
func (w *walk) close(ctx context.Context) error {
	interrupted := ctx.Err() != nil && context.Cause(ctx) == context.Canceled
	w.cancel(nil)
	for i := len(w.done) - 1; i >= 0; i-- {
		w.done[i]()
	}
	switch {
	case w.lab == nil:
		return nil
	case w.Keep && !interrupted:
		w.Screen.Note("\nThe cluster is left running:\n  export KUBECONFIG=%s", w.lab.Kubeconfig)
		return nil
	}
	return w.lab.Remove()
}

// guard ends the walk when something that has to go on ends.
func (w *walk) guard(ctx context.Context, ended <-chan struct{}, why func() error) {
	go func() {
		select {
		case <-ended:
			w.cancel(why())
		case <-ctx.Done():
		}
	}()
}

// show prints a kubectl command and its output.
func (w *walk) show(ctx context.Context, args ...string) error {
	out, err := w.lab.Kubectl(ctx, args...)
	if err != nil {
		return err
	}
	w.Screen.Command(commandLine(args), out)
	return nil
}

// showFrom is show, from the first line that begins with start on.
func (w *walk) showFrom(ctx context.Context, start string, args ...string) (string, error) {
	out, err := w.lab.Kubectl(ctx, args...)
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut("\n"+out, "\n"+start)
	if !ok {
		return "", fmt.Errorf("%s: its output has no line that begins with %q", commandLine(args), start)
	}
	out = start + rest
	w.Screen.Command(commandLine(args)+` | sed -n '/^`+start+`/,$p'`, out)
	return out, nil
}

func commandLine(args []string) string {
	words := []string{"kubectl"}
	for _, a := range args {
		if strings.ContainsAny(a, ` "'{}$*?<>|&;`) {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// inNamespace adds the namespace to a kubectl command, before its options.
func inNamespace(args ...string) []string {
	at := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") })
	if at < 0 {
		at = len(args)
	}
	return slices.Insert(args, at, "-n", lab.Namespace)
}

// replica reads the volume's replica on a pool.
func (w *walk) replica(ctx context.Context, pool string) (*cstorv1.CStorVolumeReplica, error) {
	r := &cstorv1.CStorVolumeReplica{}
	return r, w.lab.Get(ctx, cstorv1.ReplicaName(w.volume, pool), r)
}
