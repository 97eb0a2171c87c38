package walkthrough

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/screen"
)

// leaving is the node whose replica is moved.
const leaving = "e2e1-node2"

// allocatedSlack is how much more than a fresh pool an emptied one may have allocated.
const allocatedSlack = 1 << 20

// How long the steps of a migration may take.
const (
	scaleLimit   = 30 * time.Second
	rebuildLimit = 5 * time.Minute
	toldLimit    = 30 * time.Second
)

// migration is what is known of the one that the walk makes.
type migration struct {
	joining  cstorv1.CStorPoolInstance
	leaving  cstorv1.CStorPoolInstance
	edited   time.Time // scale up
	reduced  time.Time // scale down
	begun    time.Time // ReconstructingNewReplica
	finished time.Time // Healthy
	bytes    int64     // copied
}

// scaleUp is step 6.
func (w *walk) scaleUp(ctx context.Context) error {
	if err := w.choose(ctx); err != nil {
		return err
	}
	m := &w.migration
	w.Screen.Say("The pool on %s holds no replica of the volume.\n", m.joining.Spec.HostName)
	w.app.Phase(phaseDuring)
	m.edited = time.Now()
	if err := w.editPools(ctx, func(pools []string) []string { return append(pools, m.joining.Name) }); err != nil {
		return err
	}
	if err := w.waitScaled(ctx, 3); err != nil {
		return err
	}
	if err := w.showScaled(ctx); err != nil {
		return err
	}
	if err := w.rebuild(ctx); err != nil {
		return err
	}
	w.app.Phase(phaseAfter)
	if err := w.show(ctx, inNamespace("get", "cvr")...); err != nil {
		return err
	}
	w.Screen.Moved(w.application(phaseDuring))
	w.Screen.Note("")
	return nil
}

// choose finds the pool without a replica, and the one that is to lose its replica, as users do.
func (w *walk) choose(ctx context.Context) error {
	selector := cstorv1.LabelPoolCluster + "=" + w.cluster
	if err := w.show(ctx, inNamespace("get", "cspi", "-l", selector)...); err != nil {
		return err
	}
	if err := w.showPoolInfo(ctx); err != nil {
		return err
	}
	p, err := w.lab.Placement(ctx, w.volume)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(p.Used, func(i cstorv1.CStorPoolInstance) bool { return i.Spec.HostName == leaving })
	if len(p.Free) != 1 || at < 0 {
		return fmt.Errorf("%d pools are without a replica; wanted is one, and a replica on %s", len(p.Free), leaving)
	}
	w.migration.joining, w.migration.leaving = p.Free[0], p.Used[at]
	return nil
}

// editPools changes spec.policy.replicaPoolInfo as a user would.
func (w *walk) editPools(ctx context.Context, change func([]string) []string) error {
	c := &cstorv1.CStorVolumeConfig{}
	if err := w.lab.Get(ctx, w.volume, c); err != nil {
		return err
	}
	patch := lab.WantPools(change(lab.PoolsOf(c)))
	return w.show(ctx, inNamespace("patch", "cvc", w.volume, "--type=merge", "-p", patch)...)
}

// waitScaled waits until status.poolInfo lists n pools and the operator has said so.
func (w *walk) waitScaled(ctx context.Context, n int) error {
	since := w.migration.edited
	if n == 2 {
		since = w.migration.reduced
	}
	return lab.Until(ctx, scaleLimit, fmt.Sprintf("the volume to be scaled to %d replicas", n), func(ctx context.Context) (bool, string, error) {
		c := &cstorv1.CStorVolumeConfig{}
		if err := w.lab.Get(ctx, w.volume, c); err != nil {
			return false, "", err
		}
		_, said := w.facts.when(since, scaledFact(n))
		state := fmt.Sprintf("status.poolInfo lists %d pools, the event was seen: %v", len(c.Status.PoolInfo), said)
		for _, cond := range c.Status.Conditions {
			state += "; " + cond.Type + ": " + cond.Message
		}
		return len(c.Status.PoolInfo) == n && said, state, nil
	})
}

func scaledFact(n int) string {
	return eventFact("Normal", "ScalingVolumeReplicas", fmt.Sprintf("successfully scaled volume replicas to %d", n))
}

// showScaled shows the volume's events and the pools that have a replica.
func (w *walk) showScaled(ctx context.Context) error {
	if _, err := w.showFrom(ctx, "Events:", inNamespace("describe", "cvc", w.volume)...); err != nil {
		return err
	}
	return w.showPoolInfo(ctx)
}

