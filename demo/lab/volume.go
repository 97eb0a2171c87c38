package lab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// VolumeFile is what the CSI driver makes of a PersistentVolumeClaim, below the repository's root.
const VolumeFile = "examples/cvc.yaml"

// NewVolume returns the manifest of a new volume, as VolumeFile says but with a name of its own.
func (l *Lab) NewVolume() (name, manifest string, err error) {
	text, err := os.ReadFile(l.RootPath(VolumeFile))
	if err != nil {
		return "", "", fmt.Errorf("reading the volume's manifest: %w", err)
	}
	var c cstorv1.CStorVolumeConfig
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return "", "", fmt.Errorf("reading %s: %w", VolumeFile, err)
	}
	name = "pvc-" + uuid.NewString()
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			manifest += strings.ReplaceAll(line, c.Name, name)
		}
	}
	return name, manifest, nil
}

// CreateVolume creates what a manifest says without kubectl.
func (l *Lab) CreateVolume(ctx context.Context, manifest string) error {
	c := &cstorv1.CStorVolumeConfig{}
	if err := yaml.UnmarshalStrict([]byte(manifest), c); err != nil {
		return fmt.Errorf("reading the volume's manifest: %w", err)
	}
	if err := l.Client.Create(ctx, c); err != nil {
		return fmt.Errorf("creating the volume: %w", err)
	}
	return nil
}

// DeleteVolume deletes a volume and waits until its replicas have given their space back.
func (l *Lab) DeleteVolume(ctx context.Context, name string) error {
	c := &cstorv1.CStorVolumeConfig{}
	c.Namespace, c.Name = Namespace, name
	if err := l.Client.Delete(ctx, c); err != nil {
		return fmt.Errorf("deleting the volume: %w", err)
	}
	return Until(ctx, time.Minute, "the volume to be gone", func(ctx context.Context) (bool, string, error) {
		replicas, err := l.Replicas(ctx, name)
		if err != nil || len(replicas) > 0 {
			return false, fmt.Sprintf("%d replicas exist", len(replicas)), err
		}
		err = l.Get(ctx, name, &cstorv1.CStorVolumeConfig{})
		if apierrors.IsNotFound(err) {
			return true, "", nil
		}
		return false, "the CStorVolumeConfig exists", err
	})
}

// WaitBound waits until the volume is Bound and can be used.
func (l *Lab) WaitBound(ctx context.Context, name string) error {
	return Until(ctx, time.Minute, "the volume to be Bound and Healthy", func(ctx context.Context) (bool, string, error) {
		c, v := &cstorv1.CStorVolumeConfig{}, &cstorv1.CStorVolume{}
		if err := l.Get(ctx, name, c); err != nil {
			return false, "", err
		}
		if c.Status.Phase != cstorv1.ConfigBound {
			return false, "the CStorVolumeConfig is " + string(c.Status.Phase), nil
		}
		if err := l.Get(ctx, name, v); err != nil {
			return false, "", err
		}
		if v.Status.Phase != cstorv1.VolumeHealthy {
			return false, fmt.Sprintf("the CStorVolume is %s %s", v.Status.Phase, v.Status.Message), nil
		}
		replicas, err := l.Replicas(ctx, name)
		if err != nil {
			return false, "", err
		}
		for _, r := range replicas {
			if r.Status.Phase != cstorv1.ReplicaHealthy {
				return false, fmt.Sprintf("replica %s is %s %s", r.Name, r.Status.Phase, r.Status.Message), nil
			}
		}
		return len(replicas) == c.Spec.Provision.ReplicaCount, fmt.Sprintf("%d replicas exist", len(replicas)), nil
	})
}

// Replicas returns the volume's replicas by name.
func (l *Lab) Replicas(ctx context.Context, volume string) ([]cstorv1.CStorVolumeReplica, error) {
	list := &cstorv1.CStorVolumeReplicaList{}
	err := l.Client.List(ctx, list, client.InNamespace(Namespace), client.MatchingLabels{cstorv1.LabelPV: volume})
	if err != nil {
		return nil, fmt.Errorf("listing replicas: %w", err)
	}
	return list.Items, nil
}

// WantPools returns a JSON merge patch that asks for exactly these pools.
func WantPools(pools []string) string {
	entries := make([]string, len(pools))
	for i, p := range pools {
		entries[i] = fmt.Sprintf(`{"poolName":"%s"}`, p)
	}
	return `{"spec":{"policy":{"replicaPoolInfo":[` + strings.Join(entries, ",") + `]}}}`
}

// EditPools asks for exactly these pools, without kubectl.
func (l *Lab) EditPools(ctx context.Context, volume string, pools []string) error {
	c := &cstorv1.CStorVolumeConfig{}
	c.Namespace, c.Name = Namespace, volume
	if err := l.Client.Patch(ctx, c, client.RawPatch("application/merge-patch+json", []byte(WantPools(pools)))); err != nil {
		return fmt.Errorf("editing the volume's pools: %w", err)
	}
	return nil
}

// PoolsOf returns the names of the pools that spec.policy.replicaPoolInfo lists.
func PoolsOf(c *cstorv1.CStorVolumeConfig) []string {
	var names []string
	for _, p := range c.Spec.Policy.ReplicaPoolInfo {
		names = append(names, p.PoolName)
	}
	return names
}

// Placement says which pools hold a replica of the volume.
type Placement struct {
	Used []cstorv1.CStorPoolInstance // in the order of their hosts
	Free []cstorv1.CStorPoolInstance
}

// Placement compares the volume's pools with all of its cluster of pools.
func (l *Lab) Placement(ctx context.Context, volume string) (p Placement, err error) {
	c := &cstorv1.CStorVolumeConfig{}
	if err := l.Get(ctx, volume, c); err != nil {
		return p, fmt.Errorf("reading the volume: %w", err)
	}
	all, err := l.Pools(ctx, c.Labels[cstorv1.LabelPoolCluster])
	if err != nil {
		return p, err
	}
	for _, i := range all {
		if slices.Contains(c.Status.PoolInfo, i.Name) {
			p.Used = append(p.Used, i)
		} else {
			p.Free = append(p.Free, i)
		}
	}
	return p, nil
}
