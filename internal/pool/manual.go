package pool

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/cstor-go/cstor/internal/block"
)

// Work does the next step of what a pool does in the background, for a pool with Options.Manual: it commits the
// checkpoint that was prepared, or runs a cycle up to there, or flushes, or writes down how far the log is stable. So
// between two steps the pool is as others are at some moment. idle says that nothing was written for a while. It returns
// false when there is nothing to do.
func (p *Pool) Work(idle bool) (did bool) {
	if !p.opt.Manual || p.usable() != nil {
		return false
	}
	if c := p.commits.newest; c != nil && c.run != nil {
		c.run()
		return true
	}
	if p.due(idle, idle) {
		_, _ = p.runCycle(false) // an error is the pool's failure
		return true
	}
	if w := &p.log; w.dirty >= uint64(p.opt.FlushBytes) {
		w.dirty = 0
		_ = p.syncTo(p.appended.Load(), true) // likewise
		return true
	}
	return idle && p.tellStable()
}

// yield lets other goroutines run.
func (p *Pool) yield() {
	if !p.opt.Manual {
		runtime.Gosched()
	}
}

// drainFor makes room for n entries in the active table, when nobody else does.
func (p *Pool) drainFor(n int) error {
	x := &p.idx
	for tries := 0; n > 0 && x.tables[x.active].Len()+x.reserved+n > x.tables[x.active].Cap(); tries++ {
		if err := p.usable(); err != nil {
			return err
		}
		if tries > 1 {
			return fmt.Errorf("%d entries: %w", n, ErrTooLarge)
		}
		if err := p.cycle(); err != nil {
			return err
		}
	}
	return nil
}

// oneByOne is onDevices in the caller's goroutine.
func oneByOne(what string, targets []*member, do func(m *member) error) (failed []*member) {
	for _, m := range targets {
		err := errOut
		if m.online() {
			err = do(m)
		}
		if err != nil && !errors.Is(err, errOut) {
			m.dev.Fail(fmt.Errorf("%s: %w", what, err))
		}
		if err != nil {
			failed = append(failed, m)
		}
	}
	return failed
}

// newGUID returns an identity that no other has.
func (o *Options) newGUID() block.GUID {
	if !o.Manual {
		return block.NewGUID()
	}
	var g block.GUID
	for i := range g {
		g[i] = byte(o.Rand() >> 32)
	}
	return g
}
