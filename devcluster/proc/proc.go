// Package proc starts child processes that cannot outlive the process that started them.
//
// Every child leads its own process group (so a terminal's Ctrl-C reaches only the supervisor, which stops its
// children in order) and is killed by the kernel when the supervisor dies, however it dies. The kernel ties that
// death signal to the *thread* that forked, so one Launcher starts everything from one thread that never exits.
// What a child starts itself is reached through its group and, should it have left the group, through a marker in
// its environment (KillMarked).
package proc

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// markerName is the environment variable that tells whose children are whose.
const markerName = "DEVCLUSTER_OWNER"

// Launcher starts processes. It is safe for concurrent use and lives as long as the program.
type Launcher struct {
	owner  string
	starts chan func()
}

// NewLauncher returns a launcher whose children carry owner as their marker.
func NewLauncher(owner string) *Launcher {
	l := &Launcher{owner: owner, starts: make(chan func())}
	go func() {
		runtime.LockOSThread()                      // never unlocked: the children die with this thread
		if s, err := installSources(); err == nil { // or else nobody can tell whose connection is whose, which most do not need
			go s.serve()
		}
		for start := range l.starts {
			start()
		}
	}()
	return l
}

// Spec describes a process to start.
type Spec struct {
	Path string   // executable
	Args []string // argv, including argv[0]
	Env  []string // whole environment; the marker is added
	Dir  string
	Log  *os.File // stdout and stderr; nil means discarded. The caller may close it after Start.
	// Source, if valid, is the address that connections to loopback addresses come from.
	Source netip.Addr
}

// Process is a started child.
type Process struct {
	Pid     int
	Started time.Time

	done chan struct{}
	mu   sync.Mutex // guards reaped: a reaped pid may be anybody's
	gone bool
	exit Exit
}

// Exit says how a process ended.
type Exit struct {
	Code   int // 128+signal when a signal ended it, as shells and kubelets count
	Signal int // 0 unless a signal ended it
	At     time.Time
}

// Start starts the process of s in a new process group.
func (l *Launcher) Start(s Spec) (*Process, error) {
	// As in this program, see the directive in main.go.
	env := append([]string{"GODEBUG=multipathtcp=0"}, s.Env...)
	env = append(env, markerName+"="+l.owner)
	if s.Source.IsValid() {
		env = append(env, sourceName+"="+s.Source.String())
	}
	cmd := &exec.Cmd{
		Path: s.Path, Args: s.Args, Dir: s.Dir, Env: env,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	}
	if s.Log != nil {
		cmd.Stdout, cmd.Stderr = s.Log, s.Log
	}
	started := make(chan error, 1)
	l.starts <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.Path, err)
	}
	p := &Process{Pid: cmd.Process.Pid, Started: time.Now(), done: make(chan struct{})}
	go p.reap(cmd)
	return p, nil
}

// reap waits for the leader's end, kills what is left of its group while the pid is still ours, and collects it.
func (p *Process) reap(cmd *exec.Cmd) {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
	p.gone = true
	_ = cmd.Wait() // an exit status other than 0 is told by Exit
	p.mu.Unlock()
	p.exit = exitOf(cmd.ProcessState)
	close(p.done)
}

func exitOf(state *os.ProcessState) Exit {
	e := Exit{Code: state.ExitCode(), At: time.Now()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = int(ws.Signal())
		e.Code = 128 + e.Signal
	}
	return e
}

// Signal sends sig to the whole process group; it does nothing once the process has ended.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.gone {
		_ = syscall.Kill(-p.Pid, sig)
	}
}

// Done is closed when the process has ended and been collected.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit waits for the end and says how it came.
func (p *Process) Exit() Exit {
	<-p.done
	return p.exit
}

// Stop asks the process to end and kills it after grace; it returns when the process is gone.
func (p *Process) Stop(grace time.Duration) {
	p.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.Signal(syscall.SIGKILL)
		<-p.done
	}
}

// OpenLog opens a log for appending, so that several processes can write to it and it can be cut while they do.
func OpenLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening log: %w", err)
	}
	return f, nil
}

// TrimLog keeps a log that someone is appending to below max bytes: the newest half of it moves to path.1.
func TrimLog(path string, max int64) error {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && st.Size() <= max {
		return nil
	}
	if err != nil {
		return fmt.Errorf("trimming log: %w", err)
	}
	in, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("trimming log: %w", err)
	}
	defer in.Close()
	out, err := os.Create(path + ".1")
	if err != nil {
		return fmt.Errorf("trimming log: %w", err)
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(in, st.Size()-max/2, max/2)); err != nil {
		return fmt.Errorf("trimming log %s: %w", path, err)
	}
	if err := os.Truncate(path, 0); err != nil {
		return fmt.Errorf("trimming log: %w", err)
	}
	return nil
}
