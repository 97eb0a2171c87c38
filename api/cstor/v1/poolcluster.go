package v1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CStorPoolCluster is a cluster of pools, one pool per node listed.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cspc
// +kubebuilder:printcolumn:name="HealthyInstances",type=integer,JSONPath=`.status.healthyInstances`,description="Pools that are online"
// +kubebuilder:printcolumn:name="ProvisionedInstances",type=integer,JSONPath=`.status.provisionedInstances`,description="Pools that exist"
// +kubebuilder:printcolumn:name="DesiredInstances",type=integer,JSONPath=`.status.desiredInstances`,description="Pools wanted"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CStorPoolCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorPoolClusterSpec `json:"spec,omitempty"`
	// +optional
	Status CStorPoolClusterStatus `json:"status,omitempty"`
	// +optional
	VersionDetails VersionDetails `json:"versionDetails,omitempty"`
}

// CStorPoolClusterList is a list of CStorPoolClusters.
//
// +kubebuilder:object:root=true
type CStorPoolClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorPoolCluster `json:"items"`
}

// CStorPoolClusterSpec lists the pools, and what they have in common.
type CStorPoolClusterSpec struct {
	// Pools has one entry per node.
	// +optional
	Pools []PoolSpec `json:"pools,omitempty"`
	// Resources of the cstor-pool container, for pools that give none.
	// +optional
	// +nullable
	DefaultResources *corev1.ResourceRequirements `json:"resources,omitempty"`
	// AuxResources of side containers, for pools that give none.
	// +optional
	// +nullable
	DefaultAuxResources *corev1.ResourceRequirements `json:"auxResources,omitempty"`
	// Tolerations of pool pods, for pools that give none.
	// +optional
	// +nullable
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// PriorityClassName of pool pods, for pools that give none.
	// +optional
	DefaultPriorityClassName string `json:"priorityClassName,omitempty"`
}

// PoolSpec is one pool.
type PoolSpec struct {
	// NodeSelector must match exactly one node.
	NodeSelector map[string]string `json:"nodeSelector"`
	// DataRaidGroups are the disks that hold the data.
	DataRaidGroups []RaidGroup `json:"dataRaidGroups"`
	// +optional
	// +nullable
	WriteCacheRaidGroups []RaidGroup `json:"writeCacheRaidGroups,omitempty"`
	// +optional
	PoolConfig PoolConfig `json:"poolConfig,omitempty"`
}

// RaidGroup is disks that share redundancy.
type RaidGroup struct {
	BlockDevices []CStorPoolInstanceBlockDevice `json:"blockDevices"`
}

// CStorPoolInstanceBlockDevice is one disk of a raid group.
type CStorPoolInstanceBlockDevice struct {
	// BlockDeviceName names a BlockDevice.
	BlockDeviceName string `json:"blockDeviceName"`
	// Capacity in bytes, filled by the controller.
	// +optional
	Capacity int64 `json:"capacity,omitempty"`
	// DevLink is the device's by-id path, filled by the controller.
	// +optional
	DevLink string `json:"devLink,omitempty"`
}

// The raid group types.
const (
	RaidStripe = "stripe"
	RaidMirror = "mirror"
	RaidZ      = "raidz"
	RaidZ2     = "raidz2"
)

// DefaultROThreshold is the used space, in per cent, from which a pool is read-only when its entry does not say.
const DefaultROThreshold = 85

// PoolConfig is how a pool is made and run.
type PoolConfig struct {
	// DataRaidGroupType is stripe, mirror, raidz or raidz2.
	DataRaidGroupType string `json:"dataRaidGroupType"`
	// WriteCacheGroupType is required if there are write cache groups.
	// +optional
	WriteCacheGroupType string `json:"writeCacheGroupType,omitempty"`
	// +optional
	ThickProvision bool `json:"thickProvision,omitempty"`
	// Compression is lz4, zstd or off; on, lzjb, gzip, zle and nothing mean lz4.
	// +optional
	Compression string `json:"compression,omitempty"`
	// Resources of the cstor-pool container; falls back to the cluster's.
	// +optional
	// +nullable
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
	// AuxResources of side containers; falls back to the cluster's.
	// +optional
	// +nullable
	AuxResources *corev1.ResourceRequirements `json:"auxResources,omitempty"`
	// Tolerations of the pool pod; falls back to the cluster's.
	// +optional
	// +nullable
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// PriorityClassName of the pool pod; falls back to the cluster's.
	// +optional
	// +nullable
	PriorityClassName *string `json:"priorityClassName,omitempty"`
	// ROThresholdLimit is the used space in per cent from which the pool is read-only: 1 to 100, 0 or nothing for 85;
	// 100 turns the switch off.
	// +optional
	// +nullable
	ROThresholdLimit *int `json:"roThresholdLimit,omitempty"`
	// RebuildBandwidth is what all rebuilds into the pool together move at most, in bytes a second such as 100M, a power of
	// 1024 as in the columns; less than 4M counts as 4M. Default: no limit; see also that of CStorVolumePolicies. Ours.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?[KMGT]?)?$`
	RebuildBandwidth string `json:"rebuildBandwidth,omitempty"`
}

// CStorPoolClusterStatus counts the pools.
type CStorPoolClusterStatus struct {
	// ProvisionedInstances is the number of pools that exist.
	// +optional
	// +nullable
	ProvisionedInstances int32 `json:"provisionedInstances"`
	// DesiredInstances is the number of pools listed.
	// +optional
	// +nullable
	DesiredInstances int32 `json:"desiredInstances"`
	// HealthyInstances is the number of pools that are ONLINE and whose process is ready.
	// +optional
	// +nullable
	HealthyInstances int32 `json:"healthyInstances"`
	// +optional
	// +nullable
	Conditions []CStorPoolClusterCondition `json:"conditions,omitempty"`
}

// The condition of a CStorPoolCluster and its reasons.
const (
	PoolManagerAvailable          = "PoolManagerAvailable"
	ReasonPoolManagersAvailable   = "MinimumPoolManagersAvailable"
	ReasonPoolManagersUnavailable = "MinimumPoolManagersUnAvailable"
	MessagePoolManagersAvailable  = "Pool manager(s) have minimum available pod"
)

// CStorPoolClusterCondition is an observation about a CStorPoolCluster.
type CStorPoolClusterCondition struct {
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
