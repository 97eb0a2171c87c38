// Package sim runs whole lives of a volume in one thread from one seed: successive targets with volume.Core, replicas
// with volume.Member over a model of the pool, a network that delays, loses connections and goes silent one way or both, processes
// that are killed, frozen and started again at any moment, a control plane that scales up, scales down and changes
// its mind, and an application whose reads and writes are checked for linearizability block by block.
//
// The processes run the code of production for every decision; what the shells do around it (bytes, disks, sockets)
// is modelled. A killed process loses what it had in memory and nothing that it had handed to its pool. Clocks of processes
// are up to 5 % wrong. In some runs a target goes on beside its successor, and the application uses both. Power loss is not
// part of the model: it needs the detection of suspect replicas.
//
// Every run counts what happened to it; a set of runs that did not reach enough takeovers, divergent tails,
// interrupted rebuilds and so on fails, however correct it looked.
package sim
