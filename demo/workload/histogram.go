package workload

import (
	"math/bits"
	"time"
)

// subBuckets is the number of buckets per power of two: a value is known to 1 in 32.
const (
	subBits    = 5
	subBuckets = 1 << subBits
)

// Histogram counts durations in buckets whose width grows with the value, so that every value is known to about 3 %.
// The zero Histogram is empty and ready for use; it is not safe for concurrent use.
type Histogram struct {
	counts [(64 - subBits + 1) * subBuckets]uint64
	n      uint64
	max    time.Duration
}

// Record counts one duration.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(uint64(d))]++
	h.n++
	h.max = max(h.max, d)
}

func bucket(v uint64) int {
	shift := max(bits.Len64(v)-subBits-1, 0)
	return shift<<subBits + int(v>>shift)
}

// upper is the largest value that belongs to a bucket.
func upper(i int) uint64 {
	if i < 2*subBuckets {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return (uint64(i&(subBuckets-1)+subBuckets)+1)<<shift - 1
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.n }

// Max returns the longest duration, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile returns the duration that the fraction q (0..1) of the recorded durations does not exceed; 0 if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := uint64(q * float64(h.n))
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen > rank {
			return min(time.Duration(upper(i)), h.max)
		}
	}
	return h.max
}