// showPoolInfo shows the pools that have a replica.
func (w *walk) showPoolInfo(ctx context.Context) error {
	return w.show(ctx, inNamespace("get", "cvc", w.volume, "-o", `jsonpath={range .status.poolInfo[*]}{@}{"\n"}{end}`)...)
}

// rebuild follows the new replica until it is Healthy.
func (w *walk) rebuild(ctx context.Context) error {
	m := &w.migration
	begin := time.Now()
	shown, growing := 0, growth{}
	what := "the new replica to be Healthy"
	err := lab.Until(ctx, rebuildLimit, what, func(ctx context.Context) (bool, string, error) {
		r, err := w.replica(ctx, m.joining.Name)
		if err != nil {
			return false, "", err
		}
		switch r.Status.Phase {
		case cstorv1.ReplicaHealthy:
			return true, "", nil
		case cstorv1.ReplicaReconstructing:
			p := r.Status.Progress
			if p == nil {
				break
			}
			m.bytes = max(m.bytes, p.BytesTotal)
			if err := growing.add(r.Status.Capacity); err != nil {
				return false, "", err
			}
			// Twice on the way: at its beginning, and with something to see.
			if shown == 0 || shown == 1 && p.Percent >= 20 {
				shown++
				if err := w.show(ctx, inNamespace("get", "cvr", "-o", "wide")...); err != nil {
					return false, "", err
				}
			}
			w.Screen.Move(progressLine(p))
		}
		return false, fmt.Sprintf("%s %s", r.Status.Phase, r.Status.Message), nil
	})
	if err != nil {
		return err
	}
	host := m.joining.Spec.HostName
	var ok bool
	if m.begun, ok = w.facts.when(m.edited, replicaFact(host, string(cstorv1.ReplicaReconstructing))); !ok {
		return errors.New("the new replica was never seen in phase ReconstructingNewReplica")
	}
	if m.finished, ok = w.facts.when(m.edited, replicaFact(host, string(cstorv1.ReplicaHealthy))); !ok {
		m.finished = time.Now()
	}
	w.Screen.Moved(fmt.Sprintf("  rebuilt %s 100%% of %s in %.1f s", screen.Bar(1, 1, barWidth), cstorv1.FormatSize(m.bytes), time.Since(begin).Seconds()))
	w.Screen.Note("")
	return errors.Join(growing.err(), w.told(ctx))
}

// told waits for the events of the rebuild: it began, went on, and ended.
func (w *walk) told(ctx context.Context) error {
	name := cstorv1.ReplicaName(w.volume, w.migration.joining.Name)
	return lab.Until(ctx, toldLimit, "the events of the rebuild", func(ctx context.Context) (bool, string, error) {
		list := &corev1.EventList{}
		if err := w.lab.Client.List(ctx, list, client.InNamespace(lab.Namespace)); err != nil {
			return false, "", err
		}
		var reasons []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name == name && e.Type == corev1.EventTypeNormal && !slices.Contains(reasons, e.Reason) {
				reasons = append(reasons, e.Reason)
			}
		}
		for _, r := range []string{"RebuildStarted", "RebuildProgress", "RebuildCompleted"} {
			if !slices.Contains(reasons, r) {
				return false, fmt.Sprintf("%v", reasons), nil
			}
		}
		return true, "", nil
	})
}

func progressLine(p *cstorv1.RebuildProgress) string {
	line := fmt.Sprintf("  rebuild %s %3d%%  %s of %s", screen.Bar(p.BytesDone, p.BytesTotal, barWidth), p.Percent,
		cstorv1.FormatSize(p.BytesDone), cstorv1.FormatSize(p.BytesTotal))
	if p.Rate != "" {
		line += ", " + p.Rate
	}
	if p.ETA != "" {
		line += ", " + p.ETA + " left"
	}
	if p.WaitingFor != "" {
		line += ", waiting for " + p.WaitingFor
	}
	return line
}

// growth checks that USED and ALLOCATED of a replica grow.
type growth struct{ used, allocated, steps int64 }

func (g *growth) add(c cstorv1.CStorVolumeReplicaCapacity) error {
	used, err := cstorv1.ParseSize(c.Used)
	if err != nil {
		return fmt.Errorf("USED of the new replica: %w", err)
	}
	allocated, err := cstorv1.ParseSize(c.Total)
	if err != nil {
		return fmt.Errorf("ALLOCATED of the new replica: %w", err)
	}
	if used > g.used && allocated > g.allocated {
		g.used, g.allocated = used, allocated
		g.steps++
	}
	return nil
}

