package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// syncDevices makes an open pool follow what its object lists: devices that are there again are given back to it, those
// that replace others and those that are added are brought in. Then it reports how the devices are.
func (a *Agent) syncDevices(ctx context.Context, eng Engine) error {
	if a.instance.DeletionTimestamp != nil {
		return nil
	}
	if limit := readOnlyLimit(a.instance); limit != a.disks.limit {
		eng.SetReadOnlyPercent(limit)
		a.disks.limit = limit
		a.Log.Info("pool follows a new limit", "roThresholdLimit", limit)
	}
	if a.lookDue(eng) {
		if err := a.look(ctx, eng); err != nil {
			return err
		}
		a.giveBack(eng)
		a.replace(ctx, eng)
		a.expand(ctx, eng)
	}
	l := layoutOf(eng.Devices())
	a.disks.states = states(l.devices)
	a.nameDevices(&l)
	return errors.Join(a.replaced(ctx, eng, &l), a.reportReplacement(ctx, eng), a.reportExpansion(ctx), a.reportDevices(ctx, eng, &l))
}

// lookDue reports whether it is time to look for devices: there is news, or there was none for a while.
func (a *Agent) lookDue(eng Engine) bool {
	d, spec := &a.disks, &a.instance.Spec
	return a.Now().Sub(d.looked) >= lookEvery ||
		!equality.Semantic.DeepEqual(d.groups, [2][]cstorv1.RaidGroup{spec.DataRaidGroups, spec.WriteCacheRaidGroups}) ||
		!maps.Equal(d.states, states(eng.Devices()))
}

func states(devices []DeviceInfo) map[block.GUID]string {
	m := map[block.GUID]string{}
	for _, d := range devices {
		if d.State != stateLeaving {
			m[d.GUID] = d.State
		}
	}
	return m
}

