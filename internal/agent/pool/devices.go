package pool

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// place is where a device belongs: in the how-manieth raid group of data or of the write cache, and there in which column.
// The pool's object lists groups and devices in the order of their places; an object's stripe of n devices is n groups.
type place struct {
	cache         bool
	group, column int
}

// listed is a device that the pool's object lists, or one that is being replaced, and what was found on it.
type listed struct {
	name        string // of the BlockDevice
	place       place
	kind        string // of the raid group
	predecessor string // the BlockDevice that it replaces, until that is done
	claim       string // the BlockDeviceClaim that says so
	leaving     bool   // it is a predecessor itself and has no place any more

	path  string // on this node
	size  int64  // of the device now, if it is there
	label *engine.Label
	err   error // of finding or probing it
}

// guid is the device's identity, as far as it is a device of this pool.
func (d *listed) guid(owner string) (g block.GUID) {
	if d.err == nil && d.label != nil && d.label.Owner == owner {
		return d.label.Device
	}
	return g
}

// inventory is what the agent knows of the devices of an open pool.
type inventory struct {
	list   []listed
	looked time.Time
	groups [2][]cstorv1.RaidGroup // of the pool's object at that time: data, write cache
	states map[block.GUID]string  // of the pool's devices at that time
	limit  int                    // ReadOnlyPercent
	said   map[string]string      // BlockDevice → state that was reported last
	again  map[block.GUID]*retry  // devices that failed
	grown  string                 // the sizes for which room was taken last
	wrote  time.Time              // the progress of a replacement

	replacing, expanding, growing string // why it does not work
	expanded                      bool   // it did, which was not reported yet

	scrub scrubbing
}

// lookEvery is how often devices are looked for without a hint.
const lookEvery = 10 * time.Second

// findDevices resolves the BlockDevices that the pool's object lists to paths on this node, and says what is on them.
// trusted is asked which devices need not be probed, since what they carry is known.
func (a *Agent) findDevices(ctx context.Context, trusted func(name, path string) *engine.Label) ([]listed, error) {
	list := places(a.instance)
	claims := &openebsv1alpha1.BlockDeviceClaimList{}
	cluster := client.MatchingLabels{cstorv1.LabelPoolCluster: a.instance.Labels[cstorv1.LabelPoolCluster]}
	if err := a.Client.List(ctx, claims, client.InNamespace(a.Namespace), cluster); err != nil {
		return nil, fmt.Errorf("list BlockDeviceClaims: %w", err)
	}
	for i := 0; i < len(list); i++ { // one that leaves may have been about to replace another
		for _, c := range claims.Items {
			old := c.Annotations[cstorv1.AnnotationPredecessor]
			if c.Spec.BlockDeviceName != list[i].name || old == "" {
				continue
			}
			if !list[i].leaving {
				list[i].predecessor, list[i].claim = old, c.Name
			}
			if !slices.ContainsFunc(list, func(o listed) bool { return o.leaving && o.name == old }) {
				list = append(list, listed{name: old, leaving: true})
			}
		}
	}
	for i := range list {
		d := &list[i]
		cr := &openebsv1alpha1.BlockDevice{}
		err := a.Client.Get(ctx, types.NamespacedName{Namespace: a.Namespace, Name: d.name}, cr)
		switch {
		case apierrors.IsNotFound(err):
			d.err = fmt.Errorf("BlockDevice does not exist: %w", err)
			continue
		case err != nil:
			return nil, fmt.Errorf("read BlockDevice %s: %w", d.name, err)
		}
		d.path = devicePath(cr)
		if d.size, d.err = a.Storage.Size(d.path); d.err != nil {
			continue
		}
		if trusted != nil {
			d.label = trusted(d.name, d.path)
		}
		if d.label == nil {
			d.label, d.err = a.Storage.Probe(d.path)
		}
	}
	oneOwner(list)
	return list, nil
}

