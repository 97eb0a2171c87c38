package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const tiny = `
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting}
data: {greeting: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: tiny}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: tiny}}
  template:
    metadata: {labels: {app: tiny}}
    spec:
      nodeSelector: {kubernetes.io/hostname: n1}
      tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}]
      containers:
      - name: tiny
        image: tiny:v1
        args: [/data/x, /config]
        env:
        - {name: DEVCLUSTER_E2E_ROLE, value: server}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 2}
        volumeMounts:
        - {name: data, mountPath: /data/x}
        - {name: config, mountPath: /config}
      volumes:
      - {name: data, hostPath: {path: /var/tiny, type: DirectoryOrCreate}}
      - {name: config, configMap: {name: greeting}}
---
apiVersion: v1
kind: Service
metadata: {name: tiny}
spec:
  selector: {app: tiny}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: unused, port: 81, targetPort: unused}
`

const others = `
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: c, image: tiny, env: [{name: DEVCLUSTER_E2E_ROLE, value: crash}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: unknown}
spec:
  containers: [{name: c, image: nobody/knows:v1, imagePullPolicy: Never}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - {name: i, image: tiny, command: [/bin/sh, -c, 'echo x > /e/from-init'], volumeMounts: [{name: e, mountPath: /e}]}
      containers:
      - {name: c, image: tiny, args: [/e/from-init], env: [{name: DEVCLUSTER_E2E_ROLE, value: job}], volumeMounts: [{name: e, mountPath: /e}]}
      volumes: [{name: e, emptyDir: {}}]
`

func TestCluster(t *testing.T) {
	c := startCluster(t, "n1,n2")
	c.apply(tiny)
	pod := c.runningPod("")
	url := "http://" + c.get("svc/tiny", "{.spec.clusterIP}") + ":80/"
	c.eventually("the Service to answer", func() bool { return fetch(url) == pod+" hello" })
	if _, err := os.Stat(filepath.Join(c.dir, "nodes/n1/root/var/tiny/starts")); err != nil {
		t.Errorf("the pod's file is not where its hostPath is: %v", err)
	}
	if out := c.run("kubectl", "get", "nodes", "-o", "wide"); strings.Count(out, " Ready ") != 2 {
		t.Errorf("nodes are\n%s", out)
	}
	c.checkCredentials(pod)

	t.Log("kill -9: the container is started again")
	if err := syscall.Kill(c.of(pod).PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.eventually("the container to be ready again", func() bool {
		return c.get("pod/"+pod, "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready} {.status.containerStatuses[0].lastState.terminated.exitCode}") == "1 true 137"
	})
	c.eventually("the Service to answer again", func() bool { return fetch(url) == pod+" hello" })

	t.Log("power cut: nobody is told, the node becomes NotReady")
	c.run("stop-node", "n1")
	if pid := c.of(pod).PID; pid != 0 {
		t.Errorf("process %d is left on a node that is off", pid)
	}
	if got := c.get("pod/"+pod, "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}"); got != "1 true" {
		t.Errorf("after the power cut the API says %q", got)
	}
	c.within(60*time.Second, "the node to be NotReady", func() bool {
		return c.get("node/n1", `{.status.conditions[?(@.type=="Ready")].status}`) == "Unknown"
	})
	c.eventually("the Service to refuse", func() bool {
		_, err := net.DialTimeout("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"), time.Second)
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	c.eventually("the pod to be evicted", func() bool { return c.get("pod/"+pod, "{.metadata.deletionTimestamp}") != "" })

	t.Log("power again: what was evicted disappears, its successor runs")
	c.run("start-node", "n1")
	c.eventually("the evicted pod to disappear", func() bool { return c.get("pod/"+pod, "{.metadata.name}") == "" })
	second := c.runningPod(pod)

	t.Log("power cut and power before anybody notices: the same pod is started again")
	c.run("stop-node", "n1")
	c.run("start-node", "n1")
	c.eventually("the pod to run again", func() bool {
		return c.of(second).PID != 0 && c.get("pod/"+second, "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}") == "1 true"
	})

	t.Log("deleting ends the process gracefully")
	c.run("kubectl", "delete", "deploy/tiny")
	c.eventually("the pod to disappear", func() bool { return c.get("pod/"+second, "{.metadata.name}") == "" && c.of(second).PID == 0 })
	if log := c.run("logs", second); !strings.Contains(log, "told to end") {
		t.Errorf("the log of the pod is %q", log)
	}

	c.checkOthers()
}

// runningPod waits for a ready pod of the Deployment other than not; it returns its name.
func (c *cluster) runningPod(not string) (name string) {
	c.t.Helper()
	c.eventually("a ready pod", func() bool {
		out, _ := c.try("kubectl", "get", "pods", "-l", "app=tiny", "--no-headers")
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) > 2 && f[0] != not && f[1] == "1/1" && f[2] == "Running" {
				name = f[0]
				return true
			}
		}
		return false
	})
	return name
}

