package v1

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReplicaPhase is a replica's state.
type ReplicaPhase string

// The replica phases.
const (
	ReplicaEmpty          ReplicaPhase = ""
	ReplicaInit           ReplicaPhase = "Init"                     // of a new volume, not created on its pool yet
	ReplicaRecreate       ReplicaPhase = "Recreate"                 // added to a volume, not created on its pool yet
	ReplicaOffline        ReplicaPhase = "Offline"                  // not connected to the target
	ReplicaDegraded       ReplicaPhase = "Degraded"                 // a member, connected, not catching up yet
	ReplicaRebuilding     ReplicaPhase = "Rebuilding"               // a member that catches up
	ReplicaNewDegraded    ReplicaPhase = "NewReplicaDegraded"       // not a member yet, connected, not catching up yet
	ReplicaReconstructing ReplicaPhase = "ReconstructingNewReplica" // not a member yet, being filled
	ReplicaHealthy        ReplicaPhase = "Healthy"                  // a member in sync
	ReplicaError          ReplicaPhase = "Error"
	ReplicaDeletionFailed ReplicaPhase = "DeletionFailed"
	ReplicaInvalid        ReplicaPhase = "Invalid"
)

// CStorVolumeReplica is one volume's data on one pool.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Namespaced,shortName=cvr
// +kubebuilder:printcolumn:name="Used",type=string,JSONPath=`.status.capacity.used`,description="Data of the volume on this replica"
// +kubebuilder:printcolumn:name="Allocated",type=string,JSONPath=`.status.capacity.total`,description="Space that it takes on the pool"
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.phase`,description="State of the replica"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Progress",type=string,JSONPath=`.status.progress.done`,priority=1,description="How much of a rebuild is done"
// +kubebuilder:printcolumn:name="Rate",type=string,JSONPath=`.status.progress.rate`,priority=1,description="How fast it goes"
// +kubebuilder:printcolumn:name="ETA",type=string,JSONPath=`.status.progress.eta`,priority=1,description="Time left"
// +kubebuilder:printcolumn:name="Waiting for",type=string,JSONPath=`.status.progress.waitingFor`,priority=1,description="What holds it up"
type CStorVolumeReplica struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec CStorVolumeReplicaSpec `json:"spec,omitempty"`
	// +optional
	Status CStorVolumeReplicaStatus `json:"status,omitempty"`
	// +optional
	VersionDetails VersionDetails `json:"versionDetails,omitempty"`
}

// CStorVolumeReplicaList is a list of CStorVolumeReplicas.
//
// +kubebuilder:object:root=true
type CStorVolumeReplicaList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CStorVolumeReplica `json:"items"`
}

// CStorVolumeReplicaSpec is the replica wanted.
type CStorVolumeReplicaSpec struct {
	// TargetIP is where the replica dials its target, on port 6060.
	// +optional
	TargetIP string `json:"targetIP,omitempty"`
	// Capacity is the volume's initial size as a Quantity, e.g. 5Gi.
	// +optional
	Capacity string `json:"capacity,omitempty"`
	// ZvolWorkers is accepted for old policies.
	// +optional
	ZvolWorkers string `json:"zvolWorkers,omitempty"`
	// ReplicaID names the replica to the target; see ReplicaID. The JSON name is in lower case.
	// +optional
	ReplicaID string `json:"replicaid,omitempty"`
	// +optional
	Compression string `json:"compression,omitempty"`
	// +optional
	BlockSize uint32 `json:"blockSize,omitempty"`
}

// CStorVolumeReplicaStatus is what a replica's pool reports about it.
type CStorVolumeReplicaStatus struct {
	// +optional
	Phase ReplicaPhase `json:"phase,omitempty"`
	// +optional
	Capacity CStorVolumeReplicaCapacity `json:"capacity,omitempty"`
	// +optional
	// +nullable
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitzero"`
	// +optional
	// +nullable
	LastUpdateTime metav1.Time `json:"lastUpdateTime,omitzero"`
	// +optional
	Message string `json:"message,omitempty"`
	// Snapshots are the snapshots on this replica, by name.
	// +optional
	Snapshots map[string]SnapshotInfo `json:"snapshots,omitempty"`
	// PendingSnapshots are those that it does not have yet, while it is being rebuilt.
	// +optional
	PendingSnapshots map[string]SnapshotInfo `json:"pendingSnapshots,omitempty"`
	// GUID is the replica's identity on its pool, made when it was created there, as 32 hexadecimal digits. Ours.
	// +optional
	GUID string `json:"guid,omitempty"`
	// Progress is there while the replica is being rebuilt. Ours.
	// +optional
	Progress *RebuildProgress `json:"progress,omitempty"`
	// Verified says that no rebuild of this replica is unfinished: at the end of the last one, if it ever needed any, the
	// versions of all blocks were equal to its source's, all that was copied had matched its checksum, and all was on
	// stable storage. Ours.
	// +optional
	Verified bool `json:"verified,omitempty"`
}

// CStorVolumeReplicaCapacity is a replica's space, as FormatSize writes it (1.47G).
type CStorVolumeReplicaCapacity struct {
	// Total is the space taken on the pool, shown as ALLOCATED.
	Total string `json:"total"`
	// Used is the data of the volume, before compression.
	Used string `json:"used"`
}

// SnapshotInfo describes a snapshot on a replica.
type SnapshotInfo struct {
	// LogicalReferenced is its data before compression, in bytes.
	LogicalReferenced int64 `json:"logicalReferenced"`
}

// RebuildProgress is how far a rebuild is; see NewRebuildProgress. Ours.
type RebuildProgress struct {
	// BytesDone and BytesTotal count what the rebuild copies.
	BytesDone  int64 `json:"bytesDone"`
	BytesTotal int64 `json:"bytesTotal"`
	// BytesPerSecond is what it did in the last seconds.
	// +optional
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
	// Percent is bytesDone of bytesTotal; 100 only when it is all.
	Percent int32 `json:"percent"`
	// SecondsLeft is unset while nothing moves.
	// +optional
	SecondsLeft *int64 `json:"secondsLeft,omitempty"`
	// WaitingFor is what the rebuild waits for, all of the time or much of it; empty when nothing holds it up.
	// +optional
	WaitingFor string `json:"waitingFor,omitempty"`
	// Done, Rate and ETA say the same in the style of the columns: 43%, 212M/s, 9s.
	// +optional
	Done string `json:"done,omitempty"`
	// +optional
	Rate string `json:"rate,omitempty"`
	// +optional
	ETA string `json:"eta,omitempty"`
}

// NewRebuildProgress returns a progress with all fields filled: done and total in bytes, rate in bytes per second.
func NewRebuildProgress(done, total, rate int64, waitingFor string) *RebuildProgress {
	p := &RebuildProgress{BytesDone: done, BytesTotal: total, BytesPerSecond: rate, WaitingFor: waitingFor}
	if total > 0 {
		p.Percent = int32(float64(done) / float64(total) * 100)
		if p.Percent >= 100 && done < total {
			p.Percent = 99
		}
		p.Percent = min(p.Percent, 100)
	}
	p.Done = fmt.Sprintf("%d%%", p.Percent)
	if rate > 0 {
		p.Rate = FormatSize(rate) + "/s"
		left := (max(total-done, 0) + rate - 1) / rate
		p.SecondsLeft = &left
		p.ETA = (time.Duration(left) * time.Second).String()
	}
	return p
}
