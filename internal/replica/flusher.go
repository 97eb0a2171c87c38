package replica

import (
	"context"
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/volume"
)

// flusher makes what was applied stable, and sends what may be said only then. While one device flush runs, requests gather
// for the next, and the sessions go on: they apply operations and answer pings however long a device takes.
type flusher struct {
	pool *pool.Pool
	wake chan struct{}

	mu      sync.Mutex
	changed sync.Cond // with mu: a session owes nothing more, or run has ended
	ended   bool
	due     map[*session]due
	now     map[*session]due // what the flush under way is for
}

// due is what a session waits for.
type due struct {
	applied  uint64           // what it had applied when it asked last
	messages []volume.Message // to be sent afterwards, in this order
}

func newFlusher(p *pool.Pool) *flusher {
	f := &flusher{pool: p, wake: make(chan struct{}, 1), due: map[*session]due{}, now: map[*session]due{}}
	f.changed.L = &f.mu
	return f
}

// request asks for an acknowledgement whose stable number is at least n, which the session has applied. One that names
// what is not applied yet is answered with what is.
func (f *flusher) request(s *session, n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add(s, nil)
}

// say sends messages, which rely on state that was put into the log (replication rule 4): after a flush, and behind
// everything that waits for one already.
func (f *flusher) say(s *session, relies bool, messages []volume.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !relies && !f.owes(s) {
		for _, m := range messages {
			s.send(m)
		}
		return
	}
	f.add(s, messages)
}

// add asks for a flush. f.mu is held.
func (f *flusher) add(s *session, messages []volume.Message) {
	f.due[s] = due{applied: s.applied.Load(), messages: append(f.due[s].messages, messages...)}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// owes reports whether the session waits for anything. f.mu is held.
func (f *flusher) owes(s *session) bool {
	_, later := f.due[s]
	_, now := f.now[s]
	return later || now
}

// drain returns when nothing of the session is to be flushed any more.
func (f *flusher) drain(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.owes(s) && !f.ended {
		f.changed.Wait()
	}
}

func (f *flusher) run(ctx context.Context) {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ended = true
		f.changed.Broadcast()
	}()
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		f.mu.Lock()
		f.now, f.due = f.due, f.now
		f.mu.Unlock()
		if len(f.now) == 0 {
			continue
		}
		err := f.pool.Sync()
		for s, d := range f.now {
			if err != nil {
				s.flushFailed(err)
				continue
			}
			s.advanceStable(d.applied)
			s.ack()
			for _, m := range d.messages {
				s.send(m)
			}
			s.out.Flush()
		}
		f.mu.Lock()
		clear(f.now)
		f.changed.Broadcast()
		f.mu.Unlock()
	}
}

// flushFailed ends a session: nobody knows what is stable any more.
func (s *session) flushFailed(cause error) {
	err := fmt.Errorf("%w: flush: %w", errPool, cause)
	s.a.note(err)
	s.a.log.Error("closing the session", "error", err)
	s.send(volume.Failed{Reason: err.Error()})
	s.out.Flush()
	s.failed.Store(&err)
	s.out.Close()
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

// restate tells the session that its replica's state says that applied was the last operation, which may be below the one
// that was. Whatever was applied before counts for nothing then.
func (s *session) restate(applied block.Version) {
	s.applied.Store(applied.N)
	for {
		old := s.stable.Load()
		if old <= applied.N || s.stable.CompareAndSwap(old, applied.N) {
			return
		}
	}
}
