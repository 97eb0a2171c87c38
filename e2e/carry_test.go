package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/demo/lab"
	"github.com/cstor-go/cstor/internal/pool"
)

// isCarried puts the disks of the pool into another node, where they have other names, and edits the node of its entry.
func (d *disks) isCarried(t *testing.T) {
	to := d.freeNode(t)
	d.scale(t, 0)
	d.cacheIsUsed(t)
	in := d.instance(t)
	for i, name := range devicesOf(in) {
		path := d.lab.Disk(to, fmt.Sprint("carried-", i))
		check(t, os.Rename(d.lab.Disk(d.node, name), path))
		bd := &openebsv1alpha1.BlockDevice{}
		check(t, d.lab.Get(d.ctx, name, bd))
		before := bd.DeepCopy()
		bd.Spec.Path, bd.Spec.NodeAttributes.NodeName, bd.Labels[cstorv1.LabelHostName] = path, to, to
		check(t, d.lab.Client.Patch(d.ctx, bd, client.MergeFrom(before)))
	}
	d.edit(t, func(p *cstorv1.PoolSpec) { p.NodeSelector = map[string]string{cstorv1.LabelHostName: to} })
	d.scale(t, 1)
	d.node = to
	d.event(t, corev1.EventTypeNormal, "Pool Imported", "Pool Import successful: cstor-"+string(in.OwnerReferences[0].UID))
	check(t, lab.Until(d.ctx, diskLimit, "the pool and its replica to be on "+to, func(ctx context.Context) (bool, string, error) {
		in, r := &cstorv1.CStorPoolInstance{}, &cstorv1.CStorVolumeReplica{}
		if err := d.lab.Get(ctx, d.pool, in); err != nil {
			return false, "", err
		}
		if err := d.lab.Get(ctx, cstorv1.ReplicaName(d.volume, d.pool), r); err != nil {
			return false, "", err
		}
		done := in.Spec.HostName == to && in.Labels[cstorv1.LabelHostName] == to && in.Status.Phase == cstorv1.PoolOnline &&
			r.Status.Phase == cstorv1.ReplicaHealthy && r.Annotations[cstorv1.AnnotationPoolHost] == to
		return done, fmt.Sprintf("%s %s, %s %s", in.Spec.HostName, in.Status.Phase, r.Annotations[cstorv1.AnnotationPoolHost], r.Status.Phase), d.app.Err()
	}))
	if p, err := d.lab.Process(d.ctx, d.pool+"-"); err != nil || p.Node != to {
		t.Errorf("the pool runs on %s, %v", p.Node, err)
	}
}

// freeNode removes the pool that has no replica, and returns the node that it was on.
func (d *disks) freeNode(t *testing.T) string {
	t.Helper()
	p, err := d.lab.Placement(d.ctx, d.volume)
	check(t, err)
	free := p.Free[0]
	d.specify(t, func(c *cstorv1.CStorPoolCluster) {
		c.Spec.Pools = slices.DeleteFunc(c.Spec.Pools, func(p cstorv1.PoolSpec) bool {
			return p.NodeSelector[cstorv1.LabelHostName] == free.Spec.HostName
		})
	})
	check(t, lab.Until(d.ctx, diskLimit, "pool "+free.Name+" to be gone", func(ctx context.Context) (bool, string, error) {
		err := d.lab.Get(ctx, free.Name, &cstorv1.CStorPoolInstance{})
		return apierrors.IsNotFound(err), "it exists", client.IgnoreNotFound(err)
	}))
	return free.Spec.HostName
}

// scale starts or stops the pool's process.
func (d *disks) scale(t *testing.T, n int) {
	t.Helper()
	_, err := d.lab.Kubectl(d.ctx, "scale", "deployment", d.pool, "-n", lab.Namespace, fmt.Sprint("--replicas=", n))
	check(t, err)
	check(t, lab.Until(d.ctx, diskLimit, fmt.Sprintf("%d processes of the pool", n), func(ctx context.Context) (bool, string, error) {
		all, err := d.lab.Processes(ctx)
		running := 0
		for _, p := range all {
			if p.PID > 0 && strings.HasPrefix(p.Pod, d.pool+"-") {
				running++
			}
		}
		return running == n, fmt.Sprintf("%d run", running), err
	}))
}

// cacheIsUsed looks at the disks of the pool, which is not running: the write cache has the newest checkpoint.
func (d *disks) cacheIsUsed(t *testing.T) {
	t.Helper()
	args := []string{"pool", "inspect", "-o", "json"}
	for _, name := range devicesOf(d.instance(t)) {
		args = append(args, d.lab.Disk(d.node, name))
	}
	out, err := exec.CommandContext(d.ctx, d.lab.RootPath(filepath.Join("bin", "cstor")), args...).Output()
	check(t, err)
	var v pool.View
	check(t, json.Unmarshal(out, &v))
	for _, s := range v.Spans {
		g := v.Groups[s.Group-1]
		if root := v.Checkpoint.Root[0].Segment; root >= s.First && root < s.First+s.Count && (!g.Cache || g.Free == g.Segments) {
			t.Errorf("the checkpoint is in segment %d of group %d, %+v", root, s.Group, g)
		}
	}
	if t.Failed() || !slices.ContainsFunc(v.Groups, func(g pool.GroupView) bool { return g.Cache && g.Free < g.Segments }) {
		t.Errorf("the write cache is not used: %s", out)
	}
}

// devicesOf returns the names of a pool's BlockDevices.
func devicesOf(in *cstorv1.CStorPoolInstance) (names []string) {
	for _, g := range slices.Concat(in.Spec.DataRaidGroups, in.Spec.WriteCacheRaidGroups) {
		for _, bd := range g.BlockDevices {
			names = append(names, bd.BlockDeviceName)
		}
	}
	return names
}
