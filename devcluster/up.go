package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/klog/v2"
)

// progressEnv is set for a detached supervisor: it reports its start on file descriptor 3.
const progressEnv = "DEVCLUSTER_PROGRESS"

// readyLine ends the progress of a successful start; anything else that ends it is an error message.
const readyLine = "ready"

// stopSignals end a cluster in good order.
var stopSignals = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}

// up runs a cluster until a signal comes, and leaves nothing behind.
func up(opts options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals...)
	defer stop()
	// A reader that goes away must not end the cluster without tearing it down. (Ignoring the signal instead would be
	// inherited by all children.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	var progress io.Writer = os.Stdout
	detached := os.Getenv(progressEnv) != ""
	if detached {
		f := os.NewFile(3, "progress")
		defer f.Close()
		progress = f
		defer func() { // the parent prints why there is no cluster
			if err != nil {
				fmt.Fprintf(f, "%v\n", err)
			}
		}()
	}
	lock, err := lockDir(opts.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	log, closeLog, err := supervisorLog(opts.dir)
	if err != nil {
		return err
	}
	defer closeLog()
	c := &cluster{opts: opts, log: log}
	err = c.start(ctx, progress)
	switch {
	case err == nil:
		if detached {
			fmt.Fprintln(progress, readyLine)
			_ = progress.(io.Closer).Close()
		}
		<-ctx.Done()
		if !detached {
			fmt.Println("stopping")
		}
	case ctx.Err() != nil:
		err = errors.New("interrupted before the cluster was ready")
	}
	return errors.Join(err, c.stop())
}

// supervisorLog is where this process writes what nobody waits for.
func supervisorLog(dir string) (*slog.Logger, func(), error) {
	if err := os.MkdirAll(filepath.Join(dir, "logs"), 0o755); err != nil {
		return nil, nil, fmt.Errorf("making log directory: %w", err)
	}
	f, err := os.Create(filepath.Join(dir, "logs", "supervisor.log"))
	if err != nil {
		return nil, nil, fmt.Errorf("making log: %w", err)
	}
	log := slog.New(slog.NewTextHandler(f, nil))
	klog.SetSlogLogger(log) // client-go's messages
	return log, func() { f.Close() }, nil
}

// upDetached starts a supervisor in a session of its own and returns when its cluster is ready. A signal that comes
// before ends the supervisor too.
func upDetached(opts options) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, stopSignals...)
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding our own executable: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer r.Close()
	args := []string{"up", "--dir", opts.dir, "--nodes", strings.Join(opts.nodes, ",")}
	for name, path := range opts.images {
		args = append(args, "--image", name+"="+path)
	}
	cmd := exec.Command(executable, args...)
	cmd.Dir = "/" // it must not keep the caller's directory busy
	cmd.Env = append(os.Environ(), progressEnv+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	w.Close()
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	var complaint []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		switch line := lines.Text(); {
		case line == readyLine:
			return cmd.Process.Release()
		case strings.HasPrefix(line, phaseIndent), strings.HasPrefix(line, "devcluster ready"):
			fmt.Println(line)
		default:
			complaint = append(complaint, line)
		}
	}
	err = cmd.Wait()
	if len(complaint) == 0 {
		return fmt.Errorf("the supervisor ended before the cluster was ready: %w", err)
	}
	return errors.New(strings.Join(complaint, "\n"))
}
