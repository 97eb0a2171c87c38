package pool

import (
	"errors"
	"testing"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	engine "github.com/cstor-go/cstor/internal/pool"
)

// annotate is kubectl annotate of the pool.
func (w *world) annotate(key, value string) {
	w.t.Helper()
	in := w.instance()
	if in.Annotations == nil {
		in.Annotations = map[string]string{}
	}
	in.Annotations[key] = value
	if err := w.client.Update(w.ctx, in); err != nil {
		w.t.Fatal(err)
	}
}

// TestScrubIsAskedFor: annotations begin, pause and end scrubs, once each, and set their schedule and rate.
func TestScrubIsAskedFor(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.pass()
	w.wantCalls()
	w.annotate(cstorv1.AnnotationScrubEvery, "48h")
	w.annotate(cstorv1.AnnotationScrubRate, "2M")
	w.pass()
	w.pass()
	w.wantCalls("scrub every 48h0m0s at 2097152")
	for _, order := range []string{"start", "pause", "resume", "stop"} {
		w.annotate(cstorv1.AnnotationScrub, order)
		w.pass()
		w.pass()
		if order == "start" {
			order = "scrub 2097152"
		}
		w.wantCalls(order)
		if v, ok := w.instance().Annotations[cstorv1.AnnotationScrub]; ok {
			t.Errorf("the order %s is still there", v)
		}
	}
	w.annotate(cstorv1.AnnotationScrub, "now")
	w.annotate(cstorv1.AnnotationScrubEvery, "weekly")
	w.disks.pool.refuse = errors.New("the scrub is not there")
	w.pass()
	w.wantEvents("Warning Scrub annotation cstor.openebs.io/scrub=now is none of start, pause, resume, stop",
		"Warning Scrub annotation cstor.openebs.io/scrub-every=weekly is not a time such as 168h")
	w.annotate(cstorv1.AnnotationScrub, "pause")
	w.pass()
	w.wantEvents("Warning Scrub the scrub is not there")
	w.annotate(cstorv1.AnnotationScrubEvery, "24h")
	w.restart()
	w.pass()
	if w.disks.set.ScrubEvery != 24*time.Hour {
		t.Error(w.disks.set)
	}
}

// TestScrubIsReported: how far it is, what came of it, and what it could not repair.
func TestScrubIsReported(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	pool := w.disks.pool
	w.pass()
	w.wantCondition(cstorv1.PoolScrub, "", "")
	w.wantCondition(cstorv1.DataDamaged, "", "")
	pool.scrub = Progress{State: engine.ActivityRunning, Done: 1 * gib, Total: 4 * gib, Rate: 100 << 20, Left: 30e9}
	w.pass()
	w.wantCondition(cstorv1.PoolScrub, cstorv1.ReasonScrubInProgress, "25% of 4G, 100M/s, 30s left")
	pool.scrub.State = engine.ActivityPaused
	w.pass()
	w.wantCondition(cstorv1.PoolScrub, cstorv1.ReasonScrubPaused, "25% of 4G")
	pool.scrub = Progress{State: engine.ActivityDone, Done: 4 * gib, Total: 4 * gib, Ended: w.now}
	w.pass()
	w.pass()
	w.wantCondition(cstorv1.PoolScrub, cstorv1.ReasonScrubCompleted, "Scrub ended: 4G were checked, nothing was wrong")
	w.wantEvents("Normal Scrub Scrub ended: 4G were checked, nothing was wrong")

	pool.scrub.Repaired, pool.scrub.Errors, pool.scrub.Ended = 7, 2, w.now
	pool.damage = []engine.Damage{{Replica: "pvc-1", Block: 17, Device: "/dev/a", Offset: 4096, What: "data"}, {What: "batch header", Device: "/dev/a"}}
	w.pass()
	w.pass()
	w.wantEvents("Warning Scrub Scrub ended: 4G were checked, 7 blocks repaired, 2 found damaged that nothing can repair",
		"Warning DataDamaged 2 places are damaged")
	damaged := "data of replica pvc-1 from block 17 on, on device /dev/a at offset 4096"
	w.wantCondition(cstorv1.DataDamaged, cstorv1.ReasonDataIsDamaged, damaged)
	pool.damage = nil // a new process does not know what it was
	w.restart()
	w.pass()
	w.wantCondition(cstorv1.DataDamaged, cstorv1.ReasonDataIsDamaged, damaged)
	if n := w.count("Scrub Scrub ended") + w.count("DataDamaged"); n != 3 {
		t.Errorf("told of %d times", n)
	}
	pool.scrub = Progress{State: engine.ActivityDone, Done: 4 * gib, Total: 4 * gib, Ended: w.now}
	w.pass()
	w.wantCondition(cstorv1.DataDamaged, cstorv1.ReasonDataIsSound, "")
}

// TestErrorsAreReported: errors of devices, and damage that reads come upon.
func TestErrorsAreReported(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	d := w.disks.pool.device("/dev/a")
	for range 10 { // every time there are some more
		d.ReadErrors++
		d.ChecksumErrors += 2
		w.disks.pool.stats.ChecksumErrors++
		w.pass()
	}
	w.wantEvents("Warning DeviceErrors a device had 1 read errors, 0 write errors and 2 blocks with wrong content",
		"Warning DataDamaged 1 reads found damaged data")
	w.now = w.now.Add(errorsSaidEvery)
	w.pass()
	w.wantEvents("Warning DeviceErrors a device had 10 read errors, 0 write errors and 20 blocks with wrong content")
	if n := w.count("DeviceErrors"); n != 2 {
		t.Errorf("told of %d times", n)
	}
}
