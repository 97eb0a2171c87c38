package target

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/agent/kube"
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

const (
	tick        = time.Second
	holdTick    = 200 * time.Millisecond // while something waits to be shown
	floor       = 50 * time.Millisecond  // between two looks, however much happens
	reread      = 30 * time.Second       // the CStorVolume is read this often without a hint
	cutOff      = 3 * reread             // without an answer for so long, the API server may have started another target
	heartbeat   = 30 * time.Second       // counters of the status are written this often
	passTimeout = 15 * time.Second
	goodbye     = 4 * time.Second
	abandoned   = 45 * time.Second // a status that nobody confirmed for so long may be replaced by a target that does not serve
	holdLimit   = 10 * time.Second // a new member is shown after this time, whatever its CStorVolumeReplica says
	removeGrace = 5 * time.Second  // a removal that waits longer is a warning
)

// Target is the part of the target that the agent needs.
type Target interface {
	Want(volume.Desired)
	Above(epoch uint64)
	CutOff(yes bool)
	Status() volume.Status
	Changed() <-chan struct{}
}

// Config is what an Agent works with.
type Config struct {
	Client    client.WithWatch
	Namespace string
	Volume    string
	Pod       string // source of the events
	Node      string // their host
	Log       *slog.Logger
	Now       func() time.Time // default time.Now
}

// Agent keeps a CStorVolume and a target in agreement.
type Agent struct {
	Config
	events *kube.Recorder

	running atomic.Pointer[Target] // for the metrics, asked from other goroutines

	cv        *cstorv1.CStorVolume
	target    Target
	wanted    volume.Desired           // what the target was last told
	connected map[block.GUID]time.Time // since when
	names     map[string]string        // of replicas, by GUID
	asked     time.Time                // for the names
	promoted  map[string]time.Time     // members not shown yet: since when they are known here
	waiting   time.Time                // since when a removal waits; zero: none does
	warned    time.Time

	cut     bool      // the target was told that it is cut off
	told    bool      // this process has written the status
	updated time.Time // status.lastUpdateTime as last read
	renewed time.Time // when it was seen to change
}

// New returns an agent that has read nothing yet.
func New(cfg Config) *Agent {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Agent{
		Config:    cfg,
		events:    &kube.Recorder{Client: cfg.Client, Component: cfg.Pod, Host: cfg.Node, Log: cfg.Log, Now: cfg.Now},
		connected: map[block.GUID]time.Time{},
		promoted:  map[string]time.Time{},
	}
}

// Load returns the CStorVolume as soon as there is a valid one; the only error is that of ctx. A reason to wait is
// logged once. told, if not nil, is what the process was told of the volume when it was made: that is returned when the API
// server does not answer. It is enough to serve a volume that exists: it wants no change of the members, and founds none.
func (a *Agent) Load(ctx context.Context, told *cstorv1.CStorVolume) (*cstorv1.CStorVolume, error) {
	var backoff kube.Backoff
	for last := ""; ; {
		err := a.readSoon(ctx, told != nil)
		switch {
		case err == nil:
			if err = Validate(a.cv); err == nil {
				return a.cv.DeepCopy(), nil
			}
			err = fmt.Errorf("CStorVolume %s: %w", a.Volume, err)
			a.reportPhase(ctx, cstorv1.VolumeInvalid, err.Error())
			told = nil // it answers
		case !kube.Unanswered(err):
			told = nil
		case told != nil && ctx.Err() == nil:
			a.Log.Warn("the API server does not answer: serving the volume without it", "err", err)
			return told.DeepCopy(), nil
		}
		if why := err.Error(); why != last && ctx.Err() == nil {
			a.Log.Warn("waiting for the volume", "err", err)
			last = why
		}
		if !kube.Sleep(ctx, backoff.Next()) {
			return nil, ctx.Err()
		}
	}
}

