package noderuntime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/cstor-go/cstor/devcluster/proc"
)

// container runs one container of a pod, again and again as the restart policy says. Its fields are guarded by the
// pod's mutex.
type container struct {
	pod  *pod
	spec *v1.Container
	init bool

	unhealthy chan string // a liveness or startup probe gave up, and why

	state    v1.ContainerState
	last     v1.ContainerState
	restarts int32
	ran      bool // it has been started before, on this node or in an earlier life of it
	started  bool // it runs and its startup probe has succeeded
	ready    bool
	id       string
	process  *proc.Process
	env      []string // of the current run
	mounts   mounts
}

// newContainer takes over what the API says about an earlier life of the container: its node was stopped meanwhile.
func newContainer(p *pod, spec *v1.Container, known []v1.ContainerStatus, init bool) *container {
	c := &container{pod: p, spec: spec, init: init, unhealthy: make(chan string, 1)}
	for _, s := range known {
		if s.Name != spec.Name {
			continue
		}
		c.restarts, c.last, c.id = s.RestartCount, s.LastTerminationState, s.ContainerID
		c.ran = s.ContainerID != ""
		switch {
		case s.State.Terminated != nil:
			c.state = s.State
		case s.State.Running != nil:
			c.state.Terminated = &v1.ContainerStateTerminated{
				ExitCode: 255, Reason: "Unknown", StartedAt: s.State.Running.StartedAt, FinishedAt: now(), ContainerID: s.ContainerID,
			}
		}
	}
	return c
}

// keep runs the container until it has ended for good; it returns whether the last run was successful.
func (c *container) keep() bool {
	p := c.pod
	var b backoff
	if t := c.terminated(); t != nil && !c.init && !c.again(int(t.ExitCode)) {
		return t.ExitCode == 0
	}
	for !p.isStopping() {
		var ran time.Duration
		process, cancel, err := c.start()
		if err != nil {
			if p.isStopping() {
				return false
			}
			c.cannotStart(err)
		} else {
			exit := c.wait(process)
			ran = exit.At.Sub(process.Started)
			c.ended(exit, cancel)
			if !c.again(exit.Code) || p.isStopping() {
				return exit.Code == 0
			}
		}
		delay := b.after(ran)
		if err == nil {
			c.backOff(delay)
		}
		select {
		case <-time.After(delay):
		case <-p.stopping:
		case <-p.ctx.Done():
		}
	}
	return false
}

func (c *container) terminated() *v1.ContainerStateTerminated {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.state.Terminated
}

// again applies the restart policy.
func (c *container) again(exitCode int) bool {
	switch c.pod.object().Spec.RestartPolicy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return exitCode != 0
	}
	return !c.init || exitCode != 0
}

// startError is why a container cannot be started: the reason of its waiting state.
type startError struct {
	reason string
	err    error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// start starts the container's process and its probes, which last until cancel is called.
func (c *container) start() (*proc.Process, context.CancelFunc, error) {
	p := c.pod
	image, err := c.image()
	if err != nil {
		return nil, nil, err
	}
	home := c.home()
	cmd, ms, err := c.command(image, home)
	if err != nil {
		return nil, nil, &startError{"CreateContainerConfigError", err}
	}
	dir := home
	if c.spec.WorkingDir != "" {
		if _, ok := ms.at(c.spec.WorkingDir); ok {
			dir = ms.translate(c.spec.WorkingDir)
		}
	}
	log, err := c.openLog()
	if err != nil {
		return nil, nil, &startError{"CreateContainerError", err}
	}
	defer log.Close()
	select {
	case <-c.unhealthy: // said about an earlier run
	default:
	}
	p.event(v1.EventTypeNormal, "Created", c.spec.Name, "Container created")

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.silent {
		return nil, nil, errors.New("the node is stopping")
	}
	process, err := p.rt.cfg.Launcher.Start(proc.Spec{Path: cmd.path, Args: cmd.args, Env: cmd.env, Dir: dir, Log: log, Source: p.addr})
	if err != nil {
		return nil, nil, &startError{"RunContainerError", err}
	}
	if c.ran {
		c.restarts++
		if c.state.Terminated != nil {
			c.last = v1.ContainerState{Terminated: c.state.Terminated}
		}
	}
	c.ran, c.process, c.id = true, process, newContainerID()
	c.env, c.mounts = cmd.env, ms
	c.state = v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: metav1.NewTime(process.Started.Truncate(time.Second))}}
	c.started = c.spec.StartupProbe == nil
	c.ready = c.started && c.spec.ReadinessProbe == nil
	ctx, cancel := context.WithCancel(p.ctx)
	go c.probe(ctx)
	p.changed()
	p.event(v1.EventTypeNormal, "Started", c.spec.Name, "Container started")
	return process, cancel, nil
}

// home is the container's own directory: its HOME and, unless it says otherwise, its working directory.
func (c *container) home() string { return filepath.Join(c.pod.dir, "containers", c.spec.Name) }

