// Package pool is the storage engine of one pool: the devices of one node become a log, and the log holds thin
// replicas of 4 KiB blocks, each block with the version that wrote it.
//
// All changes append to large segments shared by all replicas: one batch is a header (what the records are) followed
// by their data, written with one vectored write. A bounded table in memory, the delta, takes the index updates; it is
// drained, in block order and in the background, into copy-on-write pages of 512 blocks; a directory says where
// every page is, and memory holds what is used of it. A checkpoint makes directory, replicas and segment table stable;
// after a crash the newest checkpoint is loaded and the headers of the log behind it are replayed.
//
// The package relies on its devices for two things: what was written before a successful Flush survives power loss,
// and a write that returned survives the death of the process. It promises: what was applied is read back or the read
// fails (every block is checked against its CRC-32C); after a power cut every replica holds a prefix of what was
// applied to it that includes everything a successful Sync, SetState, CreateReplica or DestroyReplica covered; space
// that nothing refers to becomes free again without anyone doing anything; memory is bounded by Options, apart from
// about 20 bytes for each segment and 64 bytes for each 16 GiB that a replica has touched.
package pool

import (
	"errors"
	"log/slog"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

var (
	// ErrNoSpace is wrapped by errors of operations that need more space than the pool has. Nothing of such an
	// operation is applied.
	ErrNoSpace = block.ErrNoSpace
	// ErrReadOnly is wrapped by errors of Merge when it adds data to a pool that is fuller than Options.ReadOnlyPercent.
	// It is an ErrNoSpace too.
	ErrReadOnly error = readOnlyError{}
	// ErrFailed is wrapped by every error of a pool that could not write or flush: what it had in flight may be lost,
	// so it takes no more changes until it is opened again. Reads go on.
	ErrFailed = errors.New("pool has failed and takes no more writes")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("pool is closed")
	// ErrExists is wrapped when a replica of that name exists.
	ErrExists = errors.New("replica exists")
	// ErrNotFound is wrapped when no replica of that name exists, or when it has been destroyed.
	ErrNotFound = errors.New("no such replica")
	// ErrInUse is wrapped when a snapshot or replica cannot go because clones show what it has; the error names them.
	ErrInUse = errors.New("in use")
	// ErrNoSnapshot is wrapped when a replica has no snapshot of that name.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrChecksum is wrapped by reads of damaged blocks or damaged index pages; see ChecksumError for where.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrStaleChunk is returned by Merge when a block must be taken whose data is not in the chunk, because the puller's
	// list of what it has was outdated. Pull the chunk again.
	ErrStaleChunk = errors.New("chunk lacks data that is needed by now, pull it again")
	// ErrTooLarge is wrapped when a request exceeds one of the engine's limits. One of them is what a checkpoint says of
	// replicas and snapshots: 31.5 MiB, less 9 bytes for each segment and a bit for each on each device. A replica counts
	// with its name, its state record, at least 4 KiB, and 40 bytes for each 16 GiB of its size, a snapshot with its name
	// and 38 bytes. The last eighth is for state records.
	ErrTooLarge = errors.New("too large")

	// ErrBlank is returned by Probe for a device that carries nothing.
	ErrBlank = label.ErrBlank
	// ErrDamaged is wrapped when something that is ours does not decode.
	ErrDamaged = label.ErrDamaged
	// ErrOldFormat is wrapped when a pre-release wrote the pool.
	ErrOldFormat = label.ErrOldFormat
	// ErrNewerFormat is wrapped when a pool was written by a later release.
	ErrNewerFormat = label.ErrNewerFormat
)

type readOnlyError struct{}

func (readOnlyError) Error() string        { return "pool is above its read-only limit" }
func (readOnlyError) Is(target error) bool { return target == ErrNoSpace }

// ErrForeign says that a device carries something that is not (this) pool's, and what. The engine never writes to
// such a device.
type ErrForeign = label.ErrForeign

// Label is what each device of a pool says about the pool.
type Label = label.Label

// Limits of the engine.
const (
	// MaxReplicas is the number of replicas that a pool can hold, those being destroyed included.
	MaxReplicas = 1 << 16
	// MaxReplicaSize is the largest size of a replica in bytes (1 PiB).
	MaxReplicaSize = 1 << 50
	// MaxName is the longest replica or pool name in bytes.
	MaxName = 255
	// MaxState is the largest state record of a replica in bytes.
	MaxState = 64 << 10
	// MaxSnapshots is the number of snapshots that a replica can have.
	MaxSnapshots = 1024
	// MaxCloneDepth is the number of clones of clones that can be made of a replica: what none of them has written is looked
	// up in each. A pool that has more is opened.
	MaxCloneDepth = 64
	// MaxWriteBlocks is the largest Count of an OpWrite.
	MaxWriteBlocks = 8192
)

// Config is what a pool is called. It is stored in the labels.
type Config struct {
	Name  string     // for example "cstor-<cspc uid>"
	Owner string     // the owner's uid (CSPI), free text
	GUID  block.GUID // zero at Create: a fresh one
}

// Options tune a pool. The zero value of each field means a good default; none of them is stored.
type Options struct {
	// DeltaEntries is the number of index updates held in memory before they are drained (twice that many fit: one
	// table fills while the other drains). 128 bytes each, up to 80 more while the cleaner moves blocks, and about 250 for each chunk of 512 blocks that has
	// updates. Default 1<<18.
	DeltaEntries int
	// PageCacheBytes bounds the memory for what is kept of the index: of the directory of chunks, at most half of it, and
	// of pages, which have the rest. What one step of the drain works on, at most 64 chunks, comes on top. Default 64 MiB.
	PageCacheBytes int64
	// SegmentBytes is the size of a segment for Create; a power of two between 256 KiB and 64 MiB. Default: by the
	// size of the devices. A pool has at most 2 Mi segments, also when it grows.
	SegmentBytes int64
	// ReadOnlyPercent is the share of Stats' Allocated and Free that Allocated may be, from which on it says ReadOnly and Merge adds no data. Apply goes on
	// until there is no space: what it is given has its place in the volume's order already, and whoever gives places
	// stops when the pool is read-only. Default 100: no such limit.
	ReadOnlyPercent int
	// CheckpointBytes is the amount of log after which a checkpoint is made; it bounds replay. Default 1 GiB.
	CheckpointBytes int64
	// FlushBytes is the amount of log after which the pool flushes by itself; it bounds what replay after a crash has
	// to read back and check. Default 128 MiB.
	FlushBytes int64
	// Deadline is how long a device may take to answer while the others of its raid group have. One that takes longer is
	// taken out of use. Default 2 s.
	Deadline time.Duration
	// Compression is how data is compressed that is written; see SetCompression. Default LZ4.
	Compression compress.Algorithm
	// ScrubEvery is the time from the end of one scrub to the next. Default 0: no scrub begins by itself.
	ScrubEvery time.Duration
	// NoDiscard leaves the space of freed segments with the device instead of discarding it.
	NoDiscard bool
	// Manual leaves everything to the callers' goroutines, for simulations: nothing goes on in the background but what Work
	// does, requests of the devices follow one another, and no clock is looked at. Only one method may be called at a time.
	// Devices are not looked after: nothing is rebuilt, replaced or scrubbed.
	Manual bool
	// Rand is asked for what must be unlike anything else, GUIDs too. Together with Manual it makes what is written to the
	// devices follow from the calls alone. Default: random numbers of the system.
	Rand func() uint64
	// Log receives what an operator should know. Default: nothing is logged.
	Log *slog.Logger

	inlineBytes  int   // of older versions in a page, set by tests
	historyBytes int   // of a history page, likewise
	rootBytes    int64 // of a checkpoint's root, likewise
	cloneDepth   int   // see MaxCloneDepth, likewise
}

// Stats is a snapshot of a pool's counters. Sizes are bytes.
type Stats struct {
	Capacity   int64 // devices less labels and reserve
	Allocated  int64 // live data and live metadata, whatever the cleaner has done yet
	Free       int64 // Capacity - Allocated, less what an index of sparse chunks needs to be written again
	Replicas   int
	ReadOnly   bool   // BelowLimit is not above 0
	BelowLimit int64  // what may come before the pool is above its read-only limit; math.MaxInt64 without one
	Health     string // HealthOnline, HealthDegraded or HealthFaulted
	Failure    string // why Health is not ONLINE

	Segments     int // of the whole pool
	FreeSegments int
	SegmentBytes int64

	BlocksWritten  uint64 // blocks appended by Apply and Merge
	BlocksPacked   uint64 // of them: stored compressed
	BlocksZero     uint64 // of them: all zeroes, not stored
	BlocksRead     uint64
	LogBytes       uint64 // appended to the log, headers included
	IndexBytes     uint64 // pages, directory and checkpoints written
	Batches        uint64 // log appends
	Flushes        uint64 // device flushes (all devices counted as one)
	Drains         uint64
	PagesWritten   uint64
	Checkpoints    uint64
	CacheHits      uint64
	CacheMisses    uint64
	CacheBytes     int64  // index pages and directory in memory, see Options.PageCacheBytes
	DirectoryBytes int64  // of them: directory
	DirectoryReads uint64 // of blocks and nodes of the directory
	LiveChunks     int    // chunks with updates that are not drained
	ChecksumErrors uint64 // damage that nothing could repair
	BlocksRepaired uint64 // damage that the redundancy of a raid group made good
	SegmentsFreed  uint64
	BlocksMoved    uint64 // copied by the cleaner
	MovedBytes     uint64 // written by the cleaner, headers included
	WritesPaced    uint64 // times that a write waited for the cleaner to go on
	WritesStalled  uint64 // times that an operation waited for a whole cycle to free space
	Replayed       uint64 // batches replayed when the pool was opened
	OpenTime       time.Duration
}

// Probe reads what dev carries. It returns ErrBlank for an empty device, *ErrForeign for one that holds anything it
// does not own, ErrDamaged for labels of ours that do not decode, ErrNewerFormat for those of a later release.
func Probe(dev disk.Device) (*Label, error) { return label.Probe(dev) }
