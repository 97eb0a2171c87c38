package noderuntime

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/uuid"

	"golang.org/x/sys/unix"
)

// leaseNamespace is where node Leases live.
const leaseNamespace = "kube-node-lease"

// minCPUs lets production manifests with their CPU requests fit on a small machine.
const minCPUs = 8

func (n *node) reference() *v1.ObjectReference {
	return &v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: n.cfg.Name, UID: types.UID(n.cfg.Name)}
}

// register makes the Node object, or reports a new life of it.
func (n *node) register(ctx context.Context) error {
	status := n.status(nil, uuid.NewUUID())
	obj := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name, Labels: map[string]string{
			v1.LabelHostname:   n.cfg.Name,
			v1.LabelOSStable:   runtime.GOOS,
			v1.LabelArchStable: runtime.GOARCH,
		}},
		Status: status,
	}
	_, err := n.rt.cfg.Client.CoreV1().Nodes().Create(ctx, obj, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		err = n.reportStatus(ctx, uuid.NewUUID())
	}
	if err == nil {
		err = n.renewLease(ctx)
	}
	if err != nil {
		return fmt.Errorf("registering node %s: %w", n.cfg.Name, err)
	}
	return nil
}

// heartbeat renews the Lease, and repeats the status now and then or when someone has changed it.
func (n *node) heartbeat(ctx context.Context) {
	lastStatus := time.Now()
	for pause(ctx, heartbeatPeriod) {
		if err := n.renewLease(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("cannot renew the node's lease", "error", err)
		}
		obj, err := n.rt.nodes.Get(n.cfg.Name)
		if err != nil {
			continue // deleted by an administrator: it stays so until the node is started anew
		}
		if time.Since(lastStatus) < statusPeriod && isReady(obj) {
			continue
		}
		if err := n.reportStatus(ctx, types.UID(obj.Status.NodeInfo.BootID)); err != nil && ctx.Err() == nil {
			n.log.Warn("cannot report the node's status", "error", err)
			continue
		}
		lastStatus = time.Now()
	}
}

func isReady(obj *v1.Node) bool {
	for _, c := range obj.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

func (n *node) reportStatus(ctx context.Context, bootID types.UID) error {
	client := n.rt.cfg.Client.CoreV1().Nodes()
	old, err := client.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node: %w", err)
	}
	before, err := json.Marshal(v1.Node{Status: old.Status})
	if err != nil {
		return fmt.Errorf("encoding node status: %w", err)
	}
	after, err := json.Marshal(v1.Node{Status: n.status(old.Status.Conditions, bootID)})
	if err != nil {
		return fmt.Errorf("encoding node status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, v1.Node{})
	if err != nil {
		return fmt.Errorf("comparing node status: %w", err)
	}
	if _, err = client.Patch(ctx, n.cfg.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("writing node status: %w", err)
	}
	return nil
}

func (n *node) renewLease(ctx context.Context) error {
	client := n.rt.cfg.Client.CoordinationV1().Leases(leaseNamespace)
	renewed, seconds := metav1.NewMicroTime(time.Now()), int32(40)
	lease, err := client.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = client.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &n.cfg.Name, LeaseDurationSeconds: &seconds, RenewTime: &renewed},
		}, metav1.CreateOptions{})
	case err == nil:
		lease.Spec.RenewTime = &renewed
		_, err = client.Update(ctx, lease, metav1.UpdateOptions{})
	}
	return err
}

func (n *node) capacity() v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(max(runtime.NumCPU(), minCPUs)), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(n.rt.host.memory, resource.BinarySI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(n.rt.host.disk, resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
}

// status is what the node says about itself; old are the conditions it replaces.
func (n *node) status(old []v1.NodeCondition, bootID types.UID) v1.NodeStatus {
	s := v1.NodeStatus{
		Capacity: n.capacity(), Allocatable: n.capacity(),
		Addresses: []v1.NodeAddress{
			{Type: v1.NodeInternalIP, Address: n.cfg.Address.String()},
			{Type: v1.NodeHostName, Address: n.cfg.Name},
		},
		DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: int32(n.logs.port)}},
		NodeInfo: v1.NodeSystemInfo{
			MachineID: strings.ReplaceAll(n.cfg.Name, "-", ""), SystemUUID: n.cfg.Name, BootID: string(bootID),
			KernelVersion: n.rt.host.kernel, OSImage: n.rt.host.os,
			ContainerRuntimeVersion: runtimeVersion, KubeletVersion: n.rt.cfg.Version,
			OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		},
	}
	heartbeat := now()
	for _, c := range []v1.NodeCondition{
		{Type: v1.NodeMemoryPressure, Status: v1.ConditionFalse, Reason: "KubeletHasSufficientMemory", Message: "kubelet has sufficient memory available"},
		{Type: v1.NodeDiskPressure, Status: v1.ConditionFalse, Reason: "KubeletHasNoDiskPressure", Message: "kubelet has no disk pressure"},
		{Type: v1.NodePIDPressure, Status: v1.ConditionFalse, Reason: "KubeletHasSufficientPID", Message: "kubelet has sufficient PID available"},
		{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"},
	} {
		c.LastHeartbeatTime, c.LastTransitionTime = heartbeat, heartbeat
		for _, o := range old {
			if o.Type == c.Type && o.Status == c.Status {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
		s.Conditions = append(s.Conditions, c)
	}
	return s
}

// hostInfo describes the machine that all nodes are on.
type hostInfo struct {
	memory, disk int64 // bytes
	kernel, os   string
}

func readHost(dir string) (hostInfo, error) {
	var h hostInfo
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return h, fmt.Errorf("reading memory size: %w", err)
	}
	h.memory = int64(si.Totalram) * int64(si.Unit)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return h, fmt.Errorf("reading file system size: %w", err)
	}
	h.disk = int64(fs.Blocks) * fs.Bsize
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return h, fmt.Errorf("reading kernel version: %w", err)
	}
	h.kernel = unix.ByteSliceToString(uts.Release[:])
	h.os = "Linux"
	if f, err := os.Open("/etc/os-release"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
				h.os = strings.Trim(v, `"`)
			}
		}
	}
	return h, nil
}
