package raid

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// watch looks after the requests of a device that nobody, or not everybody, gives up on. It counts them by generations: a
// new one begins with a tick at which the one before the present has no requests left. So it knows how long the oldest
// have been under way at least, without a lock.
type watch struct {
	turn  atomic.Uint32
	count [2][requestKinds]atomic.Int32 // requests under way of the present generation, and of the one before
	late  atomic.Bool                   // some have been under way for more than a tick
	armed atomic.Bool                   // look will be called

	mu    sync.Mutex // guards the rest
	timer *time.Timer
	ticks int // that requests of the generation before have been waited for
}

// begin counts a request in. The caller ends it with what it returns.
func (w *watch) begin(d *Device, kind requestKind) uint32 {
	for {
		turn := w.turn.Load() & 1
		w.count[turn][kind].Add(1)
		if w.turn.Load()&1 != turn {
			w.count[turn][kind].Add(-1)
			continue
		}
		if !w.armed.Load() {
			w.arm(d)
		}
		return turn
	}
}

func (w *watch) end(turn uint32, kind requestKind) { w.count[turn][kind].Add(-1) }

func (w *watch) arm(d *Device) {
	g := d.group.Load()
	w.mu.Lock()
	defer w.mu.Unlock()
	if g == nil || w.armed.Swap(true) || g.inline { // the last: nobody looks
		return
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(g.tick, func() { w.look(d) })
	} else {
		w.timer.Reset(g.tick)
	}
}

// oldest returns the kind of a request of a generation, if there is one.
func (w *watch) oldest(turn uint32) (kind requestKind, ok bool) {
	for kind := range requestKinds {
		if w.count[turn][kind].Load() > 0 {
			return kind, true
		}
	}
	return 0, false
}

func (w *watch) idle() bool {
	_, before := w.oldest(0)
	_, now := w.oldest(1)
	return !before && !now
}

// look is called once a tick while there are requests. A device that has not answered for as long as anything may take
// goes out, if the group can spare it or has nothing but it.
func (w *watch) look(d *Device) {
	g := d.group.Load()
	w.mu.Lock()
	if g == nil || !d.online() { // what is stuck is the business of Return
		w.late.Store(false)
		w.armed.Store(false)
		w.mu.Unlock()
		return
	}
	present := w.turn.Load() & 1
	kind, late := w.oldest(1 - present)
	if w.ticks++; !late {
		w.ticks = 0
		w.turn.Add(1)
	}
	w.late.Store(late)
	if w.idle() {
		w.armed.Store(false)
		if !w.idle() { // it began meanwhile, and may have seen that look would be called
			w.armed.Store(true)
		}
	}
	if w.armed.Load() {
		w.timer.Reset(g.tick)
	}
	ticks := w.ticks
	w.mu.Unlock()
	if ticks >= hardTicks {
		d.takeOut(fmt.Errorf("device %s: %s: %w (%v)", d.Name(), kind, ErrHung, time.Duration(ticks)*g.tick), g.parity == 0)
	}
}
