package pools

import (
	"cmp"
	"context"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// provision claims the devices of an entry that was found valid and makes the instance.
func (r *Reconciler) provision(ctx context.Context, w *world, entry *cstorv1.PoolSpec) (created bool, err error) {
	for _, name := range sets.List(devicesOf(entry.DataRaidGroups, entry.WriteCacheRaidGroups)) {
		if err := r.claim(ctx, w.cluster, w.devices[name], ""); err != nil {
			return false, err
		}
	}
	return object.Ensure(ctx, r.Client, r.Live, w.cluster, w.newInstance(entry)) // sync makes the Deployment
}

// newInstance returns the instance of an entry.
func (w *world) newInstance(entry *cstorv1.PoolSpec) *cstorv1.CStorPoolInstance {
	in := &cstorv1.CStorPoolInstance{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: w.cluster.Namespace,
			Name:      w.instanceName(entry),
			Labels: map[string]string{
				cstorv1.LabelPoolCluster: w.cluster.Name,
				cstorv1.LabelCASType:     cstorv1.CASType,
				cstorv1.LabelVersion:     cstorv1.Version,
			},
			Finalizers: []string{cstorv1.FinalizerPoolCluster},
		},
		VersionDetails: w.cluster.VersionDetails,
	}
	if w.cluster.Annotations[cstorv1.AnnotationDisableDependants] == "true" {
		in.Annotations = map[string]string{cstorv1.AnnotationDisable: "true"}
	}
	listed := entry.DeepCopy()
	in.Spec.DataRaidGroups, in.Spec.WriteCacheRaidGroups = listed.DataRaidGroups, listed.WriteCacheRaidGroups
	for _, groups := range [][]cstorv1.RaidGroup{in.Spec.DataRaidGroups, in.Spec.WriteCacheRaidGroups} {
		w.describe(groups, devicesOf(groups))
	}
	w.configure(in, entry)
	return in
}

// configure makes an instance say what its entry says and may be changed.
func (w *world) configure(in *cstorv1.CStorPoolInstance, entry *cstorv1.PoolSpec) {
	if host, err := w.place(entry); err == nil {
		in.Spec.NodeSelector, in.Spec.HostName = entry.NodeSelector, host
		if in.Labels == nil {
			in.Labels = map[string]string{}
		}
		in.Labels[cstorv1.LabelHostName] = host
	}
	cfg, all := *entry.PoolConfig.DeepCopy(), &w.cluster.Spec
	cfg.Resources = cmp.Or(cfg.Resources, all.DefaultResources)
	cfg.AuxResources = cmp.Or(cfg.AuxResources, all.DefaultAuxResources)
	if cfg.Tolerations == nil {
		cfg.Tolerations = all.Tolerations
	}
	if cfg.PriorityClassName == nil && all.DefaultPriorityClassName != "" {
		cfg.PriorityClassName = ptr.To(all.DefaultPriorityClassName)
	}
	if cfg.ROThresholdLimit == nil {
		cfg.ROThresholdLimit = ptr.To(cstorv1.DefaultROThreshold)
	}
	in.Spec.PoolConfig = cfg
	if in.Annotations == nil {
		in.Annotations = map[string]string{}
	}
	if v, ok := w.cluster.Annotations[cstorv1.AnnotationExistingPool]; ok {
		in.Annotations[cstorv1.AnnotationExistingPool] = v
	}
	for _, key := range []string{cstorv1.AnnotationScrubEvery, cstorv1.AnnotationScrubRate} {
		inherit(in.Annotations, w.cluster.Annotations, key)
	}
}

// inherit makes an annotation of a pool what its cluster has, if that has it, and takes away what the cluster had before. A
// value that the pool was given by somebody else stays while the cluster has none.
func inherit(pool, cluster map[string]string, key string) {
	note := key + cstorv1.SuffixOfCluster
	v, ok := cluster[key]
	if ok {
		pool[key], pool[note] = v, v
		return
	}
	if v, ok = pool[note]; ok && pool[key] == v {
		delete(pool, key)
	}
	delete(pool, note)
}

