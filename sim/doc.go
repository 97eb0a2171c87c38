// Package sim runs whole lives of a volume in one thread from one seed: successive targets with volume.Core, replicas
// with volume.Member over a model of the pool, a network that delays, loses connections and goes silent, processes
// that are killed, frozen and started again at any moment, a control plane that scales up, scales down and changes
// its mind, and an application whose reads and writes are checked for linearizability block by block.
//
// The processes run the code of production for every decision; what the shells do around it (bytes, disks, sockets)
// is modelled. A killed process loses what it had in memory and nothing that it had handed to its pool. Power loss
// and two targets at a time are not part of the model: the first needs the detection of suspect replicas, the second
// leases.
//
// Every run counts what happened to it; a set of runs that did not reach enough takeovers, divergent tails,
// interrupted rebuilds and so on fails, however correct it looked.
package sim
