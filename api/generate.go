// Package api is the root of the resource types: openebs/v1alpha1 holds the block devices, cstor/v1 everything of cStor.
// Deep copies and the CRDs in deploy/crds are generated from the types; run `go generate ./api` after a change.
package api

//go:generate go tool controller-gen object paths=./...
//go:generate go tool controller-gen crd:crdVersions=v1 paths=./... output:crd:dir=../deploy/crds
