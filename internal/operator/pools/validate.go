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
	hosts := map[string]bool{}
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
		nodes := w.nodesOf(entry.NodeSelector)
		if len(nodes) != 1 {
			return fmt.Errorf("failed to get node from pool nodeSelector: {%v} error: {invalid no.of nodes %d from the given node selectors}",
				entry.NodeSelector, len(nodes))
		}
		host := hostOf(nodes[0])
		if hosts[host] {
			return fmt.Errorf("invalid cspc: duplicate node %s entry", host)
		}
		hosts[host] = true
		if err := raidProblem(entry); err != nil {
			return fmt.Errorf("pool on node %s: %w", host, err)
		}
		var err error
		if in := w.pools[i].instance; in != nil {
			err = changeProblem(entry, in)
		} else {
			err = w.devicesProblem(entry, host)
		}
		if err != nil {
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

var compressions = []string{"", "on", "off", "lzjb", "gzip", "zle", "lz4"}

// raidProblem checks what an entry says about raid groups.
func raidProblem(entry *cstorv1.PoolSpec) error {
	cfg := &entry.PoolConfig
	switch cfg.DataRaidGroupType {
	case "":
		return fmt.Errorf("invalid pool spec: missing dataRaidGroupType")
	case cstorv1.RaidStripe:
	case cstorv1.RaidMirror, cstorv1.RaidZ, cstorv1.RaidZ2:
		return fmt.Errorf("unsupported dataRaidGroupType '%s' specified: this release makes pools of type stripe only", cfg.DataRaidGroupType)
	default:
		return fmt.Errorf("unsupported dataRaidGroupType '%s' specified", cfg.DataRaidGroupType)
	}
	if !slices.Contains(compressions, cfg.Compression) {
		return fmt.Errorf("unsupported compression '%s' specified", cfg.Compression)
	}
	if l := cfg.ROThresholdLimit; l != nil && (*l < 0 || *l > 100) {
		return fmt.Errorf("roThresholdLimit %d is not between 0 and 100", *l)
	}
	if len(entry.WriteCacheRaidGroups) > 0 {
		return fmt.Errorf("writeCacheRaidGroups are not supported by this release: remove them")
	}
	switch groups := entry.DataRaidGroups; {
	case len(groups) == 0:
		return fmt.Errorf("at least one raid group should be present on dataRaidGroups")
	case len(groups) != 1:
		return fmt.Errorf("stripe dataRaidGroups should have exactly one raidGroup")
	case len(groups[0].BlockDevices) == 0:
		return fmt.Errorf("number of block devices honouring raid type should be specified: stripe needs at least one")
	}
	return nil
}

// changeProblem checks that an entry still lists the devices of the pool that was made of it.
func changeProblem(entry *cstorv1.PoolSpec, in *cstorv1.CStorPoolInstance) error {
	want, have := devicesOf(entry.DataRaidGroups), devicesOf(in.Spec.DataRaidGroups)
	added, removed := sets.List(want.Difference(have)), sets.List(have.Difference(want))
	switch {
	case len(added) > 0 && len(removed) > 0:
		return fmt.Errorf("cannot replace  blockdevice in stripe raid group of pool %s: put back %s", in.Name, strings.Join(removed, ", "))
	case len(removed) > 0:
		return fmt.Errorf("removing block device from stripe raid group is not valid operation: put back %s", strings.Join(removed, ", "))
	case len(added) > 0:
		return fmt.Errorf("adding block devices to existing stripe raid group is not valid operation in this release: remove %s", strings.Join(added, ", "))
	}
	return nil
}

// devicesProblem checks the devices of an entry of which a pool is to be made.
func (w *world) devicesProblem(entry *cstorv1.PoolSpec, host string) error {
	for _, name := range sets.List(devicesOf(entry.DataRaidGroups)) {
		if name == "" {
			return fmt.Errorf("block device name is empty")
		}
		d := w.devices[name]
		if d == nil {
			return fmt.Errorf("block device %q not found: `kubectl get bd -n %s` lists what there is", name, w.cluster.Namespace)
		}
		if err := w.deviceProblem(d, host); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) deviceProblem(d *ndmv1.BlockDevice, host string) error {
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
