package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cstor-go/cstor/devcluster/proc"
)

// The supervisor holds a lock on pidFile for as long as it lives: the pid in it is valid exactly while it is locked. A
// directory that contains it is ours to remove.
const pidFile = "devcluster.pid"

// stopTimeout is how long a supervisor may take to stop everything before it is killed.
const stopTimeout = 30 * time.Second

// lockDir makes dir the directory of a new cluster and returns its locked pid file. What an earlier supervisor that
// was killed has left there is removed; a directory with anything else in it is refused.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the cluster's directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's directory: %w", err)
	}
	if len(entries) > 0 {
		pid, err := supervisor(dir)
		if err != nil {
			return nil, fmt.Errorf("%s is not empty and not a devcluster's directory: choose another --dir", dir)
		}
		if pid != 0 {
			return nil, fmt.Errorf("a devcluster with process id %d runs in %s: `devcluster down --dir %s` stops it", pid, dir, dir)
		}
		if err := cleanUp(dir); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the cluster's directory: %w", err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, pidFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("making pid file: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another devcluster is starting in %s: %w", dir, err)
	}
	if _, err := f.WriteString(strconv.Itoa(os.Getpid()) + "\n"); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing pid file: %w", err)
	}
	return f, nil
}

// supervisor returns the pid of the supervisor that runs in dir, 0 if it does not live any more, or an error if
// dir is no devcluster's directory.
func supervisor(dir string) (int, error) {
	f, err := os.Open(filepath.Join(dir, pidFile))
	if err != nil {
		return 0, fmt.Errorf("no devcluster in %s: %w", dir, err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		return 0, nil
	}
	content, err := os.ReadFile(f.Name())
	if err != nil {
		return 0, fmt.Errorf("reading pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		return 0, fmt.Errorf("reading pid file: %w", err)
	}
	return pid, nil
}

// cleanUp removes what a killed supervisor has left.
func cleanUp(dir string) error {
	proc.KillMarked(dir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the cluster's directory: %w", err)
	}
	return nil
}

// down stops the cluster in dir and returns when nothing of it is left. It is no error if there is none.
func down(dir string) error {
	pid, err := supervisor(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		deadline := time.Now().Add(stopTimeout)
		for alive(dir, pid) {
			if time.Now().After(deadline) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return cleanUp(dir)
}

// alive says whether the supervisor has not ended yet. It removes its directory, and the lock with it, a moment
// before it ends.
func alive(dir string, pid int) bool {
	if p, err := supervisor(dir); err == nil {
		return p == pid
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
