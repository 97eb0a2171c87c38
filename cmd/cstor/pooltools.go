package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cstor-go/cstor/internal/cli"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// poolTools are the commands that look at a pool which no process runs.
func poolTools() []*cobra.Command {
	return []*cobra.Command{poolInspectCommand(), poolVerifyCommand(), poolDumpCommand()}
}

// offlineDevices opens devices for looking only, so that no pool's process can start on them meanwhile.
func offlineDevices(paths []string) (devs []disk.Device, closeAll func(), err error) {
	closeAll = func() {
		for _, d := range devs {
			d.Close()
		}
	}
	for _, path := range paths {
		d, err := disk.Open(path, disk.Options{ReadOnly: true, Shared: true})
		if errors.Is(err, disk.ErrBusy) {
			err = fmt.Errorf("device %s is in use by another process, a running pool probably: stop it first, this looks only at pools that do not change (%w)", path, disk.ErrBusy)
		}
		if err != nil {
			closeAll()
			return nil, nil, &exit{exitUsage, err}
		}
		devs = append(devs, d)
	}
	return devs, closeAll, nil
}

func outputFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("output", "o", "table", "table or json")
}

// show prints v as JSON or what text prints.
func show(w io.Writer, output string, v any, text func() error) error {
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "table":
		return text()
	}
	return &exit{exitUsage, fmt.Errorf("--output %q: want table or json", output)}
}

func poolInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect DEVICE...",
		Short: "Show a pool that is not running: devices, labels, raid groups, space, replicas",
		Long: `Shows a pool that no process runs: what its devices, their labels and rings say, its raid groups, the newest checkpoint,
space and replicas. DEVICE are the paths of all its devices, in any order; some may be missing that the pool can do
without, and what is not a pool's device is shown as what it is. When the pool cannot be opened it shows the labels, and why.
It never writes to a device.

Exit codes: 0 shown, 1 the pool cannot be opened, 2 the devices cannot be looked at.`,
		Example: `  cstor pool inspect /dev/sdb /dev/sdc`,
		Args:    args(cobra.MinimumNArgs(1)),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		devs, done, err := offlineDevices(args)
		if err != nil {
			return err
		}
		defer done()
		v, err := engine.Inspect(devs, engine.Options{})
		if err != nil {
			return &exit{exitUsage, err}
		}
		err = show(cmd.OutOrStdout(), *output, v, func() error { return cli.PoolView(cmd.OutOrStdout(), v) })
		if err == nil && v.Error != "" {
			err = fmt.Errorf("pool %s cannot be opened", v.Name)
		}
		return err
	}
	return cmd
}

func poolVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify DEVICE...",
		Short: "Prove that a pool that is not running is intact, or say what is wrong where",
		Long: `Reads all that is in use in a pool that no process runs, on all its devices, and proves that it is what the format says:
labels and rings agree, the newest checkpoint decodes, the log can be replayed, every block of every replica, every
index page and header has its checksum, copies and parity fit, nothing is in two places or in free space, and all
accounts are exact. It says what is wrong by device, offset, replica and block. A device that holds something else is one
of the findings, and left out. It never writes to a device: damage that
redundancy makes good is repaired by a scrub of the running pool.

Exit codes: 0 all is well, 1 damage or missing redundancy was found, 2 it could not look.`,
		Example: `  cstor pool verify /dev/sdb /dev/sdc`,
		Args:    args(cobra.MinimumNArgs(1)),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		devs, done, err := offlineDevices(args)
		if err != nil {
			return err
		}
		defer done()
		r, err := engine.Verify(devs, engine.Options{})
		if err != nil {
			return &exit{exitUsage, err}
		}
		err = show(cmd.OutOrStdout(), *output, r, func() error { cli.PoolReport(cmd.OutOrStdout(), r); return nil })
		if err == nil && r.Damage > 0 {
			err = fmt.Errorf("%s is not as it should be", strings.TrimSpace("pool "+r.Pool))
		}
		return err
	}
	return cmd
}

func poolDumpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dump {checkpoint|segments|directory|page|log} DEVICE...",
		Short: "Show the structures of a pool that is not running",
		Long: `Shows the structures of a pool that no process runs, as docs/format.md describes them, after a replay in memory:

  checkpoint  the root of the newest checkpoint
  segments    kind, live bytes and raid group of each segment
  directory   where the index pages are, of one replica (--replica) or of all
  page        what the index has of one chunk (--replica, --chunk)
  log         the batches that a replay reads, and their records

Devices that hold something else are left out. It never writes to a device.

Exit codes: 0 shown, 1 the pool or what is to be shown is damaged, 2 it cannot be looked at.`,
		Example: `  cstor pool dump segments /dev/sdb /dev/sdc
  cstor pool dump page --replica=pvc-0c1d9a2e-cspc-stripe-6qkw --chunk=3 -o json /dev/sdb /dev/sdc`,
		Args: args(cobra.MinimumNArgs(2)),
	}
	output := outputFlag(cmd)
	replica := cmd.Flags().String("replica", "", "name of a replica")
	chunk := cmd.Flags().Uint64("chunk", 0, "number of a chunk: 512 blocks, 2 MiB")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch args[0] {
		case "checkpoint", "segments", "directory", "page", "log":
		default:
			return &exit{exitUsage, fmt.Errorf("nothing to dump is called %q\nUsage: %s", args[0], cmd.UseLine())}
		}
		devs, done, err := offlineDevices(args[1:])
		if err != nil {
			return err
		}
		defer done()
		p, err := engine.OpenReadOnly(devs, engine.Options{})
		if errors.Is(err, engine.ErrDamaged) || errors.Is(err, engine.ErrChecksum) {
			return err
		}
		if err != nil {
			return &exit{exitUsage, err}
		}
		defer p.Close()
		return dump(cmd.OutOrStdout(), p, args[0], *output, *replica, *chunk)
	}
	return cmd
}

func dump(w io.Writer, p *engine.Pool, what, output, name string, chunk uint64) error {
	r := p.Replica(name)
	if name != "" && r == nil {
		return &exit{exitUsage, fmt.Errorf("pool %s has no replica %s", p.Config().Name, name)}
	}
	switch what {
	case "checkpoint":
		c := p.DumpCheckpoint()
		return show(w, output, c, func() error { return cli.Checkpoint(w, &c) })
	case "segments":
		s := p.DumpSegments()
		return show(w, output, s, func() error { return cli.Segments(w, s) })
	case "page":
		if r == nil {
			return &exit{exitUsage, errors.New("--replica is required")}
		}
		d, err := p.DumpPage(r, chunk)
		if err != nil {
			return err
		}
		return show(w, output, d, func() error { return cli.Page(w, d) })
	case "log":
		var all []engine.BatchView
		err := p.DumpLog(func(b engine.BatchView) error {
			if output == "table" {
				return cli.Batch(w, &b)
			}
			all = append(all, b)
			return nil
		})
		if err != nil || output == "table" {
			return err
		}
		return show(w, output, all, nil)
	}
	return dumpDirectory(w, p, r, output)
}

func dumpDirectory(w io.Writer, p *engine.Pool, r *engine.Replica, output string) error {
	replicas := []*engine.Replica{r}
	if r == nil {
		replicas = p.Replicas()
		slices.SortFunc(replicas, func(a, b *engine.Replica) int { return strings.Compare(a.Name(), b.Name()) })
	}
	var all []engine.DirectoryView
	for _, r := range replicas {
		d, err := p.DumpDirectory(r)
		if err != nil {
			return err
		}
		all = append(all, d)
	}
	return show(w, output, all, func() error {
		for i := range all {
			if i > 0 {
				fmt.Fprintln(w)
			}
			if err := cli.Directory(w, &all[i]); err != nil {
				return err
			}
		}
		return nil
	})
}