// Run keeps t and the CStorVolume in agreement until ctx is done, and then reports the volume offline.
func (a *Agent) Run(ctx context.Context, t Target) {
	a.target = t
	a.running.Store(&t)
	if a.cv != nil {
		a.wanted = Desired(a.cv) // what Load's caller made it with
	}
	hint := kube.NewHint()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		kube.Watch(ctx, a.Client, &cstorv1.CStorVolumeList{}, hint, a.Log,
			client.InNamespace(a.Namespace), client.MatchingFields{"metadata.name": a.Volume})
	})
	hint.Give()
	failing := false
	read := a.Now() // the CStorVolume
	heard := read   // of the API server
	for wait := tick; ctx.Err() == nil; {
		stale := failing || a.cv == nil || a.Now().Sub(read) >= reread
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-hint:
			stale = true
		case <-t.Changed():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			break
		}
		pass, cancel := context.WithTimeout(ctx, passTimeout)
		err := a.Pass(pass, stale)
		cancel()
		switch {
		case err != nil && ctx.Err() == nil && !failing && !apierrors.IsConflict(err):
			a.Log.Warn("cannot bring volume and API together, trying again", "err", err)
		case err == nil && failing:
			a.Log.Info("volume and API agree again")
		}
		failing = err != nil && !apierrors.IsConflict(err)
		if err == nil && stale || refused(err) {
			heard = a.Now()
		}
		if err == nil && stale {
			read = a.Now()
		}
		a.noteContact(heard)
		pause := floor
		switch {
		case apierrors.IsConflict(err):
			hint.Give()
		case failing:
			pause = tick
		}
		if wait = tick; len(a.promoted) > 0 {
			wait = holdTick
		}
		kube.Sleep(ctx, pause)
	}
	last, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	a.reportPhase(last, cstorv1.VolumeOffline, "target is shutting down")
}

