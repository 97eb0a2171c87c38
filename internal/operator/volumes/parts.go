package volumes

import (
	"fmt"
	"maps"
	"net"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/internal/operator/object"
)

const (
	targetContainer = "cstor-target"
	serviceAccount  = "cstor-target"
)

// selectorOf selects the pod of a volume's target.
func selectorOf(volume string) map[string]string {
	return map[string]string{
		"app":               cstorv1.AppTarget,
		cstorv1.LabelTarget: cstorv1.TargetName,
		cstorv1.LabelPV:     volume,
	}
}

// newService returns the Service that gives the target an address of its own for life. It leads to a target whose ports are open,
// whether the volume serves or not, but neither to one that stands down nor to one that is being deleted: PublishNotReadyAddresses
// would keep these in, and replicas and initiators would be spread over them and the one that replaces them.
func newService(config *cstorv1.CStorVolumeConfig) *corev1.Service {
	volume := volumeOf(config)
	port := func(name string, number int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromInt32(number), Protocol: corev1.ProtocolTCP}
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: config.Namespace,
			Name:      volume,
			Labels: map[string]string{
				cstorv1.LabelTargetService: cstorv1.TargetService,
				cstorv1.LabelStorageEngine: cstorv1.CASType,
				cstorv1.LabelCASType:       cstorv1.CASType,
				cstorv1.LabelPV:            volume,
				cstorv1.LabelVersion:       cstorv1.Version,
			},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP,
			Ports: []corev1.ServicePort{
				port("cstor-iscsi", cstorv1.PortISCSI),
				port("cstor-grpc", cstorv1.PortGRPC),
				port("mgmt", cstorv1.PortReplica),
				port("exporter", cstorv1.PortMetrics),
			},
			Selector: selectorOf(volume),
		},
	}
}

// newVolume returns the CStorVolume at the address of its Service.
func newVolume(config *cstorv1.CStorVolumeConfig, ip string, now metav1.Time) *cstorv1.CStorVolume {
	volume, n := volumeOf(config), config.Spec.Provision.ReplicaCount
	cv := &cstorv1.CStorVolume{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: config.Namespace,
			Name:      volume,
			Labels: map[string]string{
				cstorv1.LabelPV:      volume,
				cstorv1.LabelVersion: cstorv1.Version,
			},
		},
		Spec: cstorv1.CStorVolumeSpec{
			Capacity:                 config.Spec.Provision.Capacity[corev1.ResourceStorage],
			TargetIP:                 ip,
			TargetPort:               strconv.Itoa(cstorv1.PortISCSI),
			Iqn:                      cstorv1.IQN(volume),
			TargetPortal:             net.JoinHostPort(ip, strconv.Itoa(cstorv1.PortISCSI)),
			ReplicationFactor:        n,
			ConsistencyFactor:        cstorv1.ConsistencyFactor(n),
			DesiredReplicationFactor: n,
		},
		VersionDetails: cstorv1.NewVersionDetails(now),
	}
	labelClaim(cv.Labels, config)
	return cv
}

// labelClaim adds the name of the PersistentVolumeClaim, if it is known and a label can hold it.
func labelClaim(labels map[string]string, config *cstorv1.CStorVolumeConfig) {
	if pvc := config.Annotations[cstorv1.LabelPVC]; pvc != "" && len(pvc) <= 63 {
		labels[cstorv1.LabelPVC] = pvc
	}
}

// newTarget returns the Deployment that runs the target.
func (r *Reconciler) newTarget(config *cstorv1.CStorVolumeConfig, volume *cstorv1.CStorVolume, policy *cstorv1.CStorVolumePolicySpec) *appsv1.Deployment {
	labels := selectorOf(volume.Name)
	labels[cstorv1.LabelMonitoring] = cstorv1.Exporter
	labels[cstorv1.LabelVersion] = cstorv1.Version
	labelClaim(labels, config)
	own := maps.Clone(labels)
	own[cstorv1.LabelCASType] = cstorv1.CASType

	annotations := object.Scraped()
	annotations["openebs.io/volume-monitor"] = "true"
	annotations["openebs.io/volume-type"] = cstorv1.CASType

	container := corev1.Container{
		Name:            targetContainer,
		Image:           r.Image,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Command:         []string{"cstor"},
		Args: append([]string{"target", "--volume=" + volume.Name, "--namespace=$(NAMESPACE)", "--listen=$(POD_IP)"},
			told(config, volume)...),
		Env: append(object.Environment(), targetSettings(&policy.Target)...),
		Ports: []corev1.ContainerPort{
			object.Port("iscsi", cstorv1.PortISCSI),
			object.Port("replicas", cstorv1.PortReplica),
			object.Port("grpc", cstorv1.PortGRPC),
			object.Port("exporter", cstorv1.PortMetrics),
		},
		Resources: ptr.Deref(policy.Target.Resources, corev1.ResourceRequirements{}),
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot:             ptr.To(true),
			RunAsUser:                ptr.To[int64](65532),
			AllowPrivilegeEscalation: ptr.To(false),
			ReadOnlyRootFilesystem:   ptr.To(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	object.Probes(&container)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: config.Namespace, Name: cstorv1.TargetDeployment(volume.Name), Labels: own},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Selector: &metav1.LabelSelector{MatchLabels: selectorOf(volume.Name)},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
				Spec: corev1.PodSpec{
					ServiceAccountName: serviceAccount,
					Containers:         []corev1.Container{container},
					NodeSelector:       policy.Target.NodeSelector,
					PriorityClassName:  policy.Target.PriorityClassName,
					Tolerations:        policy.Target.Tolerations,
				},
			},
		},
	}
	pod := &d.Spec.Template.Spec
	if len(pod.Tolerations) == 0 {
		pod.Tolerations = defaultTolerations()
	}
	if policy.Target.PodAffinity != nil {
		pod.Affinity = &corev1.Affinity{PodAffinity: policy.Target.PodAffinity}
	}
	return d
}

// told is what a target has to know of its volume when it starts and the API server does not answer.
func told(config *cstorv1.CStorVolumeConfig, volume *cstorv1.CStorVolume) []string {
	return []string{
		"--capacity=" + volume.Spec.Capacity.String(), "--iqn=" + volume.Spec.Iqn, "--portal=" + volume.Spec.TargetPortal,
		"--uid=" + string(volume.UID), "--config-uid=" + string(config.UID),
	}
}

func targetSettings(t *cstorv1.TargetSpec) []corev1.EnvVar {
	depth, workers := t.QueueDepth, t.IOWorkers
	if depth == "" {
		depth = "32"
	}
	if workers == 0 {
		workers = 6
	}
	return []corev1.EnvVar{{Name: "QueueDepth", Value: depth}, {Name: "Luworkers", Value: fmt.Sprint(workers)}}
}

// defaultTolerations move a target away from a node that is lost after half a minute instead of five.
func defaultTolerations() (out []corev1.Toleration) {
	for _, key := range []string{
		"node.alpha.kubernetes.io/notReady", "node.alpha.kubernetes.io/unreachable",
		corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable,
	} {
		out = append(out, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](30)})
	}
	return out
}
