package object

import (
	"cmp"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
)

// Environment is what every process of ours is told about its pod.
func Environment() []corev1.EnvVar {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{
			FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	return []corev1.EnvVar{
		field("POD_IP", "status.podIP"),
		field("POD_NAME", "metadata.name"),
		field("NAMESPACE", "metadata.namespace"),
		field("NODE_NAME", "spec.nodeName"),
	}
}

// Probes sets the probes of a container that serves /readyz and /healthz on the pod's address. Ready means that the
// process does its work; a process that is not alive for a minute is restarted.
func Probes(c *corev1.Container) {
	get := func(path string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: path, Port: intstr.FromInt32(cstorv1.PortMetrics), Scheme: corev1.URISchemeHTTP}}
	}
	c.ReadinessProbe = &corev1.Probe{
		ProbeHandler: get("/readyz"), PeriodSeconds: 1, TimeoutSeconds: 2, SuccessThreshold: 1, FailureThreshold: 3}
	c.LivenessProbe = &corev1.Probe{
		ProbeHandler: get("/healthz"), InitialDelaySeconds: 10, PeriodSeconds: 10, TimeoutSeconds: 10, SuccessThreshold: 1, FailureThreshold: 6}
}

// Port is a container's port.
func Port(name string, number int32) corev1.ContainerPort {
	return corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP}
}

// HostDir is a directory of the node.
func HostDir(name, path string, kind corev1.HostPathType) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: path, Type: ptr.To(kind)}}}
}

// Scraped are the annotations by which Prometheus finds a pod's metrics.
func Scraped() map[string]string {
	return map[string]string{
		"prometheus.io/path":   "/metrics",
		"prometheus.io/port":   strconv.Itoa(cstorv1.PortMetrics),
		"prometheus.io/scrape": "true",
	}
}

// CheckVersion fills the version of a brand-new object, and says why an object of another version is left alone. It
// reports whether it filled.
func CheckVersion(v *cstorv1.VersionDetails, now metav1.Time) (filled bool, err error) {
	switch {
	case v.Status.Current == "":
		auto := v.AutoUpgrade
		*v = cstorv1.NewVersionDetails(now)
		v.AutoUpgrade = auto
		return true, nil
	case v.Status.Current != cstorv1.Version:
		return false, fmt.Errorf("operator version is %s but its version is %s", cstorv1.Version, v.Status.Current)
	case cmp.Or(v.Desired, cstorv1.Version) != cstorv1.Version:
		return false, fmt.Errorf("operator version is %s but version %s is desired", cstorv1.Version, v.Desired)
	}
	return false, nil
}
