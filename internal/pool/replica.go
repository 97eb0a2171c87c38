package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// OpKind is the kind of an Op.
type OpKind uint8

const (
	OpWrite          OpKind = iota + 1 // Count blocks of data
	OpDiscard                          // Count blocks read as zeroes afterwards; their version is remembered
	OpMark                             // no blocks; only advances Applied (an opened epoch, for example)
	OpSnapshot                         // from now on Name shows what the replica shows at Version
	OpDeleteSnapshot                   // the snapshot Name goes
	OpResize                           // the replica has Size bytes
)

// Op is one operation of a replica's write order. What it says holds again when it is repeated: a snapshot of the same
// name and version exists already, a snapshot to delete is gone already.
type Op struct {
	Kind    OpKind
	Block   uint64        // first block
	Count   uint32        // blocks
	Version block.Version // not zero, except for OpMark
	Data    []byte        // OpWrite: Count*4096 bytes, borrowed during Apply only
	Sums    []uint32      // OpWrite: CRC-32C of each block, already verified; nil: the engine computes them
	Name    string        // OpSnapshot, OpDeleteSnapshot
	Size    int64         // OpResize: bytes, a multiple of 512; what is cut off reads as zeroes when it comes back
}

// Chunk is the content of 512 blocks of a replica, or that part of it which a puller lacks.
type Chunk struct {
	Index    uint64        // blocks Index*512 … Index*512+511
	Scan     block.Version // what the source had applied at the moment of listing
	Versions [block.ChunkBlocks]block.Version
	Sums     [block.ChunkBlocks]uint32 // of stored blocks; ZeroSum for others
	Stored   [block.ChunkBlocks]bool   // has data; false: hole or tombstone
	Data     []byte                    // the 4 KiB blocks named in DataOf, in that order
	DataOf   []uint16                  // block indexes within the chunk, ascending
	Unlisted [block.ChunkBlocks]bool   // blocks that are not spoken of, see ReadNewer: Merge leaves them as they are
	// Ambiguous: what is here may differ from what has the same version there, so that Merge takes it.
	Ambiguous bool

	// A chunk with all versions, as ReadVersions makes it; Snapshots is nil in one that lists newest versions only.
	First, Count int        // the blocks of the chunk that are listed; others are not spoken of
	Snapshots    []Snapshot // of the source
	Old          []OldBlock // versions that only snapshots show, by block, the newest first
	OldData      []byte     // the 4 KiB blocks of those in Old that have HasData, in that order
}

// OldBlock is a version of a block that only snapshots show.
type OldBlock struct {
	Block   uint16 // within the chunk
	Version block.Version
	Sum     uint32 // ZeroSum unless Stored
	Stored  bool   // has data; false: tombstone
	HasData bool   // its data is in the chunk
}

// BlockVersion names a version of a block within a chunk.
type BlockVersion struct {
	Block   uint16
	Version block.Version
}

// MergeResult counts what Merge did.
type MergeResult struct {
	Taken   int   // blocks that now have the source's content (data or tombstone)
	Dropped int   // blocks that were removed because the source has none
	Kept    int   // blocks that stayed
	Bytes   int64 // bytes of data stored
}

// ReplicaStats is a snapshot of a replica's counters. Allocated and Data are exact when nothing waits to be drained
// into index pages, which is so a few seconds after the last write; until then what overwritten data gives back is
// estimated.
type ReplicaStats struct {
	Used      int64 // bytes of blocks that have data
	Allocated int64 // bytes that its data and its share of the index take
	Data      int64 // of Allocated: data, compressed
	Chunks    int64 // chunks that have an index page
}

// CompressRatio returns how many bytes of content a stored byte holds; 1 when there is nothing.
func (s *ReplicaStats) CompressRatio() float64 {
	if s.Used == 0 || s.Data <= 0 {
		return 1
	}
	return float64(s.Used) / float64(s.Data)
}

// ChecksumError says which block could not be read because its content is damaged. It wraps ErrChecksum.
type ChecksumError struct {
	Replica string
	Block   uint64 // first damaged block
	Device  string
	Offset  int64  // bytes from the start of Device
	What    string // "data", "index page" or "directory"
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("replica %s: block %d: %s at %s offset %d: %v", e.Replica, e.Block, e.What, e.Device, e.Offset, ErrChecksum)
}

// Unwrap returns ErrChecksum.
func (e *ChecksumError) Unwrap() error { return ErrChecksum }
