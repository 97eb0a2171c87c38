package noderuntime

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"

	"github.com/cstor-go/cstor/devcluster/proc"
)

// hastyPeriod is how often a container that is not ready yet is asked whether it is, so that pods come up quickly.
// Failures are still counted in units of periodSeconds.
const hastyPeriod = 200 * time.Millisecond

// probe runs the container's probes until ctx ends: the startup probe first, then the others side by side.
func (c *container) probe(ctx context.Context) {
	if s := c.spec.StartupProbe; s != nil {
		if !c.probeUntilStarted(ctx, s) {
			return
		}
		c.setHealth(ctx, func() {
			c.started = true
			c.ready = c.spec.ReadinessProbe == nil
		})
	}
	if l := c.spec.LivenessProbe; l != nil {
		go c.probeLiveness(ctx, l)
	}
	if r := c.spec.ReadinessProbe; r != nil {
		c.probeReadiness(ctx, r)
	}
}

// setHealth changes the container's state unless the run that was probed is over.
func (c *container) setHealth(ctx context.Context, set func()) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if ctx.Err() == nil {
		set()
		c.pod.changed()
	}
}

func (c *container) probeUntilStarted(ctx context.Context, s *v1.Probe) bool {
	if !pause(ctx, seconds(s.InitialDelaySeconds)) {
		return false
	}
	limit := time.Now().Add(time.Duration(max(s.FailureThreshold, 1)) * period(s))
	for {
		err := c.probeOnce(ctx, s)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if time.Now().After(limit) {
			c.giveUp("startup probe", err)
			return false
		}
		if !pause(ctx, min(hastyPeriod, period(s))) {
			return false
		}
	}
}

func (c *container) probeLiveness(ctx context.Context, l *v1.Probe) {
	if !pause(ctx, seconds(l.InitialDelaySeconds)) {
		return
	}
	failures := int32(0)
	for {
		err := c.probeOnce(ctx, l)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
		} else if failures++; failures >= max(l.FailureThreshold, 1) {
			c.giveUp("liveness probe", err)
			return
		}
		if !pause(ctx, period(l)) {
			return
		}
	}
}

func (c *container) probeReadiness(ctx context.Context, r *v1.Probe) {
	if !pause(ctx, seconds(r.InitialDelaySeconds)) {
		return
	}
	var ready bool
	var failures, successes int32
	var reported time.Time
	for {
		err := c.probeOnce(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures, successes = 0, successes+1
			if !ready && successes >= max(r.SuccessThreshold, 1) {
				ready = true
				c.setHealth(ctx, func() { c.ready = true })
			}
		} else {
			failures, successes = failures+1, 0
			if ready && failures >= max(r.FailureThreshold, 1) {
				ready = false
				c.setHealth(ctx, func() { c.ready = false })
			}
			if time.Since(reported) >= period(r) {
				reported = time.Now()
				c.pod.event(v1.EventTypeWarning, "Unhealthy", c.spec.Name, "Readiness probe failed: "+err.Error())
			}
		}
		wait := period(r)
		if !ready {
			wait = min(wait, hastyPeriod)
		}
		if !pause(ctx, wait) {
			return
		}
	}
}

// giveUp asks for the container to be restarted.
func (c *container) giveUp(probe string, err error) {
	c.pod.event(v1.EventTypeWarning, "Unhealthy", c.spec.Name, probe+" failed: "+err.Error())
	select {
	case c.unhealthy <- probe:
	default:
	}
}

func period(p *v1.Probe) time.Duration { return seconds(max(p.PeriodSeconds, 1)) }

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// pause waits; it returns false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// probeOnce asks once; nil means success.
func (c *container) probeOnce(ctx context.Context, p *v1.Probe) error {
	timeout := seconds(max(p.TimeoutSeconds, 1))
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	host := c.pod.address().String()
	switch {
	case p.HTTPGet != nil:
		return c.httpGet(ctx, p.HTTPGet)
	case p.TCPSocket != nil:
		if p.TCPSocket.Host != "" {
			host = p.TCPSocket.Host
		}
		port, err := c.port(p.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		return conn.Close()
	case p.Exec != nil:
		return c.exec(ctx, p.Exec.Command)
	case p.GRPC != nil:
		var service string
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		result, output, err := grpcprobe.New().Probe(host, service, int(p.GRPC.Port), timeout)
		if err == nil && result != probe.Success {
			err = errors.New(output)
		}
		return err
	}
	return errors.New("the probe has no handler")
}

// probeClient opens a new connection for each request and trusts any certificate, like a kubelet.
var probeClient = &http.Client{
	Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
}

func (c *container) httpGet(ctx context.Context, a *v1.HTTPGetAction) error {
	port, err := c.port(a.Port)
	if err != nil {
		return err
	}
	host := a.Host
	if host == "" {
		host = c.pod.address().String()
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		return fmt.Errorf("path of the probe: %w", err)
	}
	u.Scheme, u.Host = "http", net.JoinHostPort(host, strconv.Itoa(port))
	if a.Scheme == v1.URISchemeHTTPS {
		u.Scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/devcluster")
	for _, h := range a.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
		}
		req.Header.Add(h.Name, h.Value)
	}
	resp, err := probeClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	}
	return nil
}

// port resolves the number or name of one of the container's ports.
func (c *container) port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, k := range c.spec.Ports {
		if k.Name == p.StrVal {
			return int(k.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("container %s has no port %q", c.spec.Name, p.StrVal)
}

// exec runs a command in the surroundings of the container's current run.
func (c *container) exec(ctx context.Context, words []string) error {
	image, err := c.image()
	if err != nil {
		return err
	}
	c.pod.mu.Lock()
	env, ms := c.env, c.mounts
	c.pod.mu.Unlock()
	translated := make([]string, 0, len(words))
	for _, w := range words {
		translated = append(translated, ms.translate(w))
	}
	cmd := resolveCommand(image, translated)
	process, err := c.pod.rt.cfg.Launcher.Start(proc.Spec{Path: cmd.path, Args: cmd.args, Env: env, Dir: c.home(), Source: c.pod.address()})
	if err != nil {
		return err
	}
	select {
	case <-process.Done():
	case <-ctx.Done():
		process.Signal(syscall.SIGKILL)
		<-process.Done()
		return fmt.Errorf("command %q timed out", words)
	}
	if exit := process.Exit(); exit.Code != 0 {
		return fmt.Errorf("command %q exited with %d", words, exit.Code)
	}
	return nil
}

// preStop runs the container's preStop hook; the hook cannot outlast deadline.
func (c *container) preStop(process *proc.Process, deadline time.Time) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	ctx, cancel := context.WithDeadline(c.pod.ctx, deadline)
	defer cancel()
	go func() {
		select {
		case <-process.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	hook := c.spec.Lifecycle.PreStop
	var err error
	switch {
	case hook.Exec != nil:
		err = c.exec(ctx, hook.Exec.Command)
	case hook.HTTPGet != nil:
		err = c.httpGet(ctx, hook.HTTPGet)
	case hook.Sleep != nil:
		pause(ctx, time.Duration(hook.Sleep.Seconds)*time.Second)
	}
	if err != nil {
		c.pod.event(v1.EventTypeWarning, "FailedPreStopHook", c.spec.Name, "PreStopHook failed: "+err.Error())
	}
}
