// Package pool is the agent in a pool's process: it stands between the engine and the replica server on one side and
// the pool's CStorPoolInstance and CStorVolumeReplicas on the other. It creates the pool or finds it on its devices,
// attaches the replicas that the API asks for, destroys those whose object is being deleted, and reports what is true
// of both.
//
// It relies on nothing in the API being current: a device is formatted only if it is blank and the pool was never made,
// a replica's data is destroyed only on a deletion, and while the API server is away everything that runs goes on. It
// promises that the status never says more than the engine does: ONLINE is an open pool that takes writes, Healthy a
// replica that is complete, in sync and counted. Only the fields that are the pool's own are ever written.
package pool
