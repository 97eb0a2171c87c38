package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// scrubbing is what the agent knows of an open pool's scrubs and of what they, and reads, found.
type scrubbing struct {
	set     [2]string // the annotations that the pool follows
	known   bool      // what follows is
	ended   time.Time // of the last scrub that was told of
	wrote   time.Time // the progress
	damaged uint64    // reads that found damage, told of
	said    time.Time // that was
	errors  map[block.GUID]troubles
}

// troubles are the errors of a device that were told of.
type troubles struct {
	reads, writes, sums uint64
	at                  time.Time
}

const (
	scrubWroteEvery = 30 * time.Second // the progress of a scrub, which may take days
	errorsSaidEvery = 10 * time.Minute // errors that go on are told of this often
)

// scrubSettings are what annotations say, and the process' flag where they say nothing.
func (a *Agent) scrubSettings() (every time.Duration, rate int64, err error) {
	every = a.ScrubEvery
	var errs []error
	if v := a.instance.Annotations[cstorv1.AnnotationScrubEvery]; v != "" {
		if d, err := time.ParseDuration(v); err != nil || d < 0 {
			errs = append(errs, fmt.Errorf("annotation %s=%s is not a time such as 168h", cstorv1.AnnotationScrubEvery, v))
		} else {
			every = d
		}
	}
	if v := a.instance.Annotations[cstorv1.AnnotationScrubRate]; v != "" {
		if n, err := cstorv1.ParseSize(v); err != nil || n < 0 {
			errs = append(errs, fmt.Errorf("annotation %s=%s is not a number of bytes such as 100M", cstorv1.AnnotationScrubRate, v))
		} else {
			rate = n
		}
	}
	return every, rate, errors.Join(errs...)
}

// syncScrub does what the annotations of the pool's object ask for, and reports scrubs, damage and errors of devices.
func (a *Agent) syncScrub(ctx context.Context, eng Engine) error {
	if a.instance.DeletionTimestamp != nil {
		return nil
	}
	s := &a.disks.scrub
	if set := [2]string{a.instance.Annotations[cstorv1.AnnotationScrubEvery], a.instance.Annotations[cstorv1.AnnotationScrubRate]}; set != s.set {
		every, rate, err := a.scrubSettings()
		if err != nil {
			a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, "Scrub", err.Error())
		}
		eng.SetScrub(every, rate)
		s.set = set
		a.Log.Info("pool follows new settings of scrubs", "every", every, "rate", rate)
	}
	a.reportErrors(ctx, eng)
	return errors.Join(a.askedToScrub(ctx, eng), a.reportScrub(ctx, eng), a.reportDamage(ctx, eng))
}

// askedToScrub does what the user asked for, once.
func (a *Agent) askedToScrub(ctx context.Context, eng Engine) error {
	order, ok := a.instance.Annotations[cstorv1.AnnotationScrub]
	if !ok {
		return nil
	}
	var err error
	switch order {
	case "start":
		_, rate, _ := a.scrubSettings()
		err = eng.Scrub(rate)
	case "pause":
		err = eng.PauseScrub()
	case "resume":
		err = eng.ResumeScrub()
	case "stop":
		err = eng.StopScrub()
	default:
		err = fmt.Errorf("annotation %s=%s is none of start, pause, resume, stop", cstorv1.AnnotationScrub, order)
	}
	if err != nil {
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, "Scrub", err.Error())
	}
	return kube.Merge(ctx, a.Client, a.instance, kube.Fields{"metadata": kube.Fields{"annotations": kube.Fields{cstorv1.AnnotationScrub: nil}}})
}

