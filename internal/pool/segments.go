package pool

import (
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// Segment kinds. The kind of a segment is part of the checkpoint.
const (
	segFree  = iota
	segLog   // batches of the log: headers and data
	segIndex // pages, directory blocks, checkpoints
	segWarm  // batches of the cleaner: data that was moved out of the log
	segCold  // the same, of data that was moved before
	segKinds

	segKindBits = 3 // in the checkpoint
)

// SegmentKind names the kind of a segment.
func SegmentKind(kind uint8) string {
	if kind < segKinds {
		return [segKinds]string{"free", "log", "index", "warm", "cold"}[kind]
	}
	return "unknown"
}

// segments maps the pool's linear space onto the raid groups and knows what is in use. An address is a byte in that
// space: segment number times segment size plus offset.
//
// A segment's live bytes have two parts: what pages and directory refer to, and what the delta refers to. The first
// part is checkpointed, the second follows from the log.
type segments struct {
	shift uint // log2 of bytes of a segment
	where atomic.Pointer[space]

	// live counts are guarded by the pool's index lock
	pageLive  []uint32
	deltaLive []uint32

	clock atomic.Uint64 // blocks that were ever appended to the log: the cleaner's measure of age

	mu    sync.Mutex // guards the rest, and what the groups know of their free segments
	kind  []uint8
	birth []uint64 // clock when the data of the segment was written, on the average
	free  []uint64 // bitmap
	// undiscarded are those of them whose space the devices still have, or may have since the pool was opened.
	undiscarded []uint64
	nFree       int      // on groups for data
	nCache      int      // free segments on cache groups
	turn        int      // group after the one that was allocated from last
	pinned      []bool   // open for writing, or part of the log that a replay would read
	freed       []uint64 // while somebody walks through segments: those that were free since then; nil otherwise
}

func newSegments(w *space, shift uint) *segments {
	n := w.count()
	s := &segments{shift: shift}
	s.where.Store(w)
	s.pageLive, s.deltaLive = make([]uint32, n), make([]uint32, n)
	s.kind, s.pinned = make([]uint8, n), make([]bool, n)
	s.birth = make([]uint64, n)
	s.free, s.undiscarded = make([]uint64, (n+63)/64), make([]uint64, (n+63)/64)
	return s
}

func (s *segments) count() int     { return s.where.Load().count() }
func (s *segments) bytes() int64   { return 1 << s.shift }
func (s *segments) blocks() uint32 { return 1 << (s.shift - block.Shift) }

// dataCount returns the number of segments on groups for data: what the capacity is made of.
func (s *segments) dataCount() int { return s.where.Load().dataSegs }

// leastReserve is how many segments the reserve has at least for work.
const leastReserve = 16

// reserve returns the number of segments that only index, discards and state records may use. What the batches of the
// cleaner lose to headers and at the ends of segments is more the smaller segments are.
func (s *segments) reserve() int {
	n, blocks := s.dataCount(), int(s.blocks())
	return max(leastReserve+n*(2+blocks/64)/blocks, n/20)
}

// limit returns the first address behind the pool's space.
func (s *segments) limit() uint64 { return uint64(s.count()) << s.shift }

// of returns the segment of a location.
func (s *segments) of(loc index.Loc) uint32 { return uint32(uint64(loc) >> s.shift) }

// row returns the number of blocks in a row of the group of a segment: what is written there begins and ends at rows.
func (s *segments) row(seg uint32) uint32 {
	w := s.where.Load()
	return w.spans[w.of[seg]].group.row
}

// maxRow returns the largest row of any group in blocks.
func (s *segments) maxRow() int { return int(s.where.Load().maxRow) }

// locate returns the raid group of an address and the offset in it.
func (s *segments) locate(addr uint64) (g *groupState, off int64) {
	w := s.where.Load()
	seg := uint32(addr >> s.shift)
	sp := &w.spans[w.of[seg]]
	return sp.group, int64(sp.unit+seg-sp.first)<<s.shift + int64(addr&(1<<s.shift-1))
}

// checkRange reports an error when length bytes at addr are not inside one segment.
func (s *segments) checkRange(addr uint64, length int) error {
	if addr >= s.limit() || length < 0 || addr&(1<<s.shift-1)+uint64(length) > 1<<s.shift {
		return fmt.Errorf("address %#x with %d bytes is outside the pool: %w", addr, length, ErrDamaged)
	}
	return nil
}

// readAt reads whole blocks within a segment. What it reads is to be verified, see recover.
func (s *segments) readAt(b []byte, addr uint64) error {
	if err := s.checkRange(addr, len(b)); err != nil {
		return err
	}
	g, off := s.locate(addr)
	if err := g.Read(b, off); err != nil {
		return fmt.Errorf("segment %d: %w", addr>>s.shift, err)
	}
	return nil
}

// readInline is readAt for who holds no lock meanwhile: a device without redundancy that hangs may keep the caller, see
// raid.Group.ReadInline.
func (s *segments) readInline(b []byte, addr uint64) error {
	if err := s.checkRange(addr, len(b)); err != nil {
		return err
	}
	g, off := s.locate(addr)
	if err := g.ReadInline(b, off); err != nil {
		return fmt.Errorf("segment %d: %w", addr>>s.shift, err)
	}
	return nil
}

// writevAt writes whole rows within a segment.
func (s *segments) writevAt(bufs [][]byte, addr uint64) error {
	g, off := s.locate(addr)
	return s.wrote(g, addr, g.Write(bufs, off))
}

// writeInline is writevAt for who holds no lock meanwhile but one that can be seized, see seizable.
func (s *segments) writeInline(bufs [][]byte, addr uint64) error {
	g, off := s.locate(addr)
	return s.wrote(g, addr, g.WriteInline(bufs, off))
}

func (s *segments) wrote(g *groupState, addr uint64, err error) error {
	g.dirty.Store(true) // after the write, so that a flush that runs meanwhile cannot take the mark and miss the write
	if err != nil {
		return fmt.Errorf("segment %d: %w", addr>>s.shift, err)
	}
	return nil
}

// discard gives the space of a piece of a segment, which is whole rows, back to the devices.
func (s *segments) discard(seg uint32, from, length int64) error {
	g, off := s.locate(uint64(seg)<<s.shift + uint64(from))
	if err := g.Discard(off, length); err != nil {
		return fmt.Errorf("segment %d: %w", seg, err)
	}
	return nil
}

// setFree marks a segment as free. The caller holds mu or is alone.
func (s *segments) setFree(seg uint32) {
	s.kind[seg] = segFree
	s.free[seg/64] |= 1 << (seg % 64)
	if s.freed != nil {
		s.freed[seg/64] |= 1 << (seg % 64)
	}
	sp := s.where.Load().span(seg)
	sp.hint = min(sp.hint, seg)
	s.addFree(sp.group, 1)
}

// isFree reports whether a segment is free. The caller is alone.
func (s *segments) isFree(seg uint32) bool { return s.free[seg/64]>>(seg%64)&1 != 0 }

// take marks a segment as in use. The caller holds mu or is alone.
func (s *segments) take(seg uint32, kind uint8) {
	if s.kind[seg] == segFree {
		s.free[seg/64] &^= 1 << (seg % 64)
		s.undiscarded[seg/64] &^= 1 << (seg % 64)
		s.addFree(s.where.Load().span(seg).group, -1)
	}
	s.kind[seg] = kind
	s.birth[seg] = s.clock.Load()
}

func (s *segments) addFree(g *groupState, n int) {
	g.free += n
	if g.cache {
		s.nCache += n
	} else {
		s.nFree += n
	}
}

// alloc takes n free segments of kind into dst, pinned: on cache groups while these have room, then on the groups with
// the largest share of free segments in turn, lowest first on each. It takes none and returns false unless keep
// segments stay free on groups for data.
func (s *segments) alloc(dst []uint32, n int, kind uint8, keep int) ([]uint32, bool) {
	return s.allocate(dst, n, kind, keep, true)
}

// allocData is alloc for what is to be on groups for data: what the cleaner moves there.
func (s *segments) allocData(dst []uint32, n int, kind uint8, keep int) ([]uint32, bool) {
	return s.allocate(dst, n, kind, keep, false)
}

func (s *segments) allocate(dst []uint32, n int, kind uint8, keep int, cache bool) ([]uint32, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.where.Load()
	cached := 0
	if cache {
		if cached = min(n, max(0, s.nCache-w.cacheKeep())); s.nFree < n-cached+keep {
			cached = min(n, s.nCache)
		}
	}
	if s.nFree < n-cached+keep {
		return dst, false
	}
	for i := range n {
		g := w.pick(i < cached, &s.turn)
		seg := s.lowest(w, g)
		s.take(seg, kind)
		s.pinned[seg] = true
		sp := w.span(seg)
		g.Fresh(int(sp.unit + seg - sp.first)) // a device that missed writes to it has nothing there that counts any more
		dst = append(dst, seg)
	}
	return dst, true
}

// takeUndiscarded takes a free segment, if there is one, whose space the devices still have, pinned. So many remain free.
func (s *segments) takeUndiscarded(keep int) (seg uint32, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nFree <= keep {
		return 0, false
	}
	for w, x := range s.undiscarded {
		if x != 0 {
			seg = uint32(w*64 + bits.TrailingZeros64(x))
			s.take(seg, segLog)
			s.pinned[seg] = true
			return seg, true
		}
	}
	return 0, false
}

// lowest returns the lowest free segment of a group, which has one.
func (s *segments) lowest(w *space, g *groupState) uint32 {
	for i := range w.spans {
		sp := &w.spans[i]
		if sp.group != g {
			continue
		}
		end := sp.first + sp.count
		for seg := sp.hint; seg < end; {
			if f := s.free[seg/64] >> (seg % 64); f != 0 {
				seg += uint32(bits.TrailingZeros64(f))
				if seg >= end {
					break
				}
				sp.hint = seg
				return seg
			}
			seg = (seg/64 + 1) * 64
		}
		sp.hint = end
	}
	panic("a group without free segments was chosen")
}

// watchFrees notes which segments are free and, from now on, which become so.
func (s *segments) watchFrees() {
	s.mu.Lock()
	s.freed = slices.Clone(s.free)
	s.mu.Unlock()
}

func (s *segments) unpin(seg uint32) {
	s.mu.Lock()
	s.pinned[seg] = false
	s.mu.Unlock()
}

// freeCount returns the number of free segments on groups for data.
func (s *segments) freeCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nFree
}

// onCache reports whether a segment is on a cache group, from which the cleaner moves data away.
func (s *segments) onCache(seg uint32) bool { return s.where.Load().span(seg).group.cache }

// hasCache reports whether there are groups that are a write cache.
func (s *segments) hasCache() bool { return s.count() > s.dataCount() }

// cacheCount returns the numbers of free and of all segments on cache groups.
func (s *segments) cacheCount() (free, all int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nCache, s.count() - s.dataCount()
}
