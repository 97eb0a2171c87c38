package compress

import "sync/atomic"

// Pace remembers how compressible the blocks of one writer were lately, so that data that does not compress costs
// little: after several blocks in a row that did not shrink only every n-th one is tried, n growing up to maxStride,
// until one shrinks. It may be shared; what concurrent users write over each other is an estimate only.
type Pace struct{ v atomic.Uint64 }

const (
	patience  = 8  // failures in a row before blocks are skipped
	perStride = 4  // failures at one stride before it doubles
	maxStride = 32 // every 32nd block is always tried
)

// Pacer is a Pace in use.
type Pacer struct {
	failures uint32 // in a row
	skipped  uint32 // since the last block that was tried
}

// Begin returns what is known so far.
func (p *Pace) Begin() Pacer {
	v := p.v.Load()
	return Pacer{failures: uint32(v >> 32), skipped: uint32(v)}
}

// End keeps what was learnt.
func (p *Pace) End(s Pacer) { p.v.Store(uint64(s.failures)<<32 | uint64(s.skipped)) }

// Try reports whether the next block is worth an attempt. The outcome of the attempt is to be told to Tried.
func (s *Pacer) Try() bool {
	if s.failures < patience {
		return true
	}
	stride := uint32(2) << min((s.failures-patience)/perStride, 8)
	if s.skipped++; s.skipped < min(stride, maxStride) {
		return false
	}
	s.skipped = 0
	return true
}

// Tried tells the outcome of an attempt.
func (s *Pacer) Tried(shrunk bool) {
	if shrunk {
		s.failures = 0
	} else {
		s.failures = min(s.failures+1, 1<<16)
	}
}
