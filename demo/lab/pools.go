package lab

import (
	"context"
	"crypto/md5"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

// diskBytes is the size of each node's disk, a sparse file.
const diskBytes = 10 << 30

// DeployDir has the manifests that a production cluster would get, below the repository's root.
const DeployDir = "deploy/"

// RaidTypes are those that there are manifests of pools for.
var RaidTypes = []string{cstorv1.RaidStripe, cstorv1.RaidMirror, cstorv1.RaidZ, cstorv1.RaidZ2}

// PoolsFile is the manifest of the pools, below the repository's root.
func (l *Lab) PoolsFile() string {
	if l.opts.Pools != "" {
		return l.opts.Pools
	}
	if l.opts.Raid == "" || l.opts.Raid == cstorv1.RaidStripe {
		return "examples/cspc.yaml"
	}
	return "examples/cspc-" + l.opts.Raid + ".yaml"
}

// RootPath returns a path below the repository's root.
func (l *Lab) RootPath(path string) string { return filepath.Join(l.opts.Root, path) }

// PoolCluster reads the pools' manifest.
func (l *Lab) PoolCluster() (*cstorv1.CStorPoolCluster, error) {
	text, err := os.ReadFile(l.RootPath(l.PoolsFile()))
	if err != nil {
		return nil, fmt.Errorf("reading the pools' manifest: %w", err)
	}
	c := &cstorv1.CStorPoolCluster{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		return nil, fmt.Errorf("reading %s: %w", l.PoolsFile(), err)
	}
	return c, nil
}

// Install applies the manifests of deploy/ and returns what kubectl prints.
func (l *Lab) Install(ctx context.Context) (string, error) {
	out, err := l.Kubectl(ctx, "apply", "-k", l.RootPath(DeployDir))
	if err != nil {
		return "", err
	}
	_, err = l.Kubectl(ctx, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
	return out, err
}

// WaitOperator waits until the operator is ready.
func (l *Lab) WaitOperator(ctx context.Context) error {
	return Until(ctx, time.Minute, "the operator to be ready", func(ctx context.Context) (bool, string, error) {
		pods := &corev1.PodList{}
		if err := l.Client.List(ctx, pods, client.InNamespace(Namespace)); err != nil {
			return false, "", err
		}
		state := "no pods"
		for i := range pods.Items {
			p := &pods.Items[i]
			if podReady(p) {
				return true, "", nil
			}
			state = p.Name + " is " + string(p.Status.Phase) + waitingReason(p)
		}
		return false, state, nil
	})
}

// waitingReason says why a container of the pod does not run.
func waitingReason(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil {
			return " (" + strings.TrimSuffix(w.Reason+": "+w.Message, ": ") + ")"
		}
	}
	return ""
}

// AddDisks gives each node sparse files as its disks and makes the BlockDevices that the node disk manager would make
// of them, under the names that the pools' manifest uses.
func (l *Lab) AddDisks(ctx context.Context) error {
	pools, err := l.PoolCluster()
	if err != nil {
		return err
	}
	for _, p := range pools.Spec.Pools {
		node := p.NodeSelector[cstorv1.LabelHostName]
		for _, g := range slices.Concat(p.DataRaidGroups, p.WriteCacheRaidGroups) {
			for _, d := range g.BlockDevices {
				if err := l.AddDisk(ctx, node, d.BlockDeviceName); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Disk is the file that is a disk of a node.
func (l *Lab) Disk(node, name string) string {
	return filepath.Join(l.opts.Dir, "disks", node, name+".img")
}

// AddDisk gives a node one more disk.
func (l *Lab) AddDisk(ctx context.Context, node, name string) error {
	path := l.Disk(node, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making a disk: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("making a disk: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(diskBytes); err != nil {
		return fmt.Errorf("making a disk: %w", err)
	}
	bd := &openebsv1alpha1.BlockDevice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: Namespace, Name: name,
			Labels: map[string]string{
				cstorv1.LabelHostName:           node,
				openebsv1alpha1.LabelDeviceType: "blockdevice",
				openebsv1alpha1.LabelManaged:    "false",
			},
		},
		Spec: openebsv1alpha1.DeviceSpec{
			NodeAttributes: openebsv1alpha1.NodeAttributes{NodeName: node},
			Path:           path,
			Capacity:       openebsv1alpha1.DeviceCapacity{Storage: diskBytes, LogicalSectorSize: 512, PhysicalSectorSize: 4096},
			Details: openebsv1alpha1.DeviceDetails{
				DeviceType: "sparse", LogicalBlockSize: 512, PhysicalBlockSize: 4096,
				Serial: fmt.Sprintf("%x", md5.Sum([]byte(node+name))),
			},
			DevLinks:    []openebsv1alpha1.DevLink{},
			Partitioned: "No",
		},
		Status: openebsv1alpha1.DeviceStatus{ClaimState: openebsv1alpha1.Unclaimed, State: openebsv1alpha1.DeviceActive},
	}
	if err := l.Client.Create(ctx, bd); err != nil {
		return fmt.Errorf("making a BlockDevice: %w", err)
	}
	return nil
}

// WaitPools waits until all pools of the cluster of pools are healthy.
func (l *Lab) WaitPools(ctx context.Context, name string) error {
	return Until(ctx, time.Minute, "the pools to be healthy", func(ctx context.Context) (bool, string, error) {
		c := &cstorv1.CStorPoolCluster{}
		if err := l.Get(ctx, name, c); err != nil {
			return false, "", err
		}
		s := c.Status
		if s.DesiredInstances == int32(len(c.Spec.Pools)) && s.HealthyInstances == s.DesiredInstances {
			return true, "", nil
		}
		state := fmt.Sprintf("%d of %d pools are healthy", s.HealthyInstances, len(c.Spec.Pools))
		for _, cond := range s.Conditions {
			state += ", " + cond.Message
		}
		return false, state, nil
	})
}

// Pools returns the pools of a cluster of pools, in the order of their hosts.
func (l *Lab) Pools(ctx context.Context, cluster string) ([]cstorv1.CStorPoolInstance, error) {
	list := &cstorv1.CStorPoolInstanceList{}
	err := l.Client.List(ctx, list, client.InNamespace(Namespace), client.MatchingLabels{cstorv1.LabelPoolCluster: cluster})
	if err != nil {
		return nil, fmt.Errorf("listing pools: %w", err)
	}
	slices.SortFunc(list.Items, func(a, b cstorv1.CStorPoolInstance) int {
		return strings.Compare(a.Spec.HostName, b.Spec.HostName)
	})
	return list.Items, nil
}

// Prepare installs everything and waits until all pools are healthy.
func (l *Lab) Prepare(ctx context.Context) error {
	if _, err := l.Install(ctx); err != nil {
		return err
	}
	if err := l.WaitOperator(ctx); err != nil {
		return err
	}
	if err := l.AddDisks(ctx); err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, "apply", "-f", l.RootPath(l.PoolsFile())); err != nil {
		return err
	}
	pools, err := l.PoolCluster()
	if err != nil {
		return err
	}
	return l.WaitPools(ctx, pools.Name)
}
