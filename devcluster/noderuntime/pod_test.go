package noderuntime

import (
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// testPod is a pod that has an address but does not run.
func testPod(t *testing.T, obj *v1.Pod) *pod {
	t.Helper()
	obj.Namespace, obj.Name, obj.UID = "openebs", "pool-0", "u-1"
	obj.Spec.NodeName, obj.Spec.ServiceAccountName = "node1", "maya"
	rt := &Runtime{cfg: Config{
		Client: fake.NewClientset(
			&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "openebs", Name: "cm"}, Data: map[string]string{"k1": "one", "k2": "two"}},
			&v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "openebs", Name: "sec"}, Data: map[string][]byte{"pw": []byte("x")}},
		),
		APIServer: netip.MustParseAddrPort("127.128.0.1:6443"),
		Log:       slog.New(slog.DiscardHandler),
	}}
	n := &node{
		rt: rt, cfg: NodeConfig{Name: "node1", Address: netip.MustParseAddr("127.128.1.1")},
		dir: t.TempDir(), log: rt.cfg.Log, events: record.NewFakeRecorder(100),
	}
	p := newPod(n, obj)
	p.addr = netip.MustParseAddr("127.128.1.9")
	return p
}

func field(path string) *v1.EnvVarSource {
	return &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: path}}
}

func TestBuildCommand(t *testing.T) {
	yes := true
	p := testPod(t, &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Labels: map[string]string{"a/b": "label"}, Annotations: map[string]string{"note": "annotation"},
	}})
	c := &v1.Container{
		Command: []string{"/usr/local/bin/cstor", "pool"},
		Args:    []string{"--name=$(NAME)", "$$(NAME)", "$(MISSING)", "--dir=/var/openebs/$(NAME)", "$(CHAIN)"},
		EnvFrom: []v1.EnvFromSource{{Prefix: "CM_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}},
		Env: []v1.EnvVar{
			{Name: "NAME", ValueFrom: field("metadata.name")},
			{Name: "NS", ValueFrom: field("metadata.namespace")},
			{Name: "ID", ValueFrom: field("metadata.uid")},
			{Name: "LABEL", ValueFrom: field("metadata.labels['a/b']")},
			{Name: "NOTE", ValueFrom: field("metadata.annotations['note']")},
			{Name: "NODE", ValueFrom: field("spec.nodeName")},
			{Name: "ACCOUNT", ValueFrom: field("spec.serviceAccountName")},
			{Name: "IP", ValueFrom: field("status.podIP")},
			{Name: "HOST", ValueFrom: field("status.hostIP")},
			{Name: "CHAIN", Value: "$(NS)/$(NAME)"},
			{Name: "DIR", Value: "/var/openebs/x"},
			{Name: "PW", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "sec"}, Key: "pw"}}},
			{Name: "NONE", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "no"}, Key: "pw", Optional: &yes}}},
		},
	}
	env, err := p.containerEnv(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := p.buildCommand(c, "/image", "/home", env, newMounts([]mount{{"/var/openebs", "/real"}}))
	if cmd.path != "/image" {
		t.Errorf("path is %q, want the image's executable", cmd.path)
	}
	wantArgs := []string{"/usr/local/bin/cstor", "pool", "--name=pool-0", "$(NAME)", "$(MISSING)", "--dir=/real/pool-0", "openebs/pool-0"}
	if !reflect.DeepEqual(cmd.args, wantArgs) {
		t.Errorf("arguments are\n%q, want\n%q", cmd.args, wantArgs)
	}
	for _, want := range []string{
		"CM_k1=one", "CM_k2=two", "NAME=pool-0", "NS=openebs", "ID=u-1", "LABEL=label", "NOTE=annotation", "NODE=node1", "ACCOUNT=maya",
		"IP=127.128.1.9", "HOST=127.128.1.1", "CHAIN=openebs/pool-0", "DIR=/real/x", "PW=x",
		"HOME=/home", "KUBERNETES_SERVICE_HOST=127.128.0.1", "KUBERNETES_SERVICE_PORT=6443",
	} {
		if !slices.Contains(cmd.env, want) {
			t.Errorf("environment lacks %s:\n%q", want, cmd.env)
		}
	}
	for _, e := range cmd.env {
		if e == "NONE=" {
			t.Error("an optional source that does not exist must leave the variable unset")
		}
	}
}

func TestCommandOfHost(t *testing.T) {
	if cmd := resolveCommand("/image", []string{"/bin/sh", "-c", "x"}); cmd.path != "/bin/sh" {
		t.Errorf("path is %q, want /bin/sh", cmd.path)
	}
	if cmd := resolveCommand("/image", []string{"sh"}); cmd.path != "/image" || cmd.args[0] != "sh" {
		t.Errorf("got %+v, want the image under the name sh", cmd)
	}
	if cmd := resolveCommand("/image", nil); cmd.path != "/image" || len(cmd.args) != 1 {
		t.Errorf("got %+v, want the image", cmd)
	}
}

func TestImages(t *testing.T) {
	m := Images{"openebs/cstor": "/a", "openebs/cstor:v2": "/b"}
	for image, want := range map[string]string{
		"openebs/cstor": "/a", "openebs/cstor:v1": "/a", "openebs/cstor:v2": "/b", "openebs/cstor@sha256:00": "/a", "other:v1": "", "host:5000/cstor": "",
	} {
		if got, _ := m.resolve(image); got != want {
			t.Errorf("resolve(%s) = %q, want %q", image, got, want)
		}
	}
}

