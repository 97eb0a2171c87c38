package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CStorVolumeRecord is a volume's entry outside its members, written with compare-and-swap on its resourceVersion by the
// volume's targets alone: deploy/admission.yaml says which writes are taken. It holds the list of members
// and, when some are away, those without which nothing is completed. It is named like the volume and owned by
// its CStorVolumeConfig. Ours.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cvrec
type CStorVolumeRecord struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Version is one more with each write: the resourceVersion is opaque, and goes back with a restored backup.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Version int64 `json:"version,omitempty"`
	// Epoch is the highest epoch that a target claimed here; only that target writes anything else.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Epoch int64 `json:"epoch,omitempty"`
	// Nonce tells two targets apart that chose the same epoch; hexadecimal, because it may not fit a JSON number.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{16}$`
	Nonce string `json:"nonce,omitempty"`
	// Claims are the latest claims of targets, the oldest first, the last one of Epoch and Nonce: they tell whether what a replica
	// has noted of the record is a version of this one, or of one that was lost when this was restored from a backup.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	Claims []RecordedClaim `json:"claims,omitempty"`
	// Set is the members without which nothing is completed, by GUID. Empty: a quorum of the list is enough.
	// +optional
	// +kubebuilder:validation:items:Pattern=`^[0-9a-f]{32}$`
	Set []string `json:"set,omitempty"`
	// Cfg is the member list that Set was chosen from.
	// +optional
	Cfg *RecordedListID `json:"cfg,omitempty"`
	// List is the members that the volume was founded with.
	// +optional
	List *RecordedList `json:"list,omitempty"`
}

// CStorVolumeRecordList is a list of CStorVolumeRecords.
//
// +kubebuilder:object:root=true
type CStorVolumeRecordList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorVolumeRecord `json:"items"`
}

// RecordedClaim is a claim of a target, and the version that the record had from then on.
type RecordedClaim struct {
	Version int64 `json:"version"`
	Epoch   int64 `json:"epoch"`
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{16}$`
	Nonce string `json:"nonce"`
}

// RecordedListID names a member list. Lists order by (epoch, generation).
type RecordedListID struct {
	Epoch      int64 `json:"epoch"`
	Generation int64 `json:"generation"`
}

// RecordedList is a member list.
type RecordedList struct {
	RecordedListID `json:",inline"`
	// Members are GUIDs, each 32 hexadecimal digits.
	// +kubebuilder:validation:items:Pattern=`^[0-9a-f]{32}$`
	Members []string `json:"members"`
	// Witness is whether the record counts as a witness while the list is in force.
	// +optional
	Witness bool `json:"witness,omitempty"`
}
