package pools

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// change is what an entry asks of the pool that was made of it.
//
// An instance keeps the order of its groups and of the devices in them, whatever the order in the entry is: a device
// that replaces another takes its place, what is added comes last. So the place says which device of the pool is meant
// when the device itself cannot be asked any more.
type change struct {
	data, cache []cstorv1.RaidGroup // of the instance from now on
	added       []string            // devices that the instance does not list yet
	predecessor map[string]string   // of those that replace one: which
}

// changeOf returns what is to change in a pool, or why that cannot be.
func (w *world) changeOf(p pool) (*change, error) {
	have, want := &p.instance.Spec, p.entry
	was, is := have.PoolConfig, want.PoolConfig
	if is.DataRaidGroupType != was.DataRaidGroupType || len(have.WriteCacheRaidGroups) > 0 && is.WriteCacheGroupType != was.WriteCacheGroupType {
		made := "dataRaidGroupType " + was.DataRaidGroupType
		if len(have.WriteCacheRaidGroups) > 0 {
			made += " and writeCacheGroupType " + was.WriteCacheGroupType
		}
		return nil, fmt.Errorf("raidgroup can't be modified: pool %s was made with %s", p.instance.Name, made)
	}
	c := &change{predecessor: map[string]string{}}
	var err error
	if c.data, err = w.regroup(c, is.DataRaidGroupType, want.DataRaidGroups, have.DataRaidGroups); err != nil {
		return nil, err
	}
	if c.cache, err = w.regroup(c, is.WriteCacheGroupType, want.WriteCacheRaidGroups, have.WriteCacheRaidGroups); err != nil {
		return nil, err
	}
	host := p.instance.Spec.HostName
	if nodes := w.nodesOf(want.NodeSelector); len(nodes) == 1 {
		host = hostOf(nodes[0])
	}
	for _, name := range c.added {
		if err := w.newcomerProblem(name, c.predecessor[name]); err != nil {
			return nil, err
		}
		if err := w.deviceProblem(name, host); err != nil {
			return nil, err
		}
	}
	for _, groups := range [][]cstorv1.RaidGroup{c.data, c.cache} {
		w.describe(groups, sets.New(c.added...))
	}
	return c, nil
}

