package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/demo/workload"
)

// diskLimit is how long a pool may take to notice what happened to its disks, and to copy a few hundred MiB.
const diskLimit = 2 * time.Minute

// TestDisks takes disks away from pools of each type that has some to spare, brings one back, and replaces another, or two
// that go at once where a group can spare two, while an application works on a volume of two replicas, and has a scrub mend what is
// wrong on one. The pools of mirrors have a write cache, with which the same is done, and one of them is carried to another node.
func TestDisks(t *testing.T) {
	for _, kind := range lab.RaidTypes[1:] {
		t.Run(kind, func(t *testing.T) {
			mirror, opts := kind == cstorv1.RaidMirror, lab.Options{Raid: kind}
			if mirror {
				opts.Pools = "examples/cspc-write-cache.yaml"
			}
			d := newDisks(interruptible(t), t, opts)
			d.application(t)
			ok := t.Run("goes and comes back", d.goesAndComesBack) && t.Run("is replaced", d.isReplaced)
			if ok && !mirror { // there the data is in the write cache
				ok = t.Run("is mended", d.isMended)
			}
			ok = ok && t.Run("pool grows", d.grows)
			if ok && mirror {
				d.lookAt(t, true)
				ok = t.Run("of the write cache goes and comes back", d.goesAndComesBack) && t.Run("of the write cache is replaced", d.isReplaced) &&
					t.Run("of the write cache is mended", d.isMended) && t.Run("pool is carried to another node", d.isCarried)
			}
			if ok {
				d.verify(t)
			}
		})
	}
}

// TestStripeGrows adds a disk to a stripe, and makes one larger.
func TestStripeGrows(t *testing.T) {
	d := newDisks(interruptible(t), t, lab.Options{Raid: cstorv1.RaidStripe})
	d.application(t)
	d.grows(t)
	d.diskGrows(t)
	d.verify(t)
}

// disks is a cluster of pools of which one is looked at.
type disks struct {
	ctx    context.Context
	lab    *lab.Lab
	pool   string
	node   string
	cache  bool     // it is the write cache's devices that are looked at
	names  []string // of the BlockDevices of the first raid group of these
	volume string

	app  *workload.App
	load *workload.Running
}

func newDisks(ctx context.Context, t *testing.T, opts lab.Options) *disks {
	t.Helper()
	opts.Root = need(t)
	opts.Dir = newDir(t, opts.Root)
	l, err := lab.Start(ctx, opts)
	check(t, err)
	t.Cleanup(func() { check(t, l.Close()) })
	check(t, l.Prepare(ctx))
	d := &disks{ctx: ctx, lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			d.explain(t)
		}
	})
	return d
}

// application starts one on a volume of which the pool has a replica.
func (d *disks) application(t *testing.T) {
	name, manifest, err := d.lab.NewVolume()
	check(t, err)
	check(t, d.lab.CreateVolume(d.ctx, manifest))
	check(t, d.lab.WaitBound(d.ctx, name))
	v := &cstorv1.CStorVolume{}
	check(t, d.lab.Get(d.ctx, name, v))
	session, err := lab.Attach(d.ctx, v)
	check(t, err)
	t.Cleanup(session.Close)
	d.app = workload.New(workload.Config{
		Device: session, Extents: workload.Spread(session.Size(), 64<<20, 4), Seed: 1, Phase: "disks",
	})
	check(t, d.app.Fill(d.ctx, nil))
	d.load = d.app.Start(d.ctx, workload.Load{Depth: 4, Rate: 200})

	p, err := d.lab.Placement(d.ctx, name)
	check(t, err)
	d.volume, d.pool, d.node = name, p.Used[0].Name, p.Used[0].Spec.HostName
	d.lookAt(t, false)
}

// lookAt chooses the devices that are looked at: those of data, or of the write cache.
func (d *disks) lookAt(t *testing.T, cache bool) {
	t.Helper()
	d.cache, d.names = cache, nil
	spec := d.instance(t).Spec
	groups := spec.DataRaidGroups
	if cache {
		groups = spec.WriteCacheRaidGroups
	}
	for _, bd := range groups[0].BlockDevices {
		d.names = append(d.names, bd.BlockDeviceName)
	}
}

