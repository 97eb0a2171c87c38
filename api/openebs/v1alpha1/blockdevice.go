package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Labels of a BlockDevice.
const (
	// LabelDeviceType is always "blockdevice".
	LabelDeviceType = "ndm.io/blockdevice-type"
	// LabelManaged is "false" when nobody may claim the device automatically.
	LabelManaged = "ndm.io/managed"
	// LabelTag keeps a device for those that ask for its tag. An empty value keeps it from everybody.
	LabelTag = "openebs.io/block-device-tag"
)

// ClaimState says whether somebody uses a BlockDevice.
type ClaimState string

// The claim states.
const (
	Unclaimed ClaimState = "Unclaimed"
	Claimed   ClaimState = "Claimed"
	Released  ClaimState = "Released"
)

// DeviceState says whether a BlockDevice is present on its node.
type DeviceState string

// The device states.
const (
	DeviceActive   DeviceState = "Active"
	DeviceInactive DeviceState = "Inactive"
	DeviceUnknown  DeviceState = "Unknown"
)

// BlockDevice is a disk of a node.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=bd
// +kubebuilder:printcolumn:name="NodeName",type=string,JSONPath=`.spec.nodeAttributes.nodeName`
// +kubebuilder:printcolumn:name="Path",type=string,JSONPath=`.spec.path`,priority=1
// +kubebuilder:printcolumn:name="FSType",type=string,JSONPath=`.spec.filesystem.fsType`,priority=1
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.spec.capacity.storage`
// +kubebuilder:printcolumn:name="ClaimState",type=string,JSONPath=`.status.claimState`
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BlockDevice struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DeviceSpec   `json:"spec,omitempty"`
	Status DeviceStatus `json:"status,omitempty"`
}

// BlockDeviceList is a list of BlockDevices.
//
// +kubebuilder:object:root=true
type BlockDeviceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BlockDevice `json:"items"`
}

// DeviceSpec is what a disk is and where.
type DeviceSpec struct {
	// NodeAttributes is the node that the disk is attached to.
	NodeAttributes NodeAttributes `json:"nodeAttributes,omitempty"`
	// Path is the device's path on its node, e.g. /dev/sdb, or that of a regular file.
	Path     string         `json:"path"`
	Capacity DeviceCapacity `json:"capacity"`
	// +optional
	Details DeviceDetails `json:"details,omitempty"`
	// ClaimRef is the BlockDeviceClaim that uses the device.
	// +optional
	ClaimRef *corev1.ObjectReference `json:"claimRef,omitempty"`
	// DevLinks are the links to the device below /dev/disk, by kind.
	// +optional
	DevLinks []DevLink `json:"devlinks,omitempty"`
	// +optional
	FileSystem FileSystem `json:"filesystem,omitempty"`
	// Partitioned is Yes or No.
	// +optional
	Partitioned string `json:"partitioned,omitempty"`
	// ParentDevice is the disk that this partition belongs to.
	// +optional
	ParentDevice string `json:"parentDevice,omitempty"`
	// AggregateDevice is the device made of this one, for instance by LVM.
	// +optional
	AggregateDevice string `json:"aggregateDevice,omitempty"`
}

// NodeAttributes names a node.
type NodeAttributes struct {
	// NodeName is the name of the Node object.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
}

// DeviceCapacity is the size of a device and of its sectors, in bytes.
type DeviceCapacity struct {
	Storage int64 `json:"storage"`
	// +optional
	PhysicalSectorSize uint32 `json:"physicalSectorSize,omitempty"`
	// +optional
	LogicalSectorSize uint32 `json:"logicalSectorSize,omitempty"`
}

// DeviceDetails describes the hardware.
type DeviceDetails struct {
	// DeviceType is one of disk, partition, sparse, loop, lvm, crypt, dm, mpath.
	// +optional
	DeviceType string `json:"deviceType,omitempty"`
	// DriveType is HDD, SSD, Unknown or empty.
	// +optional
	DriveType string `json:"driveType,omitempty"`
	// +optional
	LogicalBlockSize uint32 `json:"logicalBlockSize,omitempty"`
	// +optional
	PhysicalBlockSize uint32 `json:"physicalBlockSize,omitempty"`
	// +optional
	HardwareSectorSize uint32 `json:"hardwareSectorSize,omitempty"`
	// +optional
	Model string `json:"model,omitempty"`
	// +optional
	Compliance string `json:"compliance,omitempty"`
	// +optional
	Serial string `json:"serial,omitempty"`
	// +optional
	Vendor string `json:"vendor,omitempty"`
	// +optional
	FirmwareRevision string `json:"firmwareRevision,omitempty"`
}

// DevLink is the links of one kind to a device.
type DevLink struct {
	// Kind is by-id or by-path.
	// +optional
	Kind string `json:"kind,omitempty"`
	// +optional
	Links []string `json:"links,omitempty"`
}

// FileSystem is what was found on the device.
type FileSystem struct {
	// +optional
	Type string `json:"fsType,omitempty"`
	// +optional
	Mountpoint string `json:"mountPoint,omitempty"`
}

// DeviceStatus says whether a disk is present and used.
type DeviceStatus struct {
	ClaimState ClaimState  `json:"claimState"`
	State      DeviceState `json:"state"`
}
