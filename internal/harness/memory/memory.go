// Package memory measures what a call takes, for tests of decoders: what they are given must not make them take more
// memory than its size accounts for.
package memory

import "runtime"

// Taken returns how many bytes of memory f takes, given back or not, and with it what runs beside f.
func Taken(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
