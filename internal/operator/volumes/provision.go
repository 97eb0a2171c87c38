package volumes

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/reference"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// provision makes a volume and says Bound when all of it exists. Each step finds what an earlier attempt made.
func (r *Reconciler) provision(ctx context.Context, config *cstorv1.CStorVolumeConfig) error {
	if err := checkRequest(config); err != nil {
		return err
	}
	policy, err := r.policy(ctx, config)
	if err != nil {
		return err
	}
	pools, err := r.place(ctx, config, policy)
	if err != nil {
		return err
	}
	policy.ReplicaPoolInfo = nil
	for _, name := range pools {
		policy.ReplicaPoolInfo = append(policy.ReplicaPoolInfo, cstorv1.ReplicaPoolInfo{PoolName: name})
	}

	err = object.Update(ctx, r.Client, config, func(c *cstorv1.CStorVolumeConfig) {
		controllerutil.AddFinalizer(c, cstorv1.FinalizerVolumeConfig)
	})
	if err != nil {
		return err
	}
	service := newService(config)
	if _, err := object.Ensure(ctx, r.Client, r.Live, config, service); err != nil {
		return err
	}
	volume := newVolume(config, service.Spec.ClusterIP, metav1.NewTime(r.Now()))
	follow(volume, policy)
	if _, err := object.Ensure(ctx, r.Client, r.Live, config, volume); err != nil {
		return err
	}
	if _, err := object.Ensure(ctx, r.Client, r.Live, volume, r.newTarget(config, volume, policy)); err != nil {
		return err
	}
	for _, name := range pools {
		if err := r.addReplica(ctx, config, volume, policy, name, cstorv1.ReplicaEmpty); err != nil {
			return err
		}
	}
	budget, err := r.budget(ctx, config, pools)
	if err != nil {
		return err
	}
	ref, err := reference.GetReference(r.Scheme(), volume)
	if err != nil {
		return err
	}
	err = object.Update(ctx, r.Client, config, func(c *cstorv1.CStorVolumeConfig) {
		c.Spec.Policy = *policy
		c.Spec.CStorVolumeRef = ref
		c.Status.Phase = cstorv1.ConfigBound
		c.Status.PoolInfo = pools
		c.Status.Capacity = c.Spec.Provision.Capacity
		_, _ = object.CheckVersion(&c.VersionDetails, metav1.NewTime(r.Now())) // checked before
		setBudget(c, budget)
	})
	if err != nil {
		return err
	}
	r.Events.Event(config, corev1.EventTypeNormal, reasonSynced, "cstorvolumeconfig created successfully")
	return nil
}

// checkRequest refuses what cannot become a volume.
func checkRequest(config *cstorv1.CStorVolumeConfig) error {
	size := config.Spec.Provision.Capacity[corev1.ResourceStorage]
	volume := cmp.Or(config.Annotations[cstorv1.AnnotationVolumeID], config.Name)
	switch n := config.Spec.Provision.ReplicaCount; {
	case config.Labels[cstorv1.LabelPoolCluster] == "":
		return users{fmt.Errorf("label %s, which names the CStorPoolCluster, is missing", cstorv1.LabelPoolCluster)}
	case volume != config.Name:
		return users{fmt.Errorf("annotation %s names volume %s: it must be the name of the CStorVolumeConfig", cstorv1.AnnotationVolumeID, volume)}
	case n < 1 || n > cstorv1.MaxReplicas:
		return users{fmt.Errorf("spec.provision.replicaCount is %d: a volume has 1 to %d replicas", n, cstorv1.MaxReplicas)}
	case size.Sign() <= 0:
		return users{fmt.Errorf("spec.provision.capacity.storage is missing")}
	case config.Spec.CStorVolumeSource != "":
		return users{fmt.Errorf("spec.cstorVolumeSource asks for a clone of %s: this release cannot make clones", config.Spec.CStorVolumeSource)}
	}
	return nil
}

// policy returns the policy that is in force for a new volume: the one that its annotation names, otherwise its own.
func (r *Reconciler) policy(ctx context.Context, config *cstorv1.CStorVolumeConfig) (*cstorv1.CStorVolumePolicySpec, error) {
	name := config.Annotations[cstorv1.AnnotationVolumePolicy]
	if name == "" {
		return config.Spec.Policy.DeepCopy(), nil
	}
	named := &cstorv1.CStorVolumePolicy{}
	err := r.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: name}, named)
	if apierrors.IsNotFound(err) {
		return nil, users{fmt.Errorf("CStorVolumePolicy %s, which annotation %s names, does not exist", name, cstorv1.AnnotationVolumePolicy)}
	}
	if err != nil {
		return nil, err
	}
	spec := named.Spec.DeepCopy()
	if len(config.Spec.Policy.ReplicaPoolInfo) > 0 {
		spec.ReplicaPoolInfo = slices.Clone(config.Spec.Policy.ReplicaPoolInfo)
	}
	return spec, nil
}

// place chooses the pools.
func (r *Reconciler) place(ctx context.Context, config *cstorv1.CStorVolumeConfig, policy *cstorv1.CStorVolumePolicySpec) ([]string, error) {
	var (
		here     = client.InNamespace(config.Namespace)
		pools    cstorv1.CStorPoolInstanceList
		replicas cstorv1.CStorVolumeReplicaList
	)
	if err := r.List(ctx, &pools, here); err != nil {
		return nil, err
	}
	if err := r.List(ctx, &replicas, here); err != nil {
		return nil, err
	}
	own, err := r.replicasOf(ctx, config)
	if err != nil {
		return nil, err
	}
	p := placement{
		cluster:  config.Labels[cstorv1.LabelPoolCluster],
		count:    config.Spec.Provision.ReplicaCount,
		pinned:   names(policy.ReplicaPoolInfo),
		pools:    pools.Items,
		replicas: replicas.Items,
	}
	for name, replica := range own {
		if replica.DeletionTimestamp != nil {
			return nil, object.Waiting{For: fmt.Sprintf("replica %s of an earlier volume to be gone", replica.Name)}
		}
		p.existing = append(p.existing, name)
	}
	slices.Sort(p.existing)
	if policy.Provision.ReplicaAffinity && config.Publish.NodeID != "" {
		p.node = config.Publish.NodeID
		r.Events.Say(config, repeat, corev1.EventTypeNormal, reasonProvisioning, "replica affinity is enabled, nodeID is "+p.node)
	}
	return p.choose()
}
