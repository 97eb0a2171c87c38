package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/cstor-go/cstor/devcluster/noderuntime"
)

// dirFlag adds --dir; the returned function gives its absolute value without symbolic links.
func dirFlag(c *cobra.Command) func() (string, error) {
	dir := c.Flags().String("dir", "", "directory of the cluster (required)")
	if err := c.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag was defined one line above
	}
	return func() (string, error) {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return "", fmt.Errorf("--dir: %w", err)
		}
		if abs == "/" {
			return "", errors.New("--dir: / cannot be a cluster's directory")
		}
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			return real, nil
		}
		return abs, nil
	}
}

func upCommand() *cobra.Command {
	var nodes []string
	var images []string
	var detach bool
	c := &cobra.Command{
		Use:   "up --dir DIR --image NAME=PATH...",
		Short: "Start a cluster; end it with Ctrl-C, or use --detach",
		Args:  cobra.NoArgs,
	}
	dir := dirFlag(c)
	c.Flags().StringSliceVar(&nodes, "nodes", []string{"e2e1-node1", "e2e1-node2", "e2e1-node3"}, "names of the nodes")
	c.Flags().StringArrayVar(&images, "image", nil, "NAME=PATH: containers of image NAME run the executable PATH (repeatable)")
	c.Flags().BoolVar(&detach, "detach", false, "return when the cluster is ready and leave it running")
	c.RunE = func(*cobra.Command, []string) error {
		d, err := dir()
		if err != nil {
			return err
		}
		opts := options{dir: d, nodes: nodes, images: noderuntime.Images{}}
		if err := checkNodes(nodes); err != nil {
			return err
		}
		for _, i := range images {
			name, path, ok := strings.Cut(i, "=")
			if !ok || name == "" || path == "" {
				return fmt.Errorf("--image %s: want NAME=PATH", i)
			}
			if opts.images[name], err = filepath.Abs(path); err != nil {
				return fmt.Errorf("--image %s: %w", i, err)
			}
		}
		if detach {
			return upDetached(opts)
		}
		return up(opts)
	}
	return c
}

// checkNodes finds mistakes in --nodes before anything is started.
func checkNodes(nodes []string) error {
	if len(nodes) == 0 || len(nodes) > maxNodes {
		return fmt.Errorf("--nodes: there must be between 1 and %d", maxNodes)
	}
	seen := map[string]bool{}
	for _, n := range nodes {
		if problems := validation.IsDNS1123Subdomain(n); len(problems) > 0 {
			return fmt.Errorf("--nodes: %q cannot be a node's name: %s", n, problems[0])
		}
		if seen[n] {
			return fmt.Errorf("--nodes: %s is named twice", n)
		}
		seen[n] = true
	}
	return nil
}

func downCommand() *cobra.Command {
	c := &cobra.Command{Use: "down --dir DIR", Short: "Stop a cluster and remove its directory", Args: cobra.NoArgs}
	dir := dirFlag(c)
	c.RunE = func(*cobra.Command, []string) error {
		d, err := dir()
		if err != nil {
			return err
		}
		return down(d)
	}
	return c
}

// nodeCommand is stop-node or start-node.
func nodeCommand(name string) *cobra.Command {
	short := map[string]string{
		"stop-node":  "Cut a node's power: its processes are killed and its heartbeats stop",
		"start-node": "Switch a node on again",
	}
	c := &cobra.Command{Use: name + " NODE --dir DIR", Short: short[name], Args: cobra.ExactArgs(1)}
	dir := dirFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		d, err := dir()
		if err != nil {
			return err
		}
		_, err = ask(c.Context(), d, http.MethodPost, "/nodes/"+url.PathEscape(args[0])+"/"+name)
		return err
	}
	return c
}

func psCommand() *cobra.Command {
	c := &cobra.Command{Use: "ps --dir DIR", Short: "List the cluster's processes", Args: cobra.NoArgs}
	dir := dirFlag(c)
	asJSON := c.Flags().Bool("json", false, "print a JSON array")
	c.RunE = func(c *cobra.Command, _ []string) error {
		d, err := dir()
		if err != nil {
			return err
		}
		body, err := ask(c.Context(), d, http.MethodGet, "/processes")
		if err != nil {
			return err
		}
		if *asJSON {
			_, err := os.Stdout.Write(body)
			return err
		}
		var ps []noderuntime.Process
		if err := json.Unmarshal(body, &ps); err != nil {
			return fmt.Errorf("reading the supervisor's answer: %w", err)
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(w, "NODE\tNAMESPACE\tPOD\tCONTAINER\tPID\tRESTARTS\tIP")
		for _, p := range ps {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", p.Node, p.Namespace, p.Pod, p.Container, p.PID, p.Restarts, p.IP)
		}
		return w.Flush()
	}
	return c
}

func logsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "logs POD --dir DIR",
		Short: "Print what a pod's containers wrote, those of earlier runs and deleted pods included",
		Args:  cobra.ExactArgs(1),
	}
	dir := dirFlag(c)
	namespace := c.Flags().StringP("namespace", "n", "*", "namespace of the pod; any by default")
	container := c.Flags().StringP("container", "c", "*", "container; all by default")
	c.RunE = func(_ *cobra.Command, args []string) error {
		d, err := dir()
		if err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(d, "nodes", "*", "logs", fmt.Sprintf("%s_%s_%s.log", *namespace, args[0], *container)))
		if err != nil {
			return fmt.Errorf("pod %s: %w", args[0], err)
		}
		if len(files) == 0 {
			return fmt.Errorf("pod %s has no logs in %s", args[0], d)
		}
		for _, name := range files {
			f, err := os.Open(name)
			if err != nil {
				return fmt.Errorf("reading log: %w", err)
			}
			_, err = io.Copy(os.Stdout, f)
			f.Close()
			if err != nil {
				return fmt.Errorf("reading log: %w", err)
			}
		}
		return nil
	}
	return c
}
