package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestInterrupt interrupts the demo at different moments, as Ctrl-C does: no process and no file is left.
func TestInterrupt(t *testing.T) {
	root := need(t)
	// Each is interrupted as soon as a line with this text is printed.
	for _, moment := range []string{"1. ", "etcd  ", "kube-apiserver  ", "2. ", "3. ", "4. ", "5. "} {
		t.Run(strings.TrimSpace(moment), func(t *testing.T) {
			t.Parallel()
			tmp := t.TempDir()
			cmd := exec.Command(filepath.Join(root, "bin", "demo"))
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
			var complaint bytes.Buffer
			cmd.Stderr = &complaint
			out, err := cmd.StdoutPipe()
			check(t, err)
			check(t, cmd.Start())
			stuck := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
			defer stuck.Stop()
			var shown strings.Builder
			sent := false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				shown.WriteString(lines.Text() + "\n")
				if !sent && strings.HasPrefix(strings.TrimLeft(lines.Text(), " "), moment) {
					sent = true
					check(t, cmd.Process.Signal(os.Interrupt))
				}
			}
			err = cmd.Wait()
			if !sent || cmd.ProcessState.ExitCode() != 130 {
				t.Errorf("interrupted: %v; it ended with %v, wanted is exit status 130; it printed:\n%s%s", sent, err, &shown, &complaint)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("files were left in %s: %v %v", tmp, left, err)
			}
			for _, p := range processesOf(tmp) {
				t.Errorf("a process was left: %s", p)
			}
		})
	}
}

// processesOf returns the command lines of all processes that have to do with dir: it is in their command line or
// their environment.
func processesOf(dir string) (commands []string) {
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range environments {
		environment, err := os.ReadFile(file)
		if err != nil {
			continue // ended meanwhile, or another user's
		}
		command, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		if err == nil && len(command) > 0 && bytes.Contains(append(environment, command...), []byte(dir)) {
			commands = append(commands, string(bytes.ReplaceAll(command, []byte{0}, []byte{' '})))
		}
	}
	return commands
}
