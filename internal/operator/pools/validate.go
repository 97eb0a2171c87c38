package pools

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

// problem returns what is wrong with the cluster's specification, or nil. These are the admission webhook's rules; its
// texts are kept where users match on them, and say in addition what to do.
func (w *world) problem() error {
	c := w.cluster
	if len(c.Spec.Pools) == 0 {
		return fmt.Errorf("pools in cspc should have at least one item")
	}
	listed := sets.New[string]()
	for i := range c.Spec.Pools {
		entry := &c.Spec.Pools[i]
		for _, g := range slices.Concat(entry.DataRaidGroups, entry.WriteCacheRaidGroups) {
			for _, d := range g.BlockDevices {
				if listed.Has(d.BlockDeviceName) {
					return fmt.Errorf("invalid cspc: cspc {%s} has duplicate blockdevices entries [%s]", c.Name, d.BlockDeviceName)
				}
				listed.Insert(d.BlockDeviceName)
			}
		}
		host, err := w.place(entry)
		if err != nil {
			return err
		}
		if err := w.entryProblem(w.pools[i], host); err != nil {
			return fmt.Errorf("pool on node %s: %w", host, err)
		}
	}
	for _, in := range w.surplus {
		if len(w.replicas[in.Name]) > 0 {
			return fmt.Errorf("volume still exists on pool %s: move or delete its replicas (%d) before removing its entry", in.Name, len(w.replicas[in.Name]))
		}
	}
	return nil
}

// place returns the host that an entry's pool is to be on, which must be one, and no other entry's.
func (w *world) place(entry *cstorv1.PoolSpec) (host string, err error) {
	nodes := w.nodesOf(entry.NodeSelector)
	if len(nodes) != 1 {
		return "", fmt.Errorf("failed to get node from pool nodeSelector: {%v} error: {invalid no.of nodes %d from the given node selectors}",
			entry.NodeSelector, len(nodes))
	}
	host = hostOf(nodes[0])
	for i := range w.cluster.Spec.Pools {
		other := &w.cluster.Spec.Pools[i]
		if nodes := w.nodesOf(other.NodeSelector); other != entry && len(nodes) == 1 && hostOf(nodes[0]) == host {
			return "", fmt.Errorf("invalid cspc: duplicate node %s entry", host)
		}
	}
	return host, nil
}

// entryProblem checks an entry for a node and what it asks of the pool that was made of it.
func (w *world) entryProblem(p pool, host string) error {
	if err := raidProblem(p.entry); err != nil {
		return fmt.Errorf("invalid pool spec: %w", err)
	}
	if p.instance != nil {
		_, err := w.changeOf(p)
		return err
	}
	for _, name := range sets.List(devicesOf(p.entry.DataRaidGroups, p.entry.WriteCacheRaidGroups)) {
		if err := w.newcomerProblem(name, ""); err != nil {
			return err
		}
		if err := w.deviceProblem(name, host); err != nil {
			return err
		}
	}
	return nil
}

// deviceProblem checks a device that is to become part of a pool on a node.
func (w *world) deviceProblem(name, host string) error {
	if name == "" {
		return fmt.Errorf("block device name cannot be empty")
	}
	d := w.devices[name]
	if d == nil {
		return fmt.Errorf("block device %q not found: `kubectl get bd -n %s` lists what there is", name, w.cluster.Namespace)
	}
	tag, tagged := d.Labels[ndmv1.LabelTag]
	switch {
	case d.Status.State != ndmv1.DeviceActive:
		return fmt.Errorf("block device %q is in not in active state", d.Name)
	case d.Spec.FileSystem.Type != "" && d.Spec.FileSystem.Type != "zfs_member":
		return fmt.Errorf("block device %s: block device has file system {%s}", d.Name, d.Spec.FileSystem.Type)
	case deviceHost(d) != host:
		return fmt.Errorf("block device %s doesn't belongs to node %s", d.Name, host)
	case tagged && strings.TrimSpace(tag) == "":
		return fmt.Errorf("block device %s has an empty %s label and may not be used", d.Name, ndmv1.LabelTag)
	case tagged && !slices.Contains(w.allowedTags(), tag):
		return fmt.Errorf("block device %s has tag %s, which annotation %s does not allow", d.Name, tag, cstorv1.AnnotationAllowedTags)
	}
	claim := w.claims[d.Name]
	ours := claim != nil && claim.Labels[cstorv1.LabelPoolCluster] == w.cluster.Name
	if (claim != nil || d.Status.ClaimState == ndmv1.Claimed) && !ours {
		return fmt.Errorf("can't use claimed blockdevice %s", d.Name)
	}
	return nil
}

func (w *world) allowedTags() (tags []string) {
	for tag := range strings.SplitSeq(w.cluster.Annotations[cstorv1.AnnotationAllowedTags], ",") {
		tags = append(tags, strings.TrimSpace(tag))
	}
	return tags
}

func deviceHost(d *ndmv1.BlockDevice) string {
	if h := d.Labels[cstorv1.LabelHostName]; h != "" {
		return h
	}
	return d.Spec.NodeAttributes.NodeName
}