// look finds the devices anew. A device that the pool works with is not read again.
func (a *Agent) look(ctx context.Context, eng Engine) error {
	now := states(eng.Devices())
	before := a.disks.list
	list, err := a.findDevices(ctx, func(name, path string) *engine.Label {
		for i := range before {
			d := &before[i]
			if g := d.guid(string(a.instance.UID)); d.name == name && d.path == path && (now[g] == stateOnline || now[g] == stateResilvering) {
				return d.label
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	spec := a.instance.Spec.DeepCopy()
	a.disks.list, a.disks.looked = list, a.Now()
	a.disks.groups = [2][]cstorv1.RaidGroup{spec.DataRaidGroups, spec.WriteCacheRaidGroups}
	return nil
}

// retry is when a device that failed is tried again. One that went away and came back is tried at once: somebody may have
// put a cable in. One that stayed there all the time is not trusted that easily.
type retry struct {
	gone  bool
	next  time.Time
	pause time.Duration
}

const (
	firstRetry = time.Minute
	lastRetry  = time.Hour
)

// giveBack returns devices to the pool that it does not use, though they are there.
func (a *Agent) giveBack(eng Engine) {
	if a.disks.again == nil {
		a.disks.again = map[block.GUID]*retry{}
	}
	l := layoutOf(eng.Devices())
	for i := range a.disks.list {
		d := &a.disks.list[i]
		m := a.member(&l, a.disks.list, d)
		if m == nil || m.State != stateUnavailable && m.State != stateFaulted {
			continue
		}
		r := a.disks.again[m.GUID]
		if r == nil {
			r = &retry{next: a.Now().Add(firstRetry), pause: firstRetry}
			a.disks.again[m.GUID] = r
		}
		there := d.guid(string(a.instance.UID)) == m.GUID
		if !there {
			r.gone = true
			continue
		}
		if m.State == stateFaulted && !r.gone && a.Now().Before(r.next) {
			continue
		}
		err := eng.Return(d.path)
		a.Log.Info("device is there again", "blockdevice", d.name, "device", d.path, "was", m.State, "err", err)
		if d.err = err; err == nil {
			r.gone = false
		}
		r.pause = min(2*r.pause, lastRetry)
		r.next = a.Now().Add(r.pause)
	}
}

// replace lets devices that are marked as substitutes take the place of those that they replace.
func (a *Agent) replace(ctx context.Context, eng Engine) {
	a.disks.replacing = ""
	l := layoutOf(eng.Devices())
	for i := range a.disks.list {
		d := &a.disks.list[i]
		if d.predecessor == "" || a.member(&l, a.disks.list, d) != nil {
			continue
		}
		old, err := a.replacedBy(&l, d)
		if err == nil {
			err = usable(d, string(a.instance.UID))
		}
		if err == nil {
			err = eng.Replace(old, d.path)
		}
		if err != nil {
			a.disks.replacing = fmt.Sprintf("Replacement of %s BlockDevice with %s BlockDevice failed: %v", d.predecessor, d.name, err)
			a.deviceEvent(ctx, d.name, corev1.EventTypeWarning, "BlockDevice Replacement", a.disks.replacing)
			continue
		}
		a.disks.looked = time.Time{} // the new device has a label now
		a.deviceEvent(ctx, d.name, corev1.EventTypeNormal, "BlockDevice Replacement",
			fmt.Sprintf("Replacement of %s BlockDevice with %s BlockDevice is in-Progress", d.predecessor, d.name))
	}
}

// replacedBy returns the device of the pool that d is to replace.
func (a *Agent) replacedBy(l *layout, d *listed) (g block.GUID, err error) {
	for i := range a.disks.list {
		if old := &a.disks.list[i]; old.leaving && old.name == d.predecessor {
			if m := a.member(l, a.disks.list, old); m != nil {
				return m.GUID, nil
			}
		}
	}
	if m := a.nobodys(l, a.disks.list, d.place); m != nil {
		return m.GUID, nil
	}
	return g, fmt.Errorf("it is not clear which device of the pool %s was: the devices of its raid group are all known, or several are missing", d.predecessor)
}

// usable says why a device cannot come to a pool. One that carries this pool may be left by an attempt that was cut off;
// the engine knows.
func usable(d *listed, owner string) error {
	switch {
	case errors.Is(d.err, engine.ErrBlank):
		return nil
	case d.err != nil:
		return d.err
	case d.label.Owner != owner:
		return ofAnother(d)
	}
	return nil
}

// expand adds the raid groups to the pool that its object lists and it does not have yet, and takes the room of devices
// that have grown.
func (a *Agent) expand(ctx context.Context, eng Engine) {
	a.disks.expanding = ""
	l := layoutOf(eng.Devices())
	var fresh []listed
	for _, d := range a.disks.list {
		if !d.leaving && d.place.group >= l.groups[d.place.cache] {
			fresh = append(fresh, d)
		}
	}
	if len(fresh) > 0 {
		var errs []error
		for i := range fresh {
			if err := usable(&fresh[i], string(a.instance.UID)); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", fresh[i].name, err))
			}
		}
		err := errors.Join(errs...)
		if err == nil {
			err = eng.AddGroups(groupsOf(fresh))
		}
		if err != nil {
			a.disks.expanding = err.Error()
			a.deviceEvent(ctx, fresh[0].name, corev1.EventTypeWarning, "Pool Expansion", "Failed to expand pool... Error: "+err.Error())
			return
		}
		a.disks.looked, a.disks.expanded = time.Time{}, true
		for _, g := range added(fresh) {
			what := "RaidGroup With BlockDevices"
			if g.kind == cstorv1.RaidStripe {
				what = "BlockDevices"
			}
			a.poolEvents.Event(ctx, a.instance, corev1.EventTypeNormal, "Pool Expansion",
				fmt.Sprintf("Pool Expanded Successfully By Adding %s: %v device type: %s pool type: %s", what, g.names, g.class, g.kind))
		}
	}
	a.grow(ctx, eng, &l)
}

// addition is what one event about an expansion is about.
type addition struct {
	class, kind string
	names       []string
}

// added returns the groups that devices make, those of a stripe as one.
func added(fresh []listed) (all []addition) {
	var last place
	for _, d := range fresh {
		class, at := "data", place{cache: d.place.cache, group: d.place.group}
		if d.place.cache {
			class = "log"
		}
		if d.kind == cstorv1.RaidStripe {
			at.group = 0
		}
		if len(all) == 0 || at != last {
			all, last = append(all, addition{class: class, kind: d.kind}), at
		}
		all[len(all)-1].names = append(all[len(all)-1].names, d.name)
	}
	return all
}

// grow takes the room of devices that have become larger, once for each time they do.
func (a *Agent) grow(ctx context.Context, eng Engine, l *layout) {
	var sizes, names []string
	for i := range a.disks.list {
		d := &a.disks.list[i]
		if m := a.member(l, a.disks.list, d); m != nil && d.size > m.Size && d.err == nil {
			sizes, names = append(sizes, fmt.Sprintf("%s=%d", d.name, d.size)), append(names, d.name)
		}
	}
	s := strings.Join(sizes, " ")
	if s == a.disks.grown {
		return
	}
	a.disks.grown, a.disks.growing = s, ""
	if s == "" {
		return
	}
	before := eng.Stats().Capacity
	if err := eng.Expand(); err != nil {
		a.disks.growing = err.Error()
		a.deviceEvent(ctx, names[0], corev1.EventTypeWarning, "Pool Expansion", "Failed to expand pool... Error: "+err.Error())
		return
	}
	if eng.Stats().Capacity > before {
		a.disks.expanded = true
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeNormal, "Pool Expansion",
			fmt.Sprintf("Pool Expanded Successfully By Growing Of BlockDevices: %v", names))
	}
}

// replaced takes the marks of substitutes away that have all data, which gives the devices that they replaced back. These
// carry nothing of the pool any more then.
func (a *Agent) replaced(ctx context.Context, eng Engine, l *layout) error {
	var errs []error
	for i := range a.disks.list {
		d := &a.disks.list[i]
		m := a.member(l, a.disks.list, d)
		if d.predecessor == "" || m == nil || m.State != stateOnline || m.ToResilver != 0 || len(l.at[d.place]) != 1 || l.leaving[d.place] {
			continue
		}
		claim := &openebsv1alpha1.BlockDeviceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: d.claim}}
		err := kube.Merge(ctx, a.Client, claim, kube.Fields{
			"metadata": kube.Fields{"annotations": kube.Fields{cstorv1.AnnotationPredecessor: nil}},
		})
		if client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("BlockDeviceClaim %s: %w", d.claim, err))
			continue
		}
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeNormal, "BlockDevice Replacement",
			"Resilvering is successfull on BlockDevice "+d.name)
		a.Log.Info("block device was replaced", "blockdevice", d.name, "instead of", d.predecessor)
		old := d.predecessor
		d.predecessor, d.claim = "", ""
		a.disks.list = slices.DeleteFunc(a.disks.list, func(o listed) bool { return o.leaving && o.name == old })
		return errors.Join(append(errs, a.replaced(ctx, eng, l))...) // the list has changed
	}
	return errors.Join(errs...)
}
