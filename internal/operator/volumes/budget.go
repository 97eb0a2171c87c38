package volumes

import (
	"context"
	"fmt"
	"slices"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

// budgeted is the number of replicas from which a node may be drained without stopping the volume.
const budgeted = 3

// budget makes the PodDisruptionBudget of a set of pools exist, which all volumes on the same pools share, and returns
// its name; nothing when the volume has too few replicas for one.
func (r *Reconciler) budget(ctx context.Context, config *cstorv1.CStorVolumeConfig, pools []string) (string, error) {
	if len(pools) < budgeted {
		return "", nil
	}
	r.budgets.Lock()
	defer r.budgets.Unlock()
	cluster := config.Labels[cstorv1.LabelPoolCluster]
	pools = slices.Sorted(slices.Values(pools))
	pdb := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: config.Namespace,
			Name:      cluster + object.Suffix(5, pools...),
			Labels:    map[string]string{cstorv1.LabelPoolCluster: cluster},
		},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: ptr.To(intstr.FromInt32(1)),
			Selector: &metav1.LabelSelector{
				MatchLabels: map[string]string{"app": cstorv1.AppPool},
				MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: cstorv1.LabelPoolInstance, Operator: metav1.LabelSelectorOpIn, Values: pools}},
			},
		},
	}
	for _, p := range pools {
		pdb.Labels[cstorv1.LabelPrefix+p] = "true"
	}
	if err := r.Create(ctx, pdb); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", fmt.Errorf("create PodDisruptionBudget %s: %w", pdb.Name, err)
	}
	return pdb.Name, nil
}

// dropBudget deletes a PodDisruptionBudget when no volume but config, which uses it no more, refers to it.
func (r *Reconciler) dropBudget(ctx context.Context, config *cstorv1.CStorVolumeConfig, name string) error {
	if name == "" {
		return nil
	}
	r.budgets.Lock()
	defer r.budgets.Unlock()
	var users cstorv1.CStorVolumeConfigList
	if err := r.Live.List(ctx, &users, client.InNamespace(config.Namespace), client.MatchingLabels{cstorv1.LabelPDB: name}); err != nil {
		return err
	}
	for i := range users.Items {
		if users.Items[i].Name != config.Name {
			return nil
		}
	}
	pdb := &policyv1.PodDisruptionBudget{}
	if err := r.Live.Get(ctx, client.ObjectKey{Namespace: config.Namespace, Name: name}, pdb); err != nil {
		return client.IgnoreNotFound(err)
	}
	return object.Delete(ctx, r.Client, pdb)
}

func setBudget(config *cstorv1.CStorVolumeConfig, name string) {
	if name == "" {
		delete(config.Labels, cstorv1.LabelPDB)
		return
	}
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	config.Labels[cstorv1.LabelPDB] = name
}
