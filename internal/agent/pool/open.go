package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/uuid"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// verdict is what may be done with a pool's devices.
type verdict int

const (
	impossible verdict = iota
	create             // all blank, or left by a creation that was interrupted, and the pool was never made
	imports            // some carry this pool: whether they are enough is for the engine to say
	adopts             // some carry a pool of another object, and this one was told to take that over
)

// identity is what decides whose a pool on devices is.
type identity struct {
	owner string // the UID of the pool's object
	adopt string // the name of a pool that it is to take over, whoever owns that
	made  bool   // the pool existed before: it is never made again, whatever the devices look like
}

// judge decides from what is on the devices. It returns those that carry the pool, and what is wrong with the others;
// the latter is why nothing can be done, if that is the verdict.
func judge(devices []listed, id identity) (what verdict, ours []listed, wrong error) {
	what = imports
	carried := func(has func(*engine.Label) bool) (found []listed) {
		for _, d := range devices {
			if d.err == nil && has(d.label) {
				found = append(found, d)
			}
		}
		return found
	}
	ours = carried(func(l *engine.Label) bool { return l.Owner == id.owner })
	if len(ours) == 0 && id.adopt != "" {
		what, ours = adopts, carried(func(l *engine.Label) bool { return l.Name == id.adopt })
	}
	var blank, newest []listed
	var errs []error
	for _, d := range devices {
		switch {
		case errors.Is(d.err, engine.ErrBlank):
			blank = append(blank, d)
		case d.err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", d.name, d.err))
		case !slices.ContainsFunc(ours, func(o listed) bool { return o.name == d.name }):
			errs = append(errs, fmt.Errorf("%s: %w", d.name, ofAnother(&d)))
		case len(newest) == 0 || d.label.Generation > newest[0].label.Generation:
			newest = []listed{d}
		}
	}
	for _, d := range ours {
		if what == adopts && d.label.Pool != newest[0].label.Pool {
			return impossible, nil, fmt.Errorf("%s and %s carry two pools named %s (%v and %v): list the devices of one only",
				newest[0].name, d.name, id.adopt, newest[0].label.Pool, d.label.Pool)
		}
	}
	// A device that the newest labels do not know was replaced; it would keep the engine from opening the others.
	for i := 0; i < len(ours); i++ {
		if d := ours[i]; !isMember(newest[0].label, d.label.Device) {
			errs = append(errs, fmt.Errorf("%s: device %s is not a member of pool %q any more; wipe it if it may be used", d.name, d.path, d.label.Name))
			ours = slices.Delete(ours, i, i+1)
			i--
		}
	}
	blank = slices.DeleteFunc(blank, func(d listed) bool { return d.leaving })
	names := func(list []listed) string {
		var all []string
		for _, d := range list {
			all = append(all, d.name)
		}
		return strings.Join(all, ", ")
	}
	switch known := id.made || what == adopts; {
	case len(devices) == 0:
		return impossible, nil, errors.New("the pool lists no devices")
	case len(ours) > 0 && (known || len(blank) == 0):
		if known {
			for _, d := range blank {
				errs = append(errs, fmt.Errorf("%s: device %s is blank", d.name, d.path))
			}
		}
		return what, ours, errors.Join(errs...)
	case len(errs) > 0:
		return impossible, nil, errors.Join(errs...)
	case id.adopt != "":
		return impossible, nil, fmt.Errorf("%s are blank, and annotation %s says that pool %s is on them; put the right devices in, or remove the annotation", names(blank), cstorv1.AnnotationExistingPool, id.adopt)
	case id.made:
		return impossible, nil, fmt.Errorf("%s are blank, but the pool was made before and its data was on them; put the right devices back", names(blank))
	}
	return create, ours, nil
}