func (d *disks) verify(t *testing.T) {
	d.load.Stop()
	check(t, d.app.Err())
	check(t, d.app.Verify(d.ctx, nil))
}

// take takes disks away, as if the machine had been started without them: a process that has a file open would not notice.
func (d *disks) take(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		path := d.lab.Disk(d.node, name)
		check(t, os.Rename(path, path+".away"))
	}
	p, err := d.lab.Process(d.ctx, d.pool+"-")
	check(t, err)
	check(t, p.Kill())
	d.await(t, cstorv1.PoolDegraded, cstorv1.DiskUnavailable, corev1.ConditionTrue, cstorv1.ReasonDisksUnavailable)
	for _, name := range names {
		d.event(t, corev1.EventTypeWarning, "DeviceState", name+" device was in UNAVAIL state")
	}
}

func (d *disks) goesAndComesBack(t *testing.T) {
	last := d.names[len(d.names)-1]
	d.take(t, last)
	path := d.lab.Disk(d.node, last)
	check(t, os.Rename(path+".away", path))
	d.await(t, cstorv1.PoolOnline, cstorv1.DiskUnavailable, corev1.ConditionFalse, cstorv1.ReasonDisksAvailable)
}

// isReplaced replaces a disk that has gone; of raidz2 two that have gone at once, one after the other.
func (d *disks) isReplaced(t *testing.T) {
	gone := d.names[:1]
	if d.instance(t).Spec.PoolConfig.DataRaidGroupType == cstorv1.RaidZ2 {
		gone = d.names[:2]
	}
	d.take(t, gone...)
	for i, name := range gone {
		phase := cstorv1.PoolDegraded // until the last one
		if i == len(gone)-1 {
			phase = cstorv1.PoolOnline
		}
		d.replace(t, name, phase)
	}
}

// replace has another disk take the place of one, after which the pool is in that phase.
func (d *disks) replace(t *testing.T, old string, phase cstorv1.PoolPhase) {
	t.Helper()
	fresh := old + "-new"
	was := &openebsv1alpha1.BlockDevice{}
	check(t, d.lab.Get(d.ctx, old, was))
	claim := was.Spec.ClaimRef.Name

	check(t, d.lab.AddDisk(d.ctx, d.node, fresh))
	d.edit(t, func(p *cstorv1.PoolSpec) {
		groups := p.DataRaidGroups
		if d.cache {
			groups = p.WriteCacheRaidGroups
		}
		for i := range groups[0].BlockDevices {
			if bd := &groups[0].BlockDevices[i]; bd.BlockDeviceName == old {
				bd.BlockDeviceName = fresh
			}
		}
	})
	d.event(t, corev1.EventTypeNormal, "BlockDevice Replacement", fmt.Sprintf("Replacement of %s BlockDevice with %s BlockDevice is in-Progress", old, fresh))
	d.await(t, phase, cstorv1.DiskReplacement, corev1.ConditionFalse, cstorv1.ReasonReplacementSucceeded)
	d.event(t, corev1.EventTypeNormal, "BlockDevice Replacement", "Resilvering is successfull on BlockDevice "+fresh)
	check(t, lab.Until(d.ctx, diskLimit, "the claim of "+old+" to be gone", func(ctx context.Context) (bool, string, error) {
		err := d.lab.Get(ctx, claim, &openebsv1alpha1.BlockDeviceClaim{})
		return apierrors.IsNotFound(err), "it exists", client.IgnoreNotFound(err)
	}))
	now := &openebsv1alpha1.BlockDevice{}
	check(t, d.lab.Get(d.ctx, old, now))
	if now.Status.ClaimState != openebsv1alpha1.Unclaimed {
		t.Errorf("block device %s is %s", old, now.Status.ClaimState)
	}
	check(t, d.lab.Get(d.ctx, fresh, now))
	bdc := &openebsv1alpha1.BlockDeviceClaim{}
	check(t, d.lab.Get(d.ctx, now.Spec.ClaimRef.Name, bdc))
	if old := bdc.Annotations[cstorv1.AnnotationPredecessor]; old != "" {
		t.Errorf("claim %s still says that it replaces %s", bdc.Name, old)
	}
}

