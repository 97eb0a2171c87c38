package v1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PoolPhase is a pool's state; the upper-case ones describe its health.
type PoolPhase string

// The pool phases.
const (
	PoolEmpty          PoolPhase = ""
	PoolOnline         PoolPhase = "ONLINE"
	PoolOffline        PoolPhase = "OFFLINE"
	PoolDegraded       PoolPhase = "DEGRADED"
	PoolFaulted        PoolPhase = "FAULTED"
	PoolRemoved        PoolPhase = "REMOVED"
	PoolUnavail        PoolPhase = "UNAVAIL"
	PoolError          PoolPhase = "Error"
	PoolDeletionFailed PoolPhase = "DeletionFailed"
	PoolInvalid        PoolPhase = "Invalid"
	PoolErrorDuplicate PoolPhase = "ErrorDuplicate"
	PoolPending        PoolPhase = "Pending"
	PoolInit           PoolPhase = "Init"
	PoolCreationFailed PoolPhase = "PoolCreationFailed"
)

// CStorPoolInstance is one pool on one node.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cspi
// +kubebuilder:printcolumn:name="HostName",type=string,JSONPath=`.spec.hostName`,description="Host that the pool is on"
// +kubebuilder:printcolumn:name="Allocated",type=string,JSONPath=`.status.capacity.used`,description="Space in use"
// +kubebuilder:printcolumn:name="Free",type=string,JSONPath=`.status.capacity.free`,description="Space that can be written"
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity.total`,description="Size of the pool"
// +kubebuilder:printcolumn:name="ReadOnly",type=boolean,JSONPath=`.status.readOnly`,description="Whether the pool refuses writes"
// +kubebuilder:printcolumn:name="ProvisionedReplicas",type=integer,JSONPath=`.status.provisionedReplicas`,description="Replicas on the pool"
// +kubebuilder:printcolumn:name="HealthyReplicas",type=integer,JSONPath=`.status.healthyReplicas`,description="Replicas on the pool that are Healthy"
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.poolConfig.dataRaidGroupType`,description="Type of its data raid groups"
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`,description="Health of the pool"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CStorPoolInstance struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorPoolInstanceSpec `json:"spec,omitempty"`
	// +optional
	Status CStorPoolInstanceStatus `json:"status,omitempty"`
	// +optional
	VersionDetails VersionDetails `json:"versionDetails,omitempty"`
}

// CStorPoolInstanceList is a list of CStorPoolInstances.
//
// +kubebuilder:object:root=true
type CStorPoolInstanceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorPoolInstance `json:"items"`
}

// CStorPoolInstanceSpec is a pool, copied from its entry in the CStorPoolCluster.
type CStorPoolInstanceSpec struct {
	// HostName is the value of the node's kubernetes.io/hostname label.
	// +optional
	HostName string `json:"hostName,omitempty"`
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// +optional
	PoolConfig     PoolConfig  `json:"poolConfig,omitempty"`
	DataRaidGroups []RaidGroup `json:"dataRaidGroups"`
	// +optional
	// +nullable
	WriteCacheRaidGroups []RaidGroup `json:"writeCacheRaidGroups,omitempty"`
}

// CStorPoolInstanceStatus is what a pool's process reports about it.
type CStorPoolInstanceStatus struct {
	// +optional
	// +nullable
	Conditions []CStorPoolInstanceCondition `json:"conditions,omitempty"`
	// +optional
	Phase    PoolPhase                 `json:"phase,omitempty"`
	Capacity CStorPoolInstanceCapacity `json:"capacity"`
	// ReadOnly is whether the pool refuses writes, because it is nearly full.
	ReadOnly bool `json:"readOnly"`
	// ProvisionedReplicas is the number of replicas on the pool.
	ProvisionedReplicas int32 `json:"provisionedReplicas"`
	// HealthyReplicas is the number of them that are Healthy.
	HealthyReplicas int32 `json:"healthyReplicas"`
}

// CStorPoolInstanceCapacity is a pool's space. Quantities are written in the users' style, see PoolSize.
type CStorPoolInstanceCapacity struct {
	// Used is live data and live metadata.
	Used resource.Quantity `json:"used"`
	// Free is what can be written.
	Free resource.Quantity `json:"free"`
	// Total is the size of the pool.
	Total resource.Quantity `json:"total"`
	// ZFS is the size before compression. The name is kept for the tools that read it.
	ZFS ZFSCapacityAttributes `json:"zfs"`
}

// ZFSCapacityAttributes is a pool's use before compression.
type ZFSCapacityAttributes struct {
	LogicalUsed resource.Quantity `json:"logicalUsed"`
}

// The condition types of a CStorPoolInstance and their reasons.
const (
	PoolExpansion   = "PoolExpansion"
	DiskReplacement = "DiskReplacement"
	DiskUnavailable = "DiskUnavailable"
	PoolLost        = "PoolLost"

	ReasonExpansionInProgress   = "PoolExpansionInProgress"
	ReasonExpansionSuccessful   = "PoolExpansionSuccessful"
	ReasonReplacementInProgress = "BlockDeviceReplacementInprogress"
	ReasonReplacementSucceeded  = "BlockDeviceReplacementSucceess" // sic
	ReasonDisksUnavailable      = "DisksAreUnavailable"
	ReasonDisksAvailable        = "DisksAreAvailable"
	ReasonPoolLost              = "PoolLost"
)

// PoolUnheard is the type of a condition. Ours: True while the pool's process has not been ready for some time; the
// operator then shows the pool OFFLINE, whatever its process last wrote.
const PoolUnheard = "PoolUnheard"

// Condition types of ours about what a pool holds. PoolScrub: how far a scrub is, or what came of the last one.
// DataDamaged: something is damaged and nothing can repair it.
const (
	PoolScrub   = "PoolScrub"
	DataDamaged = "DataDamaged"

	ReasonScrubInProgress = "ScrubInProgress"
	ReasonScrubPaused     = "ScrubPaused"
	ReasonScrubStopped    = "ScrubStopped"
	ReasonScrubCompleted  = "ScrubCompleted"
	ReasonDataIsDamaged   = "DataIsDamaged"
	ReasonDataIsSound     = "DataIsSound"
)

// CStorPoolInstanceCondition is an observation about a pool.
type CStorPoolInstanceCondition struct {
	Type   string                 `json:"type"`
	Status corev1.ConditionStatus `json:"status"`
	// +optional
	// +nullable
	LastUpdateTime metav1.Time `json:"lastUpdateTime,omitzero"`
	// +optional
	// +nullable
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitzero"`
	// +optional
	Reason string `json:"reason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
}
