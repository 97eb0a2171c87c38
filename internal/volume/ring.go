package volume

// ring holds the operations that some replica may still need, addressed by number. Its array only ever grows, and a
// slot is reused only after its operation was released, so that slices of it may be handed out.
type ring struct {
	ops  []*Op  // length is a power of two; operation n is in slot n & (len-1)
	next uint64 // number of the next operation to be pushed
	low  uint64 // lowest number retained
	data int64  // bytes of payload retained
}

func newRing(first uint64) ring { return ring{ops: make([]*Op, 64), next: first, low: first} }

func (r *ring) at(n uint64) *Op { return r.ops[n&uint64(len(r.ops)-1)] }

func (r *ring) push(op *Op) {
	if r.next-r.low == uint64(len(r.ops)) {
		old := r.ops
		r.ops = make([]*Op, 2*len(old))
		for n := r.low; n < r.next; n++ {
			r.ops[n&uint64(len(r.ops)-1)] = old[n&uint64(len(old)-1)]
		}
	}
	r.ops[r.next&uint64(len(r.ops)-1)] = op
	r.next++
	r.data += int64(len(op.Data))
}

// pop forgets the lowest operation and returns it.
func (r *ring) pop() *Op {
	slot := &r.ops[r.low&uint64(len(r.ops)-1)]
	op := *slot
	*slot = nil
	r.low++
	r.data -= int64(len(op.Data))
	return op
}

// span returns the operations from n to the end as one or two slices of the ring.
func (r *ring) span(n uint64) (a, b []*Op) {
	i, j := n&uint64(len(r.ops)-1), r.next&uint64(len(r.ops)-1)
	switch {
	case n == r.next:
		return nil, nil
	case i < j:
		return r.ops[i:j:j], nil
	default:
		return r.ops[i:], r.ops[:j:j]
	}
}
