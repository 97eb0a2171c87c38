// Command cstor is replicated block storage for Kubernetes in one binary: the operator, the process of each pool, the
// target of each volume, and tools for people.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

// Exit codes. compare has its own meaning for them, like cmp(1).
const (
	exitFailed = 1
	exitUsage  = 2
)

// exit is an error that ends the process with its own code.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string { return e.err.Error() }
func (e *exit) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, root(), os.Args[1:]))
}

// run executes a command line and returns the exit code.
func run(ctx context.Context, cmd *cobra.Command, args []string) int {
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "cstor:", err)
	if e := (*exit)(nil); errors.As(err, &e) {
		return e.code
	}
	return exitFailed
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cstor",
		Short: "Replicated block storage for Kubernetes",
		Long: `cStor turns the disks of your nodes into pools, keeps one to five replicas of each volume on them, and serves the
volume over iSCSI. Everything is driven by resources of cstor.openebs.io/v1.

The first three commands are the processes that run in pods; manifests start them. The others are for people and need
a kubeconfig that may read the cStor resources (KUBECONFIG, or ~/.kube/config).

Exit codes: 0 success, 1 failure, 2 wrong usage, unless a command says otherwise.`,
		Version:       version,
		Args:          args(cobra.NoArgs),
		RunE:          help,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var logs logFlags
	logs.register(cmd.PersistentFlags())
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return logs.apply(os.Stderr) }
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exit{exitUsage, fmt.Errorf("%w\nRun '%s --help' for what it takes", err, c.CommandPath())}
	})
	processes := &cobra.Group{ID: "process", Title: "Processes in pods:"}
	people := &cobra.Group{ID: "people", Title: "For people:"}
	cmd.AddGroup(processes, people)
	for _, c := range []*cobra.Command{operatorCommand(), poolCommand(), targetCommand()} {
		c.GroupID = processes.ID
		cmd.AddCommand(c)
	}
	for _, c := range []*cobra.Command{volumeCommand(), replicaCommand(), versionCommand()} {
		c.GroupID = people.ID
		cmd.AddCommand(c)
	}
	return cmd
}

// args wraps a check of positional arguments so that a mistake is wrong usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &exit{exitUsage, fmt.Errorf("%w\nUsage: %s", err, cmd.UseLine())}
		}
		return nil
	}
}

// help is what a command does that only has others below it.
func help(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// required says which of the flags, given as name and value, are empty.
func required(flags ...string) error {
	for i := 0; i < len(flags); i += 2 {
		if flags[i+1] == "" {
			return &exit{exitUsage, fmt.Errorf("--%s is required", flags[i])}
		}
	}
	return nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(cobra.NoArgs),
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}