// readSoon gets the CStorVolume, and gives up after a while, in a hurry soon.
func (a *Agent) readSoon(ctx context.Context, hurry bool) error {
	limit := passTimeout
	if hurry {
		limit = kube.Patience
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return a.read(ctx)
}

// read gets the CStorVolume.
func (a *Agent) read(ctx context.Context) error {
	cv := &cstorv1.CStorVolume{}
	if err := a.Client.Get(ctx, types.NamespacedName{Namespace: a.Namespace, Name: a.Volume}, cv); err != nil {
		return fmt.Errorf("read CStorVolume: %w", err)
	}
	a.cv = cv
	a.noteUpdate()
	return nil
}

// Pass hands the target what is wanted, and writes what it says. With reread the CStorVolume is read anew.
func (a *Agent) Pass(ctx context.Context, reread bool) error {
	if reread {
		if err := a.read(ctx); err != nil {
			return err
		}
	}
	if a.cv.DeletionTimestamp != nil {
		return nil
	}
	if err := Validate(a.cv); err != nil {
		a.reportPhase(ctx, cstorv1.VolumeInvalid, err.Error()) // the target goes on with what it has
		return nil
	}
	if want := Desired(a.cv); !same(want, a.wanted) {
		a.Log.Info("membership wanted", "replicas", want.Factor, "remove", want.Remove, "witness", want.Witness)
		a.target.Want(want)
		a.wanted = want
	}
	return a.report(ctx, a.target.Status())
}

// refused reports whether err is what the API server has answered.
func refused(err error) bool {
	var answer apierrors.APIStatus
	return errors.As(err, &answer)
}

// noteContact tells the target whether the API server has not answered for long, which it did last at that time.
func (a *Agent) noteContact(last time.Time) {
	if cut := a.Now().Sub(last) >= cutOff; cut != a.cut {
		a.cut = cut
		a.target.CutOff(cut)
		if cut {
			a.Log.Warn("the API server has not answered for long: replicas may look for another target while nobody uses this one", "since", last)
		}
	}
}

// same reports whether two wishes mean the same to a volume that exists; it is founded once.
func same(a, b volume.Desired) bool {
	return a.Factor == b.Factor && a.Witness == b.Witness && slices.Equal(a.AcceptRecord, b.AcceptRecord) && slices.Equal(a.Remove, b.Remove)
}

// hold returns the new members that are not shown yet: people expect to see a replica Healthy before the volume counts
// it, and the two are written by different processes. Nothing is held while the volume is founded, nor once a change of
// desiredReplicationFactor is under way, whose adoption must not be shown without them.
func (a *Agent) hold(ctx context.Context, st volume.Status) map[string]string {
	fresh := added(a.cv, st)
	now := a.Now()
	if !st.Serving || st.Desired.Factor != a.cv.Status.DesiredReplicationFactor || a.cv.Spec.DesiredReplicationFactor != st.Desired.Factor {
		fresh = nil
	}
	for id := range a.promoted {
		if _, ok := fresh[id]; !ok {
			delete(a.promoted, id)
		}
	}
	for id := range fresh {
		if _, ok := a.promoted[id]; !ok {
			a.promoted[id] = now
		}
		if now.Sub(a.promoted[id]) >= holdLimit || a.shownHealthy(ctx, id) {
			delete(a.promoted, id)
			delete(fresh, id)
		}
	}
	return fresh
}

// shownHealthy reports whether the replica's own object says Healthy. When that cannot be read nothing waits for it.
func (a *Agent) shownHealthy(ctx context.Context, id string) bool {
	list := &cstorv1.CStorVolumeReplicaList{}
	if err := a.Client.List(ctx, list, client.InNamespace(a.Namespace), client.MatchingLabels{cstorv1.LabelVolumeName: a.Volume}); err != nil {
		a.Log.Debug("cannot read replicas", "err", err)
		return true
	}
	for _, r := range list.Items {
		if r.Spec.ReplicaID == id {
			return r.Status.Phase == cstorv1.ReplicaHealthy
		}
	}
	return true
}

// guids finds replicas that a message knows by their GUID only: those that never connected to this target.
var guids = regexp.MustCompile(`\b[0-9a-f]{32}\b`)

// named is a message with the replicas' names, which say on which pools they are, in the place of their GUIDs.
func (a *Agent) named(ctx context.Context, message string) string {
	return guids.ReplaceAllStringFunc(message, func(g string) string {
		if a.names[g] == "" && a.Now().Sub(a.asked) >= tick {
			a.asked = a.Now()
			list := &cstorv1.CStorVolumeReplicaList{}
			if err := a.Client.List(ctx, list, client.InNamespace(a.Namespace), client.MatchingLabels{cstorv1.LabelVolumeName: a.Volume}); err != nil {
				a.Log.Debug("cannot read replicas", "err", err)
			}
			a.names = map[string]string{}
			for _, r := range list.Items {
				a.names[r.Status.GUID] = r.Name
			}
		}
		return cmp.Or(a.names[g], g)
	})
}

func (a *Agent) noteConnections(st volume.Status) {
	now, old := a.Now(), a.connected
	a.connected = map[block.GUID]time.Time{}
	for _, r := range st.Replicas {
		if r.Mode == volume.Offline {
			continue
		}
		since, ok := old[r.GUID]
		if !ok {
			since = now
		}
		a.connected[r.GUID] = since
	}
}

// tell writes the events of what the last patch changed.
func (a *Agent) tell(ctx context.Context, before *cstorv1.CStorVolume) {
	was, is := before.Status, a.cv.Status
	if was.Phase != is.Phase {
		a.phaseEvent(ctx, is.Phase)
	}
	a.conditionEvents(ctx, was.Conditions, is.Conditions)
	if c := lossOf(is.Conditions); c != nil && (lossOf(was.Conditions) == nil || lossOf(was.Conditions).Message != c.Message) {
		a.Log.Warn("data may have been lost", "what", c.Message)
		a.events.Event(ctx, a.cv, corev1.EventTypeWarning, c.Type, c.Message)
	}
	// Raised, or lowered with nothing to remove: done when adopted. Lowered otherwise: done when the members are gone.
	n, count := is.DesiredReplicationFactor, len(is.ReplicaDetails.KnownReplicas)
	adopted := was.DesiredReplicationFactor != 0 && was.DesiredReplicationFactor != n && count <= n
	removed := was.DesiredReplicationFactor == n && len(was.ReplicaDetails.KnownReplicas) > n && count <= n
	if adopted || removed {
		a.events.Event(ctx, a.cv, corev1.EventTypeNormal, "Updated", fmt.Sprintf("Successfully updated the desiredReplicationFactor to %d", n))
	}
	if was.Phase == is.Phase && len(was.ReplicaDetails.KnownReplicas) == count && was.DesiredReplicationFactor == n {
		return
	}
	a.Log.Info("volume reported", "phase", is.Phase, "replicationFactor", a.cv.Spec.ReplicationFactor,
		"consistencyFactor", a.cv.Spec.ConsistencyFactor, "members", count, "replicas", len(is.ReplicaStatuses))
}

// phaseEvent writes the event of a phase, one object for each, whose count grows.
func (a *Agent) phaseEvent(ctx context.Context, phase cstorv1.VolumePhase) {
	kind := corev1.EventTypeWarning
	switch phase {
	case cstorv1.VolumeInit, cstorv1.VolumeHealthy, cstorv1.VolumeDegraded:
		kind = corev1.EventTypeNormal
	}
	a.events.Named(ctx, a.Volume+"."+string(phase), a.cv, kind, string(phase), fmt.Sprintf("Volume is in %s state", phase))
}

// warnRemoval says every now and then what the removal of a member waits for.
func (a *Agent) warnRemoval(ctx context.Context, st volume.Status) {
	now := a.Now()
	switch {
	case st.Removing == "":
		a.waiting = time.Time{}
	case a.waiting.IsZero():
		a.waiting = now
	case now.Sub(a.waiting) >= removeGrace && now.Sub(a.warned) >= heartbeat:
		a.warned = now
		a.Log.Warn("a member cannot be removed yet", "why", st.Removing)
		a.events.Event(ctx, a.cv, corev1.EventTypeWarning, "FailUpdate",
			fmt.Sprintf("failed to update desired replication factor to %d Error: %s", a.cv.Spec.DesiredReplicationFactor, st.Removing))
	}
}
