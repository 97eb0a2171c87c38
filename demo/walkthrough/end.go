package walkthrough

import (
	"context"
	"errors"
	"fmt"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/workload"
)

// verify is step 8.
func (w *walk) verify(ctx context.Context) error {
	w.load.Stop()
	if err := w.app.Err(); err != nil {
		return err
	}
	w.app.Phase(phaseVerify)
	before := w.app.Report().Verified
	if err := w.bulk("  read    ", func(progress func(done, total int64)) error { return w.app.Verify(ctx, progress) }); err != nil {
		return err
	}
	w.Screen.Say("All %d blocks of the volume hold what the application wrote last.", w.app.Report().Verified-before)
	w.session.Close()

	p, err := w.lab.Placement(ctx, w.volume)
	if err != nil {
		return err
	}
	if len(p.Used) != 2 {
		return fmt.Errorf("%d pools hold a replica, not two", len(p.Used))
	}
	result, err := w.lab.CompareReplicas(ctx, w.volume, p.Used[0].Name, p.Used[1].Name)
	if err != nil {
		return err
	}
	w.Screen.Say("The replicas on %s and %s, read from their pools without the target, are equal, block for block.",
		p.Used[0].Spec.HostName, p.Used[1].Spec.HostName)
	w.Screen.Note("  %s", result)
	w.verdict = result
	return nil
}

// summary is step 9.
func (w *walk) summary(context.Context) error {
	r, m := w.app.Report(), w.migration
	seconds := m.finished.Sub(m.begun).Seconds()
	w.Screen.Note("  migrated           %s (%d bytes) in %.1f s, %.0f MB/s; %.1f s from the edit to Healthy",
		cstorv1.FormatSize(m.bytes), m.bytes, seconds, float64(m.bytes)/1e6/max(seconds, 0.001), m.finished.Sub(m.edited).Seconds())
	w.Screen.Note("  application        %d I/Os, %d blocks verified, %d errors, %d mismatches", r.Ops(), r.Verified, r.Errors, r.Mismatches)
	w.Screen.Note("  latency            %10s %10s %10s %10s %14s", "I/Os", "p50", "p99", "max", "longest stall")
	for _, name := range []string{phaseBefore, phaseDuring, phaseAfter} {
		p := r.Phase(name)
		w.Screen.Note("    %-16s %10d %10s %10s %10s %14s", name, p.Ops, short(p.P50), short(p.P99), short(p.Max), short(p.Stall))
	}
	pool, target := w.memory.most()
	w.Screen.Note("  memory (RssAnon)   pool at most %s, target at most %s", cstorv1.FormatSize(pool), cstorv1.FormatSize(target))
	w.Screen.Note("  checksums          %s", w.verdict)
	w.Screen.Say("The data of a live volume moved from %s to %s without an error.", m.leaving.Spec.HostName, m.joining.Spec.HostName)
	return errors.Join(w.app.Err(), complete(r), memoryError(pool, target), m.err())
}

// err says what is missing in the migration.
func (m *migration) err() error {
	if m.bytes < leastBytes {
		return fmt.Errorf("only %d bytes were migrated, of at least %d", m.bytes, int64(leastBytes))
	}
	return nil
}

// leastBytes is the least that the migrated volume must hold: 1.2 GiB.
const leastBytes = 12 << 30 / 10

// complete checks that the application did everything in each phase.
func complete(r workload.Report) error {
	for _, name := range []string{phaseBefore, phaseDuring, phaseAfter} {
		if p := r.Phase(name); p.Reads == 0 || p.Writes == 0 || p.Discards == 0 || p.Flushes == 0 {
			return fmt.Errorf("the application did not read, write, discard and flush %s the migration: %+v", name, p)
		}
	}
	return nil
}

func memoryError(pool, target int64) error {
	if pool > poolMemoryLimit || target > targetMemoryLimit {
		return fmt.Errorf("a pool may use %s and a target %s of memory", cstorv1.FormatSize(poolMemoryLimit), cstorv1.FormatSize(targetMemoryLimit))
	}
	return nil
}
