package index

import "github.com/cstor-go/cstor/internal/block"

// Loc says where the content of a block is stored and in how many bytes: a byte address in the pool's linear space, a
// multiple of Granule, with the stored length in granules less one in the low bits. A block that is stored as it is
// takes 4096 bytes; a shorter one is compressed.
type Loc uint64

const (
	locLen = block.Size/Granule - 1
	// MaxLoc is the largest location that an entry can hold.
	MaxLoc Loc = 1<<56 - 1
)

// MakeLoc returns the location of length bytes at addr, both multiples of Granule, length from one granule to a block.
func MakeLoc(addr uint64, length int) Loc { return Loc(addr) | Loc(length/Granule-1) }

// RawAt returns the location of a block that is stored as it is at addr.
func RawAt(addr uint64) Loc { return Loc(addr) | locLen }

// Addr returns the address of the first stored byte.
func (l Loc) Addr() uint64 { return uint64(l) &^ locLen }

// Len returns the number of stored bytes.
func (l Loc) Len() int { return (int(l&locLen) + 1) * Granule }

// End returns the address behind the last stored byte.
func (l Loc) End() uint64 { return l.Addr() + uint64(l.Len()) }

// Raw reports whether the block is stored as it is.
func (l Loc) Raw() bool { return l&locLen == locLen }
