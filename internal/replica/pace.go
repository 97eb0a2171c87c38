package replica

import (
	"context"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/volume"
)

const (
	paceUntold = 64 << 20              // bytes/s until the target says how fast
	chunkCost  = 64 << 10              // bytes as which it counts to look at a chunk, here and at the source
	paceAhead  = 20 * time.Millisecond // of what may be moved, that may be moved at once; and that is asked for ahead
)

// paces shares out what the rebuilds of a pool may move. Each has the pace that its target gives it. Together they move no
// more than the pool's limit, nor than the one that may move most: a pool that many rebuild into leaves their applications no
// less than one that a single one does. Who waits is served in turn, a piece at a time, so that those that want more than
// their part have the same.
type paces struct {
	mu    sync.Mutex
	limit int64 // bytes/s of all together; zero: none
	all   map[*pace]bool
	debt  debt
}

// pace is that of one rebuild. take is called by one goroutine; other methods by any.
type pace struct {
	of   *paces
	rate int64 // bytes/s, zero: no limit
	why  string
	debt debt
	held time.Duration // for which it waited since waited was called
	seen time.Time     // when that was
	by   string        // what it waited for last
}

// debt is what was moved and is not paid for yet: at a rate that is paid until the time. What is not spent within paceAhead
// is lost.
type debt struct{ paid time.Time }

// add takes n bytes at rate bytes/s, and returns how long to wait before they are moved.
func (d *debt) add(now time.Time, n int, rate int64) time.Duration {
	if rate == 0 {
		return 0
	}
	if least := now.Add(-paceAhead); d.paid.Before(least) {
		d.paid = least
	}
	wait := d.paid.Sub(now)
	d.paid = d.paid.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	return max(wait, 0)
}

// join adds a rebuild, until it leaves.
func (s *paces) join() *pace {
	p := &pace{of: s, rate: paceUntold, why: "word of the target how fast it may go", seen: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*pace]bool{}
	}
	s.all[p] = true
	return p
}

func (p *pace) leave() {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	delete(p.of.all, p)
}

// set takes what the target says.
func (p *pace) set(m volume.Pace) {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.rate, p.why = int64(m.BytesPerSec), m.For
}

func (s *paces) setLimit(bytesPerSec int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = bytesPerSec
}

// together is what all may move, bytes/s, and what they wait for then; zero: there is no limit but what each has. s.mu is
// held.
func (s *paces) together() (rate int64, why string) {
	for p := range s.all {
		if p.rate == 0 || len(s.all) == 1 {
			rate = 0
			break
		}
		rate = max(rate, p.rate)
	}
	if s.limit > 0 && (rate == 0 || s.limit < rate) {
		return s.limit, "its turn: the pool has a limit for rebuilds"
	}
	return rate, "its turn: others rebuild in the pool"
}

// take waits until n bytes may be moved; the error is that of ctx.
func (p *pace) take(ctx context.Context, n int) error {
	s := p.of
	s.mu.Lock()
	wait, why := p.debt.add(time.Now(), n, p.rate), p.why
	s.mu.Unlock()
	if err := p.wait(ctx, wait, why); err != nil {
		return err
	}
	s.mu.Lock()
	rate, why := s.together()
	wait = s.debt.add(time.Now(), n, rate)
	s.mu.Unlock()
	return p.wait(ctx, wait, why)
}

func (p *pace) wait(ctx context.Context, d time.Duration, why string) error {
	if d <= 0 {
		return ctx.Err()
	}
	if !pause(ctx, d) {
		return ctx.Err()
	}
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.held, p.by = p.held+d, why
	return nil
}

// waited returns what was waited for since it was called last, empty if that was less than a tenth of the time.
func (p *pace) waited() string {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	now := time.Now()
	much := p.held*10 >= now.Sub(p.seen)
	p.held, p.seen = 0, now
	if !much {
		return ""
	}
	return p.by
}

// window is how many chunks, which count as so many bytes each, may be asked for and not merged, at most most: beside the
// one that is being merged and the next one not more than are moved in a moment, or what a source reads comes in bursts.
func (p *pace) window(most, bytes int) int {
	s := p.of
	s.mu.Lock()
	defer s.mu.Unlock()
	rate := p.rate
	if r, _ := s.together(); r > 0 && (rate == 0 || r < rate) {
		rate = r
	}
	if rate == 0 {
		return most
	}
	return min(most, 2+int(float64(rate)*paceAhead.Seconds()/float64(bytes)))
}
