// Package e2e tests the whole: a real Kubernetes control plane, the operator and the data plane as processes of pods, and
// an application that checks every block it reads. It holds the walk-through as the demo shows it, kills of every process
// in the middle of a reconstruction, disks that go, come back, are replaced and added, kills, freezes and cuts of everything at any time, and the proof that an interrupted start leaves nothing behind.
package e2e

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/screen"
	"github.com/cstor-go/cstor/demo/walkthrough"
)

// need skips a test when what it works with is not there, unless everything is required.
func need(t *testing.T) (root string) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"bin/devcluster", "bin/cstor", "bin/demo"} {
		if _, err := os.Stat(filepath.Join(root, program)); err != nil {
			const why = "%s is missing: `make build` makes it"
			if os.Getenv("CSTOR_REQUIRE") == "all" {
				t.Fatalf(why, program)
			}
			t.Skipf(why, program)
		}
	}
	return root
}

// interruptible is a context that a Ctrl-C ends, so that the test cleans up.
func interruptible(t *testing.T) context.Context {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(cancel)
	return ctx
}

// TestWalkthrough runs what `make demo` shows with pools of each raid type, the comparison of its transcript included.
func TestWalkthrough(t *testing.T) {
	root := need(t)
	for _, kind := range lab.RaidTypes {
		t.Run(kind, func(t *testing.T) {
			err := walkthrough.Run(interruptible(t), walkthrough.Config{
				Root: root, Dir: newDir(t, root), Screen: screen.New(os.Stdout), Raid: kind,
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// newDir makes a directory for a cluster and checks at the end that it was removed.
func newDir(t *testing.T, root string) string {
	t.Helper()
	dir, err := lab.NewDir(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s was left", dir)
		}
	})
	return dir
}

// newLab starts a cluster with pools for a test.
func newLab(ctx context.Context, t *testing.T) *lab.Lab {
	t.Helper()
	root := need(t)
	l, err := lab.Start(ctx, lab.Options{Root: root, Dir: newDir(t, root)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := l.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	return l
}
