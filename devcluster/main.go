// Sockets of multipath TCP, with which Go programs listen by default, take no socket filters.
//go:debug multipathtcp=0

// Command devcluster is a Kubernetes cluster for development and tests in one executable, without privileges and
// without containers: a real control plane (etcd, API server, controller manager, scheduler; the executable is all of
// them, chosen by its first argument) and nodes whose pods are plain local processes.
//
//	devcluster up --dir DIR --image NAME=PATH --detach
//	KUBECONFIG=DIR/kubeconfig devcluster kubectl get nodes
//	devcluster down --dir DIR
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/component-base/cli"
)

func main() {
	if len(os.Args) > 1 {
		if newCommand, ok := components[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			os.Exit(cli.Run(newCommand()))
		}
	}
	root := &cobra.Command{
		Use:           "devcluster",
		Short:         "A Kubernetes cluster of plain processes",
		Version:       version(),
		SilenceUsage:  true,
		SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{
			DisableDefaultCmd: true,
		},
	}
	// The components' packages define a global flag of this name that is no bool and would get into cobra's way.
	pflag.CommandLine.Lookup("version").Hidden = true
	root.Flags().Bool("version", false, "print the Kubernetes version")
	root.AddCommand(upCommand(), downCommand(), nodeCommand("stop-node"), nodeCommand("start-node"), psCommand(), logsCommand())
	for name, short := range componentHelp {
		root.AddCommand(&cobra.Command{Use: name, Short: short, Run: func(*cobra.Command, []string) {}})
	}
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		os.Exit(1)
	}
}
