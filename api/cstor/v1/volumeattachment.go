package v1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AttachmentStatus is a volume's state on a node.
type AttachmentStatus string

// The attachment states.
const (
	AttachmentUninitialized      AttachmentStatus = ""
	AttachmentMountUnderProgress AttachmentStatus = "MountUnderProgress"
	AttachmentMounted            AttachmentStatus = "Mounted"
	AttachmentUnmounted          AttachmentStatus = "Unmounted"
	AttachmentRaw                AttachmentStatus = "Raw"
	AttachmentResizeInProgress   AttachmentStatus = "ResizeInProgress"
	AttachmentMountFailed        AttachmentStatus = "MountFailed"
	AttachmentUnmountProgress    AttachmentStatus = "UnmountUnderProgress"
	AttachmentWaitingForCVCBound AttachmentStatus = "WaitingForCVCBound"
	AttachmentWaitingForVolume   AttachmentStatus = "WaitingForVolumeToBeReady"
	AttachmentRemountProgress    AttachmentStatus = "RemountUnderProgress"
)

// CStorVolumeAttachment is a volume's use on a node. The CSI driver's node part writes it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cva
type CStorVolumeAttachment struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorVolumeAttachmentSpec `json:"spec"`
	// +optional
	Status AttachmentStatus `json:"status,omitempty"`
}

// CStorVolumeAttachmentList is a list of CStorVolumeAttachments.
//
// +kubebuilder:object:root=true
type CStorVolumeAttachmentList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorVolumeAttachment `json:"items"`
}

// CStorVolumeAttachmentSpec is what is attached and how.
type CStorVolumeAttachmentSpec struct {
	Volume AttachedVolume `json:"volume"`
	ISCSI  AttachedISCSI  `json:"iscsi"`
}

// AttachedVolume is the volume and its place on the node.
type AttachedVolume struct {
	Name string `json:"name"`
	// +optional
	Capacity    string `json:"capacity,omitempty"`
	OwnerNodeID string `json:"ownerNodeID"`
	// +optional
	FSType string `json:"fsType,omitempty"`
	// +optional
	AccessModes []corev1.PersistentVolumeAccessMode `json:"accessModes,omitempty"`
	// AccessType is block or mount.
	// +optional
	AccessType string `json:"accessType,omitempty"`
	// +optional
	StagingTargetPath string `json:"stagingTargetPath,omitempty"`
	// +optional
	TargetPath string `json:"targetPath,omitempty"`
	// +optional
	ReadOnly bool `json:"readOnly,omitempty"`
	// +optional
	MountOptions []string `json:"mountOptions,omitempty"`
	// +optional
	DevicePath string `json:"devicePath,omitempty"`
}

// AttachedISCSI is the session's parameters.
type AttachedISCSI struct {
	// +optional
	Iqn string `json:"iqn,omitempty"`
	// +optional
	TargetPortal string `json:"targetPortal,omitempty"`
	// +optional
	IscsiInterface string `json:"iscsiInterface,omitempty"`
	// +optional
	Lun string `json:"lun,omitempty"`
}