// reportScrub keeps the condition about scrubs, which appears with the first one, and tells of their ends.
func (a *Agent) reportScrub(ctx context.Context, eng Engine) error {
	s, x := &a.disks.scrub, eng.Activity().Scrub
	if s.known && x.Ended.After(s.ended) {
		kind, result := corev1.EventTypeNormal, scrubResult(x)
		if x.Repaired > 0 || x.Errors > 0 {
			kind = corev1.EventTypeWarning
		}
		a.poolEvents.Event(ctx, a.instance, kind, "Scrub", result)
	}
	s.known, s.ended = true, x.Ended
	c := cstorv1.CStorPoolInstanceCondition{Type: cstorv1.PoolScrub, Status: corev1.ConditionTrue, Reason: cstorv1.ReasonScrubInProgress, Message: "Scrub is in progress" + progressText(x)}
	switch x.State {
	case engine.ActivityNone:
		return nil
	case engine.ActivityPaused:
		x.Rate, x.Left = 0, 0
		c.Reason, c.Message = cstorv1.ReasonScrubPaused, "Scrub is paused"+progressText(x)
	case engine.ActivityStopped:
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, cstorv1.ReasonScrubStopped, scrubResult(x)
	case engine.ActivityDone:
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, cstorv1.ReasonScrubCompleted, scrubResult(x)
	}
	if now := a.condition(c.Type); now != nil && now.Reason == c.Reason && c.Status == corev1.ConditionTrue && a.Now().Sub(s.wrote) < scrubWroteEvery {
		return nil // not more often for the sake of progress
	}
	s.wrote = a.Now()
	return a.setCondition(ctx, c)
}

// scrubResult is what came of a scrub, in words.
func scrubResult(x Progress) string {
	text := "Scrub ended"
	if x.State == engine.ActivityStopped {
		text = "Scrub was stopped"
	}
	text += ": " + cstorv1.FormatSize(x.Done) + " were checked, "
	switch {
	case x.Errors > 0:
		return text + fmt.Sprintf("%d blocks repaired, %d found damaged that nothing can repair", x.Repaired, x.Errors)
	case x.Repaired > 0:
		return text + fmt.Sprintf("%d blocks repaired", x.Repaired)
	}
	return text + "nothing was wrong"
}

// reportDamage keeps the condition about damage, which appears with the first.
func (a *Agent) reportDamage(ctx context.Context, eng Engine) error {
	s := &a.disks.scrub
	list := eng.Damage()
	if n := eng.Stats().ChecksumErrors; n < s.damaged {
		s.damaged = n
	} else if n > s.damaged && len(list) == 0 && a.Now().Sub(s.said) >= errorsSaidEvery {
		s.damaged, s.said = n, a.Now()
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, cstorv1.DataDamaged,
			fmt.Sprintf("%d reads found damaged data that nothing could repair; a scrub tells what it is: annotate the pool with %s=start", n, cstorv1.AnnotationScrub))
	}
	c := cstorv1.CStorPoolInstanceCondition{Type: cstorv1.DataDamaged, Status: corev1.ConditionTrue, Reason: cstorv1.ReasonDataIsDamaged}
	now := a.condition(c.Type)
	if len(list) == 0 {
		x := eng.Activity().Scrub
		if now == nil || now.Status == corev1.ConditionFalse || x.State != engine.ActivityDone || x.Errors > 0 {
			return nil // or not known any more: a process that was started anew has no list
		}
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, cstorv1.ReasonDataIsSound, "The last scrub found nothing that it could not repair"
		return a.setCondition(ctx, c)
	}
	d := list[0]
	what := d.What
	if d.Replica != "" {
		what = fmt.Sprintf("%s of replica %s from block %d on", d.What, d.Replica, d.Block)
	}
	c.Message = fmt.Sprintf("%d places are damaged and nothing can repair them; they read as errors until they are overwritten. The first: %s, on device %s at offset %d", len(list), what, d.Device, d.Offset)
	if now == nil || now.Status == corev1.ConditionFalse {
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, cstorv1.DataDamaged, c.Message)
	}
	return a.setCondition(ctx, c)
}

// reportErrors tells of devices that failed requests or held something else than what was written.
func (a *Agent) reportErrors(ctx context.Context, eng Engine) {
	s := &a.disks.scrub
	if s.errors == nil {
		s.errors = map[block.GUID]troubles{}
	}
	for _, d := range eng.Devices() {
		now, was := troubles{d.ReadErrors, d.WriteErrors, d.ChecksumErrors, a.Now()}, s.errors[d.GUID]
		if now.reads <= was.reads && now.writes <= was.writes && now.sums <= was.sums || now.at.Sub(was.at) < errorsSaidEvery {
			continue
		}
		s.errors[d.GUID] = now
		a.mu.Lock()
		name := a.names[d.GUID]
		a.mu.Unlock()
		if name == "" {
			name = d.Name
		}
		a.poolEvents.Event(ctx, a.instance, corev1.EventTypeWarning, "DeviceErrors",
			fmt.Sprintf("%s device had %d read errors, %d write errors and %d blocks with wrong content since the pool was opened", name, now.reads, now.writes, now.sums))
	}
}
