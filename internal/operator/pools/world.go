package pools

import (
	"context"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

// world is everything that decides what happens to a cluster.
type world struct {
	cluster     *cstorv1.CStorPoolCluster
	nodes       []corev1.Node
	devices     map[string]*ndmv1.BlockDevice
	claims      map[string]*ndmv1.BlockDeviceClaim // by the name of the device
	deployments map[string]*appsv1.Deployment
	replicas    map[string][]*cstorv1.CStorVolumeReplica // by pool

	instances []cstorv1.CStorPoolInstance // all of the cluster
	pools     []pool                      // one for each entry
	surplus   []cstorv1.CStorPoolInstance // those without an entry that are not being deleted yet
}

// pool is an entry of the cluster and the instance made of it, if there is one.
type pool struct {
	entry    *cstorv1.PoolSpec
	instance *cstorv1.CStorPoolInstance
}

// gather reads what decides about a cluster from a cache, or from the API server itself.
func (r *Reconciler) gather(ctx context.Context, from client.Reader, cluster *cstorv1.CStorPoolCluster) (*world, error) {
	w := &world{
		cluster:     cluster,
		devices:     map[string]*ndmv1.BlockDevice{},
		claims:      map[string]*ndmv1.BlockDeviceClaim{},
		deployments: map[string]*appsv1.Deployment{},
		replicas:    map[string][]*cstorv1.CStorVolumeReplica{},
	}
	var (
		here        = client.InNamespace(cluster.Namespace)
		ours        = client.MatchingLabels{cstorv1.LabelPoolCluster: cluster.Name}
		nodes       corev1.NodeList
		devices     ndmv1.BlockDeviceList
		claims      ndmv1.BlockDeviceClaimList
		deployments appsv1.DeploymentList
		replicas    cstorv1.CStorVolumeReplicaList
		instances   cstorv1.CStorPoolInstanceList
	)
	for _, read := range []error{
		from.List(ctx, &nodes),
		from.List(ctx, &devices, here),
		from.List(ctx, &claims, here),
		from.List(ctx, &deployments, here, ours),
		from.List(ctx, &replicas, here),
		from.List(ctx, &instances, here, ours),
	} {
		if read != nil {
			return nil, read
		}
	}
	w.nodes, w.instances = nodes.Items, instances.Items
	for i := range devices.Items {
		w.devices[devices.Items[i].Name] = &devices.Items[i]
	}
	for i := range claims.Items {
		w.claims[claims.Items[i].Spec.BlockDeviceName] = &claims.Items[i]
	}
	for i := range deployments.Items {
		w.deployments[deployments.Items[i].Name] = &deployments.Items[i]
	}
	for i := range replicas.Items {
		on := replicas.Items[i].PoolOf()
		w.replicas[on] = append(w.replicas[on], &replicas.Items[i])
	}
	w.match()
	return w, nil
}

// match finds the instance of each entry: one that shares a data device, rather that with the same node selector; otherwise
// that with the same selector. So a user may carry disks to other nodes and edit only the selectors.
func (w *world) match() {
	free := map[string]*cstorv1.CStorPoolInstance{}
	for i := range w.instances {
		if in := &w.instances[i]; in.DeletionTimestamp == nil {
			free[in.Name] = in
		}
	}
	w.pools = make([]pool, len(w.cluster.Spec.Pools))
	take := func(same func(*cstorv1.PoolSpec, *cstorv1.CStorPoolInstance) bool) {
		for i := range w.pools {
			p := &w.pools[i]
			p.entry = &w.cluster.Spec.Pools[i]
			if p.instance != nil {
				continue
			}
			for _, name := range slices.Sorted(maps.Keys(free)) {
				if same(p.entry, free[name]) {
					p.instance = free[name]
					delete(free, name)
					break
				}
			}
		}
	}
	here := func(e *cstorv1.PoolSpec, in *cstorv1.CStorPoolInstance) bool {
		return maps.Equal(e.NodeSelector, in.Spec.NodeSelector)
	}
	shares := func(e *cstorv1.PoolSpec, in *cstorv1.CStorPoolInstance) bool {
		return devicesOf(e.DataRaidGroups).Intersection(devicesOf(in.Spec.DataRaidGroups)).Len() > 0
	}
	take(func(e *cstorv1.PoolSpec, in *cstorv1.CStorPoolInstance) bool { return here(e, in) && shares(e, in) })
	take(shares)
	take(here)
	w.surplus = nil
	for _, name := range slices.Sorted(maps.Keys(free)) {
		w.surplus = append(w.surplus, *free[name])
	}
}

// missing returns the entries without an instance.
func (w *world) missing() (entries []*cstorv1.PoolSpec) {
	for _, p := range w.pools {
		if p.instance == nil {
			entries = append(entries, p.entry)
		}
	}
	return entries
}

// nodesOf returns the nodes that a selector matches.
func (w *world) nodesOf(selector map[string]string) (nodes []*corev1.Node) {
	for i := range w.nodes {
		if labels.SelectorFromSet(selector).Matches(labels.Set(w.nodes[i].Labels)) {
			nodes = append(nodes, &w.nodes[i])
		}
	}
	return nodes
}

// hostOf returns the name by which a node's host is known.
func hostOf(n *corev1.Node) string {
	if h := n.Labels[cstorv1.LabelHostName]; h != "" {
		return h
	}
	return n.Name
}

// devicesOf returns the names of all devices in raid groups.
func devicesOf(groups ...[]cstorv1.RaidGroup) sets.Set[string] {
	names := sets.New[string]()
	for _, list := range groups {
		for _, g := range list {
			for _, d := range g.BlockDevices {
				names.Insert(d.BlockDeviceName)
			}
		}
	}
	return names
}
