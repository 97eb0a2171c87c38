package pool

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// Segment kinds. The kind of a segment is part of the checkpoint.
const (
	segFree  = iota
	segLog   // batches: headers and data
	segIndex // pages, directory blocks, checkpoints
)

// segments maps the pool's linear space onto the devices and knows what is in use. An address is a byte in that space:
// segment number times segment size plus offset.
//
// A segment's live bytes have two parts: what pages and directory refer to, and what the delta refers to. The first
// part is checkpointed, the second follows from the log.
type segments struct {
	devs  []disk.Device
	first []uint32 // first segment of each device, and the total at the end
	shift uint     // log2 of bytes of a segment
	dirty []dirtyFlag

	// live counts are guarded by the pool's index lock
	pageLive  []uint32
	deltaLive []uint32

	mu      sync.Mutex // guards the rest
	kind    []uint8
	free    []uint64 // bitmap
	hint    []uint32 // per device: no free segment below
	nFree   int
	nextDev int
	pinned  []bool // open for writing, or part of the log that a replay would read
}

func newSegments(devs []disk.Device, members []label.Member, segBytes int64) *segments {
	s := &segments{devs: devs, shift: uint(bits.TrailingZeros64(uint64(segBytes))), dirty: make([]dirtyFlag, len(devs))}
	n := uint64(0)
	for _, m := range members {
		s.first = append(s.first, uint32(n))
		s.hint = append(s.hint, uint32(n))
		n += m.Segments
	}
	s.first = append(s.first, uint32(n))
	s.pageLive, s.deltaLive = make([]uint32, n), make([]uint32, n)
	s.kind, s.pinned = make([]uint8, n), make([]bool, n)
	s.free = make([]uint64, (n+63)/64)
	return s
}

func (s *segments) count() int     { return len(s.kind) }
func (s *segments) bytes() int64   { return 1 << s.shift }
func (s *segments) blocks() uint32 { return 1 << (s.shift - block.Shift) }

// limit returns the first address behind the pool's space.
func (s *segments) limit() uint64 { return uint64(s.count()) << s.shift }

// of returns the segment of a location.
func (s *segments) of(loc index.Loc) uint32 { return uint32(uint64(loc) >> s.shift) }

// locate returns the device and the offset on it of an address.
func (s *segments) locate(addr uint64) (dev int, off int64) {
	seg := uint32(addr >> s.shift)
	for dev = 0; dev+2 < len(s.first) && seg >= s.first[dev+1]; dev++ {
	}
	return dev, label.HeadBytes + int64(seg-s.first[dev])<<s.shift + int64(addr&(1<<s.shift-1))
}

// checkRange reports an error when length bytes at addr are not inside one segment.
func (s *segments) checkRange(addr uint64, length int) error {
	if addr >= s.limit() || length < 0 || addr&(1<<s.shift-1)+uint64(length) > 1<<s.shift {
		return fmt.Errorf("address %#x with %d bytes is outside the pool: %w", addr, length, ErrDamaged)
	}
	return nil
}

// readAt reads whole blocks within a segment.
func (s *segments) readAt(b []byte, addr uint64) error {
	if err := s.checkRange(addr, len(b)); err != nil {
		return err
	}
	dev, off := s.locate(addr)
	if err := s.devs[dev].ReadAt(b, off); err != nil {
		return fmt.Errorf("segment %d: %w", addr>>s.shift, err)
	}
	return nil
}

// writevAt writes whole blocks within a segment.
func (s *segments) writevAt(bufs [][]byte, addr uint64) error {
	dev, off := s.locate(addr)
	err := s.devs[dev].WritevAt(bufs, off)
	s.dirty[dev].v.Store(true) // after the write, so that a flush that runs meanwhile cannot take the mark and miss the write
	if err != nil {
		return fmt.Errorf("segment %d: %w", addr>>s.shift, err)
	}
	return nil
}

// setFree marks a segment as free. The caller holds mu or is alone.
func (s *segments) setFree(seg uint32) {
	s.kind[seg] = segFree
	s.free[seg/64] |= 1 << (seg % 64)
	s.nFree++
	for d := range s.devs {
		if seg < s.first[d+1] {
			s.hint[d] = min(s.hint[d], seg)
			break
		}
	}
}

// take marks a segment as in use. The caller holds mu or is alone.
func (s *segments) take(seg uint32, kind uint8) {
	if s.kind[seg] == segFree {
		s.free[seg/64] &^= 1 << (seg % 64)
		s.nFree--
	}
	s.kind[seg] = kind
}

// alloc takes n free segments of kind into dst, round-robin over the devices and lowest first on each, pinned. It
// takes none and returns false unless keep segments stay free.
func (s *segments) alloc(dst []uint32, n int, kind uint8, keep int) ([]uint32, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nFree < n+keep {
		return dst, false
	}
	for range n {
		for {
			d := s.nextDev
			s.nextDev = (s.nextDev + 1) % len(s.devs)
			if seg, ok := s.lowest(d); ok {
				s.take(seg, kind)
				s.pinned[seg] = true
				dst = append(dst, seg)
				break
			}
		}
	}
	return dst, true
}

// lowest returns the lowest free segment of a device.
func (s *segments) lowest(dev int) (uint32, bool) {
	end := s.first[dev+1]
	for seg := s.hint[dev]; seg < end; {
		if w := s.free[seg/64] >> (seg % 64); w != 0 {
			seg += uint32(bits.TrailingZeros64(w))
			if seg >= end {
				break
			}
			s.hint[dev] = seg
			return seg, true
		}
		seg = (seg/64 + 1) * 64
	}
	s.hint[dev] = end
	return 0, false
}

func (s *segments) unpin(seg uint32) {
	s.mu.Lock()
	s.pinned[seg] = false
	s.mu.Unlock()
}

func (s *segments) freeCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nFree
}
