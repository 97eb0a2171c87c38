package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// A checkpoint's root is as large as its announcement in the ring can say at most. So that every checkpoint that has to
// be made can be made, whatever makes the root larger is refused beforehand when there would be no room for it, and what
// grows by itself is reckoned with at its largest. Bounds in bytes, by the parts of the root in their order:
//
//	head       magic 8, GUID 16, segment 4, block 3, batch 10, checksum 4, incarnation 8, stable batch 10
//	devices    number 1; of each GUID 16, mark of a bitmap 4, its words 3, these: a bit for each unit of its group. Runs are
//	           only written where they are shorter. Each group has one device more than columns, which replaces another one
//	scrub      state 1, eight numbers 10 each
//	clock      10, number of replicas 3, of segments 4
//	segments   of each live bytes 4 (64 MiB in units of 64 bytes, and 3 bits), age 5 (maxAge); a run of segments without
//	           live bytes takes 4, and has at least one
//	replicas   of each slot 3, GUID 16, length of name 2, size 8, Applied 20, destroyed 1, length of state 3, number of
//	           nodes 3, six sums 60, number of snapshots 2, purge 10, origin 3, length of its snapshot's name 2; its name,
//	           the name of the snapshot that it is a clone of, its state, its nodes and snapshots
//	node       number 3, slot 37: as many as the replica's size, and the sizes of its snapshots, have ever called for,
//	           since writing to it is never refused for this reason
//	snapshot   length of name 2, version 20, size 8, bytes with data 8; its name
//
// Nothing else is in it: what a drain keeps, what is being discarded and which segments are pinned follows from the log.
// What the log says is replayed in the order in which it was checked, and a destroyed replica counts until a checkpoint
// without it is committed. So a checkpoint that Open makes in the middle of a replay has room, too.
const (
	rootHead      = 63 + 1 + 81 + 10 + 3 + 4
	rootDevice    = 16 + 4 + 3
	rootSegment   = 4 + 5
	rootReplica   = 3 + 16 + 2 + 8 + 20 + 1 + 3 + 3 + 60 + 2 + 10 + 3 + 2
	rootNode      = 3 + slotBytes
	rootSnapshot  = 2 + 20 + 8 + 8
	maxRoot       = label.MaxExtents * indexGroup
	maxAge        = 1<<35 - 1             // blocks: who is older is as old
	nodeChunks    = dirSpan * nodeSpan    // chunks of a node
	leastState    = 4 << 10               // what each replica has for its state record, even if that is smaller
	manyRuns      = label.MaxSegments + 1 // in the place of the number of runs: a bitmap
	shareOfStates = 8                     // one in so many bytes is left for larger state records
)

// rootUse is what the root takes of what it has. Guarded by the index lock; it grows under the log's lock only.
type rootUse struct {
	replicas int64 // bound for all of them
	planned  int64 // for the rest, with the devices that are about to be added
}

// fixedRoot returns a bound for all but the replicas, in a pool with that label.
func fixedRoot(l *label.Label) int64 {
	devices := make([]int, len(l.Groups))
	for _, m := range l.Members {
		devices[m.Group]++
	}
	n := int64(rootHead)
	for i, g := range l.Groups {
		units := int64(l.GroupSegments(i))
		n += units*rootSegment + int64(max(devices[i], g.Columns+1))*(rootDevice+(units+63)/64*8)
	}
	return n
}

// snapshotRoot returns a bound for a snapshot.
func snapshotRoot(name string) int64 { return rootSnapshot + int64(len(name)) }

// stateRoot returns what counts for a state record.
func stateRoot(n int) int64 { return int64(max(n, leastState)) }

// nodesFor returns how many nodes a replica of that size can have.
func nodesFor(size int64) int64 {
	const chunk = block.ChunkBlocks * block.Size
	return (size + nodeChunks*chunk - 1) / (nodeChunks * chunk)
}

// replicaRoot returns a bound for a new replica.
func replicaRoot(name, from string, size int64) int64 {
	return rootReplica + int64(len(name)+len(from)) + stateRoot(0) + nodesFor(size)*rootNode
}

// weigh counts what the root takes for r. The index lock is held for writing.
func (r *Replica) weigh() {
	r.nodes = max(r.nodes, int64(len(r.dir)), nodesFor(r.size.Load()))
	n := rootReplica + int64(len(r.name)+len(r.from.name)) + stateRoot(len(r.state))
	for i := range r.snaps {
		r.nodes = max(r.nodes, nodesFor(r.snaps[i].size))
		n += snapshotRoot(r.snaps[i].name)
	}
	r.weighs(n + r.nodes*rootNode)
}

func (r *Replica) weighs(n int64) {
	r.p.idx.rootUse.replicas += n - r.inRoot
	r.inRoot = n
}

// moreNodes returns what the root may take for what a replica or snapshot of that size has more. The index lock is held.
func (r *Replica) moreNodes(size int64) int64 { return max(nodesFor(size)-r.nodes, 0) * rootNode }

// restOfRoot returns what the root has for everything but larger state records.
func (o *Options) restOfRoot() int64 { return o.rootBytes - o.rootBytes/shareOfStates }

// mayGrow returns ErrTooLarge when the root has no room to grow by so many bytes. What is no state record leaves a share
// to these, without which no volume is served. The log's and the index lock are held.
func (p *Pool) mayGrow(n int64, state bool) error {
	if n <= 0 {
		return nil
	}
	l := p.labels.now.Load()
	used := p.idx.rootUse.replicas + max(fixedRoot(l), p.idx.rootUse.planned)
	limit := p.opt.rootBytes
	if !state {
		limit = p.opt.restOfRoot()
	}
	if used+n <= limit {
		return nil
	}
	return fmt.Errorf("%d bytes more of names, sizes and states of replicas and snapshots, beside %d of %d that are taken; delete snapshots or replicas: %w", n, used, limit, ErrTooLarge)
}

// mayBecome returns ErrTooLarge when the root has no room for a pool with that label. Otherwise it is reckoned with until
// done is called, by when the label counts or never will. upkeep.change is held.
func (p *Pool) mayBecome(l *label.Label) (done func(), err error) {
	n := fixedRoot(l)
	done = func() {
		p.idx.mu.Lock()
		p.idx.rootUse.planned = 0
		p.idx.mu.Unlock()
	}
	if n <= fixedRoot(p.labels.now.Load()) {
		return done, nil
	}
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	if used := p.idx.rootUse.replicas; used+n > p.opt.restOfRoot() {
		return nil, fmt.Errorf("%d bytes for %d segments and %d devices, beside %d of %d for replicas and snapshots; delete some of these, or add fewer devices: %w",
			n, l.Segments(), len(l.Members), used, p.opt.restOfRoot(), ErrTooLarge)
	}
	p.idx.rootUse.planned = n
	return done, nil
}
