package replica

import (
	"context"
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// flusher makes what was applied stable. While one device flush runs, requests gather for the next.
type flusher struct {
	pool *pool.Pool
	wake chan struct{}

	mu   sync.Mutex
	due  map[*session]uint64 // what each had applied when it asked last
	next map[*session]uint64 // recycled
}

func newFlusher(p *pool.Pool) *flusher {
	return &flusher{pool: p, wake: make(chan struct{}, 1), due: map[*session]uint64{}, next: map[*session]uint64{}}
}

// request asks for an acknowledgement whose stable number is at least n, which the session has applied. One that names
// what is not applied yet is answered with what is.
func (f *flusher) request(s *session, n uint64) {
	f.mu.Lock()
	f.due[s] = s.applied.Load()
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *flusher) run(ctx context.Context) {
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		f.mu.Lock()
		due := f.due
		f.due, f.next = f.next, due
		f.mu.Unlock()
		if len(due) == 0 {
			continue
		}
		err := f.pool.Sync()
		for s, applied := range due {
			if err != nil {
				err := fmt.Errorf("%w: flush: %w", errPool, err)
				s.a.note(err)
				s.a.log.Error("closing the session", "error", err)
				s.send(volume.Failed{Reason: err.Error()})
				s.out.Flush()
				s.failed.Store(&err)
				s.out.Close()
				continue
			}
			s.advanceStable(applied)
			s.ack()
			s.out.Flush()
		}
		clear(due)
	}
}

// advanceStable raises the number up to which everything is stable.
func (s *session) advanceStable(n uint64) {
	for {
		old := s.stable.Load()
		if n <= old || s.stable.CompareAndSwap(old, n) {
			return
		}
	}
}
