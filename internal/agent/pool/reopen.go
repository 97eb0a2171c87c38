package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// A pool that failed takes no changes until it is opened again: only what its devices hold then is known to be there.
// That is done here: when devices are back that were missing, and otherwise, since nothing tells that what failed works
// now, after ever longer times.

const (
	firstReopen = 5 * time.Second
	lastReopen  = time.Hour
	sound       = 10 * time.Minute // a pool that took writes for that long fails for the first time again
	closeLimit  = time.Minute      // longer than the engine waits for devices that do not answer
)

// errStuck ends the process: a new one can open the pool, this one has requests under way that do not end.
var errStuck = errors.New("the pool failed and does not close, since a device does not answer: this process ends, so that a new one opens the pool")

// recovery is what the agent knows of a pool that failed.
type recovery struct {
	failed bool // the pool is FAULTED
	pause  time.Duration
	next   time.Time // when it is opened again, if its devices are there
	gone   bool      // some were not
	looked time.Time // for them
	opened time.Time // the pool, the last time
	plan   string    // when it is opened again, in words
	said   string    // of why it failed, and the plan

	closing chan error // not nil: the pool is being closed
	since   time.Time
}

// recover closes a pool that failed when it is time to open it again. The error errStuck means that it cannot be closed.
func (a *Agent) recover(ctx context.Context, eng Engine) error {
	r := &a.recovery
	switch {
	case r.closing != nil:
		return a.awaitClose(ctx)
	case eng == nil:
		return nil
	}
	st := eng.Stats()
	if st.Health != engine.HealthFaulted || a.instance.DeletionTimestamp != nil {
		r.failed, r.plan = false, ""
		return nil
	}
	now := a.Now()
	if !r.failed {
		if now.Sub(r.opened) >= sound {
			r.pause = 0
		}
		r.pause = min(max(2*r.pause, firstReopen), lastReopen)
		r.failed, r.gone, r.next, r.looked = true, false, now.Add(r.pause), time.Time{}
	}
	if now.Sub(r.looked) < lookEvery && (r.gone || now.Before(r.next)) {
		return nil
	}
	devices, err := a.findDevices(ctx, nil)
	if err != nil {
		return err // the API server, not the devices
	}
	r.looked = now
	missing := a.lacking(eng, devices)
	if len(missing) > 0 {
		r.gone = true
		r.plan = "it is opened again when these are there: " + strings.Join(missing, ", ")
	} else {
		r.plan = "it is opened again at " + r.next.UTC().Format(time.TimeOnly) + " UTC"
	}
	if what := fmt.Sprintf("Pool takes no writes: %s; %s", st.Failure, r.plan); what != r.said {
		r.said = what
		a.Log.Error(what, "pool", poolName(a.instance))
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, "PoolFaulted", what)
	}
	if len(missing) > 0 || !r.gone && now.Before(r.next) {
		return nil
	}
	a.Log.Info("pool is closed to be opened again", "pool", poolName(a.instance))
	a.setOpen(nil, nil, "pool failed and is opened again: "+st.Failure)
	r.closing, r.since = make(chan error, 1), now
	go func(done chan<- error) { done <- eng.Close() }(r.closing)
	return a.awaitClose(ctx)
}

// awaitClose waits a little for the pool to be closed.
func (a *Agent) awaitClose(ctx context.Context) error {
	r := &a.recovery
	limit := time.NewTimer(tick)
	defer limit.Stop()
	select {
	case err := <-r.closing: // of a pool that failed an error is no news
		a.Log.Info("pool is closed", "pool", poolName(a.instance), "err", err)
	case <-limit.C:
		if a.Now().Sub(r.since) >= closeLimit {
			return errStuck
		}
		return nil
	}
	r.closing, r.failed, r.plan = nil, false, ""
	a.nextOpen = time.Time{}
	for _, c := range a.claims {
		c.attached = nil
	}
	return a.replicasOffline(ctx, "pool failed and is opened again")
}

// lacking returns the BlockDevices that are not there, or do not answer, of raid groups that cannot do without them.
func (a *Agent) lacking(eng Engine, devices []listed) (missing []string) {
	l := layoutOf(eng.Devices())
	names := map[block.GUID]string{}
	there := map[block.GUID]bool{}
	for i := range devices {
		d := &devices[i]
		if m := a.member(&l, devices, d); m != nil {
			names[m.GUID], there[m.GUID] = d.name, d.guid(string(a.instance.UID)) == m.GUID
		}
	}
	type group struct {
		kind string
		lost [][]string // by column: its devices, none of which is there
		of   int        // columns
	}
	groups := map[int]*group{}
	for _, here := range l.at {
		g := groups[here[0].Group]
		if g == nil {
			g = &group{kind: here[0].Kind}
			groups[here[0].Group] = g
		}
		g.of++
		var lost []string
		for _, m := range here {
			if name := names[m.GUID]; name != "" {
				lost = append(lost, name)
			} else {
				lost = append(lost, m.Name)
			}
		}
		if !slices.ContainsFunc(here, func(m DeviceInfo) bool { return there[m.GUID] }) {
			g.lost = append(g.lost, lost)
		}
	}
	for _, g := range groups {
		spare := 0
		if kind, err := raid.ParseKind(g.kind); err == nil {
			_, spare, _ = kind.Shape(g.of)
		}
		if len(g.lost) > spare {
			missing = append(missing, slices.Concat(g.lost...)...)
		}
	}
	slices.Sort(missing)
	return missing
}
