// Package sim runs whole lives of a volume in one thread from one seed: successive targets with volume.Core, replicas
// with volume.Member, each on a pool of its own on a device in memory, a network that delays, loses connections and goes
// silent one way or both, processes that are killed, frozen and started again at any moment, machines that lose power, alone
// or all at once, between two events or in the middle of something that a pool does, a control plane that scales up, scales
// down and changes its mind, an API server that keeps the volume's record and is slow, away, in doubt or in the past, and an application whose reads and writes are checked for linearizability block by block.
//
// Targets, replicas and pools run the code of production for every decision; what the shells do around it (bytes, sockets, the
// order of a rebuild) is modelled. Clocks of processes are up to 5 % wrong. In some runs a target goes on beside its
// successor, and the application uses both. In every other run most replicas know how to catch up at once; in the others all are rebuilt.
//
// A killed process loses what it had in memory and nothing that it had handed to its pool. A power cut loses what was not
// flushed, in whole or in part. What succeeded without having been flushed may be lost with it: see loss.go for what is demanded
// and what is not yet.
//
// A run follows from its seed: each concern has a source of random numbers of its own, and the faults are drawn before it
// begins. So faults can be left out of a run, and Shrink finds the few that make it fail.
//
// Every run counts what happened to it; a set of runs that did not reach enough takeovers, divergent tails,
// interrupted rebuilds and so on fails, however correct it looked.
package sim