// regroup returns the groups of an instance after a change, and notes in c which devices come with it.
func (w *world) regroup(c *change, kind string, want, have []cstorv1.RaidGroup) (groups []cstorv1.RaidGroup, err error) {
	used := make([]bool, len(want))
	for i := range have {
		at := slices.IndexFunc(want, func(g cstorv1.RaidGroup) bool {
			return kind == cstorv1.RaidStripe || len(namesOf(g).Intersection(namesOf(have[i]))) > 0
		})
		if at < 0 || used[at] {
			return nil, fmt.Errorf("raid group validation failed: removing raid group from pool spec is invalid operation: put back %s", list(namesOf(have[i])))
		}
		used[at] = true
		g, err := w.edit(c, kind, want[at], have[i])
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	for i, g := range want {
		if !used[i] {
			groups = append(groups, *g.DeepCopy())
			c.added = append(c.added, order(g)...)
		}
	}
	return groups, nil
}

// edit returns what becomes of one group.
func (w *world) edit(c *change, kind string, want, have cstorv1.RaidGroup) (cstorv1.RaidGroup, error) {
	g := *have.DeepCopy()
	removed := namesOf(have).Difference(namesOf(want))
	added := slices.DeleteFunc(order(want), namesOf(have).Has)
	switch stripe := kind == cstorv1.RaidStripe; {
	case len(want.BlockDevices) < len(have.BlockDevices):
		return g, fmt.Errorf("raid group validation failed: removing block device from %s raid group is not valid operation: put back %s", kind, list(removed))
	case !stripe && len(want.BlockDevices) > len(have.BlockDevices):
		return g, fmt.Errorf("raid group validation failed: adding block devices to existing %s raid group is not valid operation: "+
			"add a whole raid group of its own instead of %s", kind, strings.Join(added, ", "))
	case stripe && len(removed) > 0:
		return g, fmt.Errorf("cannot replace  blockdevice in stripe raid group: put back %s", list(removed))
	case len(removed) > 1:
		return g, fmt.Errorf("cannot replace more than one blockdevice in a raid group: put back all but one of %s, and go on when its data is on the new one", list(removed))
	case len(removed) == 1:
		old := removed.UnsortedList()[0]
		if err := w.replacementProblem(have, old, added[0]); err != nil {
			return g, err
		}
		at := slices.IndexFunc(g.BlockDevices, func(d cstorv1.CStorPoolInstanceBlockDevice) bool { return d.BlockDeviceName == old })
		g.BlockDevices[at] = cstorv1.CStorPoolInstanceBlockDevice{BlockDeviceName: added[0]}
		c.predecessor[added[0]] = old
	default:
		for _, name := range added {
			g.BlockDevices = append(g.BlockDevices, cstorv1.CStorPoolInstanceBlockDevice{BlockDeviceName: name})
		}
	}
	c.added = append(c.added, added...)
	return g, nil
}

// replacementProblem checks what is special about a device that is to take another's place in a group.
func (w *world) replacementProblem(group cstorv1.RaidGroup, old, fresh string) error {
	if w.inUse().Has(fresh) {
		return fmt.Errorf("the new blockdevice intended to use for replacement is already a part of the current cspc: %s", fresh)
	}
	for _, name := range order(group) {
		// But the new device of a replacement may have failed.
		if claim := w.claims[name]; name != old && claim != nil && claim.Annotations[cstorv1.AnnotationPredecessor] != "" {
			return fmt.Errorf("cannot replace blockdevice as a background replacement may be in progress in the raid group: "+
				"replacement is still in progress for bd %s: try again when it is done", name)
		}
	}
	var now, then int64
	if d := w.devices[fresh]; d != nil {
		now = d.Spec.Capacity.Storage
	}
	for _, d := range group.BlockDevices {
		if d.BlockDeviceName == old {
			then = d.Capacity
		}
	}
	if d := w.devices[old]; d != nil {
		then = d.Spec.Capacity.Storage
	}
	if w.devices[fresh] != nil && now < then {
		return fmt.Errorf("error: capacity of replacing block device {%s:%d} should be greater than or equal to existing block device {%s:%d}",
			fresh, now, old, then)
	}
	return nil
}

// newcomerProblem checks that a device is not on its way out of a pool.
func (w *world) newcomerProblem(name, predecessor string) error {
	leaving := false
	for _, claim := range w.claims {
		leaving = leaving || claim.Annotations[cstorv1.AnnotationPredecessor] == name && claim.Labels[cstorv1.LabelPoolCluster] == w.cluster.Name
	}
	switch {
	case leaving && predecessor != "":
		return fmt.Errorf("the new blockdevice intended to use for replacement in invalid: %s is being replaced itself", name)
	case leaving:
		return fmt.Errorf("pool expansion validation failed: can not use blockdevice %s validation failed: it is being replaced", name)
	case w.inUse().Has(name):
		return fmt.Errorf("pool expansion validation failed: can not use blockdevice %s validation failed: it is part of a pool", name)
	}
	return nil
}

// inUse returns the devices of all pools that exist.
func (w *world) inUse() sets.Set[string] {
	all := sets.New[string]()
	for i := range w.instances {
		all = all.Union(devicesOf(w.instances[i].Spec.DataRaidGroups, w.instances[i].Spec.WriteCacheRaidGroups))
	}
	return all
}

// regroup claims the devices that come to a pool and then lists them in its instance, from which its process takes them.
func (r *Reconciler) regroup(ctx context.Context, w *world, p pool) error {
	c, err := w.changeOf(p)
	if err != nil || len(c.added) == 0 {
		return err
	}
	for _, name := range c.added {
		if err := r.claim(ctx, w.cluster, w.devices[name], c.predecessor[name]); err != nil {
			return err
		}
	}
	return object.Update(ctx, r.Client, p.instance, func(in *cstorv1.CStorPoolInstance) {
		in.Spec.DataRaidGroups, in.Spec.WriteCacheRaidGroups = c.data, c.cache
		in.Spec.PoolConfig.WriteCacheGroupType = p.entry.PoolConfig.WriteCacheGroupType
	})
}

// describe fills in what is known of the named devices.
func (w *world) describe(groups []cstorv1.RaidGroup, names sets.Set[string]) {
	for i := range groups {
		for j := range groups[i].BlockDevices {
			d := &groups[i].BlockDevices[j]
			if bd := w.devices[d.BlockDeviceName]; bd != nil && names.Has(d.BlockDeviceName) {
				d.Capacity, d.DevLink = bd.Spec.Capacity.Storage, devLink(bd)
			}
		}
	}
}

// releaseStrays gives devices back that no pool and no entry lists any more: one that was replaced, when its data is on
// the new one, which the pool says by taking the new claim's mark away; and one of an entry that was changed before it
// became a pool.
func (r *Reconciler) releaseStrays(ctx context.Context, w *world) error {
	if len(w.strays()) == 0 {
		return nil
	}
	// What a cache does not show yet, a claim's mark above all, must not cost a device that is in use.
	cluster := &cstorv1.CStorPoolCluster{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(w.cluster), cluster); err != nil {
		return err
	}
	live, err := r.gather(ctx, r.Live, cluster)
	if err != nil {
		return err
	}
	for _, name := range live.strays() {
		if err := r.release(ctx, live.claims[name]); err != nil {
			return fmt.Errorf("give back block device %s: %w", name, err)
		}
		delete(w.claims, name)
	}
	return nil
}

// strays returns the devices that are claimed for the cluster, and that nothing needs.
func (w *world) strays() (names []string) {
	needed := w.inUse()
	for i := range w.cluster.Spec.Pools {
		p := &w.cluster.Spec.Pools[i]
		needed = needed.Union(devicesOf(p.DataRaidGroups, p.WriteCacheRaidGroups))
	}
	for n := -1; n != len(needed); { // one that is replaced may be about to replace another itself
		n = len(needed)
		for name, claim := range w.claims {
			if old := claim.Annotations[cstorv1.AnnotationPredecessor]; old != "" && claim.Labels[cstorv1.LabelPoolCluster] == w.cluster.Name && needed.Has(name) {
				needed.Insert(old)
			}
		}
	}
	for name, claim := range w.claims {
		if claim.Labels[cstorv1.LabelPoolCluster] == w.cluster.Name && !needed.Has(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// order returns the names of a group's devices as they are listed.
func order(g cstorv1.RaidGroup) (names []string) {
	for _, d := range g.BlockDevices {
		names = append(names, d.BlockDeviceName)
	}
	return names
}

func namesOf(g cstorv1.RaidGroup) sets.Set[string] { return sets.New(order(g)...) }

func list(names sets.Set[string]) string { return strings.Join(sets.List(names), ", ") }