// isMended has a disk lie about some of what it holds. A scrub, which is paused meanwhile, repairs that.
func (d *disks) isMended(t *testing.T) {
	f, err := os.OpenFile(d.lab.Disk(d.node, d.names[len(d.names)-1]), os.O_WRONLY, 0)
	check(t, err)
	defer f.Close()
	for at := int64(2 << 20); at < 60<<20; at += 1 << 20 { // each disk has a quarter of the application's data at least
		_, err := f.WriteAt(bytes.Repeat([]byte("a lie. "), 1000), at)
		check(t, err)
	}
	annotate := func(annotations ...string) {
		t.Helper()
		_, err := d.lab.Kubectl(d.ctx, append([]string{"annotate", "cspi", "-n", lab.Namespace, d.pool}, annotations...)...)
		check(t, err)
	}
	annotate(cstorv1.AnnotationScrubRate+"=1M", cstorv1.AnnotationScrub+"=start")
	d.await(t, cstorv1.PoolOnline, cstorv1.PoolScrub, corev1.ConditionTrue, cstorv1.ReasonScrubInProgress)
	annotate(cstorv1.AnnotationScrub + "=pause")
	d.await(t, cstorv1.PoolOnline, cstorv1.PoolScrub, corev1.ConditionTrue, cstorv1.ReasonScrubPaused)
	annotate(cstorv1.AnnotationScrubRate+"-", cstorv1.AnnotationScrub+"=resume")
	d.await(t, cstorv1.PoolOnline, cstorv1.PoolScrub, corev1.ConditionFalse, cstorv1.ReasonScrubCompleted)
	for _, c := range d.instance(t).Status.Conditions {
		if c.Type == cstorv1.PoolScrub {
			if !strings.HasSuffix(c.Message, " blocks repaired") {
				t.Error(c.Message)
			}
			d.event(t, corev1.EventTypeWarning, "Scrub", c.Message)
		}
	}
}

func (d *disks) grows(t *testing.T) {
	before := d.instance(t)
	var names []string
	n := len(before.Spec.DataRaidGroups[0].BlockDevices)
	for i := range n {
		names = append(names, fmt.Sprintf("blockdevice-%s-more%d", d.node, i))
		check(t, d.lab.AddDisk(d.ctx, d.node, names[i]))
	}
	d.edit(t, func(p *cstorv1.PoolSpec) {
		var more []cstorv1.CStorPoolInstanceBlockDevice
		for _, name := range names {
			more = append(more, cstorv1.CStorPoolInstanceBlockDevice{BlockDeviceName: name})
		}
		if p.PoolConfig.DataRaidGroupType == cstorv1.RaidStripe {
			p.DataRaidGroups[0].BlockDevices = append(p.DataRaidGroups[0].BlockDevices, more...)
		} else {
			p.DataRaidGroups = append(p.DataRaidGroups, cstorv1.RaidGroup{BlockDevices: more})
		}
	})
	d.await(t, cstorv1.PoolOnline, cstorv1.PoolExpansion, corev1.ConditionFalse, cstorv1.ReasonExpansionSuccessful)
	d.isLargerThan(t, cstorv1.PoolBytes(before.Status.Capacity.Total)*3/2)
}

// diskGrows makes one of two disks twice as large while the pool runs, which notices it by itself.
func (d *disks) diskGrows(t *testing.T) {
	before := d.instance(t)
	path := d.lab.Disk(d.node, d.names[0])
	info, err := os.Stat(path)
	check(t, err)
	check(t, os.Truncate(path, 2*info.Size()))
	d.isLargerThan(t, cstorv1.PoolBytes(before.Status.Capacity.Total)*5/4)
	d.await(t, cstorv1.PoolOnline, cstorv1.PoolExpansion, corev1.ConditionFalse, cstorv1.ReasonExpansionSuccessful)
}

