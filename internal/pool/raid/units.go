package raid

import (
	"math/bits"
	"sync/atomic"
)

// Bitmap is a set of unit numbers: bit u%64 of word u/64. Words that are not there are zero.
type Bitmap []uint64

// Has reports whether unit u is in the set.
func (b Bitmap) Has(u int) bool { return u >= 0 && u/64 < len(b) && b[u/64]>>(u%64)&1 != 0 }

// Count returns the number of units in the set.
func (b Bitmap) Count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// Next returns the lowest unit in the set that is not below u, or -1.
func (b Bitmap) Next(u int) int {
	for i := u / 64; i < len(b); i++ {
		w := b[i]
		if i == u/64 {
			w &= ^uint64(0) << (u % 64)
		}
		if w != 0 {
			return i*64 + bits.TrailingZeros64(w)
		}
	}
	return -1
}

const (
	chunkWords = 512
	chunkUnits = chunkWords * 64
	maxChunks  = 128
	// MaxUnits is the highest number of units of a group.
	MaxUnits = maxChunks * chunkUnits
)

// unitSet is a set of units that grows as needed. All methods may be called concurrently.
type unitSet struct {
	n      atomic.Int64 // members
	added  atomic.Uint64
	chunks [maxChunks]atomic.Pointer[unitChunk]
}

type unitChunk struct {
	words   [chunkWords]atomic.Uint64
	summary [chunkWords / 64]atomic.Uint64 // bit w: words[w] may be other than zero
}

func (s *unitSet) has(u int) bool {
	c := s.chunks[u/chunkUnits].Load()
	return c != nil && c.words[u/64%chunkWords].Load()>>(u%64)&1 != 0
}

func (s *unitSet) add(u int) {
	c := s.chunks[u/chunkUnits].Load()
	for c == nil {
		s.chunks[u/chunkUnits].CompareAndSwap(nil, new(unitChunk))
		c = s.chunks[u/chunkUnits].Load()
	}
	w, bit := u/64%chunkWords, uint64(1)<<(u%64)
	if c.words[w].Load()&bit != 0 && c.summary[w/64].Load()>>(w%64)&1 != 0 { // else somebody is about to set the summary
		return
	}
	if c.words[w].Or(bit)&bit == 0 {
		s.n.Add(1)
		s.added.Add(1)
	}
	// After the word: who empties the set takes the summary first, so a bit is found by this round or the next.
	c.summary[w/64].Or(1 << (w % 64))
}

func (s *unitSet) addRange(first, last int) {
	for u := first; u <= last; u++ {
		s.add(u)
	}
}

func (s *unitSet) remove(u int) {
	c := s.chunks[u/chunkUnits].Load()
	if c == nil {
		return
	}
	if bit := uint64(1) << (u % 64); c.words[u/64%chunkWords].And(^bit)&bit != 0 {
		s.n.Add(-1)
	}
}

func (s *unitSet) any(first, last int) bool {
	if s.n.Load() == 0 {
		return false
	}
	for u := first; u <= last; u++ {
		if s.has(u) {
			return true
		}
	}
	return false
}

// drain empties the set and hands every member to f.
func (s *unitSet) drain(f func(u int)) {
	for i := range s.chunks {
		c := s.chunks[i].Load()
		if c == nil {
			continue
		}
		for j := range c.summary {
			if c.summary[j].Load() == 0 {
				continue
			}
			for m := c.summary[j].Swap(0); m != 0; m &= m - 1 {
				w := j*64 + bits.TrailingZeros64(m)
				v := c.words[w].Swap(0)
				s.n.Add(-int64(bits.OnesCount64(v)))
				for ; v != 0; v &= v - 1 {
					f(i*chunkUnits + w*64 + bits.TrailingZeros64(v))
				}
			}
		}
	}
}

// bitmap returns a copy.
func (s *unitSet) bitmap() (b Bitmap) {
	for i := range s.chunks {
		c := s.chunks[i].Load()
		if c == nil {
			continue
		}
		for w := range c.words {
			if v := c.words[w].Load(); v != 0 {
				at := i*chunkWords + w
				for len(b) <= at {
					b = append(b, 0)
				}
				b[at] = v
			}
		}
	}
	return b
}
