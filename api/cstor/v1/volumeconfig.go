package v1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConfigPhase is how far a CStorVolumeConfig is.
type ConfigPhase string

// The phases of a CStorVolumeConfig.
const (
	ConfigPending ConfigPhase = "Pending"
	ConfigBound   ConfigPhase = "Bound"
	ConfigFailed  ConfigPhase = "Failed"
)

// CStorVolumeConfig asks for a volume; editing spec.policy.replicaPoolInfo moves its replicas.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cvc
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity.storage`,description="Size of the volume"
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`,description="How far the volume is"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CStorVolumeConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorVolumeConfigSpec `json:"spec"`
	// +optional
	Publish CStorVolumeConfigPublish `json:"publish,omitempty"`
	// +optional
	Status CStorVolumeConfigStatus `json:"status,omitempty"`
	// +optional
	VersionDetails VersionDetails `json:"versionDetails,omitempty"`
}

// CStorVolumeConfigList is a list of CStorVolumeConfigs.
//
// +kubebuilder:object:root=true
type CStorVolumeConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorVolumeConfig `json:"items"`
}

// CStorVolumeConfigSpec is the volume wanted.
type CStorVolumeConfigSpec struct {
	// Capacity is the size wanted, as storage.
	Capacity corev1.ResourceList `json:"capacity"`
	// CStorVolumeRef is the volume made, filled when it is bound.
	// +optional
	CStorVolumeRef *corev1.ObjectReference `json:"cstorVolumeRef,omitempty"`
	// CStorVolumeSource is volume@snapshot for a clone.
	// +optional
	CStorVolumeSource string `json:"cstorVolumeSource,omitempty"`
	// Provision is what was asked for at creation; it is never changed.
	Provision VolumeProvision `json:"provision"`
	// Policy is the volume's policy: copied when it is bound, and in force as edited from then on.
	// +optional
	Policy CStorVolumePolicySpec `json:"policy,omitempty"`
}

// VolumeProvision is what was asked for when the volume was created.
type VolumeProvision struct {
	// Capacity is the initial size, as storage.
	Capacity corev1.ResourceList `json:"capacity"`
	// ReplicaCount is the initial number of replicas; scaling does not change it.
	ReplicaCount int `json:"replicaCount"`
}

// CStorVolumeConfigPublish is where the volume is going to be used.
type CStorVolumeConfigPublish struct {
	// +optional
	NodeID string `json:"nodeId,omitempty"`
}

// CStorVolumeConfigStatus is how far the volume is.
type CStorVolumeConfigStatus struct {
	// +optional
	Phase ConfigPhase `json:"phase,omitempty"`
	// PoolInfo is the pools on which a CStorVolumeReplica exists.
	// +optional
	PoolInfo []string `json:"poolInfo,omitempty"`
	// Capacity is the current size, as storage.
	// +optional
	Capacity corev1.ResourceList `json:"capacity,omitempty"`
	// Conditions describe what is going on; a condition goes when it is over. The JSON name is singular.
	// +optional
	Conditions []CStorVolumeConfigCondition `json:"condition,omitempty"`
}

// The condition types of a CStorVolumeConfig.
const (
	ConfigResizing         = "Resizing"
	ConfigResizeFailed     = "VolumeResizeFailed"
	ConfigResizeSuccessful = "VolumeResizeSuccessful"
	ConfigResizePending    = "VolumeResizePending"

	// ConfigScaling is there while replicas are being added or removed. Ours: the reason is ScalingUp, ScalingDown or
	// CancellingScaleUp, the message says what is being waited for.
	ConfigScaling = "ScalingVolumeReplicas"
	// ConfigScalingRefused is there while spec.policy.replicaPoolInfo asks for what is not done. Ours: the message says
	// why and what to do.
	ConfigScalingRefused = "ScalingRefused"
)

// The reasons of a ConfigScaling condition.
const (
	ReasonScalingUp         = "ScalingUp"
	ReasonScalingDown       = "ScalingDown"
	ReasonCancellingScaleUp = "CancellingScaleUp"
)

// CStorVolumeConfigCondition is an observation about a CStorVolumeConfig. It is true while it is present.
type CStorVolumeConfigCondition struct {
	Type string `json:"type"`
	// +optional
	// +nullable
	LastProbeTime metav1.Time `json:"lastProbeTime,omitzero"`
	// +optional
	// +nullable
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitzero"`
	Reason             string      `json:"reason"`
	Message            string      `json:"message"`
}
