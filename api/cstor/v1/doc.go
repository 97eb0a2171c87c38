// Package v1 holds the API of cstor.openebs.io/v1: pools (CStorPoolCluster, CStorPoolInstance), volumes
// (CStorVolumeConfig, CStorVolume, CStorVolumeReplica, CStorVolumePolicy, CStorVolumeAttachment) and the record of a
// volume's founding (CStorVolumeRecord).
//
// Kinds, fields, enum values, columns, labels and names are those that cStor users, their tools and the stock CSI driver
// know. What we add says "Ours:" in its comment; such fields are written by our own processes only and are safe to lose,
// since an old client that writes a whole object back drops them. No kind has a status subresource: old clients write
// status through the main resource.
//
// +kubebuilder:object:generate=true
// +groupName=cstor.openebs.io
package v1

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/scheme"
)

// GroupVersion is the group and version of this package's kinds.
var GroupVersion = schema.GroupVersion{Group: "cstor.openebs.io", Version: "v1"}

var builder = (&scheme.Builder{GroupVersion: GroupVersion}).Register(
	&CStorPoolCluster{}, &CStorPoolClusterList{},
	&CStorPoolInstance{}, &CStorPoolInstanceList{},
	&CStorVolumeConfig{}, &CStorVolumeConfigList{},
	&CStorVolume{}, &CStorVolumeList{},
	&CStorVolumeReplica{}, &CStorVolumeReplicaList{},
	&CStorVolumePolicy{}, &CStorVolumePolicyList{},
	&CStorVolumeAttachment{}, &CStorVolumeAttachmentList{},
	&CStorVolumeRecord{}, &CStorVolumeRecordList{},
)

// AddToScheme makes a scheme know this package's kinds.
var AddToScheme = builder.AddToScheme
