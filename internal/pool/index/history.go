package index

import (
	"encoding/binary"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// History pages hold the older versions of one chunk that do not fit into its page. They are immutable: what a page
// has too many of becomes one more history page, in front of the others.
const (
	histMagic = 0x48504743 // "CGPH"
	histFixed = 32
	histRef   = 56
	// MaxHistory is the largest encoded history page in bytes.
	MaxHistory = 32 << 10
	// MaxHistories is the number of history pages that one chunk can have.
	MaxHistories = 1024
	// MaxInline is the number of bytes of older versions that stay in a page.
	MaxInline = 16 << 10
)

// HistRef says where a history page is and what it holds. The references of a page are in an order such that of any
// one block an earlier history page has the newer versions.
type HistRef struct {
	Page        uint64 // address / 64 << 16 | length / 64
	ID          uint64
	Lo, Hi      block.Version // lowest and highest version
	First, Last uint16        // lowest and highest block
	Count       uint32        // versions
}

func (h *HistRef) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, h.Page)
	b = le.AppendUint64(b, h.ID)
	b = le.AppendUint64(b, h.Lo.Epoch)
	b = le.AppendUint64(b, h.Lo.N)
	b = le.AppendUint64(b, h.Hi.Epoch)
	b = le.AppendUint64(b, h.Hi.N)
	b = le.AppendUint16(b, h.First)
	b = le.AppendUint16(b, h.Last)
	return le.AppendUint32(b, h.Count)
}

func (h *HistRef) decode(b []byte) {
	le := binary.LittleEndian
	*h = HistRef{
		Page: le.Uint64(b), ID: le.Uint64(b[8:]), Lo: block.Version{Epoch: le.Uint64(b[16:]), N: le.Uint64(b[24:])},
		Hi: block.Version{Epoch: le.Uint64(b[32:]), N: le.Uint64(b[40:])}, First: le.Uint16(b[48:]), Last: le.Uint16(b[50:]), Count: le.Uint32(b[52:]),
	}
}

// Addr and Len say where the history page is.
func (h *HistRef) Addr() uint64 { return h.Page >> 16 * Granule }
func (h *HistRef) Len() int     { return int(h.Page&0xffff) * Granule }

// May reports whether the history page may have a version of a block that is not newer than at.
func (h *HistRef) May(b int, at block.Version) bool {
	return int(h.First) <= b && b <= int(h.Last) && !at.Less(h.Lo)
}

// Describe returns what the reference to a history page of these versions says about them.
func Describe(old []Old) (h HistRef) {
	h.Count, h.First, h.Last = uint32(len(old)), old[0].Block, old[len(old)-1].Block
	h.Lo, h.Hi = old[0].Ver, old[0].Ver
	for i := range old {
		if old[i].Ver.Less(h.Lo) {
			h.Lo = old[i].Ver
		}
		if h.Hi.Less(old[i].Ver) {
			h.Hi = old[i].Ver
		}
	}
	return h
}

// HistLen returns the bytes of a history page of these versions.
func HistLen(old []Old) int { return (histFixed + OldLen(old) + Granule - 1) &^ (Granule - 1) }

// HistFit returns how many of the first versions of a list, at least one, fit into a history page of limit bytes.
func HistFit(old []Old, limit int) int {
	if len(old)*maxOld <= limit-histFixed-oldFixed-Granule {
		return len(old)
	}
	lo, hi := max(1, (limit-histFixed-oldFixed-Granule)/maxOld), len(old)
	for lo < hi {
		if m := (lo + hi + 1) / 2; HistLen(old[:m]) <= limit {
			lo = m
		} else {
			hi = m - 1
		}
	}
	return lo
}

// EncodeHistory writes a history page of the versions behind dst and returns the longer slice; h.ID is set, and h is
// completed except for its place.
func EncodeHistory(dst []byte, old []Old, h *HistRef, slot uint32, chunk uint64) []byte {
	le := binary.LittleEndian
	start := len(dst)
	dst = append(dst, make([]byte, histFixed)...)
	dst = appendOld(dst, old)
	for (len(dst)-start)%Granule != 0 {
		dst = append(dst, 0)
	}
	b := dst[start:]
	le.PutUint32(b[0:], histMagic)
	le.PutUint64(b[8:], h.ID)
	le.PutUint64(b[16:], chunk)
	le.PutUint32(b[24:], slot)
	le.PutUint32(b[28:], uint32(len(b)))
	le.PutUint32(b[4:], block.Sum(b[8:]))
	id := h.ID
	*h = Describe(old)
	h.ID = id
	return dst
}

// OpenHistory checks the encoded history page b against what h says and prepares v for access. checked skips what was
// checked before: the checksum and each version.
func OpenHistory(v *OldView, b []byte, h *HistRef, slot uint32, chunk uint64, checked bool) error {
	le := binary.LittleEndian
	if len(b) < histFixed || le.Uint32(b) != histMagic {
		return fmt.Errorf("no history page: %w", ErrDamaged)
	}
	if !checked && le.Uint32(b[4:]) != block.Sum(b[8:]) {
		return fmt.Errorf("history page: checksum: %w", ErrDamaged)
	}
	if le.Uint64(b[8:]) != h.ID || le.Uint64(b[16:]) != chunk || le.Uint32(b[24:]) != slot || int(le.Uint32(b[28:])) != len(b) {
		return fmt.Errorf("history page of something else: %w", ErrDamaged)
	}
	if err := v.open(b[histFixed:], checked); err != nil {
		return err
	}
	if v.n != int(h.Count) {
		return fmt.Errorf("history page of %d versions instead of %d: %w", v.n, h.Count, ErrDamaged)
	}
	return nil
}

// HistEnd returns the address behind the last stored byte that the versions of v refer to.
func (v *OldView) HistEnd() uint64 { return v.end() }
