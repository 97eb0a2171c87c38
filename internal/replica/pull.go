package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

const (
	pullWindow  = 4                // chunks asked for and not yet merged
	pullWidest  = 32               // the same while little of each differs
	windowBytes = 1 << 20          // more than pullWindow chunks are asked for as long as all that comes is less, as far as one can tell
	pieceBlocks = 64               // of a chunk merged at once: live operations wait for no more than that
	notYetLimit = 30 * time.Second // for how long a source may not have applied the join point
	staleLimit  = 100              // how often one chunk is asked for again because live writes overtook it
	roomLook    = 200 * time.Millisecond
	roomRetry   = 30 * time.Second // without room one chunk is asked for again, which also keeps the source's connection
	roomStalled = 5 * time.Second  // the same when there seems to be room and yet nothing could be merged
)

var errNoRoom = fmt.Errorf("the pool is full: %w", pool.ErrNoSpace)

// pull makes a rebuilding replica's chunks equal to the source's. One goroutine runs it; the replica's live stream goes
// on beside it, and the pool's Merge decides block by block which of the two is right. What was merged stays: a pull
// that was interrupted asks only for what differs.
type pull struct {
	a      *attached
	what   volume.Pull
	s      *session
	cancel context.CancelFunc
	pace   *pace         // nil: it is a stage, which is little
	done   chan struct{} // when nothing touches the pool any more
	piece  pool.Chunk    // scratch of merge
}

// startPull starts a pull for the current session. a.mu is held and no pull runs.
func (a *attached) startPull(what volume.Pull) {
	ctx, cancel := context.WithCancel(a.ctx)
	p := &pull{a: a, what: what, s: a.session, cancel: cancel, done: make(chan struct{})}
	a.pull = p
	if !what.Stage {
		p.pace = a.server.paces.join()
	}
	a.server.tasks.Go(func() {
		defer cancel()
		if what.Stage {
			p.runStage(ctx)
			return
		}
		defer p.pace.leave()
		err := p.run(ctx)
		close(p.done)
		if err == nil {
			err = a.server.cfg.Pool.Sync() // nobody who stops the pull waits for that
		}
		p.finish(err)
	})
}

// stopPull ends the pull that runs, if any, and returns when it does not touch the pool any more. a.mu is held.
func (a *attached) stopPull() {
	if p := a.pull; p != nil {
		a.pull = nil
		p.cancel()
		<-p.done // run takes no locks of ours
	}
}

// finish tells the member how the pull ended, unless it was stopped.
func (p *pull) finish(err error) {
	a := p.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if !p.over() {
		return
	}
	var ready volume.MemberReady
	if err != nil {
		a.log.Warn("rebuild was interrupted", "source", p.what.Source.Name, "error", err)
		a.note(fmt.Errorf("rebuild from %s: %w", p.what.Source.Name, err))
		ready = a.member.PullFailed(p.what.Attempt, err.Error())
	} else {
		a.log.Info("rebuild is done", "source", p.what.Source.Name)
		ready = a.member.Rebuilt(p.what.Attempt)
	}
	p.told(a.do(p.s, ready))
}

// over ends the pull, and reports whether it was not stopped before. a.mu is held.
func (p *pull) over() bool {
	if p.a.pull != p {
		return false
	}
	p.a.pull = nil
	return true
}

// told sends what the member has said of the end of the pull, or ends the session if that failed with err. a.mu is held.
func (p *pull) told(err error) bool {
	if err != nil {
		p.a.note(err)
		p.s.failed.CompareAndSwap(nil, &err)
		p.s.out.Close()
		return false
	}
	p.s.out.Flush()
	return true
}

// run pulls until everything is equal.
func (p *pull) run(ctx context.Context) error {
	src, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer src.close()
	if src.hello.Size > p.a.r.Size() {
		return fmt.Errorf("the source has %d bytes, this replica %d", src.hello.Size, p.a.r.Size())
	}
	theirs, err := src.changed(p.what.Base)
	if err != nil {
		return err
	}
	chunks := union(theirs, changed(p.a.r, p.what.Base))
	p.a.log.Info("rebuild has begun", "source", p.what.Source.Name, "base", p.what.Base, "from", p.what.From, "chunks", len(chunks))
	if err := p.transfer(ctx, src, chunks); err != nil {
		return err
	}
	return ctx.Err()
}

