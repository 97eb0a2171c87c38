// Command demo shows how the data of a live volume moves from node to node: `demo` walks through it on a cluster that
// it makes and removes, `demo up` leaves such a cluster running and `demo down` removes it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/screen"
	"github.com/cstor-go/cstor/demo/walkthrough"
)

func main() {
	// All signals that end a program end it in good order; a second one changes nothing, since leaving things behind
	// is never what is wanted.
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel()
	}()
	err := command().ExecuteContext(ctx)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; nothing is left running")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "\ndemo: "+err.Error())
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var root string
	var cfg walkthrough.Config
	c := &cobra.Command{
		Use:           "demo",
		Short:         "Move a live volume from node to node, end to end",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			cfg.Root = root
			cfg.Screen = screen.New(os.Stdout)
			if cfg.Dir, err = directory(root, cfg.Dir); err != nil {
				return err
			}
			return walkthrough.Run(c.Context(), cfg)
		},
	}
	c.PersistentFlags().StringVar(&root, "root", defaultRoot(), "directory of the repository")
	c.PersistentFlags().StringVar(&cfg.Dir, "dir", "", "directory of the cluster, removed with it (default: a new one below $TMPDIR or .run)")
	c.PersistentFlags().StringVar(&cfg.Raid, "raid", lab.RaidTypes[0], "type of the pools' raid groups: "+strings.Join(lab.RaidTypes, ", "))
	c.Flags().BoolVar(&cfg.Keep, "keep", false, "leave the cluster running at the end, also when something failed")
	c.Flags().BoolVar(&cfg.Update, "update", false, "make this run's transcript the expected one")
	c.Flags().Uint64Var(&cfg.Seed, "seed", 1, "seed of the application's choices")
	c.AddCommand(
		&cobra.Command{
			Use:   "up",
			Short: "Start a cluster with disks, operator and pools, and leave it running",
			Args:  cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) (err error) {
				if cfg.Dir, err = directory(root, cfg.Dir); err != nil {
					return err
				}
				return up(c.Context(), root, cfg.Dir, cfg.Raid)
			},
		},
		&cobra.Command{
			Use:   "down",
			Short: "Stop the cluster in --dir and remove it",
			Args:  cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				if cfg.Dir == "" {
					return errors.New("--dir is required")
				}
				return lab.Down(root, cfg.Dir)
			},
		})
	return c
}

// defaultRoot is the directory above the one that this program is in.
func defaultRoot() string {
	self, err := os.Executable()
	if err != nil {
		return "."
	}
	return filepath.Dir(filepath.Dir(self))
}

func directory(root, dir string) (string, error) {
	if dir == "" {
		return lab.NewDir(root)
	}
	return filepath.Abs(dir)
}

// up starts a cluster with pools and leaves it running.
func up(ctx context.Context, root, dir, raid string) error {
	l, err := lab.Start(ctx, lab.Options{Root: root, Dir: dir, Raid: raid, Detach: true, Progress: os.Stdout})
	if err != nil {
		return err
	}
	if err := l.Prepare(ctx); err != nil {
		return errors.Join(err, l.Remove())
	}
	fmt.Printf("\nThree nodes with a pool each. Any kubectl works; one is built in: %s kubectl\n\n  export KUBECONFIG=%s\n\n",
		filepath.Join(root, "bin", "devcluster"), l.Kubeconfig)
	return nil
}