// places returns the devices that a pool's object lists.
func places(cr *cstorv1.CStorPoolInstance) (list []listed) {
	cfg := &cr.Spec.PoolConfig
	for _, class := range []struct {
		cache  bool
		kind   string
		groups []cstorv1.RaidGroup
	}{
		{false, cfg.DataRaidGroupType, cr.Spec.DataRaidGroups},
		{true, cfg.WriteCacheGroupType, cr.Spec.WriteCacheRaidGroups},
	} {
		at := place{cache: class.cache}
		for _, g := range class.groups {
			for _, bd := range g.BlockDevices {
				list = append(list, listed{name: bd.BlockDeviceName, place: at, kind: class.kind})
				if at.column++; class.kind == cstorv1.RaidStripe {
					at.group, at.column = at.group+1, 0
				}
			}
			if class.kind != cstorv1.RaidStripe {
				at.group, at.column = at.group+1, 0
			}
		}
	}
	return list
}

// groupsOf returns the raid groups that devices make, those in the places of one group together.
func groupsOf(list []listed) (groups []Group) {
	var last place
	for _, d := range list {
		if d.leaving {
			continue
		}
		if g := (place{cache: d.place.cache, group: d.place.group}); len(groups) == 0 || g != last {
			groups, last = append(groups, Group{Kind: d.kind, Cache: d.place.cache}), g
		}
		g := &groups[len(groups)-1]
		g.Devices = append(g.Devices, d.path)
	}
	return groups
}

// layout is the pool's devices by their places. A place has two while one device replaces the other.
// One that leaves the pool is not of it any more.
type layout struct {
	devices []DeviceInfo
	at      map[place][]DeviceInfo
	groups  map[bool]int // number of data and write cache groups
	leaving map[place]bool
}

func layoutOf(devices []DeviceInfo) layout {
	l := layout{at: map[place][]DeviceInfo{}, groups: map[bool]int{}, leaving: map[place]bool{}}
	devices = slices.Clone(devices)
	slices.SortStableFunc(devices, func(a, b DeviceInfo) int { return a.Group - b.Group })
	rank := map[int]int{} // group → how many of its class there are before it
	for _, d := range devices {
		if _, ok := rank[d.Group]; !ok {
			rank[d.Group] = l.groups[d.Cache]
			l.groups[d.Cache]++
		}
		at := place{d.Cache, rank[d.Group], d.Column}
		if d.State == stateLeaving {
			l.leaving[at] = true
			continue
		}
		l.devices, l.at[at] = append(l.devices, d), append(l.at[at], d)
	}
	return l
}

// device returns the device of the pool with that identity.
func (l *layout) device(g block.GUID) *DeviceInfo {
	for i := range l.devices {
		if l.devices[i].GUID == g && !g.IsZero() {
			return &l.devices[i]
		}
	}
	return nil
}

// member returns the device of the pool that a listed one is; nil if it is none. One that cannot be asked is known by its
// place, unless somebody else is known to be the device there.
func (a *Agent) member(l *layout, list []listed, d *listed) *DeviceInfo {
	owner := string(a.instance.UID)
	if g := d.guid(owner); !g.IsZero() {
		return l.device(g)
	}
	if d.leaving || d.predecessor != "" {
		return nil
	}
	return a.nobodys(l, list, d.place)
}

// nobodys returns the device of the pool in that place, if no listed device is known to be it; otherwise the only one of
// its group that no listed device is known to be. An object that somebody has edited may list devices in another order.
func (a *Agent) nobodys(l *layout, list []listed, at place) *DeviceInfo {
	known := map[block.GUID]bool{}
	for i := range list {
		known[list[i].guid(string(a.instance.UID))] = true
	}
	var rest []block.GUID
	for p, here := range l.at {
		for _, m := range here {
			switch {
			case known[m.GUID] || p.cache != at.cache || p.group != at.group:
			case p == at && len(here) == 1:
				return l.device(m.GUID)
			default:
				rest = append(rest, m.GUID)
			}
		}
	}
	if len(rest) != 1 {
		return nil
	}
	return l.device(rest[0])
}
