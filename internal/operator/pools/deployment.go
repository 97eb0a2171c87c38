package pools

import (
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

const (
	containerName  = "cstor-pool"
	serviceAccount = "cstor-pool"
	stateDir       = "/var/openebs/cstor-pool"
	sparseDir      = "/var/openebs/sparse"
)

// deployment returns the Deployment that runs a pool, pinned to the pool's node.
func (r *Reconciler) deployment(in *cstorv1.CStorPoolInstance) *appsv1.Deployment {
	cluster := in.Labels[cstorv1.LabelPoolCluster]
	identity := map[string]string{
		"app":                     cstorv1.AppPool,
		cstorv1.LabelPoolCluster:  cluster,
		cstorv1.LabelPoolInstance: in.Name,
	}
	labels := maps.Clone(identity)
	labels[cstorv1.LabelVersion] = cstorv1.Version
	labels[cstorv1.LabelCASType] = cstorv1.CASType

	annotations := object.Scraped()
	annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] = "false"
	annotations["openebs.io/monitoring"] = "pool_exporter_prometheus"

	cfg := &in.Spec.PoolConfig
	container := corev1.Container{
		Name:            containerName,
		Image:           r.Image,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Command:         []string{"cstor"},
		Args:            []string{"pool", "--cspi=$(CSPI_NAME)", "--namespace=$(NAMESPACE)", "--listen=$(POD_IP)", "--state-dir=" + stateDir},
		Env:             append(object.Environment(), corev1.EnvVar{Name: "CSPI_NAME", Value: in.Name}),
		Ports:           []corev1.ContainerPort{object.Port("pull", cstorv1.PortPull), object.Port("exporter", cstorv1.PortMetrics)},
		Resources:       ptr.Deref(cfg.Resources, corev1.ResourceRequirements{}),
		// Raw devices of the node can be opened by a privileged container only.
		SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true), ReadOnlyRootFilesystem: ptr.To(true)},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "device", MountPath: "/dev"},
			{Name: "udev", MountPath: "/run/udev", ReadOnly: true},
			{Name: "storagepath", MountPath: stateDir},
			{Name: "sparse", MountPath: sparseDir},
		},
	}
	limitOf(&container)
	object.Probes(&container)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: in.Namespace, Name: in.Name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Selector: &metav1.LabelSelector{MatchLabels: identity},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
				Spec: corev1.PodSpec{
					ServiceAccountName: serviceAccount,
					NodeSelector:       map[string]string{cstorv1.LabelHostName: in.Spec.HostName},
					Tolerations:        cfg.Tolerations,
					PriorityClassName:  ptr.Deref(cfg.PriorityClassName, ""),
					Containers:         []corev1.Container{container},
					Volumes: []corev1.Volume{
						object.HostDir("device", "/dev", corev1.HostPathDirectory),
						object.HostDir("udev", "/run/udev", corev1.HostPathDirectoryOrCreate),
						object.HostDir("storagepath", stateDir+"/"+cluster, corev1.HostPathDirectoryOrCreate),
						object.HostDir("sparse", sparseDir, corev1.HostPathDirectoryOrCreate),
					},
				},
			},
		},
	}
}

// limitOf tells a pool's process the limit of its memory, if its container has one.
func limitOf(c *corev1.Container) {
	c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == cstorv1.EnvMemoryLimit })
	if limit, ok := c.Resources.Limits[corev1.ResourceMemory]; ok {
		c.Env = append(c.Env, corev1.EnvVar{Name: cstorv1.EnvMemoryLimit, Value: strconv.FormatInt(limit.Value(), 10)})
	}
}

// follow makes a Deployment follow what may be changed in an entry. The image is not among it: all pools of a cluster
// must not restart at once.
func follow(d, want *appsv1.Deployment) {
	from, to := &want.Spec.Template.Spec, &d.Spec.Template.Spec
	to.NodeSelector = from.NodeSelector
	to.Tolerations = from.Tolerations
	to.PriorityClassName = from.PriorityClassName
	for i := range to.Containers {
		if to.Containers[i].Name == containerName {
			to.Containers[i].Resources = from.Containers[0].Resources
			limitOf(&to.Containers[i])
		}
	}
}

// deploymentOf returns a pool's Deployment: not one of an earlier pool with the same name, which is about to be collected.
func (w *world) deploymentOf(in *cstorv1.CStorPoolInstance) *appsv1.Deployment {
	if d := w.deployments[in.Name]; d != nil && metav1.IsControlledBy(d, in) {
		return d
	}
	return nil
}

// ready returns the number of ready pods of a pool's Deployment.
func (w *world) ready(in *cstorv1.CStorPoolInstance) int32 {
	if d := w.deploymentOf(in); d != nil && d.Status.ObservedGeneration >= d.Generation {
		return d.Status.ReadyReplicas
	}
	return 0
}