func running() v1.ContainerState {
	return v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: now()}}
}

func exited(code int32) v1.ContainerState {
	return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: code}}
}

func waiting(reason string) v1.ContainerState {
	return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
}

func TestPhase(t *testing.T) {
	for _, tt := range []struct {
		name     string
		policy   v1.RestartPolicy
		init     v1.ContainerState
		states   [2]v1.ContainerState
		last     v1.ContainerState // of the first container
		finished bool
		deleted  bool
		want     v1.PodPhase
	}{
		{name: "fresh", policy: v1.RestartPolicyAlways, want: v1.PodPending},
		{name: "init failed for good", policy: v1.RestartPolicyNever, init: exited(1), want: v1.PodFailed},
		{name: "init fails", policy: v1.RestartPolicyAlways, init: exited(1), want: v1.PodPending},
		{name: "one runs", policy: v1.RestartPolicyAlways, init: exited(0), states: [2]v1.ContainerState{running(), running()}, want: v1.PodRunning},
		{name: "crash loop", policy: v1.RestartPolicyAlways, init: exited(0), states: [2]v1.ContainerState{waiting("CrashLoopBackOff"), exited(1)}, last: exited(1), want: v1.PodRunning},
		{name: "no image", policy: v1.RestartPolicyAlways, init: exited(0), states: [2]v1.ContainerState{waiting("ErrImageNeverPull"), waiting("ErrImageNeverPull")}, want: v1.PodPending},
		{name: "succeeded", policy: v1.RestartPolicyNever, init: exited(0), states: [2]v1.ContainerState{exited(0), exited(0)}, finished: true, want: v1.PodSucceeded},
		{name: "failed", policy: v1.RestartPolicyNever, init: exited(0), states: [2]v1.ContainerState{exited(0), exited(3)}, finished: true, want: v1.PodFailed},
		{name: "deleted", policy: v1.RestartPolicyAlways, init: exited(0), states: [2]v1.ContainerState{exited(0), exited(137)}, finished: true, deleted: true, want: v1.PodFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := testPod(t, &v1.Pod{Spec: v1.PodSpec{
				RestartPolicy: tt.policy, InitContainers: []v1.Container{{Name: "i"}}, Containers: []v1.Container{{Name: "a"}, {Name: "b"}},
			}})
			p.inits[0].state = tt.init
			p.containers[0].state, p.containers[1].state = tt.states[0], tt.states[1]
			p.containers[0].last = tt.last
			p.finished = tt.finished
			if tt.deleted {
				p.deadline = time.Now()
			}
			if got := p.status().Phase; got != tt.want {
				t.Errorf("phase is %s, want %s", got, tt.want)
			}
		})
	}
}

func TestStatusConditions(t *testing.T) {
	p := testPod(t, &v1.Pod{
		Spec:   v1.PodSpec{Containers: []v1.Container{{Name: "a", Image: "x:v1"}}},
		Status: v1.PodStatus{Conditions: []v1.PodCondition{{Type: v1.PodScheduled, Status: v1.ConditionTrue}, {Type: "example.org/other", Status: v1.ConditionTrue}}},
	})
	s := p.status()
	if podutil.IsPodReadyConditionTrue(s) {
		t.Error("a pod without a running container is ready")
	}
	if _, c := podutil.GetPodCondition(&s, v1.PodReady); c == nil || c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [a]" {
		t.Errorf("Ready condition is %+v", c)
	}
	p.sandbox = true
	c := p.containers[0]
	c.state, c.started, c.ready = running(), true, true
	s = p.status()
	if !podutil.IsPodReadyConditionTrue(s) || s.PodIP != "127.128.1.9" || s.HostIP != "127.128.1.1" {
		t.Errorf("status of a running pod is %+v", s)
	}
	for _, kept := range []v1.PodConditionType{v1.PodScheduled, "example.org/other"} {
		if _, cond := podutil.GetPodCondition(&s, kept); cond == nil || cond.Status != v1.ConditionTrue {
			t.Errorf("condition %s of somebody else is %+v", kept, cond)
		}
	}
	// What is reported once and read back is not reported again.
	p.api = p.api.DeepCopy()
	p.api.Status = s
	if again := p.status(); !reflect.DeepEqual(again, s) {
		t.Errorf("the status changes by itself:\n%+v\n%+v", s, again)
	}
}

// A node that was off takes its containers' history from the API.
func TestContainerAfterPowerCut(t *testing.T) {
	p := testPod(t, &v1.Pod{
		Spec: v1.PodSpec{RestartPolicy: v1.RestartPolicyAlways, Containers: []v1.Container{{Name: "a"}}},
		Status: v1.PodStatus{ContainerStatuses: []v1.ContainerStatus{{
			Name: "a", RestartCount: 4, ContainerID: "process://1", State: running(), Ready: true,
		}}},
	})
	c := p.containers[0]
	if c.restarts != 4 || !c.ran || c.ready || c.state.Terminated == nil || c.state.Terminated.Reason != "Unknown" {
		t.Errorf("container is %+v", c)
	}
}
