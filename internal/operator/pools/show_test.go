package pools

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	ndmv1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
)

func (s *scene) show() string {
	var out strings.Builder
	ctx := context.Background()
	var clusters cstorv1.CStorPoolClusterList
	s.must(s.c.List(ctx, &clusters))
	for _, c := range clusters.Items {
		fmt.Fprintf(&out, "cspc: healthy=%d provisioned=%d desired=%d%s\n", c.Status.HealthyInstances,
			c.Status.ProvisionedInstances, c.Status.DesiredInstances, leaving(&c))
		for _, k := range c.Status.Conditions {
			fmt.Fprintf(&out, "  %s=%s %s: %s\n", k.Type, k.Status, k.Reason, k.Message)
		}
	}
	var instances cstorv1.CStorPoolInstanceList
	s.must(s.c.List(ctx, &instances))
	for _, in := range instances.Items {
		healthy := ""
		if n := in.Status.HealthyReplicas; n > 0 {
			healthy = fmt.Sprintf(" healthy=%d", n)
		}
		var made []string
		for _, g := range in.Spec.DataRaidGroups {
			made = append(made, fmt.Sprint(order(g)))
		}
		for _, g := range in.Spec.WriteCacheRaidGroups {
			made = append(made, "cache "+fmt.Sprint(order(g)))
		}
		fmt.Fprintf(&out, "cspi: %s %s %s %q%s%s\n", in.Name, in.Spec.HostName, strings.Join(made, " "), in.Status.Phase, healthy, leaving(&in))
		for _, k := range in.Status.Conditions {
			fmt.Fprintf(&out, "  %s=%s %s: %s\n", k.Type, k.Status, k.Reason, k.Message)
		}
	}
	var deployments appsv1.DeploymentList
	s.must(s.c.List(ctx, &deployments))
	for _, d := range deployments.Items {
		fmt.Fprintf(&out, "deployment: %s on %v\n", d.Name, d.Spec.Template.Spec.NodeSelector[cstorv1.LabelHostName])
	}
	var devices ndmv1.BlockDeviceList
	s.must(s.c.List(ctx, &devices))
	for _, b := range devices.Items {
		fmt.Fprintf(&out, "bd: %s %s\n", b.Name, b.Status.ClaimState)
	}
	var claims ndmv1.BlockDeviceClaimList
	s.must(s.c.List(ctx, &claims))
	for _, c := range claims.Items {
		instead := ""
		if old := c.Annotations[cstorv1.AnnotationPredecessor]; old != "" {
			instead = " instead of " + old
		}
		fmt.Fprintf(&out, "bdc: %s %s %s%s%s\n", c.Name, c.Spec.BlockDeviceName, c.Status.Phase, instead, leaving(&c))
	}
	var replicas cstorv1.CStorVolumeReplicaList
	s.must(s.c.List(ctx, &replicas))
	for _, r := range replicas.Items {
		fmt.Fprintf(&out, "cvr: %s %s\n", r.Name, r.Status.Phase)
	}
	return out.String()
}

// hosts shows which host each object names.
func (s *scene) hosts() string {
	var out strings.Builder
	var instances cstorv1.CStorPoolInstanceList
	var claims ndmv1.BlockDeviceClaimList
	var replicas cstorv1.CStorVolumeReplicaList
	for _, list := range []client.ObjectList{&instances, &claims, &replicas} {
		s.must(s.c.List(context.Background(), list))
	}
	for _, in := range instances.Items {
		fmt.Fprintf(&out, "cspi: %s %s %s", in.Name, in.Spec.HostName, in.Labels[cstorv1.LabelHostName])
		if pool := in.Annotations[cstorv1.AnnotationExistingPool]; pool != "" {
			fmt.Fprintf(&out, " takes over %s", pool)
		}
		fmt.Fprintln(&out)
	}
	for _, c := range claims.Items {
		fmt.Fprintf(&out, "bdc: %s %s %s\n", c.Spec.BlockDeviceName, c.Spec.HostName, c.Spec.BlockDeviceNodeAttributes.NodeName)
	}
	for _, r := range replicas.Items {
		fmt.Fprintf(&out, "cvr: %s %s\n", r.Name, r.Annotations[cstorv1.AnnotationPoolHost])
	}
	return out.String()
}

func leaving(obj client.Object) string {
	if obj.GetDeletionTimestamp() != nil {
		return fmt.Sprintf(" (being deleted, %v)", obj.GetFinalizers())
	}
	return ""
}
