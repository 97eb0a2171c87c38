package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/volume"
)

// Process is a process of a Spec, running or not. Not for concurrent use.
type Process struct {
	Spec   Spec
	cmd    *exec.Cmd
	exited chan struct{}
	client *http.Client
}

// NewProcess returns a process that does not run yet.
func NewProcess(s Spec) *Process {
	p := &Process{Spec: s}
	p.client = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.Spec.socket())
		},
	}}
	return p
}

// Start runs the process and waits until it answers.
func (p *Process) Start() error {
	text, err := json.Marshal(p.Spec)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	os.Remove(p.Spec.socket())
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), specEnv+"="+string(text))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	p.cmd, p.exited = cmd, exited
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("unix", p.Spec.socket())
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("%s did not start:\n%s", p.Spec.Name, p.Log())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer: %w\n%s", p.Spec.Name, err, p.Log())
		}
	}
}

func (p *Process) logPath() string { return filepath.Join(p.Spec.Dir, p.Spec.Name+".log") }

// Log returns the end of what the process has logged in all its lives.
func (p *Process) Log() string {
	b, _ := os.ReadFile(p.logPath())
	return string(b[max(0, len(b)-8192):])
}

// Raced reports whether the race detector found something in the process.
func (p *Process) Raced() bool {
	b, _ := os.ReadFile(p.logPath())
	return bytes.Contains(b, []byte("DATA RACE"))
}

// Pid returns the number of the process that runs, 0 if none does.
func (p *Process) Pid() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill is kill -9; it returns when the process is gone.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

// Stop ends the process the ordinary way.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

func (p *Process) end(sig syscall.Signal) {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Signal(sig)
	p.cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		p.cmd.Process.Kill()
		<-p.exited
	}
	p.cmd = nil
}

// Freeze stops the process from running until Thaw.
func (p *Process) Freeze() { p.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() { p.cmd.Process.Signal(syscall.SIGCONT) }

// call asks the process; in may be nil.
func (p *Process) call(path string, in, out any) error {
	method, body := http.MethodGet, io.Reader(nil)
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		method, body = http.MethodPost, bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+p.Spec.Name+path, body)
	if err != nil {
		return err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: %s", p.Spec.Name, path, strings.TrimSpace(string(b)))
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = b
		return nil
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// Volume returns the status of a target's volume.
func (p *Process) Volume() (st volume.Status, err error) { return st, p.call("/status", nil, &st) }

// Want tells a target what is wanted of the membership.
func (p *Process) Want(d volume.Desired) error { return p.call("/want", d, nil) }

// Replicas returns the status of a pool's replicas.
func (p *Process) Replicas() (st []replica.Status, err error) { return st, p.call("/status", nil, &st) }

// Attach has a pool serve a replica.
func (p *Process) Attach(r replica.Spec) error { return p.call("/attach", r, nil) }

// Destroy has a pool give a replica up.
func (p *Process) Destroy(name string) error { return p.call("/destroy", name, nil) }

// Profile writes a profile of the process's CPU use during the given time to a file.
func (p *Process) Profile(path string, d time.Duration) error {
	var b []byte
	if err := p.call(fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(d.Seconds())), nil, &b); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// CPU returns the CPU time that the process has used, user and system, to 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var user, system int64
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", p.Pid(), stat)
	}
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