// ofAnother says whose device it is, and what can be done about it.
func ofAnother(d *listed) error {
	return fmt.Errorf("device %s belongs to pool %q of another owner (%s); to take that pool over with its data, annotate the CStorPoolCluster with %s=%s; wipe the device if it may be used anew",
		d.path, d.label.Name, d.label.Owner, cstorv1.AnnotationExistingPool, d.label.Name)
}

// oneOwner makes what is on the devices of one pool say what the newest labels among them do of its name and owner. Those
// of a device that was away when the pool was taken over are older.
func oneOwner(list []listed) {
	newest := map[block.GUID]*engine.Label{}
	for _, d := range list {
		if l := d.label; l != nil && d.err == nil && (newest[l.Pool] == nil || l.Generation > newest[l.Pool].Generation) {
			newest[l.Pool] = l
		}
	}
	for i := range list {
		d := &list[i]
		if d.label == nil || d.err != nil {
			continue
		}
		if n := newest[d.label.Pool]; n.Owner != d.label.Owner {
			l := *d.label
			l.Name, l.Owner = n.Name, n.Owner
			d.label = &l
		}
	}
}

func isMember(l *engine.Label, device block.GUID) bool {
	return slices.ContainsFunc(l.Members, func(m label.Member) bool { return m.GUID == device })
}

// openPool makes or imports the pool, and reports what came of it.
func (a *Agent) openPool(ctx context.Context) error {
	cr := a.instance
	if cr.DeletionTimestamp != nil && !made(cr.Status.Phase) {
		return nil // destroy has nothing to do
	}
	devices, err := a.findDevices(ctx, nil)
	if err != nil {
		return err // the API server, not the devices
	}
	what, ours, wrong := judge(devices, identity{string(cr.UID), cr.Annotations[cstorv1.AnnotationExistingPool], made(cr.Status.Phase)})
	var eng Engine
	var replicas Replicas
	set := a.settings()
	opening := a.opening(&set)
	reason, message := "Pool Imported", "Pool Import successful: "+poolName(cr)
	switch what {
	case impossible:
		return a.openFailed(ctx, wrong)
	case imports, adopts:
		paths := make([]string, len(ours))
		for i, d := range ours {
			paths[i] = d.path
		}
		set.Suspect = set.Suspect || what == adopts // whoever had it open may have seen it fail
		eng, replicas, err = a.Storage.Open(paths, set)
		if err == nil && what == adopts {
			message += adopted(eng, ours[0].label)
			err = a.adopt(eng)
		}
		if err == nil || what == adopts || made(cr.Status.Phase) || !errors.Is(err, engine.ErrDamaged) {
			break
		}
		fallthrough // labels without a checkpoint: the creation was interrupted
	case create:
		reason, message = "Created", "Pool created successfully"
		opening = a.opening(&set)
		cfg := engine.Config{Name: poolName(cr), Owner: string(cr.UID), GUID: poolGUID(cr)}
		eng, replicas, err = a.Storage.Create(groupsOf(devices), cfg, set)
	}
	if err != nil {
		return a.openFailed(ctx, errors.Join(err, wrong))
	}
	a.setOpen(eng, replicas, "")
	a.disks = inventory{limit: readOnlyLimit(cr)}
	a.recovery.opened = a.Now()
	a.trust(opening)
	a.backoff.Reset()
	a.Log.Info("pool is served", "pool", poolName(cr), "how", reason, "suspect", set.Suspect, "devices", len(devices), "wrong", wrong)
	a.poolEvents.Event(ctx, cr, corev1.EventTypeNormal, reason, message)
	return a.clearLost(ctx)
}

// adopt makes a pool that was opened this object's. If that fails it is closed again.
func (a *Agent) adopt(eng Engine) error {
	if err := eng.Adopt(poolName(a.instance), string(a.instance.UID)); err != nil {
		return errors.Join(fmt.Errorf("take pool over: %w", err), eng.Close())
	}
	return nil
}

// adopted says in words what was taken over.
func adopted(eng Engine, was *engine.Label) string {
	text := fmt.Sprintf(", taken over from %s (%s)", was.Name, was.Owner)
	if names := eng.Names(); len(names) > 0 {
		text += " with replicas " + strings.Join(names, ", ")
	}
	return text
}

