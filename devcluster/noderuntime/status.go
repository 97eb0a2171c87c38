package noderuntime

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// reportStatus writes the pod's status to the API whenever it differs from what is there.
func (p *pod) reportStatus() {
	for {
		select {
		case <-p.dirty:
			p.pushStatus()
		case <-p.ctx.Done():
			return
		}
	}
}

// pushStatus returns when the API has the pod's current status, or the pod is gone or silent.
func (p *pod) pushStatus() {
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		p.mu.Lock()
		base, want, silent := p.api, p.status(), p.silent
		p.mu.Unlock()
		if silent || apiequality.Semantic.DeepEqual(base.Status, want) {
			return
		}
		updated, err := p.patchStatus(&base.Status, &want)
		if err == nil {
			p.mu.Lock()
			if newer(updated, p.api) {
				p.api = updated
			}
			p.mu.Unlock()
			return
		}
		if p.ctx.Err() != nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return // a conflict means that the name belongs to another pod now
		}
		p.log.Warn("cannot report the pod's status, trying again", "error", err)
		if !pause(p.ctx, delay) {
			return
		}
	}
}

func (p *pod) patchStatus(base, want *v1.PodStatus) (*v1.Pod, error) {
	before, err := json.Marshal(v1.Pod{Status: *base})
	if err != nil {
		return nil, fmt.Errorf("encoding pod status: %w", err)
	}
	// The UID appears in the patch only, which makes it a precondition.
	after, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: p.uid}, Status: *want})
	if err != nil {
		return nil, fmt.Errorf("encoding pod status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("comparing pod status: %w", err)
	}
	return p.rt.cfg.Client.CoreV1().Pods(p.namespace).Patch(p.ctx, p.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
}

// status computes the pod's status from what its containers do; conditions and fields of others are kept as they are.
// The pod's mutex is held.
func (p *pod) status() v1.PodStatus {
	s := *p.api.Status.DeepCopy()
	s.ObservedGeneration = p.api.Generation
	s.StartTime = &p.startTime
	host := p.node.cfg.Address.String()
	s.HostIP, s.HostIPs = host, []v1.HostIP{{IP: host}}
	if p.addr.IsValid() {
		s.PodIP, s.PodIPs = p.addr.String(), []v1.PodIP{{IP: p.addr.String()}}
	}
	s.InitContainerStatuses = nil
	for _, c := range p.inits {
		s.InitContainerStatuses = append(s.InitContainerStatuses, c.status("PodInitializing"))
	}
	waiting := "ContainerCreating"
	if len(p.inits) > 0 && p.sandbox {
		waiting = "PodInitializing"
	}
	s.ContainerStatuses = nil
	for _, c := range p.containers {
		s.ContainerStatuses = append(s.ContainerStatuses, c.status(waiting))
	}
	if !podutil.IsPodPhaseTerminal(s.Phase) {
		s.Phase = p.phase()
	}
	p.setConditions(&s)
	return s
}

// status is the container's part; waiting is the reason shown before its first start.
func (c *container) status(waiting string) v1.ContainerStatus {
	started := c.started
	s := v1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, ContainerID: c.id, RestartCount: c.restarts,
		Ready: c.ready, Started: &started, State: c.state, LastTerminationState: c.last,
	}
	if c.id != "" {
		s.ImageID = repository(c.spec.Image) + "@process"
	}
	if c.init {
		s.Ready = c.state.Terminated != nil && c.state.Terminated.ExitCode == 0
	}
	if s.State == (v1.ContainerState{}) {
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: waiting}
	}
	if c.pod.finished && s.State.Waiting != nil && c.ran {
		// The pod ended while the container waited for its next start: what counts is how it ended last.
		if c.last.Terminated != nil {
			s.State = c.last
		}
	}
	return s
}

// phase follows the rules of a kubelet.
func (p *pod) phase() v1.PodPhase {
	policy := p.api.Spec.RestartPolicy
	for _, c := range p.inits {
		switch t := c.state.Terminated; {
		case t != nil && t.ExitCode == 0:
			continue
		case t != nil && policy == v1.RestartPolicyNever || p.finished && p.ended():
			return v1.PodFailed
		}
		return v1.PodPending
	}
	var waiting, failed, succeeded int
	for _, c := range p.containers {
		t := c.state.Terminated
		if t == nil && c.state.Waiting != nil && c.last.Terminated != nil {
			t = c.last.Terminated
		}
		switch {
		case c.state.Running != nil:
			return v1.PodRunning
		case t == nil:
			waiting++
		case t.ExitCode == 0:
			succeeded++
		default:
			failed++
		}
	}
	switch {
	case p.finished && p.ended() && waiting+failed > 0:
		return v1.PodFailed
	case waiting > 0:
		return v1.PodPending
	case !p.finished:
		return v1.PodRunning
	case failed > 0:
		return v1.PodFailed
	}
	return v1.PodSucceeded
}

// ended says whether the pod is over because it was told to end, not by itself.
func (p *pod) ended() bool { return !p.deadline.IsZero() }

func (p *pod) setConditions(s *v1.PodStatus) {
	var unready, uninitialized []string
	for _, c := range p.containers {
		if !c.ready {
			unready = append(unready, c.spec.Name)
		}
	}
	for _, c := range s.InitContainerStatuses {
		if !c.Ready {
			uninitialized = append(uninitialized, c.Name)
		}
	}
	set := func(kind v1.PodConditionType, ok bool, reason, message string) {
		cond := v1.PodCondition{Type: kind, Status: v1.ConditionTrue, ObservedGeneration: p.api.Generation, LastTransitionTime: now()}
		if !ok {
			cond.Status, cond.Reason, cond.Message = v1.ConditionFalse, reason, message
		}
		i, old := podutil.GetPodConditionFromList(s.Conditions, kind)
		if old != nil && old.Status == cond.Status {
			cond.LastTransitionTime = old.LastTransitionTime
		}
		if i < 0 {
			s.Conditions = append(s.Conditions, cond)
		} else {
			s.Conditions[i] = cond
		}
	}
	set(v1.PodReadyToStartContainers, p.sandbox && !p.finished, "", "")
	set(v1.PodInitialized, len(uninitialized) == 0, "ContainersNotInitialized",
		fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(uninitialized, " ")))
	reason, message := "ContainersNotReady", fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	switch s.Phase {
	case v1.PodSucceeded:
		reason, message = "PodCompleted", ""
	case v1.PodFailed:
		reason, message = "PodFailed", ""
	}
	ready := len(unready) == 0 && s.Phase == v1.PodRunning
	set(v1.ContainersReady, ready, reason, message)
	for _, gate := range p.api.Spec.ReadinessGates {
		if _, cond := podutil.GetPodConditionFromList(s.Conditions, gate.ConditionType); ready && (cond == nil || cond.Status != v1.ConditionTrue) {
			ready, reason, message = false, "ReadinessGatesNotReady", fmt.Sprintf("the status of pod readiness gate %q is not \"True\"", gate.ConditionType)
		}
	}
	set(v1.PodReady, ready, reason, message)
}
