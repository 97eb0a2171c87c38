// Package wal encodes and decodes the headers of log batches. A batch is one or more header blocks that list its
// records, followed by the records' data (see Area). Every header names its own place, its number in the log, the
// checksum of the header before it and the incarnation (the mount) that wrote it, so that a reader that follows the log
// stops exactly where it ends and never takes what an earlier use of a segment left behind for a continuation.
//
// The package does no I/O. Decoding arbitrary bytes neither panics nor allocates in proportion to what they claim.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// Kind says what a record does.
type Kind uint8

const (
	Write        Kind = iota + 1 // Count blocks with data; advances Applied to Version
	Discard                      // Count blocks; advances Applied
	DiscardPart                  // Count blocks of a longer discard; Applied stays
	Mark                         // advances Applied
	State                        // Count bytes of a replica's state record as data; sets Applied
	Create                       // a replica: Name, GUID, Block = size in bytes
	Destroy                      // a replica goes
	MergeWrite                   // like Write, Applied stays
	MergeDiscard                 // blocks become tombstones of Version, Applied stays
	MergeDrop                    // blocks become never written
	MergeNewest                  // end of a merge: Version is the newest of the chunk of Block
	Move                         // in batches with FlagCold only: the cleaner's copy of blocks that keep their versions

	Snapshot        // Name keeps what the replica shows at Version; Block = blocks with data; advances Applied
	DeleteSnapshot  // of Name; advances Applied
	Resize          // Block = new size in bytes; advances Applied
	Clone           // a replica: Name, GUID, Block = size in bytes, of replica Count at its snapshot From, Version
	TakeSnapshot    // like Snapshot, from a rebuild's source: Applied stays
	DropSnapshot    // like DeleteSnapshot, Applied stays
	MergeOldWrite   // like MergeWrite, below newer versions
	MergeOldDiscard // like MergeDiscard, below newer versions
	MergeKeep       // Version of the block stays when MergeOnly comes
	MergeOnly       // of what is there of the block only the versions of the MergeKeep before it stay
	kinds
)

const (
	// FixedLen is the length of the fixed part of a header in bytes.
	FixedLen = 96
	// RecordLen is the length of a record without checksums and name.
	RecordLen = 36
	// MaxHeaderBlocks bounds the length of one header.
	MaxHeaderBlocks = 64

	// MaxLen is the stored length of a block, in granules, that is stored as it is.
	MaxLen = block.Size / Granule
	// Granule is the unit of stored lengths in bytes.
	Granule = 64

	// FlagMore: the unit of records that this batch belongs to goes on in the next batch; replay takes all or none.
	FlagMore = 1
	// FlagLink: no records; the log goes on at (NextSegment, NextBlock) under NextIncarnation.
	FlagLink = 2
	// FlagCold: blocks that the cleaner copied. The batch is in a segment of such batches and not part of the log; pages
	// refer to its data. Its records are of kind Move, its number is that of the newest batch of the log.
	FlagCold = 4

	magic = 0x4c4f4743 // "CGOL"

	recLens = 1 // flag of a record: a length byte per block follows the checksums
)

// ErrDamaged is wrapped when bytes do not decode. To a reader that follows the log it is the end.
var ErrDamaged = errors.New("no valid batch header")

// Header is the fixed part of a batch header.
type Header struct {
	Flags           uint16
	HeaderBlocks    int
	DataBlocks      int
	Records         int
	Length          int // bytes of the header in use
	Prev            uint32
	Sum             uint32
	Incarnation     uint64
	Seq             uint64
	Stable          uint64 // every batch up to this number was on stable storage when this one was written
	Segment         uint32 // where this batch is
	Block           uint32
	NextSegment     uint32
	NextBlock       uint32
	NextIncarnation uint64
	Before          uint64 // the incarnation before this one, zero when it is not known

	RawBlocks   int // of the data: blocks stored as they are, and what else takes whole blocks; set by Decode
	PackedBytes int // of the data: compressed blocks; set by Decode
}

// Record is one change. Sums and Lens alias the decoder's memory: Sums until the next call of Next, Lens the header.
type Record struct {
	Kind    Kind
	Slot    uint32 // which replica
	Block   uint64
	Count   uint32
	Version block.Version
	Sums    []uint32   // kinds with data: one per block; State: one for the bytes
	Lens    []uint8    // kinds with data but State: stored granules per block, 0: all zeroes, not stored; nil: all MaxLen
	Name    string     // Create, Clone, kinds of snapshots
	From    string     // Clone: the snapshot's name
	Size    int64      // TakeSnapshot: of the replica at that version
	GUID    block.GUID // Create, Clone, Destroy
}

// DataBlocks returns the number of data blocks of a record of that kind and count when nothing is compressed.
func DataBlocks(k Kind, count uint32) int {
	switch k {
	case Write, MergeWrite, Move, MergeOldWrite:
		return int(count)
	case State:
		return (int(count) + block.Size - 1) / block.Size
	}
	return 0
}

func sums(k Kind, count uint32) int {
	if k == State {
		return 1
	}
	return DataBlocks(k, count)
}