// checkCredentials acts as the pod: it is its ServiceAccount and may do what that may.
func (c *cluster) checkCredentials(pod string) {
	c.t.Helper()
	environ, err := os.ReadFile("/proc/" + strconv.Itoa(c.of(pod).PID) + "/environ")
	if err != nil {
		c.t.Fatal(err)
	}
	var kubeconfig string
	for _, e := range strings.Split(string(environ), "\x00") {
		if v, ok := strings.CutPrefix(e, "KUBECONFIG="); ok {
			kubeconfig = v
		}
	}
	cmd := exec.Command(c.bin, "kubectl", "get", "pods", "--cache-dir", filepath.Join(c.dir, "kubectl-cache"))
	cmd.Env = c.env(kubeconfig)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), `User "system:serviceaccount:default:default" cannot list`) {
		c.t.Errorf("listing pods as the pod gives %v\n%s", err, out)
	}
}

// checkOthers looks at pods that crash, cannot start, and complete.
func (c *cluster) checkOthers() {
	c.apply(others)
	c.eventually("a crash loop", func() bool {
		return c.get("pod/crash", "{.status.phase} {.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].lastState.terminated.exitCode}") ==
			"Running CrashLoopBackOff 7"
	})
	c.eventually("an image that is missing", func() bool {
		return c.get("pod/unknown", "{.status.phase} {.status.containerStatuses[0].state.waiting.reason}") == "Pending ErrImageNeverPull"
	})
	c.eventually("a job to complete", func() bool { return c.get("job/job", "{.status.succeeded}") == "1" })
	c.eventually("logs through the API server", func() bool {
		out, err := c.try("kubectl", "logs", "crash", "--tail=1")
		return err == nil && out == "crashing"
	})
	c.run("kubectl", "delete", "pod", "crash", "--force", "--grace-period=0")
	c.eventually("the forcibly deleted pod's process to end", func() bool { return c.of("crash").PID == 0 })
}

// A supervisor that is killed takes everything with it; its directory can be used again.
func TestSupervisorKilled(t *testing.T) {
	c := startCluster(t, "n1")
	c.apply(tiny)
	c.runningPod("")
	pid, err := os.ReadFile(filepath.Join(c.dir, "devcluster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.eventually("all processes to end", func() bool { return len(c.leftovers()) == 0 })
}

// An interrupt during the start leaves nothing, whenever it comes.
func TestInterruptedStart(t *testing.T) {
	c := startCluster(t, "n1") // for its check at the end, and to have two clusters at a time
	for _, after := range []string{"devcluster.pid", "pki/ca.crt", "etcd", "nodes", "control.sock"} {
		dir := filepath.Join(t.TempDir(), "other")
		cmd := exec.Command(c.bin, "up", "--dir", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c.eventually(after+" to exist", func() bool {
			_, err := os.Stat(filepath.Join(dir, after))
			return err == nil
		})
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		other := &cluster{t: t, bin: c.bin, dir: dir}
		if _, err := os.Stat(dir); !os.IsNotExist(err) || len(other.leftovers()) > 0 {
			t.Errorf("interrupted when %s existed: left are %v, %s", after, err, other.leftovers())
		}
	}
}

// fetch returns the body of an HTTP answer, or why there is none.
func fetch(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}
