package workload

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Load describes a steady mixed load.
type Load struct {
	Depth int     // operations in flight at most
	Rate  float64 // operations per second at most; 0 means no limit
}

// Running is a load that goes on until Stop.
type Running struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Start begins a steady load: random reads and writes of 4 to 32 KiB, a stream of sequential writes, discards and
// flushes, all within the extents. It ends with Stop, with ctx, or at the first error or mismatch.
func (a *App) Start(ctx context.Context, load Load) *Running {
	issue, cancel := context.WithCancel(ctx)
	run := &Running{cancel: cancel}
	choose := &chooser{extents: a.cfg.Extents}
	pace := newPace(load.Rate)
	for i := range load.Depth {
		random := rand.New(rand.NewPCG(a.cfg.Seed, uint64(i)))
		w := a.newWorker()
		run.done.Go(func() {
			for {
				select {
				case <-issue.Done():
					return
				case <-a.failed:
					return
				default:
				}
				if !pace.wait(issue) || w.do(ctx, choose.next(random)) != nil {
					return
				}
			}
		})
	}
	return run
}

// Stop issues no more operations and waits for those in flight.
func (r *Running) Stop() {
	r.cancel()
	r.done.Wait()
}

// chooser picks operations.
type chooser struct {
	extents []Extent
	mu      sync.Mutex
	cursor  int64 // of the sequential stream, in bytes within the concatenated extents
}

const (
	maxRandomBlocks = 8
	streamBytes     = 64 << 10
)

func (c *chooser) next(random *rand.Rand) operation {
	switch p := random.IntN(100); {
	case p < 45:
		return c.random(block.Read, random)
	case p < 85:
		return c.random(block.Write, random)
	case p < 94:
		return c.stream()
	case p < 97:
		return c.random(block.Discard, random)
	default:
		return operation{op: block.Flush}
	}
}

func (c *chooser) random(op block.Op, random *rand.Rand) operation {
	e := c.extents[random.IntN(len(c.extents))]
	count := 1 + random.Uint64N(maxRandomBlocks)
	if random.IntN(2) == 0 {
		count = 1
	}
	first := uint64(e.Offset/block.Size) + random.Uint64N(uint64(e.Length/block.Size)-count+1)
	return operation{op: op, first: first, count: count}
}

// stream returns the next piece of the sequential writes, which go round the extents.
func (c *chooser) stream() operation {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.cursor
	for _, e := range c.extents {
		if at < e.Length {
			c.cursor += streamBytes
			return operation{op: block.Write, first: uint64(e.Offset+at) / block.Size, count: streamBytes / block.Size}
		}
		at -= e.Length
	}
	c.cursor = streamBytes
	return operation{op: block.Write, first: uint64(c.extents[0].Offset) / block.Size, count: streamBytes / block.Size}
}

// pace hands out moments to start an operation at.
type pace struct {
	every time.Duration
	mu    sync.Mutex
	next  time.Time
}

// paceSlack bounds how much a load that was held up makes up for afterwards.
const paceSlack = 20 * time.Millisecond

func newPace(rate float64) *pace {
	p := &pace{next: time.Now()}
	if rate > 0 {
		p.every = time.Duration(float64(time.Second) / rate)
	}
	return p
}

// wait returns false when ctx ended first.
func (p *pace) wait(ctx context.Context) bool {
	if p.every == 0 {
		return true
	}
	now := time.Now()
	p.mu.Lock()
	if earliest := now.Add(-paceSlack); p.next.Before(earliest) {
		p.next = earliest
	}
	at := p.next
	p.next = at.Add(p.every)
	p.mu.Unlock()
	if !at.After(now) {
		return true
	}
	t := time.NewTimer(at.Sub(now))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
