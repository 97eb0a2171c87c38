package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// liveMap says which blocks of a range of segments are live.
type liveMap struct {
	lo, hi uint32 // segments
	want   func(seg uint32) bool
	shift  uint // of a segment in blocks
	bits   []uint64
}

func (p *Pool) newLiveMap(lo, hi uint32, want func(seg uint32) bool) *liveMap {
	m := &liveMap{lo: lo, hi: hi, want: want, shift: p.seg.shift - block.Shift}
	m.bits = make([]uint64, (uint64(hi-lo)<<m.shift+63)/64)
	return m
}

// set marks the blocks of a location.
func (m *liveMap) set(loc index.Loc) {
	for b := loc.Addr() >> block.Shift; b<<block.Shift < loc.End(); b++ {
		if seg := uint32(b >> m.shift); seg >= m.lo && seg < m.hi && m.want(seg) {
			i := b - uint64(m.lo)<<m.shift
			m.bits[i/64] |= 1 << (i % 64)
		}
	}
}

// any reports whether any block of a range of addresses is live.
func (m *liveMap) any(from, to uint64) bool {
	base := uint64(m.lo) << m.shift
	for b := from >> block.Shift; b<<block.Shift < to; b++ {
		if i := b - base; m.bits[i/64]>>(i%64)&1 != 0 {
			return true
		}
	}
	return false
}

// last returns the number of the last live block of a segment, -1 if there is none.
func (m *liveMap) last(seg uint32) int {
	base := uint64(seg-m.lo) << m.shift
	for i := int64(1)<<m.shift - 1; i >= 0; i-- {
		if k := base + uint64(i); m.bits[k/64]>>(k%64)&1 != 0 {
			return int(i)
		}
	}
	return -1
}
