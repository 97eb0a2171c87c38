package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/block"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// addDevice makes a BlockDevice with what is on it.
func (w *world) addDevice(name string, content any) {
	w.t.Helper()
	bd := &openebsv1alpha1.BlockDevice{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	bd.Spec.Path = "/dev/" + name
	w.disks.content[bd.Spec.Path] = content
	if err := w.client.Create(w.ctx, bd); err != nil {
		w.t.Fatal(err)
	}
}

// list makes the pool's object list devices: groups of names, a write cache's after a bar.
func (w *world) list(kind, devices string) {
	w.t.Helper()
	cr := w.instance()
	data, cache, cached := strings.Cut(devices, "|")
	cr.Spec.PoolConfig.DataRaidGroupType, cr.Spec.DataRaidGroups = kind, raidGroups(data)
	if cached {
		cr.Spec.PoolConfig.WriteCacheGroupType, cr.Spec.WriteCacheRaidGroups = kind, raidGroups(cache)
	}
	if err := w.client.Update(w.ctx, cr); err != nil {
		w.t.Fatal(err)
	}
}

func raidGroups(text string) (list []cstorv1.RaidGroup) {
	for group := range strings.SplitSeq(text, ",") {
		var g cstorv1.RaidGroup
		for name := range strings.FieldsSeq(group) {
			g.BlockDevices = append(g.BlockDevices, cstorv1.CStorPoolInstanceBlockDevice{BlockDeviceName: name})
		}
		list = append(list, g)
	}
	return list
}

// mark makes the claim of a device that replaces another, as the operator does.
func (w *world) mark(fresh, old string) {
	w.t.Helper()
	c := &openebsv1alpha1.BlockDeviceClaim{ObjectMeta: metav1.ObjectMeta{
		Namespace: ns, Name: "bdc-" + fresh, Labels: map[string]string{cstorv1.LabelPoolCluster: "cspc"},
		Annotations: map[string]string{cstorv1.AnnotationPredecessor: old},
	}}
	c.Spec.BlockDeviceName = fresh
	if err := w.client.Create(w.ctx, c); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) marked(fresh string) bool {
	w.t.Helper()
	return get(w, "bdc-"+fresh, &openebsv1alpha1.BlockDeviceClaim{}).Annotations[cstorv1.AnnotationPredecessor] != ""
}

// newPool is a pool of blank devices that was made.
func newPool(t *testing.T, kind, devices string) *world {
	t.Helper()
	w := newWorld(t, "", engine.ErrBlank)
	for name := range strings.FieldsFuncSeq(devices, func(r rune) bool { return strings.ContainsRune(" ,|", r) }) {
		w.addDevice(name, engine.ErrBlank)
	}
	w.list(kind, devices)
	w.pass()
	if p := w.instance().Status.Phase; p != cstorv1.PoolOnline {
		t.Fatalf("phase %s", p)
	}
	w.disks.pool.calls = nil
	return w
}

func (w *world) wantCalls(want ...string) {
	w.t.Helper()
	if got := w.disks.pool.calls; !slices.Equal(got, want) {
		w.t.Errorf("asked of the pool: %q", got)
	}
	w.disks.pool.calls = nil
}

// wantCondition checks a condition, none if reason is empty, and that its message contains what it should.
func (w *world) wantCondition(kind, reason, part string) {
	w.t.Helper()
	for _, c := range w.instance().Status.Conditions {
		if c.Type == kind {
			status := corev1.ConditionTrue
			switch reason {
			case cstorv1.ReasonExpansionSuccessful, cstorv1.ReasonReplacementSucceeded, cstorv1.ReasonDisksAvailable,
				cstorv1.ReasonScrubCompleted, cstorv1.ReasonScrubStopped, cstorv1.ReasonDataIsSound:
				status = corev1.ConditionFalse
			}
			if c.Reason != reason || c.Status != status || !strings.Contains(c.Message, part) {
				w.t.Errorf("condition %s=%s %s: %s", c.Type, c.Status, c.Reason, c.Message)
			}
			return
		}
	}
	if reason != "" {
		w.t.Errorf("no condition %s", kind)
	}
}

// count returns how many times events with that text were recorded.
func (w *world) count(part string) (n int32) {
	w.t.Helper()
	list := &corev1.EventList{}
	if err := w.client.List(w.ctx, list); err != nil {
		w.t.Fatal(err)
	}
	for _, e := range list.Items {
		if strings.Contains(e.Reason+" "+e.Message, part) {
			n += max(e.Count, 1)
		}
	}
	return n
}

func TestGroupsAreMadeAsListed(t *testing.T) {
	for _, c := range []struct{ kind, devices, want string }{
		{"stripe", "a b", "[{stripe false [/dev/a]} {stripe false [/dev/b]}]"},
		{"mirror", "a b,c d", "[{mirror false [/dev/a /dev/b]} {mirror false [/dev/c /dev/d]}]"},
		{"raidz", "a b c|d e f", "[{raidz false [/dev/a /dev/b /dev/c]} {raidz true [/dev/d /dev/e /dev/f]}]"},
		{"stripe", "a|d e", "[{stripe false [/dev/a]} {stripe true [/dev/d]} {stripe true [/dev/e]}]"},
	} {
		w := newPool(t, c.kind, c.devices)
		list, err := w.agent.findDevices(w.ctx, nil)
		if got := fmt.Sprint(groupsOf(list)); err != nil || got != c.want {
			t.Errorf("%s of %s: %s, %v", c.kind, c.devices, got, err)
		}
		// Each device is found in its place, also when it cannot be asked.
		devices := w.disks.pool.Devices()
		slices.Reverse(devices) // in whatever order the engine names them
		l := layoutOf(devices)
		for i := range list {
			named := w.agent.member(&l, list, &list[i])
			list[i].label, list[i].err = nil, errDisk
			placed := w.agent.member(&l, list, &list[i])
			if named == nil || placed == nil || named.GUID != placed.GUID || named.Name != list[i].path {
				t.Errorf("%s of %s: %s is %v by name, %v by place", c.kind, c.devices, list[i].name, named, placed)
			}
		}
	}
}

func TestSettingsOfThePool(t *testing.T) {
	for value, want := range map[string]string{"": "lz4", "on": "lz4", "lz4": "lz4", "gzip": "lz4", "lzjb": "lz4", "zle": "lz4", "off": "off", "zstd": "zstd"} {
		if got := compression(value); got != want {
			t.Errorf("compression %q: %s", value, got)
		}
	}
	w := newPool(t, "stripe", "a")
	if w.disks.set.ReadOnlyPercent != 85 || w.disks.set.Compression != "lz4" {
		t.Errorf("settings %+v", w.disks.set)
	}
	cr := w.instance()
	limit := 70
	cr.Spec.PoolConfig.ROThresholdLimit = &limit
	cr.Spec.PoolConfig.RebuildBandwidth = "50M"
	if err := w.client.Update(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.pass()
	if w.disks.pool.limit != 70 || w.disks.created != 1 {
		t.Errorf("limit %d", w.disks.pool.limit)
	}
	if got := w.disks.pool.rebuilds; got != 50<<20 {
		t.Errorf("rebuilds may move %d bytes/s", got)
	}
}

func TestDeviceGoesAndComesBack(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.wantCondition(cstorv1.DiskUnavailable, "", "")
	kept := w.disks.content["/dev/b"]
	delete(w.disks.content, "/dev/b")
	w.disks.pool.state("/dev/b", stateFaulted)
	w.disks.pool.stats.Health = "DEGRADED"
	w.pass()
	if p := w.instance().Status.Phase; p != cstorv1.PoolDegraded {
		t.Errorf("phase %s", p)
	}
	w.wantEvents("CStorPoolInstance Warning DeviceState b device was in FAULTED state")
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "Following disks [b] are unavailable/faulted: b: device /dev/b: no such file; the pool goes on with less redundancy: put the disks back, or ")
	w.pass()
	w.pass()
	if n := w.count("DeviceState"); n != 1 {
		t.Errorf("said %d times", n)
	}

	// A process that starts without it.
	w.restart()
	w.pass()
	w.pass()
	w.wantEvents("Normal Pool Imported", "Warning DeviceState b device was in UNAVAIL state")
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "[b]")
	w.wantCalls()

	// It is plugged in elsewhere: its BlockDevice has another path.
	w.disks.content["/dev/other"] = kept
	bd := get(w, "b", &openebsv1alpha1.BlockDevice{})
	bd.Spec.Path = "/dev/other"
	if err := w.client.Update(w.ctx, bd); err != nil {
		t.Fatal(err)
	}
	w.pass()
	w.pass()
	w.wantCalls("return /dev/other")
	b := w.disks.pool.device("/dev/other")
	b.State, b.ToResilver = stateResilvering, gib
	w.disks.pool.resilver = Progress{Done: 1e9, Total: 4e9}
	w.pass()
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksAvailable, "b: what was missed is being copied, 25% of 3.73G")
	b.State, b.ToResilver = stateOnline, 0
	w.disks.pool.stats.Health = "ONLINE"
	w.pass()
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksAvailable, "")
	if p := w.instance().Status.Phase; p != cstorv1.PoolOnline {
		t.Errorf("phase %s", p)
	}
}

