package v1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Version is the version of the resources' contents that this release writes and understands. It changes when what a
// controller must do to take over an older object changes, not with every release.
const Version = "4.0.0"

// VersionDetails tells which version an object is at and which is wanted. It stands beside spec and status.
type VersionDetails struct {
	// AutoUpgrade allows the upgrade without a manual step.
	// +optional
	AutoUpgrade bool `json:"autoUpgrade,omitempty"`
	// Desired is the version wanted, filled at creation.
	// +optional
	Desired string `json:"desired,omitempty"`
	// +optional
	Status VersionStatus `json:"status,omitempty"`
}

// VersionStatus is the version that an object is at.
type VersionStatus struct {
	// DependentsUpgraded is whether everything made from this object is at the desired version.
	// +optional
	DependentsUpgraded bool `json:"dependentsUpgraded,omitempty"`
	// Current is the version that the object is at; empty means brand new.
	// +optional
	Current string `json:"current,omitempty"`
	// +optional
	State VersionState `json:"state,omitempty"`
	// Message and Reason say why a reconciliation failed.
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	Reason string `json:"reason,omitempty"`
	// +optional
	// +nullable
	LastUpdateTime metav1.Time `json:"lastUpdateTime,omitzero"`
}

// VersionState is how far an object is with an upgrade.
type VersionState string

// The version states.
const (
	VersionReconciled VersionState = "Reconciled"
	VersionInProgress VersionState = "ReconcileInProgress"
	VersionPending    VersionState = "ReconcilePending"
)

// NewVersionDetails returns the details of an object that was made by this release.
func NewVersionDetails(now metav1.Time) VersionDetails {
	return VersionDetails{
		Desired: Version,
		Status: VersionStatus{
			DependentsUpgraded: true,
			Current:            Version,
			State:              VersionReconciled,
			LastUpdateTime:     now,
		},
	}
}
