// Package kube is the thin Kubernetes client of the processes that move data: a client without caches, so that a pool or a
// target costs the API server two watches and itself no memory per object; hints that something may have changed;
// merge patches that name the fields they own; and events.
//
// Whoever uses it reads the truth from the API server whenever it decides something, and treats watches as hints only.
package kube