func TestDeviceThatFailsIsTriedAgainSeldom(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.disks.pool.state("/dev/b", stateFaulted)
	w.disks.pool.refuse = errDisk
	passes := 0
	for range 40 { // about ten minutes
		w.pass()
		passes++
	}
	if n := len(w.disks.pool.calls); n < 2 || n > 4 {
		t.Errorf("tried %d times: %q", n, w.disks.pool.calls)
	}
	w.disks.pool.calls = nil
	kept := w.disks.content["/dev/b"]
	delete(w.disks.content, "/dev/b") // somebody takes it out
	w.pass()
	w.pass()
	w.pass()
	w.disks.content["/dev/b"] = kept // and puts it in again
	w.disks.pool.refuse = nil
	w.pass()
	w.pass()
	w.wantCalls("return /dev/b")
}

// A device whose place is taken by another one's is never the one that is replaced.
func TestReplacementOfTheRightDevice(t *testing.T) {
	w := newPool(t, "raidz2", "a b c d e f")
	for _, gone := range []string{"/dev/b", "/dev/e"} {
		delete(w.disks.content, gone)
		w.disks.pool.state(gone, stateUnavailable)
	}
	w.pass()
	w.addDevice("x", engine.ErrBlank)
	w.mark("x", "e")
	w.list("raidz2", "a b c d x f")
	w.pass()
	w.wantCalls("replace /dev/e with /dev/x")
}