// Len returns the encoded length in bytes of a record without lengths; those take one byte per block. name is the
// length of the names in it.
func Len(k Kind, count uint32, name int) int {
	switch n := RecordLen + 4*sums(k, count); k {
	case Create:
		return n + 16 + 1 + name
	case Clone:
		return n + 16 + 2 + name
	case Snapshot, DeleteSnapshot, DropSnapshot:
		return n + 1 + name
	case TakeSnapshot:
		return n + 8 + 1 + name
	case Destroy:
		return n + 16
	default:
		return n
	}
}

// Append encodes a record behind b.
func Append(b []byte, r *Record) []byte {
	le := binary.LittleEndian
	flags := byte(0)
	if r.Lens != nil {
		flags = recLens
	}
	b = append(b, byte(r.Kind), flags, 0, 0)
	b = le.AppendUint32(b, r.Slot)
	b = le.AppendUint64(b, r.Block)
	b = le.AppendUint32(b, r.Count)
	b = le.AppendUint64(b, r.Version.Epoch)
	b = le.AppendUint64(b, r.Version.N)
	for _, s := range r.Sums {
		b = le.AppendUint32(b, s)
	}
	b = append(b, r.Lens...)
	switch r.Kind {
	case Create:
		b = append(b, r.GUID[:]...)
		b = appendName(b, r.Name)
	case Clone:
		b = append(b, r.GUID[:]...)
		b = appendName(b, r.Name)
		b = appendName(b, r.From)
	case Snapshot, DeleteSnapshot, DropSnapshot:
		b = appendName(b, r.Name)
	case TakeSnapshot:
		b = le.AppendUint64(b, uint64(r.Size))
		b = appendName(b, r.Name)
	case Destroy:
		b = append(b, r.GUID[:]...)
	}
	return b
}

