package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ClaimPhase is how far a BlockDeviceClaim is.
type ClaimPhase string

// The claim phases.
const (
	ClaimEmpty           ClaimPhase = ""
	ClaimPending         ClaimPhase = "Pending"
	ClaimBound           ClaimPhase = "Bound"
	ClaimInvalidCapacity ClaimPhase = "Invalid Capacity Request"
)

// BlockDeviceClaim claims one BlockDevice for one user.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=bdc
// +kubebuilder:printcolumn:name="BlockDeviceName",type=string,JSONPath=`.spec.blockDeviceName`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BlockDeviceClaim struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DeviceClaimSpec   `json:"spec,omitempty"`
	Status DeviceClaimStatus `json:"status,omitempty"`
}

// BlockDeviceClaimList is a list of BlockDeviceClaims.
//
// +kubebuilder:object:root=true
type BlockDeviceClaimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BlockDeviceClaim `json:"items"`
}

// DeviceClaimSpec says which device is wanted.
type DeviceClaimSpec struct {
	// Selector selects devices by label.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// Resources is the size wanted, as requests.storage.
	// +optional
	Resources DeviceClaimResources `json:"resources,omitempty"`
	// DeviceType is the drive type wanted.
	// +optional
	DeviceType string `json:"deviceType,omitempty"`
	// HostName is the host that the device must be on.
	// +optional
	HostName string `json:"hostName,omitempty"`
	// +optional
	Details DeviceClaimDetails `json:"deviceClaimDetails,omitempty"`
	// BlockDeviceName names the device: given, or filled when one is found.
	// +optional
	BlockDeviceName string `json:"blockDeviceName,omitempty"`
	// +optional
	BlockDeviceNodeAttributes BlockDeviceNodeAttributes `json:"blockDeviceNodeAttributes,omitempty"`
}

// DeviceClaimResources is the amount asked for.
type DeviceClaimResources struct {
	// +optional
	Requests corev1.ResourceList `json:"requests,omitempty"`
}

// DeviceClaimDetails narrows the choice of a device.
type DeviceClaimDetails struct {
	// +optional
	BlockVolumeMode string `json:"blockVolumeMode,omitempty"`
	// +optional
	FormatType string `json:"formatType,omitempty"`
	// +optional
	AllowPartition bool `json:"allowPartition,omitempty"`
}

// BlockDeviceNodeAttributes is the node that the device must be on.
type BlockDeviceNodeAttributes struct {
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// +optional
	HostName string `json:"hostName,omitempty"`
}

// DeviceClaimStatus is how far the claim is.
type DeviceClaimStatus struct {
	Phase ClaimPhase `json:"phase"`
}
