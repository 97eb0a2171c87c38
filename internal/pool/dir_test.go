package pool

import "testing"

// refOf returns what is known about a chunk.
func refOf(t testing.TB, r *Replica, c uint64) (d chunkRef) {
	t.Helper()
	x, err := r.rlock(c)
	must(t, err)
	if x != nil {
		d = *x
	}
	r.p.idx.mu.RUnlock()
	return d
}

// refAddr returns the address of the page of a chunk.
func refAddr(t testing.TB, r *Replica, c uint64) uint64 {
	t.Helper()
	d := refOf(t, r, c)
	return d.pageAddr()
}

// dirOf returns directory block i, which is in memory.
func dirOf(t testing.TB, r *Replica, i uint64) *dirBlock {
	t.Helper()
	must(t, r.warm(i))
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	b, _ := r.loaded(i)
	return b
}
