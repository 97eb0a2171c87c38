package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// binary is where build.sh puts the executable.
const binary = "../../bin/devcluster"

// cluster is a devcluster that belongs to one test.
type cluster struct {
	t   *testing.T
	bin string
	dir string
}

// process is a line of `devcluster ps --json`.
type process struct {
	Node, Pod, Container string
	PID, Restarts        int
}

// startCluster brings a cluster up whose image `tiny` is this executable; its end is checked to leave nothing.
func startCluster(t *testing.T, nodes string) *cluster {
	t.Helper()
	bin, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		if os.Getenv("CSTOR_REQUIRE") == "all" {
			t.Fatalf("CSTOR_REQUIRE=all, but there is no devcluster executable: run devcluster/build.sh")
		}
		t.Skip("no devcluster executable: run devcluster/build.sh")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, bin: bin, dir: filepath.Join(t.TempDir(), "cluster")}
	t.Cleanup(c.checkGone)
	cmd := exec.Command(bin, "up", "--dir", c.dir, "--nodes", nodes, "--image", "tiny="+self, "--detach")
	cmd.Env = c.env("")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	t.Logf("up:\n%s", out)
	return c
}

// checkGone stops the cluster and looks for what is left.
func (c *cluster) checkGone() {
	if c.t.Failed() {
		out, _ := c.try("kubectl", "describe", "pods,nodes")
		log, _ := os.ReadFile(filepath.Join(c.dir, "logs", "supervisor.log"))
		c.t.Logf("state of the cluster:\n%s\nlog of the supervisor:\n%s", out, log)
	}
	for range 2 { // down can be repeated
		if out, err := exec.Command(c.bin, "down", "--dir", c.dir).CombinedOutput(); err != nil {
			c.t.Errorf("down: %v\n%s", err, out)
		}
	}
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		c.t.Errorf("the cluster's directory is left: %v", err)
	}
	if left := c.leftovers(); len(left) > 0 {
		c.t.Errorf("processes are left: %s", left)
	}
}

// leftovers are processes that mention the cluster's directory in their command line or environment.
func (c *cluster) leftovers() []string {
	var left []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(d, "environ"))
		if strings.Contains(string(cmdline)+string(environ), c.dir) {
			left = append(left, filepath.Base(d)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return left
}

// env is an environment without HOME.
func (c *cluster) env(kubeconfig string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + kubeconfig}
}

// try runs the executable; kubectl gets the cluster's kubeconfig, the other commands its directory.
func (c *cluster) try(args ...string) (string, error) {
	cmd := exec.Command(c.bin, args...)
	if args[0] != "kubectl" {
		cmd.Args = append(cmd.Args, "--dir", c.dir)
	}
	cmd.Env = c.env(filepath.Join(c.dir, "kubeconfig"))
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (c *cluster) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *cluster) apply(manifest string) {
	c.t.Helper()
	cmd := exec.Command(c.bin, "kubectl", "apply", "-f", "-")
	cmd.Env = c.env(filepath.Join(c.dir, "kubeconfig"))
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("apply: %v\n%s", err, out)
	}
}

// get prints fields of an object through a JSON path.
func (c *cluster) get(object, path string) string {
	out, err := c.try("kubectl", "get", "--ignore-not-found", object, "-o", "jsonpath="+path)
	if err != nil {
		return fmt.Sprintf("(%v: %s)", err, out)
	}
	return out
}

func (c *cluster) ps() []process {
	c.t.Helper()
	var ps []process
	if err := json.Unmarshal([]byte(c.run("ps", "--json")), &ps); err != nil {
		c.t.Fatal(err)
	}
	return ps
}

// of returns the process of a pod; its PID is 0 if there is none.
func (c *cluster) of(pod string) process {
	c.t.Helper()
	for _, p := range c.ps() {
		if p.Pod == pod {
			return p
		}
	}
	return process{}
}

func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	c.within(time.Minute, what, ok)
}

func (c *cluster) within(limit time.Duration, what string, ok func() bool) {
	c.t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > limit {
			c.t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.t.Logf("%5.2f s: %s", time.Since(begin).Seconds(), what)
}