// Somebody has edited the pool's object: its order says nothing.
func TestReplacementInAListOfAnotherOrder(t *testing.T) {
	w := newPool(t, "raidz2", "a b c d e f")
	w.list("raidz2", "f e d c b a")
	for _, gone := range []string{"/dev/b"} {
		delete(w.disks.content, gone)
		w.disks.pool.state(gone, stateUnavailable)
	}
	w.pass()
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "Following disks [b] ")
	w.addDevice("x", engine.ErrBlank)
	w.mark("x", "b")
	w.list("raidz2", "f e d c x a")
	w.pass()
	w.wantCalls("replace /dev/b with /dev/x")

	w = newPool(t, "raidz2", "a b c d e f")
	w.list("raidz2", "f e d c b a")
	for _, gone := range []string{"/dev/b", "/dev/c"} {
		delete(w.disks.content, gone)
		w.disks.pool.state(gone, stateUnavailable)
	}
	w.addDevice("x", engine.ErrBlank)
	w.mark("x", "b")
	w.list("raidz2", "f e d c x a")
	w.restart()
	w.pass()
	w.pass()
	w.wantCalls()
	w.wantCondition(cstorv1.DiskReplacement, cstorv1.ReasonReplacementInProgress, "not clear which device")
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "Following disks [c] ")
}

func TestBlankDeviceInThePlaceOfAMemberIsNotTaken(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.disks.content["/dev/b"] = engine.ErrBlank // another disk in the same slot
	w.disks.pool.state("/dev/b", stateUnavailable)
	w.pass()
	w.pass()
	w.wantCalls()
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "b: device /dev/b: device is blank")
}

