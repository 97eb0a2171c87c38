package v1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VolumePhase is a volume's state.
type VolumePhase string

// The volume phases.
const (
	VolumeInit     VolumePhase = "Init"     // no replica has connected yet
	VolumeHealthy  VolumePhase = "Healthy"  // at least consistencyFactor replicas are in sync
	VolumeDegraded VolumePhase = "Degraded" // I/O is possible on fewer
	VolumeOffline  VolumePhase = "Offline"  // I/O is not possible
	VolumeError    VolumePhase = "Error"    // the target does not answer
	VolumeInvalid  VolumePhase = "Invalid"  // the factors make no sense
)

// CStorVolume is a volume as its target serves it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cv
// +kubebuilder:printcolumn:name="Capacity",type=string,JSONPath=`.status.capacity`,description="Size of the volume"
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`,description="State of the volume"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type CStorVolume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorVolumeSpec `json:"spec,omitempty"`
	// +optional
	Status CStorVolumeStatus `json:"status,omitempty"`
	// +optional
	VersionDetails VersionDetails `json:"versionDetails,omitempty"`
}

// CStorVolumeList is a list of CStorVolumes.
//
// +kubebuilder:object:root=true
type CStorVolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorVolume `json:"items"`
}

// CStorVolumeSpec is the volume wanted. The operator writes it, except what the comments give to the target.
type CStorVolumeSpec struct {
	// Capacity is the size wanted.
	// +optional
	Capacity resource.Quantity `json:"capacity,omitempty"`
	// TargetIP is the address of the target's Service.
	// +optional
	TargetIP string `json:"targetIP,omitempty"`
	// TargetPort is the iSCSI port, "3260".
	// +optional
	TargetPort string `json:"targetPort,omitempty"`
	// Iqn is the iSCSI name.
	// +optional
	Iqn string `json:"iqn,omitempty"`
	// TargetPortal is <ip>:3260.
	// +optional
	TargetPortal string `json:"targetPortal,omitempty"`
	// ReplicationFactor is the number of members: replicas that count for quorum. The target raises it when a replica
	// becomes a member and lowers it when one is removed.
	// +optional
	ReplicationFactor int `json:"replicationFactor,omitempty"`
	// ConsistencyFactor is how many members must hold what is acknowledged: replicationFactor/2 + 1.
	// +optional
	ConsistencyFactor int `json:"consistencyFactor,omitempty"`
	// DesiredReplicationFactor is the most replicas that may connect, members or not.
	// +optional
	DesiredReplicationFactor int `json:"desiredReplicationFactor,omitempty"`
	// Witness is that of the policy: enabled, which is the default, or disabled. Ours.
	// +optional
	// +kubebuilder:validation:Enum="";enabled;disabled
	Witness string `json:"witness,omitempty"`
	// RebuildBandwidth is that of the policy. Ours.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?[KMGT]?)?$`
	RebuildBandwidth string `json:"rebuildBandwidth,omitempty"`
	// ReplicaDetails is the members wanted. The target adds, the operator removes.
	// +optional
	ReplicaDetails CStorVolumeReplicaDetails `json:"replicaDetails,omitempty"`
}

// CStorVolumeReplicaDetails is the members of a volume.
type CStorVolumeReplicaDetails struct {
	// KnownReplicas maps spec.replicaid of a replica to its GUID, as 32 hexadecimal digits.
	// +optional
	KnownReplicas map[string]string `json:"knownReplicas,omitempty"`
}

// CStorVolumeStatus is what a volume's target reports about it.
type CStorVolumeStatus struct {
	// +optional
	Phase VolumePhase `json:"phase,omitempty"`
	// ReplicaStatuses is every connected replica as the target sees it.
	// +optional
	ReplicaStatuses []ReplicaStatus `json:"replicaStatuses,omitempty"`
	// Capacity is the current size.
	// +optional
	Capacity resource.Quantity `json:"capacity,omitempty"`
	// +optional
	// +nullable
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitzero"`
	// +optional
	// +nullable
	LastUpdateTime metav1.Time `json:"lastUpdateTime,omitzero"`
	// Message is why I/O is held, or what the removal of a member waits for.
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	Conditions []CStorVolumeCondition `json:"conditions,omitempty"`
	// ReplicaDetails is the members: those that the members themselves have recorded as such. It differs from
	// spec.replicaDetails only while one is being removed.
	// +optional
	ReplicaDetails CStorVolumeReplicaDetails `json:"replicaDetails,omitempty"`
	// DesiredReplicationFactor is the value of spec.desiredReplicationFactor that the target has adopted. Ours: once it
	// shows n, no replica beyond the n-th can become a member any more.
	// +optional
	DesiredReplicationFactor int `json:"desiredReplicationFactor,omitempty"`
	// Epoch is that of the target which wrote replicaDetails and desiredReplicationFactor, and served in it. It only ever
	// rises: a target that was left writes nothing over its successor's. Ours; what these say is not acted upon without it.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
	// Generation counts the changes of the members within the epoch: (epoch, generation) says which of the volume's member
	// lists replicaDetails shows. Ours.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// Target is the pod of the target that reports. Ours.
	// +optional
	Target string `json:"target,omitempty"`
}

// The modes of a ReplicaStatus.
const (
	ModeHealthy  = "Healthy"
	ModeDegraded = "Degraded"
)

// ReplicaStatus is a replica as the target sees it.
type ReplicaStatus struct {
	// ID is the replica's GUID (not spec.replicaid).
	ID string `json:"replicaId"`
	// Mode is Healthy or Degraded.
	Mode string `json:"mode"`
	// +optional
	CheckpointedIOSeq string `json:"checkpointedIOSeq"`
	// +optional
	InflightRead string `json:"inflightRead"`
	// +optional
	InflightWrite string `json:"inflightWrite"`
	// +optional
	InflightSync string `json:"inflightSync"`
	// UpTime is how long it has been connected, in seconds.
	// +optional
	UpTime int `json:"upTime"`
	// Quorum is "1" for a member, "0" for another replica.
	// +optional
	Quorum string `json:"quorum"`
}

// The condition of a CStorVolume and its states.
const (
	VolumeResizing   = "Resizing"
	ResizeInProgress = "InProgress"
	ResizeSuccess    = "Success"
)

// Conditions of a CStorVolume that are ours. Their status is True or False.
const (
	// VolumeRedundant: every member has everything, so that any one of them may be lost.
	VolumeRedundant = "Redundant"
	// VolumeRecordWentBack: the CStorVolumeRecord was restored from an old copy; see AnnotationAcceptRecord.
	VolumeRecordWentBack = "RecordWentBack"
)

// DataLossPossible is the condition of a CStorVolume whose replicas lost power in such a way that nobody can tell whether
// anything is missing that had been written and not flushed; its state is ConditionTrue. It tells of the last time.
const (
	DataLossPossible = "DataLossPossible"
	ReasonPowerLoss  = "PowerLoss"
	ConditionTrue    = "True"
)

// CStorVolumeCondition is an observation about a CStorVolume.
type CStorVolumeCondition struct {
	Type string `json:"type"`
	// Status is InProgress or Success; True or False for the conditions that are ours.
	Status string `json:"status"`
	// +optional
	// +nullable
	LastProbeTime metav1.Time `json:"lastProbeTime,omitzero"`
	// +optional
	// +nullable
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitzero"`
	// +optional
	Reason string `json:"reason,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
}
