package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// CStorVolumeRecord is a volume's entry outside its members, written with compare-and-swap on its resourceVersion by the
// volume's targets alone. Here it holds the list of founding members, which is set once; a witness, later, records in
// it which members are in sync. It is named like the volume and owned by its CStorVolume. Ours.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cvrec
type CStorVolumeRecord struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Epoch is the highest epoch that a target claimed here; unused without a witness.
	// +optional
	Epoch int64 `json:"epoch,omitempty"`
	// Nonce tells two targets apart that chose the same epoch; hexadecimal, because it may not fit a JSON number.
	// +optional
	Nonce string `json:"nonce,omitempty"`
	// Generation counts the writes of Set; unused without a witness.
	// +optional
	Generation int64 `json:"generation,omitempty"`
	// Set is the members that are in sync, by GUID; unused without a witness.
	// +optional
	Set []string `json:"set,omitempty"`
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

// RecordedList is a member list.
type RecordedList struct {
	Epoch      int64 `json:"epoch"`
	Generation int64 `json:"generation"`
	// Members are GUIDs, each 32 hexadecimal digits.
	Members []string `json:"members"`
}
