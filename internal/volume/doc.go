// Package volume is the replication core: who may serve a volume, which replicas count, when a write is done, what a
// read may show, how a replica that was away comes back, and how the member list changes. It is pure: no clock, no
// goroutine, no socket, no disk. Events go in as method calls, what is to be done comes out as a Ready, the way
// etcd's raft does it; the same code runs in the target and replica processes and in the simulator.
//
// Core is the target's side of one volume, Member is a replica's side. The shells around them (packages target and
// replica) move bytes and persist State; they decide nothing.
package volume
