// Package target is the agent in a target's process: it hands the volume's CStorVolume to the target (how many replicas
// are wanted, which members are to go) and writes back what the target says (who is a member, who is in sync, whether
// I/O is possible). It also keeps the volume's CStorVolumeRecord. There may be two targets for a while:
// what the CStorVolume says is that of the newest that serves.
//
// The target's member list is the truth and the CStorVolume its mirror: spec.replicaDetails.knownReplicas is written by
// two parties, the target adding and the operator removing, so an id is added once, together with its entry in
// status.replicaDetails, and what the operator took away is never put back. I/O never waits for anything here.
package target