func TestExpansion(t *testing.T) {
	w := newPool(t, "mirror", "a b|c d")
	w.addDevice("e", engine.ErrBlank)
	w.addDevice("f", foreign)
	w.list("mirror", "a b,e f|c d")
	w.pass()
	w.wantCalls()
	w.wantEvents("Warning Pool Expansion Failed to expand pool... Error: f: device /dev/f")
	w.wantCondition(cstorv1.PoolExpansion, cstorv1.ReasonExpansionInProgress, "xfs")
	w.disks.content["/dev/f"] = engine.ErrBlank
	w.pass()
	w.pass()
	w.wantCalls("add mirror [/dev/e /dev/f]")
	w.wantEvents("Normal Pool Expansion Pool Expanded Successfully By Adding RaidGroup With BlockDevices: [e f] device type: data pool type: mirror")
	w.wantCondition(cstorv1.PoolExpansion, cstorv1.ReasonExpansionSuccessful, "successfull")
	w.restart()
	w.pass()
	w.pass()
	w.wantCalls() // the write cache's group is the second of the engine, but the first of its class
}

func TestStripeGrowsByDevices(t *testing.T) {
	w := newPool(t, "stripe", "a|c")
	w.addDevice("b", engine.ErrBlank)
	w.addDevice("d", engine.ErrBlank)
	w.addDevice("e", engine.ErrBlank)
	w.list("stripe", "a b|c d e")
	w.pass()
	w.pass()
	w.wantCalls("add stripe [/dev/b]", "add stripe [/dev/d]", "add stripe [/dev/e]")
	w.wantEvents("By Adding BlockDevices: [b] device type: data pool type: stripe", "By Adding BlockDevices: [d e] device type: log pool type: stripe")
	w.wantCondition(cstorv1.PoolExpansion, cstorv1.ReasonExpansionSuccessful, "")
}

func TestDevicesGrow(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	w.disks.sizes = map[string]int64{"/dev/a": 2 * poolSize, "/dev/b": 2 * poolSize}
	w.pass()
	w.pass()
	w.pass()
	w.wantCalls("expand")
	w.wantEvents("Normal Pool Expansion Pool Expanded Successfully By Growing Of BlockDevices: [a b]")

	w.disks.sizes = map[string]int64{"/dev/a": 3 * poolSize, "/dev/b": 2 * poolSize}
	w.disks.pool.refuse = errDisk
	w.pass()
	w.disks.pool.device("/dev/a").Size = poolSize
	w.pass()
	w.pass()
	w.wantCalls("expand") // not again and again
	w.wantCondition(cstorv1.PoolExpansion, cstorv1.ReasonExpansionInProgress, errDisk.Error())
}

func TestInterruptedCreationIsDoneAgain(t *testing.T) {
	const uid = "5d3b1c9e-8f5e-4c37-9c57-2f1f3a6f1a11"
	cr := &cstorv1.CStorPoolInstance{ObjectMeta: metav1.ObjectMeta{UID: uid}}
	if got := poolGUID(cr).String(); strings.ReplaceAll(got, "-", "") != strings.ReplaceAll(uid, "-", "") {
		t.Errorf("GUID %s of %s", got, uid)
	}
	w := newWorld(t, "", engine.ErrBlank)
	w.addDevice("a", &engine.Label{Owner: cspiUID, Device: block.GUID{7}, Members: nil})
	w.addDevice("b", engine.ErrBlank)
	w.list("mirror", "a b")
	w.disks.content["/dev/a"].(*engine.Label).Members = []label.Member{{GUID: block.GUID{7}}}
	w.pass()
	if w.disks.created != 1 {
		t.Errorf("created %d times", w.disks.created)
	}
	w.wantEvents("Normal Created")
}

func TestDestroyedWhenAllDevicesAreGoneForGood(t *testing.T) {
	w := newPool(t, "mirror", "a b")
	for _, d := range []string{"a", "b"} {
		if err := w.client.Delete(w.ctx, get(w, d, &openebsv1alpha1.BlockDevice{})); err != nil {
			t.Fatal(err)
		}
		delete(w.disks.content, "/dev/"+d)
	}
	w.restart()
	w.pass()
	w.wantCondition(cstorv1.PoolLost, cstorv1.ReasonPoolLost, `a: BlockDevice does not exist: blockdevices.openebs.io "a" not found; b: BlockDevice does not exist`)
	if err := w.client.Delete(w.ctx, w.instance()); err != nil {
		t.Fatal(err)
	}
	w.pass()
	list := &cstorv1.CStorPoolInstanceList{}
	if err := w.client.List(w.ctx, list); err != nil || len(list.Items) != 0 {
		t.Errorf("%d objects left, %v", len(list.Items), err)
	}
}