// settings are those of the pool's object.
func (a *Agent) settings() Settings {
	every, _, _ := a.scrubSettings()
	return Settings{
		ReadOnlyPercent: readOnlyLimit(a.instance), Compression: compression(a.instance.Spec.PoolConfig.Compression),
		ScrubEvery: every, Log: a.Log,
	}
}

// compression is what the engine does for a value of the pool's configuration. The algorithms that it does not have are
// of the kind of lz4.
func compression(value string) string {
	switch value {
	case "off", "zstd":
		return value
	}
	return "lz4"
}

// openFailed reports why the pool is not there, and sets the time of the next attempt.
func (a *Agent) openFailed(ctx context.Context, cause error) error {
	cr := a.instance
	a.nextOpen = a.Now().Add(a.backoff.Next())
	news := cause.Error() != a.why
	if news {
		a.Log.Error("pool cannot be opened, trying again", "pool", poolName(cr), "err", cause)
		a.setOpen(nil, nil, cause.Error())
	}
	say := func(reason, format string, args ...any) {
		if news {
			a.poolEvents.Event(ctx, cr, corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...))
		}
	}
	if !made(cr.Status.Phase) {
		say("FailCreate", "Failed to create pool due to '%v'", cause)
		_, err := kube.Apply(ctx, a.Client, cr, kube.Fields{"status": kube.Fields{"phase": cstorv1.PoolCreationFailed}}, nil)
		return err
	}
	say("FailedSync", "Failed to import pool %s: %v", poolName(cr), cause)
	if err := a.setCondition(ctx, cstorv1.CStorPoolInstanceCondition{
		Type: cstorv1.PoolLost, Status: corev1.ConditionTrue, Reason: cstorv1.ReasonPoolLost, Message: cause.Error(),
	}); err != nil {
		return err
	}
	_, err := kube.Apply(ctx, a.Client, cr, kube.Fields{"status": offline}, nil)
	return err
}

// made reports whether a pool in that phase has existed on its devices.
func made(phase cstorv1.PoolPhase) bool {
	switch phase {
	case cstorv1.PoolEmpty, cstorv1.PoolPending, cstorv1.PoolInit, cstorv1.PoolCreationFailed:
		return false
	}
	return true
}

// devicePath prefers a by-id link that exists: it survives the renaming of devices at boot.
func devicePath(bd *openebsv1alpha1.BlockDevice) string {
	for _, l := range bd.Spec.DevLinks {
		if l.Kind != "by-id" {
			continue
		}
		for _, link := range l.Links {
			if _, err := os.Stat(link); err == nil {
				return link
			}
		}
	}
	return bd.Spec.Path
}

// poolName is cstor-<uid of the CStorPoolCluster>, the same on every node.
func poolName(cr *cstorv1.CStorPoolInstance) string {
	owner := metav1.GetControllerOf(cr)
	if owner == nil && len(cr.OwnerReferences) > 0 {
		owner = &cr.OwnerReferences[0]
	}
	if owner == nil {
		return cstorv1.PoolNamePrefix + string(cr.UID)
	}
	return cstorv1.PoolNamePrefix + string(owner.UID)
}

// poolGUID follows from the pool's object, so that a creation that was interrupted can be done again on the same devices.
func poolGUID(cr *cstorv1.CStorPoolInstance) block.GUID {
	id, err := uuid.Parse(string(cr.UID))
	if err != nil {
		return block.GUID{} // a fresh one
	}
	return block.GUID(id)
}

func readOnlyLimit(cr *cstorv1.CStorPoolInstance) int {
	if l := cr.Spec.PoolConfig.ROThresholdLimit; l != nil {
		return cmp.Or(*l, cstorv1.DefaultROThreshold)
	}
	return cstorv1.DefaultROThreshold
}
