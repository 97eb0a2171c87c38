package v1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CStorVolumePolicy is how volumes are made and run; a StorageClass names one.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cvp
type CStorVolumePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorVolumePolicySpec `json:"spec,omitempty"`
	// +optional
	Status CStorVolumePolicyStatus `json:"status,omitempty"`
}

// CStorVolumePolicyList is a list of CStorVolumePolicies.
//
// +kubebuilder:object:root=true
type CStorVolumePolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorVolumePolicy `json:"items"`
}

// CStorVolumePolicySpec is the content of a policy, and of the copy in a volume's CStorVolumeConfig.
type CStorVolumePolicySpec struct {
	// +optional
	Provision Provision `json:"provision,omitempty"`
	// +optional
	Target TargetSpec `json:"target,omitempty"`
	// +optional
	Replica ReplicaSpec `json:"replica,omitempty"`
	// ReplicaPoolInfo names the pools that the volume's replicas are on. In a CStorVolumePolicy it pins new volumes and
	// its length is their replica count. In a CStorVolumeConfig it is what a user edits to add and remove replicas.
	// +optional
	ReplicaPoolInfo []ReplicaPoolInfo `json:"replicaPoolInfo,omitempty"`
}

// Provision is how a volume is made.
type Provision struct {
	// ReplicaAffinity puts the first replica on the node that the volume is first published on.
	// +optional
	ReplicaAffinity bool `json:"replicaAffinity"`
	// BlockSize is accepted and has no effect: blocks are 4096 bytes.
	// +optional
	BlockSize uint32 `json:"blockSize,omitempty"`
}

// TargetSpec is how a volume's target is run.
type TargetSpec struct {
	// QueueDepth is the number of commands that an initiator may have in flight; default 32.
	// +optional
	QueueDepth string `json:"queueDepth,omitempty"`
	// IOWorkers is accepted for old policies; default 6.
	// +optional
	IOWorkers int64 `json:"luWorkers,omitempty"`
	// +optional
	Monitor bool `json:"monitor,omitempty"`
	// +optional
	ReplicationFactor int64 `json:"replicationFactor,omitempty"`
	// Resources of the target container.
	// +optional
	// +nullable
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
	// AuxResources of side containers.
	// +optional
	// +nullable
	AuxResources *corev1.ResourceRequirements `json:"auxResources,omitempty"`
	// Tolerations replace the default ones when there are any.
	// +optional
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// PodAffinity is the target pod's affinity to other pods.
	// +optional
	// +nullable
	PodAffinity *corev1.PodAffinity `json:"affinity,omitempty"`
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// +optional
	PriorityClassName string `json:"priorityClassName,omitempty"`
	// Witness is whether the volume goes on with fewer replicas than a quorum after these were recorded in its
	// CStorVolumeRecord: with two replicas, whether it survives the loss of one. Default enabled. Ours.
	// +optional
	// +kubebuilder:validation:Enum="";enabled;disabled
	Witness string `json:"witness,omitempty"`
	// RebuildBandwidth is what all rebuilds of the volume together move at most, in bytes a second such as 100M, a power of
	// 1024 as in the columns; less than 4M counts as 4M. Default: no limit; in any case they leave the application what it
	// needs. Ours.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?[KMGT]?)?$`
	RebuildBandwidth string `json:"rebuildBandwidth,omitempty"`
}

// The values of witness.
const (
	WitnessEnabled  = "enabled"
	WitnessDisabled = "disabled"
)

// ReplicaSpec is how a volume's replicas are run.
type ReplicaSpec struct {
	// IOWorkers goes to spec.zvolWorkers of replicas.
	// +optional
	IOWorkers string `json:"zvolWorkers,omitempty"`
	// Compression is accepted and has no effect.
	// +optional
	Compression string `json:"compression,omitempty"`
}

// ReplicaPoolInfo names a pool.
type ReplicaPoolInfo struct {
	// PoolName is the name of a CStorPoolInstance.
	PoolName string `json:"poolName"`
}

// CStorVolumePolicyStatus is unused.
type CStorVolumePolicyStatus struct {
	// +optional
	Phase string `json:"phase,omitempty"`
}
