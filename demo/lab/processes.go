package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Process is a container of a pod as a local process.
type Process struct {
	Node      string `json:"node"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Container string `json:"container"`
	PID       int    `json:"pid"`
	Restarts  int    `json:"restarts"`
	IP        string `json:"ip"`
}

// Processes lists the processes of the pods in our namespace.
func (l *Lab) Processes(ctx context.Context) ([]Process, error) {
	all, err := l.allProcesses(ctx)
	return slices.DeleteFunc(all, func(p Process) bool { return p.Namespace != Namespace }), err
}

// APIServer returns the process of the API server.
func (l *Lab) APIServer(ctx context.Context) (Process, error) {
	all, err := l.allProcesses(ctx)
	for _, p := range all {
		if p.Namespace == "" && p.Pod == "kube-apiserver" {
			return p, nil
		}
	}
	return Process{}, errors.Join(err, errors.New("no API server runs"))
}

// allProcesses lists the processes of all pods and of the control plane. It does not ask the API server.
func (l *Lab) allProcesses(ctx context.Context) ([]Process, error) {
	cmd := exec.CommandContext(ctx, l.devcluster(), "ps", "--json", "--dir", l.opts.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the cluster's processes: %w", err)
	}
	var all []Process
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("listing the cluster's processes: %w", err)
	}
	return all, nil
}

// Logs returns the end of what the containers of the pods wrote whose names start with prefix, at most lines lines each.
func (l *Lab) Logs(ctx context.Context, prefix string, lines int) (string, error) {
	all, err := l.Processes(ctx)
	if err != nil {
		return "", err
	}
	var logs strings.Builder
	for _, p := range all {
		if !strings.HasPrefix(p.Pod, prefix) {
			continue
		}
		cmd := exec.CommandContext(ctx, l.devcluster(), "logs", p.Pod, "--dir", l.opts.Dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("reading the log of %s: %w", p.Pod, err)
		}
		text := strings.SplitAfter(string(out), "\n")
		fmt.Fprintf(&logs, "%s:\n%s", p.Pod, strings.Join(text[max(0, len(text)-1-lines):], ""))
	}
	return logs.String(), nil
}

// Process returns the one process whose pod's name starts with prefix.
func (l *Lab) Process(ctx context.Context, prefix string) (Process, error) {
	all, err := l.Processes(ctx)
	if err != nil {
		return Process{}, err
	}
	var found []Process
	for _, p := range all {
		if strings.HasPrefix(p.Pod, prefix) && p.PID > 0 {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Process{}, fmt.Errorf("%d processes run in pods named %s…, not one", len(found), prefix)
	}
	return found[0], nil
}

// Kill ends a process without warning, as kill -9 does.
func (p Process) Kill() error { return p.signal(syscall.SIGKILL) }

// Freeze keeps a process from running until Thaw.
func (p Process) Freeze() error { return p.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p Process) Thaw() error { return p.signal(syscall.SIGCONT) }

func (p Process) signal(s syscall.Signal) error {
	if err := syscall.Kill(p.PID, s); err != nil {
		return fmt.Errorf("%v for %s (process %d): %w", s, p.Pod, p.PID, err)
	}
	return nil
}

// AnonymousMemory returns the bytes of memory of a process that no file backs.
func (p Process) AnonymousMemory() (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of %s: %w", p.Pod, err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading the memory of %s: %w", p.Pod, err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("the kernel does not report RssAnon")
}
