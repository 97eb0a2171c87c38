// Package target is the agent in a target's process: it hands the volume's CStorVolume to the target (how many replicas
// are wanted, which members are to go) and writes back what the target says (who is a member, who is in sync, whether
// I/O is possible). It also keeps the founding record of the volume in a CStorVolumeRecord.
//
// The target's member list is the truth and the CStorVolume its mirror: spec.replicaDetails.knownReplicas is written by
// two parties, the target adding and the operator removing, so an id is added once, together with its entry in
// status.replicaDetails, and what the operator took away is never put back. I/O never waits for anything here.
package target