func (g *growth) err() error {
	if g.steps < 2 {
		return fmt.Errorf("USED and ALLOCATED of the new replica were not seen to grow while it was rebuilt (last %d and %d bytes)", g.used, g.allocated)
	}
	return nil
}

// scaleDown is step 7.
func (w *walk) scaleDown(ctx context.Context) error {
	m := &w.migration
	m.reduced = time.Now()
	err := w.editPools(ctx, func(pools []string) []string {
		return slices.DeleteFunc(pools, func(p string) bool { return p == m.leaving.Name })
	})
	if err != nil {
		return err
	}
	if err := w.waitScaled(ctx, 2); err != nil {
		return err
	}
	if err := w.waitEmpty(ctx); err != nil {
		return err
	}
	if err := w.showScaled(ctx); err != nil {
		return err
	}
	for _, kind := range []string{"cvr", "cspi"} {
		if err := w.show(ctx, inNamespace("get", kind)...); err != nil {
			return err
		}
	}
	if err := w.checkOrder(); err != nil {
		return err
	}
	if err := w.watchApplication(ctx, phaseAfter); err != nil {
		return err
	}
	return nil
}

// waitEmpty waits until the replica is gone and its pool has the space back.
func (w *walk) waitEmpty(ctx context.Context) error {
	m := &w.migration
	return lab.Until(ctx, scaleLimit, "the pool on "+leaving+" to be empty", func(ctx context.Context) (bool, string, error) {
		replicas, err := w.lab.Replicas(ctx, w.volume)
		if err != nil {
			return false, "", err
		}
		p := &cstorv1.CStorPoolInstance{}
		if err := w.lab.Get(ctx, m.leaving.Name, p); err != nil {
			return false, "", err
		}
		more := cstorv1.PoolBytes(p.Status.Capacity.Used) - w.fresh[p.Name]
		state := fmt.Sprintf("%d replicas exist; the pool has %d replicas and %d bytes more allocated than when it was new",
			len(replicas), p.Status.ProvisionedReplicas, more)
		return len(replicas) == 2 && p.Status.ProvisionedReplicas == 0 && more <= allocatedSlack, state, nil
	})
}

// checkOrder checks that everything happened in the order that makes a migration safe, and shows it.
func (w *walk) checkOrder() error {
	m := &w.migration
	joining, leaving := m.joining.Spec.HostName, m.leaving.Spec.HostName
	const (
		three = "CStorVolume has replicationFactor 3, consistencyFactor 2"
		two   = "CStorVolume has replicationFactor 2, consistencyFactor 2"
	)
	progress := eventFact("Warning", "ScalingVolumeReplicas", "Scaling down volume replicas from 3 to 2 is in progress")
	err := w.facts.order(m.edited,
		[]string{
			"CStorVolume wants 3 replicas", replicaFact(joining, "made"),
			"CStorVolumeConfig has 3 pools in status.poolInfo", scaledFact(3),
			"CStorVolume wants 2 replicas", progress, "CStorVolumeConfig has 2 pools in status.poolInfo", scaledFact(2),
		},
		[]string{
			replicaFact(joining, "made"), replicaFact(joining, string(cstorv1.ReplicaReconstructing)),
			replicaFact(joining, string(cstorv1.ReplicaHealthy)), "CStorVolume wants 2 replicas",
		},
		[]string{
			replicaFact(joining, string(cstorv1.ReplicaReconstructing)), three, "CStorVolume wants 2 replicas",
			"CStorVolume is to know 2 replicas", two, replicaFact(leaving, "deleted"), replicaFact(leaving, "gone"),
		},
		[]string{
			"CStorVolume knows 3 replicas", "CStorVolume is to know 2 replicas", "CStorVolume knows 2 replicas",
			replicaFact(leaving, "deleted"), scaledFact(2),
		},
	)
	if err != nil {
		return err
	}
	w.Screen.Note("What happened, by resourceVersion, and the seconds since the first edit:\n")
	for _, x := range w.facts.since(m.edited) {
		w.Screen.Note("  %6.1f  %s", x.seen.Sub(m.edited).Seconds(), x.text)
	}
	w.Screen.Note("")
	return nil
}
