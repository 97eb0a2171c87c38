package pool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// deviceEvent records an event about a device of the pool once, until another one about the device is due.
func (a *Agent) deviceEvent(ctx context.Context, name, kind, reason, message string) {
	if a.disks.said == nil {
		a.disks.said = map[string]string{}
	}
	key := name + " " + reason
	if a.disks.said[key] == message {
		return
	}
	a.disks.said[key] = message
	a.Log.Info(message, "reason", reason)
	a.poolEvents.Event(ctx, a.instance, kind, reason, message)
}

// reportReplacement keeps the condition about replacements; it appears with the first one.
func (a *Agent) reportReplacement(ctx context.Context, eng Engine) error {
	c := cstorv1.CStorPoolInstanceCondition{
		Type: cstorv1.DiskReplacement, Status: corev1.ConditionFalse, Reason: cstorv1.ReasonReplacementSucceeded,
		Message: "Blockdevice replacement was successfully completed",
	}
	var pairs []string
	for _, d := range a.disks.list {
		if d.predecessor != "" {
			pairs = append(pairs, d.name+" instead of "+d.predecessor)
		}
	}
	now := a.condition(cstorv1.DiskReplacement)
	switch {
	case len(pairs) > 0:
		c.Status, c.Reason = corev1.ConditionTrue, cstorv1.ReasonReplacementInProgress
		c.Message = fmt.Sprintf("Resilvering %d no.of blockdevices: %s%s", len(pairs), strings.Join(pairs, ", "), progressText(eng.Activity().Resilver))
		if a.disks.replacing != "" {
			c.Message = a.disks.replacing
		}
		if now != nil && now.Status == c.Status && a.Now().Sub(a.disks.wrote) < statusEvery {
			return nil // not more often for the sake of progress
		}
		a.disks.wrote = a.Now()
	case now == nil || now.Status == corev1.ConditionFalse:
		return nil
	}
	return a.setCondition(ctx, c)
}

// progressText is how far a resilver or scrub is, in words; empty while nothing is known.
func progressText(p Progress) string {
	if p.Total <= 0 {
		return ""
	}
	text := fmt.Sprintf(", %d%% of %s", 100*min(p.Done, p.Total)/p.Total, cstorv1.FormatSize(p.Total))
	if p.Rate > 0 {
		text += ", " + cstorv1.FormatSize(p.Rate) + "/s"
	}
	if p.Left > 0 {
		text += ", " + p.Left.Round(1e9).String() + " left"
	}
	return text
}

// reportExpansion keeps the condition about expansions.
func (a *Agent) reportExpansion(ctx context.Context) error {
	c := cstorv1.CStorPoolInstanceCondition{
		Type: cstorv1.PoolExpansion, Status: corev1.ConditionFalse, Reason: cstorv1.ReasonExpansionSuccessful,
		Message: "Pool expansion was successfull by adding blockdevices/raid groups",
	}
	now, why := a.condition(cstorv1.PoolExpansion), cmp.Or(a.disks.expanding, a.disks.growing)
	switch {
	case why != "":
		c.Status, c.Reason = corev1.ConditionTrue, cstorv1.ReasonExpansionInProgress
		c.Message = "Pool expansion is in progress because of blockdevice/raid group addition error: " + why
	case a.disks.expanded:
		a.disks.expanded = false
	case now == nil || now.Status == corev1.ConditionFalse:
		return nil
	}
	return a.setCondition(ctx, c)
}

// reportDevices says which devices the pool cannot use.
func (a *Agent) reportDevices(ctx context.Context, eng Engine, l *layout) error {
	var names, why, behind []string
	for i := range a.disks.list {
		d := &a.disks.list[i]
		m := a.member(l, a.disks.list, d)
		state := stateUnavailable
		switch {
		case m != nil:
			state = m.State
		case d.leaving || d.predecessor != "" || d.place.group >= l.groups[d.place.cache]:
			continue // one that has gone, or is to come: said elsewhere
		}
		switch state {
		case stateOnline, stateResilvering, stateReplacing:
			a.deviceFine(d.name)
			if d.predecessor == "" && m.ToResilver > 0 {
				behind = append(behind, d.name)
			}
			continue
		}
		a.deviceEvent(ctx, d.name, corev1.EventTypeWarning, "DeviceState", fmt.Sprintf("%s device was in %s state", d.name, state))
		if !d.leaving {
			names = append(names, d.name)
		}
		switch {
		case d.err != nil:
			why = append(why, fmt.Sprintf("%s: %v", d.name, d.err))
		case m != nil && m.Cause != nil:
			why = append(why, fmt.Sprintf("%s: %v", d.name, m.Cause))
		}
	}
	var message string
	st := eng.Stats()
	if st.Health == engine.HealthFaulted {
		message = st.Failure
	}
	if len(names) > 0 {
		slices.Sort(names)
		message = fmt.Sprintf("Following disks %v are unavailable/faulted", names)
		if len(why) > 0 {
			message += ": " + strings.Join(why, "; ")
		}
	}
	switch plan := a.recovery.plan; {
	case message == "" && len(behind) > 0:
		return a.disksBehind(ctx, strings.Join(behind, ", ")+": what was missed is being copied"+progressText(eng.Activity().Resilver))
	case message != "" && plan != "":
		message += "; the pool takes no writes, " + plan
	case message != "" && st.Health == engine.HealthDegraded:
		message += "; the pool goes on with less redundancy: put the disks back, or list others in their places in the CStorPoolCluster"
	}
	return a.disksCondition(ctx, message)
}

// deviceFine makes the next trouble of a device news again.
func (a *Agent) deviceFine(name string) { delete(a.disks.said, name+" DeviceState") }

// nameDevices notes for the metrics which BlockDevice each device of the pool is.
func (a *Agent) nameDevices(l *layout) {
	names := map[block.GUID]string{}
	for i := range a.disks.list {
		if m := a.member(l, a.disks.list, &a.disks.list[i]); m != nil {
			names[m.GUID] = a.disks.list[i].name
		}
	}
	a.mu.Lock()
	a.names = names
	a.mu.Unlock()
}

// condition returns the pool's condition of that type, if it has one.
func (a *Agent) condition(kind string) *cstorv1.CStorPoolInstanceCondition {
	for i := range a.instance.Status.Conditions {
		if c := &a.instance.Status.Conditions[i]; c.Type == kind {
			return c
		}
	}
	return nil
}
