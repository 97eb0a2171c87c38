package walkthrough

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/screen"
	"github.com/cstor-go/cstor/demo/workload"
)

// The phases of the application.
const (
	phaseFill   = "fill"
	phaseBefore = "before"
	phaseDuring = "during"
	phaseAfter  = "after"
	phaseVerify = "verify"
)

// The application uses five parts of the volume, 1.46 GiB in all.
const (
	extentCount = 5
	extentBytes = 300 << 20
)

const barWidth = 30

// startApplication is step 5.
func (w *walk) startApplication(ctx context.Context) error {
	v := &cstorv1.CStorVolume{}
	if err := w.lab.Get(ctx, w.volume, v); err != nil {
		return err
	}
	if err := w.show(ctx, inNamespace("get", "cv", w.volume, "-o", "jsonpath={.spec.targetPortal} {.spec.iqn}")...); err != nil {
		return err
	}
	session, err := lab.Attach(ctx, v)
	if err != nil {
		return err
	}
	w.session = session
	w.done = append(w.done, session.Close)
	w.app = workload.New(workload.Config{
		Device: session, Extents: workload.Spread(session.Size(), extentBytes, extentCount), Seed: w.Seed, Phase: phaseFill,
	})
	w.guard(ctx, w.app.Failed(), w.app.Err)
	w.memory = watchMemory(ctx, w.lab, w.volume)

	w.Screen.Say("The application has an iSCSI session and fills %s of the volume, in %d places.",
		cstorv1.FormatSize(extentCount*extentBytes), extentCount)
	if err := w.bulk("  filled  ", func(progress func(done, total int64)) error { return w.app.Fill(ctx, progress) }); err != nil {
		return err
	}
	w.app.Phase(phaseBefore)
	w.load = w.app.Start(ctx, w.Load)
	w.Screen.Say("Now it does random and sequential writes, reads, discards and flushes, all over that, without a pause.")
	if err := w.watchApplication(ctx, phaseBefore); err != nil {
		return err
	}
	return w.show(ctx, inNamespace("get", "cvr")...)
}

// bulk shows the progress of something that works through the volume.
func (w *walk) bulk(what string, do func(progress func(done, total int64)) error) error {
	begin := time.Now()
	var last atomic.Int64
	line := func(done, total int64) string {
		seconds := time.Since(begin).Seconds()
		return fmt.Sprintf("%s%s %s of %s, %s/s", what, screen.Bar(done, total, barWidth),
			cstorv1.FormatSize(done), cstorv1.FormatSize(total), cstorv1.FormatSize(int64(float64(done)/max(seconds, 0.001))))
	}
	var whole atomic.Int64
	err := do(func(done, total int64) {
		now := time.Since(begin).Milliseconds() / 100
		if last.Swap(now) != now {
			w.Screen.Move(line(done, total))
		}
		if done == total {
			whole.Store(total)
		}
	})
	if err == nil {
		w.Screen.Moved(line(whole.Load(), whole.Load()))
	}
	return err
}

// watchApplication lets the application run for a while, and says how it fared in the current phase.
func (w *walk) watchApplication(ctx context.Context, phase string) error {
	t := time.NewTimer(w.Before)
	defer t.Stop()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-t.C:
			w.Screen.Moved(w.application(phase))
			w.Screen.Note("")
			return w.app.Err()
		case <-tick.C:
			w.Screen.Move(w.application(phase))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// application describes the application's latest phase in a line.
func (w *walk) application(phase string) string {
	r := w.app.Report()
	p := r.Phase(phase)
	return fmt.Sprintf("  application: %d I/Os, %d errors, p50 %s, p99 %s, max %s, longest stall %s",
		p.Ops, r.Errors+r.Mismatches, short(p.P50), short(p.P99), short(p.Max), short(p.Stall))
}

// short prints a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
