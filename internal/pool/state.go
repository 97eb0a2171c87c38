package pool

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// Pool is an open pool. All methods may be called concurrently, except as Replica says.
//
// Locks, in the order in which they are taken: upkeep.change, drain (one step of draining, one checkpoint), log
// (appends), flush.device, labels.mu, idx.mu (the index in memory), seg.mu, upkeep.mu. Nothing waits for a device under
// idx.mu, seg.mu or upkeep.mu, and under the others only in ways that end when a device hangs; those of log and
// flush.device end with the lock taken away, see seizable.
type Pool struct {
	cfg     Config
	opt     Options
	devs    []disk.Device        // all that Close closes
	stuck   map[disk.Device]bool // of them, those that did not answer when the pool was opened
	devices atomic.Pointer[[]*member]
	labels  labels
	seg     *segments

	log     logWriter
	joint   joint
	idx     indexState
	drain   drainState
	commits committer
	flush   flusher
	cache   *pageCache
	read    readers

	cleaner cleaner
	pace    pace

	appended atomic.Uint64 // number of the newest complete batch
	failed   atomic.Pointer[error]
	closed   atomic.Bool
	// compression is the compress.Algorithm of what is written now.
	compression atomic.Uint32
	metaLive    int64 // bytes of checkpoint root; guarded by idx.mu

	generation uint64   // of the newest checkpoint; whoever commits one changes it
	root       []extent // of the last one that was prepared; guarded by drain.mu
	nextPageID uint64

	kick     chan struct{} // wakes the background work
	quit     chan struct{}
	broken   chan struct{} // closed when the pool has failed
	stopped  chan struct{}
	cycles   cycleSignal
	freeable atomic.Bool  // something was given back since the last cycle
	running  atomic.Bool  // the background is
	idle     atomic.Bool  // nothing has been written for a while
	hurry    atomic.Int32 // callers that wait for a cycle of their own

	offline *offline // not nil: opened for looking only

	relabelDue atomic.Bool // a device went out or came back since the last cycle
	returned   returned    // while the pool is opened
	upkeep     upkeep

	count counters
}

// indexState is the index in memory.
type indexState struct {
	mu       sync.RWMutex
	room     *sync.Cond // with mu: there may be room in the active table
	tables   [2]*index.Table
	active   int
	reserved int           // entries that appends under way may add to the active table
	slow     time.Duration // what writers are to wait for the drain and have not waited yet
	cost     [2]indexCost  // of what is in the tables, until it is frozen
	held     indexCost     // of chunks that appends under way may add to it
	bitmaps  bitmaps
	dirs     dirCache
	live     int          // chunks of all Replica.live
	nodes    int64        // bytes of the directories' nodes on the devices
	spare    []*liveChunk // to be used again
	bySlot   []*Replica
	byName   map[string]*Replica
	soft     int // entries from which on the background drains
	rootUse  rootUse
}

type counters struct {
	blocksWritten, blocksRead, logBytes, indexBytes, batches, flushes atomic.Uint64
	drains, pagesWritten, checkpoints, sumErrors, segsFreed, moved    atomic.Uint64
	repaired, blocksPacked, blocksZero, coldBytes, paced, reclaims    atomic.Uint64
	logSegs                                                           atomic.Int64 // segments taken for the log
	replayed                                                          uint64
	openNanos                                                         int64
}

// Replica is one volume's data in a pool. Apply, Merge and SetState (or PutState) of one replica must not be called concurrently with
// another Apply or SetState of the same replica; Merge may be called concurrently with Apply, and everything else with
// everything.
type Replica struct {
	p    *Pool
	name string
	guid block.GUID
	size atomic.Int64 // bytes; changes under the index lock
	slot uint32

	// guarded by p.idx.mu
	dir     []dirRoot             // by node
	live    map[uint64]*liveChunk // chunks that have something in the tables
	applied block.Version
	state   []byte // replaced, never changed
	stored  int64  // blocks with data
	held    int64  // bytes of older versions that pages and history pages refer to
	history int64  // bytes of history pages
	meta    int64  // bytes of pages, history pages and directory blocks
	data    int64  // see account.go
	delta   int64
	hidden  int64
	pending int64
	pages   int64
	dirs    int64 // directory blocks and nodes on the devices
	inRoot  int64 // bound for what a checkpoint's root takes for it
	nodes   int64 // of the directory: how many there may be
	// destroyed is set with the record in the log and refuses everything from then on; dying is set by the next freeze,
	// from which on the replica may be taken apart; released says that this has been done, and only the slot remains until
	// that is checkpointed. stuck says that what is left of it cannot be read.
	destroyed, dying, released, stuck bool

	pace compress.Pace

	snaps   snapshots
	kept    snapshots // these, and those that were deleted since the freeze of the last drain; see mostKept
	purge   purge
	layered [2]bool // the table has more than the newest version of some block

	// A clone shows, where it has no version of its own, what its origin's snapshot shows.
	origin *Replica
	from   snapshot

	changes  uint64 // of the list of snapshots, and merges; guarded by p.idx.mu
	uniqueMu sync.Mutex
	uniqueOf uniqueSizes
}

// Name returns the name given to CreateReplica.
func (r *Replica) Name() string { return r.name }

// GUID returns the identity made by CreateReplica; no other replica ever has it.
func (r *Replica) GUID() block.GUID { return r.guid }

// Size returns the size in bytes.
func (r *Replica) Size() int64 { return r.size.Load() }

// blocks returns the number of blocks, the last of which may be used in part only.
func (r *Replica) blocks() uint64 { return blocksOf(r.size.Load()) }

func blocksOf(size int64) uint64 { return uint64(size+block.Size-1) / block.Size }

// chunks returns the number of chunks that the blocks make, now or in a snapshot.
func (r *Replica) chunks() uint64 {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	return r.extent()
}

// extent is chunks with the index lock held.
func (r *Replica) extent() uint64 {
	size := r.size.Load()
	for i := range r.snaps {
		size = max(size, r.snaps[i].size)
	}
	return (blocksOf(size) + block.ChunkBlocks - 1) / block.ChunkBlocks
}

// Applied returns the version of the last operation applied.
func (r *Replica) Applied() block.Version {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	return r.applied
}

// State returns what SetState stored last, nil if nothing. The caller must not change it.
func (r *Replica) State() []byte {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	return r.state
}

// Stats returns the replica's counters.
func (r *Replica) Stats() ReplicaStats {
	r.p.idx.mu.RLock()
	defer r.p.idx.mu.RUnlock()
	all := r.allocated()
	return ReplicaStats{Used: r.stored * block.Size, Allocated: all, Data: all - r.meta, Chunks: r.pages}
}

// Replica returns the replica of that name, nil if there is none.
func (p *Pool) Replica(name string) *Replica {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	return p.idx.byName[name]
}

// Replicas returns all replicas in no particular order.
func (p *Pool) Replicas() []*Replica {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	rs := make([]*Replica, 0, len(p.idx.byName))
	for _, r := range p.idx.byName {
		rs = append(rs, r)
	}
	return rs
}

// Config returns what Create was given.
func (p *Pool) Config() Config { return p.cfg }
