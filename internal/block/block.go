// Package block holds the plain types that every part of the data path shares: the block size, the version that a
// write carries for ever, identities, checksums, and the small interface by which a front end talks to a volume.
// It imports nothing of ours and does no I/O.
package block

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
)

const (
	// Shift is log2 of Size.
	Shift = 12
	// Size is the number of bytes in a block, the unit of everything behind the target.
	Size = 1 << Shift
	// SectorSize is the number of bytes in a logical block as initiators see it.
	SectorSize = 512
	// ChunkBlocks is the number of blocks in a chunk: what one index page describes and what a rebuild compares and
	// pulls as a unit (2 MiB of a volume).
	ChunkBlocks = 512
)

// Version names one operation of one target. Versions order lexicographically; N goes on across epochs, so that in
// any one history N alone orders operations, while Epoch tells divergent histories apart. The zero Version is older
// than every operation and means "never written".
type Version struct {
	Epoch uint64 `json:"e"`
	N     uint64 `json:"n"`
}

// Compare returns -1, 0 or +1 as v is older than, equal to or newer than w.
func (v Version) Compare(w Version) int {
	if c := cmp.Compare(v.Epoch, w.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(v.N, w.N)
}

// Less reports whether v is older than w.
func (v Version) Less(w Version) bool { return v.Compare(w) < 0 }

// IsZero reports whether v is the version of a block that was never written.
func (v Version) IsZero() bool { return v == Version{} }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Epoch, v.N) }

// GUID identifies a pool, a device or a replica. It is made at random when the thing is created and never reused.
type GUID [16]byte

// NewGUID returns a fresh random GUID.
func NewGUID() (g GUID) {
	if _, err := rand.Read(g[:]); err != nil {
		panic(err) // crypto/rand does not fail on the systems that we run on
	}
	return g
}

// ParseGUID reads the form that String prints.
func ParseGUID(s string) (g GUID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(g) {
		return g, fmt.Errorf("guid %q: want 32 hexadecimal digits", s)
	}
	return GUID(b), nil
}

// IsZero reports whether g is unset.
func (g GUID) IsZero() bool { return g == GUID{} }

func (g GUID) String() string { return hex.EncodeToString(g[:]) }

// MarshalText implements encoding.TextMarshaler.
func (g GUID) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (g *GUID) UnmarshalText(b []byte) (err error) { *g, err = ParseGUID(string(b)); return err }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is the checksum of a block or of any other bytes: CRC-32C (RFC 3720 appendix B.4 polynomial).
func Sum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// UpdateSum extends a Sum by more bytes.
func UpdateSum(sum uint32, b []byte) uint32 { return crc32.Update(sum, castagnoli, b) }

// ZeroSum is the Sum of a block of zeroes, which is what a block that is not allocated reads as.
var ZeroSum = Sum(make([]byte, Size))

// Chunk returns the chunk that a block belongs to.
func Chunk(b uint64) uint64 { return b / ChunkBlocks }

// Staged is a block of what a replica lacks of another one, to be applied at once.
type Staged struct {
	Block   uint64
	Version Version // zero: never written
	Sum     uint32  // of the content
	Stored  bool    // has data; false: reads as zeroes
	Data    []byte  // 4 KiB; nil: not stored, or known to who asked
}

// MostStaged is how many blocks are applied at once at most.
const MostStaged = 4096

// Disown replaces the versions by one that no operation has, so that whoever compares them with his own finds that all differ.
// Zero ones stay: they are of blocks that are not there.
func Disown(versions []Version) {
	for i := range versions {
		if !versions[i].IsZero() {
			versions[i] = Version{Epoch: math.MaxUint64, N: math.MaxUint64}
		}
	}
}

// Resolution is what a rebuilding replica does with one block of a chunk, see Resolve.
type Resolution uint8

const (
	Keep Resolution = iota // what is here stays
	Take                   // the source's content and version replace what is here
	Drop                   // the source has nothing here, so what is here goes
)

// Resolve decides for one block of a rebuilding replica. local is its version here, listed its version at the source
// at the time when the source had applied scan (zero: none). Equal versions mean equal content. Anything newer here
// than scan is a live write of this epoch, which came after the source's listing, and stays; everything else follows
// the source, whichever version is higher, since a divergent tail may carry higher versions than the truth.
func Resolve(local, listed, scan Version) Resolution {
	switch {
	case local == listed, scan.Less(local):
		return Keep
	case listed.IsZero():
		return Drop
	default:
		return Take
	}
}