// dial connects to the source, again and again while it has not applied the join point.
func (p *pull) dial(ctx context.Context) (*peer, error) {
	h := wire.Hello{
		Replica: p.what.Source.Name, GUID: p.what.Source.GUID, By: p.a.spec.Name,
		Promise: p.what.Promise, From: p.what.From, Attempt: p.what.Attempt,
	}
	for start := time.Now(); ; {
		src, err := dialPeer(ctx, p.what.Source.Addr, h)
		var remote *wire.RemoteError
		if !errors.As(err, &remote) || remote.Code != wire.CodeNotYet || time.Since(start) > notYetLimit {
			return src, err
		}
		p.tell(&progress{waitingFor: "the source to reach the point where this replica joined"})
		if !pause(ctx, 100*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// transfer asks for chunks, a few ahead, and merges them.
func (p *pull) transfer(ctx context.Context, src *peer, chunks []uint64) error {
	var (
		r       = p.a.r
		have    [block.ChunkBlocks]block.Version
		c       pool.Chunk
		asked   []uint64 // in the order of requests
		again   = map[uint64]int{}
		count   = progress{chunks: len(chunks), at: time.Now()}
		todo    = chunks
		waiting []uint64 // for room in the pool
		merged  = -1     // count.done when that was waited for last
		window  = pullWindow
	)
	ask := func(index uint64) error {
		// One that cannot be listed must not look like one without versions, of which nothing would be removed.
		if err := r.Newer(index, p.what.Base, &have); err != nil {
			return err
		}
		if p.what.Ambiguous {
			block.Disown(have[:])
		}
		asked = append(asked, index)
		src.ask(index, p.what.Base, &have)
		return nil
	}
	p.tell(&count)
	for len(todo)+len(asked)+len(waiting) > 0 {
		if err := p.a.server.mayStream(); err != nil {
			return err
		}
		if len(todo)+len(asked) == 0 {
			n, err := p.waitRoom(ctx, &count, merged == count.done)
			if err != nil {
				return err
			}
			merged = count.done
			n = min(n, len(waiting))
			todo, waiting = waiting[:n:n], waiting[n:]
		}
		for len(todo) > 0 && len(asked) < window {
			if err := ask(todo[0]); err != nil {
				return err
			}
			todo = todo[1:]
		}
		index := asked[0]
		asked = append(asked[:0], asked[1:]...)
		if err := src.chunk(index, &c); err != nil {
			return err
		}
		if c.Scan.Epoch != p.what.Promise.Epoch || c.Scan.Less(p.what.From) {
			return fmt.Errorf("the source answered for %v, which is not of this rebuild", c.Scan)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		window = p.pace.window(min(max(pullWindow, windowBytes/(len(c.Data)+1)), pullWidest), chunkCost+len(c.Data))
		if err := p.pace.take(ctx, chunkCost); err != nil {
			return err
		}
		got, err := p.merge(ctx, &c)
		count.bytes += uint64(got)
		switch {
		case errors.Is(err, pool.ErrStaleChunk) && again[index] < staleLimit:
			again[index]++
			if err := ask(index); err != nil {
				return err
			}
			continue
		case errors.Is(err, pool.ErrNoSpace):
			waiting = append(waiting, index)
			continue
		case err != nil:
			return fmt.Errorf("merge chunk %d: %w", index, err)
		}
		count.done++
		if time.Since(count.at) >= time.Second {
			p.tell(&count)
		}
	}
	p.tell(&count)
	return nil
}

// waitRoom waits for room in the pool and returns how many chunks to ask for then. stalled says that none could be merged
// since it was called last.
func (p *pull) waitRoom(ctx context.Context, count *progress, stalled bool) (chunks int, err error) {
	count.waitingFor = "room in the pool, which is full or above its read-only limit"
	defer func() { count.waitingFor = "" }()
	for waited := time.Duration(0); waited < roomRetry; waited += roomLook {
		if waited%time.Second == 0 {
			p.tell(count)
		}
		if !pause(ctx, roomLook) {
			return 0, ctx.Err()
		}
		if err := p.a.server.mayStream(); err != nil {
			return 0, err
		}
		if full := p.a.server.full.Load(); !full && !stalled {
			return math.MaxInt, nil
		} else if !full && waited >= roomStalled {
			break
		}
	}
	return 1, nil
}

// merge makes the pool's chunk equal to the source's, piece by piece as the pace allows, and returns the bytes of data
// stored. While the pool is full, pieces that bring data are left out, and the error wraps pool.ErrNoSpace; those that only
// remove something make room.
func (p *pull) merge(ctx context.Context, c *pool.Chunk) (stored int64, err error) {
	var full error
	for at := 0; at < block.ChunkBlocks; {
		at = p.cut(c, at)
		if err := p.pace.take(ctx, len(p.piece.Data)); err != nil {
			return stored, err
		}
		n, err := p.mergePiece()
		stored += n
		switch {
		case errors.Is(err, pool.ErrNoSpace):
			full = err
		case err != nil:
			return stored, err
		}
	}
	if p.a.server.wrote(stored) {
		// Not from here: a live stream may be waiting for this pull to end.
		p.a.server.tasks.Go(p.a.server.tellSpace)
	}
	return stored, full
}

// cut makes p.piece the next blocks that c lists, from block first on, and returns where to go on.
func (p *pull) cut(c *pool.Chunk, first int) (end int) {
	piece := &p.piece
	piece.Index, piece.Scan, piece.Versions, piece.Sums, piece.Stored, piece.Ambiguous = c.Index, c.Scan, c.Versions, c.Sums, c.Stored, p.what.Ambiguous
	listed := 0
	for i := range piece.Unlisted {
		piece.Unlisted[i] = i < first || listed == pieceBlocks || c.Unlisted[i]
		if !piece.Unlisted[i] {
			listed, end = listed+1, i+1
		}
	}
	if listed < pieceBlocks {
		end = block.ChunkBlocks
	}
	from, _ := slices.BinarySearch(c.DataOf, uint16(first))
	to, _ := slices.BinarySearch(c.DataOf, uint16(end))
	piece.DataOf, piece.Data = c.DataOf[from:to], c.Data[from*block.Size:to*block.Size]
	return end
}

// mergePiece merges p.piece.
func (p *pull) mergePiece() (stored int64, err error) {
	if len(p.piece.DataOf) > 0 && p.a.server.full.Load() {
		return 0, errNoRoom
	}
	res, err := p.a.r.Merge(&p.piece)
	return res.Bytes, err
}

// progress is how far a pull is.
type progress struct {
	chunks, done int
	bytes        uint64 // of data merged
	waitingFor   string

	at   time.Time // when it was told last, or the pull began
	told uint64    // bytes, then
	rate float64   // bytes/s of late, zero: not known yet
}

// rateWeight is that of the last second in the rate that is told.
const rateWeight = 0.3

// tell reports progress to the target and to Status. The total is extrapolated: what a chunk lacks is known when it has
// come.
func (p *pull) tell(c *progress) {
	now := time.Now()
	if d := now.Sub(c.at).Seconds(); !c.at.IsZero() && d > 0 && (d >= 1 || c.rate == 0) {
		rate := float64(c.bytes-c.told) / d
		if c.rate > 0 {
			rate = rateWeight*rate + (1-rateWeight)*c.rate
		}
		c.at, c.told, c.rate = now, c.bytes, rate
	}
	m := volume.Progress{
		Attempt: p.what.Attempt, Done: c.bytes, ChunksDone: uint64(c.done), ChunksTotal: uint64(c.chunks),
		BytesPerSec: uint64(c.rate), WaitingFor: c.waitingFor,
	}
	if m.WaitingFor == "" { // which is never so of a stage
		m.WaitingFor = p.pace.waited()
	}
	perChunk := uint64(block.ChunkBlocks * block.Size)
	if c.done > 0 {
		perChunk = c.bytes / uint64(c.done)
	}
	m.Total = c.bytes + perChunk*uint64(c.chunks-c.done)
	p.a.view.Lock()
	p.a.progress = m
	p.a.view.Unlock()
	p.s.send(m)
	p.s.out.Flush()
}

// changed lists the chunks of a replica whose newest version is above base.
func changed(r *pool.Replica, base block.Version) (all []uint64) {
	for next, done := uint64(0), false; !done; {
		var part []uint64
		part, next, done = r.Changed(base, next, make([]uint64, 0, 4096))
		all = append(all, part...)
	}
	return all
}

// union merges two lists into one without duplicates, in ascending order.
func union(a, b []uint64) []uint64 {
	all := append(append(make([]uint64, 0, len(a)+len(b)), a...), b...)
	slices.Sort(all)
	return slices.Compact(all)
}
