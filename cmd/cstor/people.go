package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cstor-go/cstor/internal/cli"
	"github.com/cstor-go/cstor/internal/replica"
)

// defaultNamespace is where cStor is installed by its manifests.
const defaultNamespace = "openebs"

func namespaceFlag(cmd *cobra.Command) *string {
	return cmd.PersistentFlags().StringP("namespace", "n", cmp.Or(os.Getenv("NAMESPACE"), defaultNamespace), "namespace of the cStor resources")
}

func cluster(namespace string) (cli.Cluster, error) {
	client, err := apiServer("cstor")
	return cli.Cluster{Client: client, Namespace: namespace}, err
}

func volumeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Look at volumes", Args: args(cobra.NoArgs), RunE: help}
	namespace := namespaceFlag(cmd)
	cmd.AddCommand(&cobra.Command{
		Use:   "status VOLUME",
		Short: "Show a volume's state, its replicas, and what it waits for",
		Long: `Shows the state of a volume, its replicas with the progress of a rebuild, and what a change that is under way waits for.

Exit codes: 0 every member is healthy, 1 some are not or the volume cannot be read, 2 wrong usage.`,
		Example: `  cstor volume status pvc-0c1d9a2e`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cluster(*namespace)
			if err != nil {
				return err
			}
			ok, err := c.VolumeStatus(cmd.Context(), cmd.OutOrStdout(), args[0])
			if err == nil && !ok {
				err = fmt.Errorf("volume %s is not healthy", args[0])
			}
			return err
		},
	})
	return cmd
}

func replicaCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replica",
		Short: "Look at replicas on their pools, past the target",
		Long: `Looks at replicas on their pools, past the target. A REPLICA is the name of a CStorVolumeReplica, which is looked up in
the cluster, or HOST:PORT/NAME: the address of its pool's replica server (port 3233) and that name. Pools are reached by
the addresses of their pods, so run this where those can be reached.`,
		Args: args(cobra.NoArgs),
		RunE: help,
	}
	namespace := namespaceFlag(cmd)
	cmd.AddCommand(inspectCommand(namespace), compareCommand(namespace))
	return cmd
}

func inspectCommand(namespace *string) *cobra.Command {
	return &cobra.Command{
		Use:     "inspect REPLICA",
		Short:   "Show how far a complete replica is",
		Example: `  cstor replica inspect pvc-0c1d9a2e-cspc-stripe-6qkw`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := place(cmd.Context(), *namespace, args[0])
			if err != nil {
				return err
			}
			info, err := replica.Inspect(cmd.Context(), p.Addr, p.Name)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "Replica:  %s\nPool:     %s\nGUID:     %s\nSize:     %d bytes\nApplied:  %s (epoch.operation)\nChunks:   %d written\n",
				p.Name, p.Addr, info.GUID, info.Size, info.Applied, info.Chunks)
			return nil
		},
	}
}

func compareCommand(namespace *string) *cobra.Command {
	return &cobra.Command{
		Use:   "compare REPLICA REPLICA",
		Short: "Compare two replicas of a volume block for block",
		Long: `Reads two complete replicas of a volume directly from their pools and compares every block: version, checksum, data. Both
must have applied the same operations; it waits a few seconds for that, so stop the application first.

Exit codes: 0 the replicas are equal, 1 they differ, 2 they could not be compared or wrong usage.`,
		Example: `  cstor replica compare pvc-0c1d9a2e-cspc-stripe-6qkw pvc-0c1d9a2e-cspc-stripe-pn9p
  cstor replica compare 10.1.2.3:3233/pvc-0c1d9a2e-cspc-stripe-6qkw 10.1.2.5:3233/pvc-0c1d9a2e-cspc-stripe-pn9p`,
		Args: args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var at [2]cli.Place
			for i, a := range args {
				p, err := place(cmd.Context(), *namespace, a)
				if err != nil {
					return &exit{exitUsage, err}
				}
				at[i] = p
			}
			n, err := replica.Compare(cmd.Context(), at[0].Addr, at[0].Name, at[1].Addr, at[1].Name)
			if d := (*replica.Difference)(nil); errors.As(err, &d) {
				return err
			} else if err != nil {
				return &exit{exitUsage, err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "equal: %d stored blocks in %d chunks at version %s\n", n.Blocks, n.Chunks, n.At)
			return nil
		},
	}
}

// place finds a replica by address or by name.
func place(ctx context.Context, namespace, s string) (cli.Place, error) {
	if p, ok := cli.ParsePlace(s); ok {
		return p, nil
	}
	c, err := cluster(namespace)
	if err != nil {
		return cli.Place{}, err
	}
	return c.Find(ctx, s)
}