// image is the executable of the container's image.
func (c *container) image() (string, error) {
	path, ok := c.pod.rt.cfg.Images.resolve(c.spec.Image)
	why := fmt.Sprintf("container image %q is not present: devcluster up was not given --image %s=PATH", c.spec.Image, repository(c.spec.Image))
	if ok {
		st, err := os.Stat(path)
		if err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
		why = fmt.Sprintf("container image %q is not present: %s is not an executable file", c.spec.Image, path)
	}
	reason := "ImagePullBackOff"
	if c.spec.ImagePullPolicy == v1.PullNever {
		reason = "ErrImageNeverPull"
	}
	return "", &startError{reason, errors.New(why)}
}

// command works out the command line; home is made too.
func (c *container) command(image, home string) (*command, mounts, error) {
	p := c.pod
	if err := os.MkdirAll(filepath.Join(home, "tmp"), 0o755); err != nil {
		return nil, nil, fmt.Errorf("making container directory: %w", err)
	}
	env, err := p.containerEnv(p.ctx, c.spec)
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	where := p.where
	p.mu.Unlock()
	ms, err := p.containerMounts(c.spec, env, where)
	if err != nil {
		return nil, nil, err
	}
	return p.buildCommand(c.spec, image, home, env, ms), ms, nil
}

func (c *container) openLog() (*os.File, error) {
	path := c.pod.node.logPath(c.pod.namespace, c.pod.name, c.spec.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making log directory: %w", err)
	}
	return proc.OpenLog(path)
}

// cannotStart reports why there is no process.
func (c *container) cannotStart(err error) {
	p := c.pod
	reason := "RunContainerError"
	var s *startError
	if errors.As(err, &s) {
		reason = s.reason
	}
	p.mu.Lock()
	known := c.state.Waiting != nil && c.state.Waiting.Reason == reason && c.state.Waiting.Message == err.Error()
	if c.state.Terminated != nil {
		c.last = v1.ContainerState{Terminated: c.state.Terminated}
	}
	c.state = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason, Message: err.Error()}}
	p.mu.Unlock()
	if !known {
		p.changed()
		p.event(v1.EventTypeWarning, "Failed", c.spec.Name, "Error: "+err.Error())
	}
}

// wait returns when the process has ended, having made it end if the pod stops or a probe has given it up.
func (c *container) wait(process *proc.Process) proc.Exit {
	p := c.pod
	select {
	case <-process.Done():
	case <-p.ctx.Done():
		process.Signal(syscall.SIGKILL)
	case <-p.stopping:
		p.event(v1.EventTypeNormal, "Killing", c.spec.Name, "Stopping container "+c.spec.Name)
		c.terminate(process, func() time.Time {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.deadline
		})
	case why := <-c.unhealthy:
		p.event(v1.EventTypeNormal, "Killing", c.spec.Name, fmt.Sprintf("Container %s failed %s, will be restarted", c.spec.Name, why))
		deadline := time.Now().Add(p.gracePeriod())
		c.terminate(process, func() time.Time { return deadline })
	}
	return process.Exit()
}

// terminate lets the process end by itself until deadline, which may come nearer meanwhile.
func (c *container) terminate(process *proc.Process, deadline func() time.Time) {
	c.preStop(process, deadline())
	process.Signal(syscall.SIGTERM)
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for time.Now().Before(deadline()) {
		select {
		case <-process.Done():
			return
		case <-c.pod.ctx.Done():
			process.Signal(syscall.SIGKILL)
			return
		case <-t.C:
		}
	}
	process.Signal(syscall.SIGKILL)
}

func (p *pod) gracePeriod() time.Duration {
	if s := p.object().Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return v1.DefaultTerminationGracePeriodSeconds * time.Second
}

// ended records how the process ended.
func (c *container) ended(exit proc.Exit, stopProbes context.CancelFunc) {
	p := c.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	stopProbes()
	reason := "Completed"
	if exit.Code != 0 {
		reason = "Error"
	}
	c.state = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
		ExitCode: int32(exit.Code), Signal: int32(exit.Signal), Reason: reason,
		StartedAt:   c.state.Running.StartedAt,
		FinishedAt:  metav1.NewTime(exit.At.Truncate(time.Second)),
		ContainerID: c.id,
	}}
	c.ready, c.started, c.process = false, false, nil
	p.changed()
}

// backOff shows that the container waits for its next start.
func (c *container) backOff(delay time.Duration) {
	p := c.pod
	message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, c.spec.Name, p.name, p.namespace, p.uid)
	p.mu.Lock()
	c.last = v1.ContainerState{Terminated: c.state.Terminated}
	c.state = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: message}}
	p.mu.Unlock()
	p.changed()
	if delay > backoffBase { // a first restart is nothing to warn of
		p.event(v1.EventTypeWarning, "BackOff", c.spec.Name, fmt.Sprintf("Back-off restarting failed container %s in pod %s_%s(%s)", c.spec.Name, p.name, p.namespace, p.uid))
	}
}

func newContainerID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return "process://" + hex.EncodeToString(b[:])
}
