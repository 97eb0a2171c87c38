// Package v1alpha1 holds the API of openebs.io/v1alpha1 that pools are made from: BlockDevice, a disk of a node, and
// BlockDeviceClaim, the exclusive claim of one. Field names, defaults and printed columns are those that users of the
// node disk manager know; nothing is added.
//
// +kubebuilder:object:generate=true
// +groupName=openebs.io
package v1alpha1

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/scheme"
)

// GroupVersion is the group and version of this package's kinds.
var GroupVersion = schema.GroupVersion{Group: "openebs.io", Version: "v1alpha1"}

var builder = (&scheme.Builder{GroupVersion: GroupVersion}).Register(
	&BlockDevice{}, &BlockDeviceList{},
	&BlockDeviceClaim{}, &BlockDeviceClaimList{},
)

// AddToScheme makes a scheme know this package's kinds.
var AddToScheme = builder.AddToScheme
