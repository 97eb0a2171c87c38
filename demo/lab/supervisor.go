package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stopGrace is how long the cluster's supervisor may take to stop everything.
const stopGrace = 30 * time.Second

// supervisor is a `devcluster up` that runs as a child. It leads a process group of its own, so that a terminal's
// Ctrl-C reaches only us and we stop it in order; and the kernel ends it when we die, however that happens.
type supervisor struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; valid once done
}

// startSupervisor runs devcluster with args and returns once it says that its cluster is ready. What it prints
// meanwhile is copied to progress. A value on interrupt ends the start.
func startSupervisor(path string, args []string, progress io.Writer, interrupt <-chan struct{}) (*supervisor, error) {
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	s := &supervisor{cmd: cmd, done: make(chan struct{})}
	ready := make(chan error, 1)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the child dies with the thread that forked it, so this one stays until the child is gone
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		ok := false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "devcluster ready") {
				ok = true
				ready <- nil
			}
			if !ok {
				fmt.Fprintln(progress, lines.Text())
			}
		}
		s.err = cmd.Wait()
		if !ok {
			ready <- fmt.Errorf("the cluster did not start (%v): %s", s.err, strings.TrimSpace(complaint.String()))
		}
		close(s.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting the cluster: %w", err)
	}
	select {
	case err := <-ready:
		return s, err
	case <-interrupt:
		return s, errors.New("interrupted while the cluster was starting")
	}
}

// stop asks the supervisor to end, and insists after a while. It returns once it is gone.
func (s *supervisor) stop() {
	if s == nil || s.cmd.Process == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}

// executable returns an error that says what to do when a program is missing.
func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is missing: `make build` makes it", path)
	}
	return nil
}