func appendName(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// Finish fills the fixed part of the header whose records end at len(b), pads b to whole blocks and returns it and the
// header's checksum. b[:FixedLen] is reserved for the fixed part and b's capacity must suffice.
func Finish(b []byte, h *Header) ([]byte, uint32) {
	n := len(b)
	blocks := (n + block.Size - 1) / block.Size
	b = b[:blocks*block.Size]
	clear(b[n:])
	le := binary.LittleEndian
	clear(b[:FixedLen])
	le.PutUint32(b[0:], magic)
	// b[4:8] is the checksum
	le.PutUint16(b[8:], h.Flags)
	le.PutUint16(b[10:], uint16(blocks))
	le.PutUint32(b[12:], uint32(h.DataBlocks))
	le.PutUint32(b[16:], uint32(h.Records))
	le.PutUint32(b[20:], uint32(n))
	le.PutUint32(b[24:], h.Prev)
	le.PutUint64(b[32:], h.Incarnation)
	le.PutUint64(b[40:], h.Seq)
	le.PutUint64(b[48:], h.Stable)
	le.PutUint32(b[56:], h.Segment)
	le.PutUint32(b[60:], h.Block)
	le.PutUint32(b[64:], h.NextSegment)
	le.PutUint32(b[68:], h.NextBlock)
	le.PutUint64(b[72:], h.NextIncarnation)
	le.PutUint64(b[80:], h.Before)
	sum := block.Sum(b[8:])
	le.PutUint32(b[4:], sum)
	return b, sum
}

// Size returns the number of header blocks that the header starting with b (at least one block) claims, 0 if b does
// not start a header.
func Size(b []byte) int {
	if len(b) < block.Size || binary.LittleEndian.Uint32(b) != magic {
		return 0
	}
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if n > MaxHeaderBlocks {
		return 0
	}
	return n
}

// Decode reads the fixed part of a complete header and checks its checksum and every record in it.
func Decode(b []byte) (h Header, err error) {
	n := Size(b)
	if n == 0 || len(b) < n*block.Size {
		return h, ErrDamaged
	}
	b = b[:n*block.Size]
	le := binary.LittleEndian
	h = Header{
		Sum: le.Uint32(b[4:]), Flags: le.Uint16(b[8:]), HeaderBlocks: n,
		DataBlocks: int(le.Uint32(b[12:])), Records: int(le.Uint32(b[16:])), Length: int(le.Uint32(b[20:])), Prev: le.Uint32(b[24:]),
		Incarnation: le.Uint64(b[32:]), Seq: le.Uint64(b[40:]), Stable: le.Uint64(b[48:]),
		Segment: le.Uint32(b[56:]), Block: le.Uint32(b[60:]),
		NextSegment: le.Uint32(b[64:]), NextBlock: le.Uint32(b[68:]), NextIncarnation: le.Uint64(b[72:]),
		Before: le.Uint64(b[80:]),
	}
	if h.Sum != block.Sum(b[8:]) {
		return h, fmt.Errorf("checksum: %w", ErrDamaged)
	}
	if h.Length < FixedLen || h.Length > len(b) || h.Length <= len(b)-block.Size {
		return h, fmt.Errorf("length %d of %d blocks: %w", h.Length, n, ErrDamaged)
	}
	records := 0
	for rest := b[FixedLen:h.Length]; len(rest) > 0; records++ {
		k, count, lens, length, err := measure(rest)
		if err != nil {
			return h, err
		}
		raw, packed := DataLen(k, count, lens)
		h.RawBlocks, h.PackedBytes = h.RawBlocks+raw, h.PackedBytes+packed
		rest = rest[length:]
	}
	if need := AreaBlocks(h.RawBlocks, h.PackedBytes); need != h.DataBlocks || records != h.Records {
		return h, fmt.Errorf("%d records with %d blocks of data, want %d and %d: %w", records, need, h.Records, h.DataBlocks, ErrDamaged)
	}
	return h, nil
}

// measure checks the record at the start of b.
func measure(b []byte) (k Kind, count uint32, lens []uint8, length int, err error) {
	if len(b) < RecordLen {
		return 0, 0, nil, 0, fmt.Errorf("record of %d bytes: %w", len(b), ErrDamaged)
	}
	k, count = Kind(b[0]), binary.LittleEndian.Uint32(b[16:])
	if k == 0 || k >= kinds {
		return 0, 0, nil, 0, fmt.Errorf("record of kind %d: %w", k, ErrDamaged)
	}
	if sums(k, count) > MaxHeaderBlocks*block.Size/4 {
		return 0, 0, nil, 0, fmt.Errorf("record of %d blocks: %w", count, ErrDamaged)
	}
	length = Len(k, count, 0)
	switch b[1] {
	case 0:
	case recLens:
		if k == State || DataBlocks(k, count) == 0 || length+int(count) > len(b) {
			return 0, 0, nil, 0, fmt.Errorf("lengths of a record of kind %d with %d blocks: %w", k, count, ErrDamaged)
		}
		lens = b[length : length+int(count) : length+int(count)]
		for _, l := range lens {
			if l > MaxLen {
				return 0, 0, nil, 0, fmt.Errorf("block of %d bytes: %w", int(l)*Granule, ErrDamaged)
			}
		}
		length += int(count)
	default:
		return 0, 0, nil, 0, fmt.Errorf("flags %#x of a record: %w", b[1], ErrDamaged)
	}
	switch k {
	case Create, Snapshot, DeleteSnapshot, TakeSnapshot, DropSnapshot:
		if length <= len(b) {
			length += int(b[length-1])
		}
	case Clone: // the length of the second name follows the first
		if length <= len(b) {
			if length += int(b[length-2]); length <= len(b) {
				length += int(b[length-1])
			}
		}
	}
	if length > len(b) {
		return 0, 0, nil, 0, fmt.Errorf("record beyond its header: %w", ErrDamaged)
	}
	return k, count, lens, length, nil
}

// Records iterates over the records of a header that Decode accepted.
type Records struct {
	rest []byte
	sums []uint32
}

// Reset starts at the first record of the header in b.
func (it *Records) Reset(b []byte, h *Header) { it.rest = b[FixedLen:h.Length] }

// Next decodes the next record into r; false at the end.
func (it *Records) Next(r *Record) bool {
	b := it.rest
	k, count, lens, length, err := measure(b)
	if err != nil {
		return false
	}
	le := binary.LittleEndian
	*r = Record{
		Kind: k, Slot: le.Uint32(b[4:]), Block: le.Uint64(b[8:]), Count: count, Lens: lens,
		Version: block.Version{Epoch: le.Uint64(b[20:]), N: le.Uint64(b[28:])},
	}
	it.sums = it.sums[:0]
	for i := range sums(k, count) {
		it.sums = append(it.sums, le.Uint32(b[RecordLen+4*i:]))
	}
	r.Sums = it.sums
	switch k {
	case Create:
		r.GUID = block.GUID(b[RecordLen:])
		r.Name = string(b[RecordLen+17 : length])
	case Clone:
		r.GUID = block.GUID(b[RecordLen:])
		n := int(b[RecordLen+16])
		r.Name = string(b[RecordLen+17 : RecordLen+17+n])
		r.From = string(b[RecordLen+18+n : length])
	case Snapshot, DeleteSnapshot, DropSnapshot:
		r.Name = string(b[RecordLen+1 : length])
	case TakeSnapshot:
		r.Size = int64(le.Uint64(b[RecordLen:]))
		r.Name = string(b[RecordLen+9 : length])
	case Destroy:
		r.GUID = block.GUID(b[RecordLen:])
	}
	it.rest = b[length:]
	return true
}

// String returns the name of the kind, as in docs/format.md.
func (k Kind) String() string {
	if k == 0 || k >= kinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [kinds]string{
		Write: "write", Discard: "discard", DiscardPart: "discard-part", Mark: "mark", State: "state", Create: "create", Destroy: "destroy",
		MergeWrite: "merge-write", MergeDiscard: "merge-discard", MergeDrop: "merge-drop", MergeNewest: "merge-newest", Move: "move",
		Snapshot: "snapshot", DeleteSnapshot: "delete-snapshot", Resize: "resize", Clone: "clone", TakeSnapshot: "take-snapshot",
		DropSnapshot: "drop-snapshot", MergeOldWrite: "merge-old-write", MergeOldDiscard: "merge-old-discard",
		MergeKeep: "merge-keep", MergeOnly: "merge-only",
	}[k]
}