// instanceName is the cluster's name and four characters, which follow from the entry: an operator that was killed after
// it had made the instance finds it again, whatever its cache says. A cluster that takes over the pools of one that is
// lost calls them as that one did, so that replicas on them have their names.
func (w *world) instanceName(entry *cstorv1.PoolSpec) string {
	taken := map[string]bool{}
	for i := range w.instances {
		in := &w.instances[i]
		taken[in.Name] = !devicesOf(in.Spec.DataRaidGroups).Equal(devicesOf(entry.DataRaidGroups))
	}
	uid := string(w.cluster.UID)
	if existing, ok := strings.CutPrefix(w.cluster.Annotations[cstorv1.AnnotationExistingPool], cstorv1.PoolNamePrefix); ok {
		uid = existing
	}
	for salt := 0; ; salt++ {
		s := object.Suffix(4, append(sets.List(devicesOf(entry.DataRaidGroups)), uid, strconv.Itoa(salt))...)
		if name := w.cluster.Name + "-" + s; !taken[name] {
			return name
		}
	}
}

// sync brings instances and Deployments that exist in line with their entries. Trouble with one pool does not keep the
// others back; the first is what the caller hears of.
func (r *Reconciler) sync(ctx context.Context, w *world) (first error) {
	for _, p := range w.pools {
		if p.instance == nil || p.instance.Annotations[cstorv1.AnnotationDisable] == "true" {
			continue
		}
		if err := r.syncPool(ctx, w, p); first == nil {
			first = err
		}
	}
	return first
}

func (r *Reconciler) syncPool(ctx context.Context, w *world, p pool) error {
	in := p.instance
	if _, err := w.changeOf(p); err == nil && raidProblem(p.entry) == nil {
		err := object.Update(ctx, r.Client, in, func(in *cstorv1.CStorPoolInstance) { w.configure(in, p.entry) })
		if err == nil {
			err = r.carry(ctx, w, in)
		}
		if err != nil {
			return err
		}
	}
	want := r.deployment(in)
	if d := w.deploymentOf(in); d != nil {
		return object.Update(ctx, r.Client, d, func(d *appsv1.Deployment) { follow(d, want) })
	}
	_, err := object.Ensure(ctx, r.Client, r.Live, in, want)
	if err != nil && !object.IsWaiting(err) {
		r.warn(w.cluster, "PoolDeploymentCreate", err.Error())
	}
	return err
}

// carry makes what names the host of a pool follow the pool to another one: the claims of its devices and its replicas.
func (r *Reconciler) carry(ctx context.Context, w *world, in *cstorv1.CStorPoolInstance) error {
	host := in.Spec.HostName
	for name := range devicesOf(in.Spec.DataRaidGroups, in.Spec.WriteCacheRaidGroups) {
		c, d := w.claims[name], w.devices[name]
		if c == nil || d == nil || deviceHost(d) != host {
			continue
		}
		err := object.Update(ctx, r.Client, c, func(c *ndmv1.BlockDeviceClaim) {
			c.Spec.HostName = host
			c.Spec.BlockDeviceNodeAttributes = ndmv1.BlockDeviceNodeAttributes{NodeName: d.Spec.NodeAttributes.NodeName, HostName: host}
		})
		if err := client.IgnoreNotFound(err); err != nil {
			return err
		}
	}
	for _, replica := range w.replicas[in.Name] {
		if old, ok := replica.Annotations[cstorv1.AnnotationPoolHost]; !ok || old == host {
			continue
		}
		err := object.Update(ctx, r.Client, replica, func(c *cstorv1.CStorVolumeReplica) { c.Annotations[cstorv1.AnnotationPoolHost] = host })
		if err := client.IgnoreNotFound(err); err != nil {
			return err
		}
	}
	return nil
}
