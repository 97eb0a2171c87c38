package pool

import (
	"errors"
	"testing"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	engine "github.com/cstor-go/cstor/internal/pool"
)

func TestReplacement(t *testing.T) {
	for _, old := range []string{"there", "gone", "gone with its BlockDevice"} {
		w := newPool(t, "raidz", "a b c,d e f")
		if old != "there" {
			delete(w.disks.content, "/dev/e")
			w.disks.pool.state("/dev/e", stateUnavailable)
			w.pass()
		}
		if old == "gone with its BlockDevice" {
			if err := w.client.Delete(w.ctx, get(w, "e", &openebsv1alpha1.BlockDevice{})); err != nil {
				t.Fatal(err)
			}
		}
		w.addDevice("x", engine.ErrBlank)
		w.mark("x", "e")
		w.list("raidz", "a b c,d x f")
		w.pass()
		w.wantCalls("replace /dev/e with /dev/x")
		w.wantEvents("Normal BlockDevice Replacement Replacement of e BlockDevice with x BlockDevice is in-Progress")
		w.disks.pool.resilver = Progress{Done: 3 * gib, Total: 4 * gib, Rate: 200 << 20, Left: 5e9}
		w.pass()
		w.wantCondition(cstorv1.DiskReplacement, cstorv1.ReasonReplacementInProgress, "x instead of e, 75% of 4G, 200M/s, 5s left")
		if !w.marked("x") {
			t.Error("the mark is gone too early")
		}
		// A new process goes on with it.
		w.restart()
		w.pass()
		w.pass()
		if !w.marked("x") {
			t.Error("the mark is gone too early")
		}
		w.disks.pool.state("/dev/x", stateOnline) // and the other is still in its place
		w.pass()
		if !w.marked("x") {
			t.Error("the mark is gone while both devices are there")
		}
		w.disks.pool.state("/dev/e", stateLeaving) // its labels are not wiped yet
		w.pass()
		if !w.marked("x") {
			t.Error("the mark is gone while the old device still carries the pool")
		}
		w.disks.pool.resilvered("/dev/e", "/dev/x")
		w.disks.pool.state("/dev/x", stateResilvering) // and lacks data
		w.pass()
		if !w.marked("x") {
			t.Error("the mark is gone while data is missing")
		}
		w.disks.pool.state("/dev/x", stateOnline)
		w.pass()
		w.pass()
		w.wantCalls()
		w.wantEvents("Normal BlockDevice Replacement Resilvering is successfull on BlockDevice x")
		w.wantCondition(cstorv1.DiskReplacement, cstorv1.ReasonReplacementSucceeded, "successfully completed")
		if w.marked("x") {
			t.Errorf("%s: the mark is still there", old)
		}
		if n := w.count("Resilvering is successfull"); n != 1 {
			t.Errorf("said %d times", n)
		}
		if old != "there" {
			w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksAvailable, "")
		}
	}
}

// TestReplacementFails: the new device dies, and another one takes its place, in a process that has just been started.
func TestReplacementFails(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.addDevice("x", engine.ErrBlank)
	w.mark("x", "b")
	w.list("mirror", "a x")
	w.pass()
	w.wantCalls("replace /dev/b with /dev/x")
	w.disks.pool.state("/dev/x", stateFaulted)
	w.disks.content["/dev/x"] = errors.New("input/output error")
	w.addDevice("y", engine.ErrBlank)
	w.mark("y", "x")
	w.list("mirror", "a y")
	w.restart()
	w.pass()
	w.disks.pool.state("/dev/b", stateReplacing)
	w.pass()
	w.wantCalls("replace /dev/x with /dev/y")
	if d := w.disks.pool.device("/dev/b"); d.State == stateUnavailable {
		t.Error("the old device was not opened")
	}
	w.disks.pool.resilvered("/dev/b", "/dev/y")
	w.pass()
	w.pass()
	if w.marked("y") || !w.marked("x") {
		t.Error(w.marked("y"), w.marked("x"))
	}
	w.wantEvents("Normal BlockDevice Replacement Resilvering is successfull on BlockDevice y")
	w.wantCondition(cstorv1.DiskReplacement, cstorv1.ReasonReplacementSucceeded, "")
}

func TestReplacementThatCannotBe(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.addDevice("x", foreign)
	w.mark("x", "b")
	w.list("mirror", "a x")
	w.pass()
	w.pass()
	w.wantCalls()
	w.wantEvents("Warning BlockDevice Replacement Replacement of b BlockDevice with x BlockDevice failed: device /dev/x: device /dev/sdb is not blank: found xfs filesystem")
	w.wantCondition(cstorv1.DiskReplacement, cstorv1.ReasonReplacementInProgress, "xfs")
	if n := w.count("BlockDevice Replacement"); n != 1 {
		t.Errorf("said %d times", n)
	}
	w.disks.content["/dev/x"] = engine.ErrBlank
	w.pass()
	w.pass()
	w.wantCalls("replace /dev/b with /dev/x")
}