func (d *disks) isLargerThan(t *testing.T, was int64) {
	t.Helper()
	check(t, lab.Until(d.ctx, diskLimit, "the pool to be larger", func(ctx context.Context) (bool, string, error) {
		in := &cstorv1.CStorPoolInstance{}
		err := d.lab.Get(ctx, d.pool, in)
		return cstorv1.PoolBytes(in.Status.Capacity.Total) > was, in.Status.Capacity.Total.String(), err
	}))
}

func (d *disks) instance(t *testing.T) *cstorv1.CStorPoolInstance {
	t.Helper()
	in := &cstorv1.CStorPoolInstance{}
	check(t, d.lab.Get(d.ctx, d.pool, in))
	return in
}

// edit changes the pool's entry, as kubectl edit does.
func (d *disks) edit(t *testing.T, change func(*cstorv1.PoolSpec)) {
	t.Helper()
	d.specify(t, func(c *cstorv1.CStorPoolCluster) {
		for i := range c.Spec.Pools {
			if c.Spec.Pools[i].NodeSelector[cstorv1.LabelHostName] == d.node {
				change(&c.Spec.Pools[i])
			}
		}
	})
}

// specify changes what the cluster of pools is to be.
func (d *disks) specify(t *testing.T, change func(*cstorv1.CStorPoolCluster)) {
	t.Helper()
	c := &cstorv1.CStorPoolCluster{}
	check(t, d.lab.Get(d.ctx, d.instance(t).Labels[cstorv1.LabelPoolCluster], c))
	change(c)
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"pools": c.Spec.Pools}})
	check(t, err)
	check(t, d.lab.Client.Patch(d.ctx, c, client.RawPatch("application/merge-patch+json", patch)))
}

// await waits until the pool is in that phase and has that condition.
func (d *disks) await(t *testing.T, phase cstorv1.PoolPhase, kind string, status corev1.ConditionStatus, reason string) {
	t.Helper()
	what := fmt.Sprintf("the pool to be %s with %s=%s %s", phase, kind, status, reason)
	check(t, lab.Until(d.ctx, diskLimit, what, func(ctx context.Context) (bool, string, error) {
		in := &cstorv1.CStorPoolInstance{}
		if err := d.lab.Get(ctx, d.pool, in); err != nil {
			return false, "", err
		}
		has := slices.ContainsFunc(in.Status.Conditions, func(c cstorv1.CStorPoolInstanceCondition) bool {
			return c.Type == kind && c.Status == status && c.Reason == reason
		})
		return in.Status.Phase == phase && has, fmt.Sprintf("%s %+v", in.Status.Phase, in.Status.Conditions), d.app.Err()
	}))
}

// event waits for an event about the pool.
func (d *disks) event(t *testing.T, kind, reason, message string) {
	t.Helper()
	check(t, lab.Until(d.ctx, diskLimit, "the event "+message, func(ctx context.Context) (bool, string, error) {
		list := &corev1.EventList{}
		if err := d.lab.Client.List(ctx, list, client.InNamespace(lab.Namespace)); err != nil {
			return false, "", err
		}
		var others []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name != d.pool {
				continue
			}
			if e.Type == kind && e.Reason == reason && e.Message == message {
				return true, "", nil
			}
			others = append(others, e.Reason+" "+e.Message)
		}
		return false, strings.Join(others, "; "), nil
	}))
}

// explain logs what the cluster says about a pool whose test failed.
func (d *disks) explain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if out, err := d.lab.Kubectl(ctx, "describe", "cspc,cspi,bd,bdc", "-n", lab.Namespace); err == nil {
		t.Log(out)
	}
	if logs, err := d.lab.Logs(ctx, "", 40); err == nil {
		t.Log(logs)
	}
}
