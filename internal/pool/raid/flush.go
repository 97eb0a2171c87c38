package raid

import "fmt"

// Flush makes everything stable that was written before the call, on all devices at once. A device whose flush fails,
// or does not end while the others' have, goes out, and every unit written since its last good flush is stale on it, as
// it is on a device that went out before, or goes at the same time.
// It fails when the group cannot spare that device, and for good once one that it could not spare has gone out with rows
// that were not flushed.
func (g *Group) Flush() error {
	o := g.begin()
	defer o.release()
	lay := g.layout.Load()
	for c := range lay.cols {
		for _, d := range lay.cols[c].Devices {
			if d.begin() {
				r := o.add(doFlush, c, d)
				r.good = true
			} else {
				d.awaitOut()
			}
		}
	}
	var seen uint64
	cols := 0
	for _, r := range o.reqs {
		if seen>>r.col&1 == 0 {
			seen |= 1 << r.col
			cols++
		}
	}
	if cols < g.data || g.forfeit.Load() {
		o.cancel()
		return fmt.Errorf("flush: %w: %w", ErrLost, g.why())
	}
	o.start(o.reqs)
	o.wait(0, lateFlushTicks, g.data)
	var failed error
	for _, r := range o.reqs {
		switch {
		case !r.done.Load():
			r.dev.writes.Add(1)
			r.hung(o.ticks >= hardTicks)
			if failed == nil && (r.dev.online() || o.ticks >= hardTicks || !g.canLose(r.dev)) {
				failed = fmt.Errorf("device %s: flush: %w", r.dev.Name(), ErrHung)
			}
		case r.err != nil:
			r.dev.writes.Add(1)
			if !r.dev.takeOut(fmt.Errorf("flush error: %w", r.err), false) && failed == nil {
				failed = r.err
			}
		}
	}
	if failed == nil && g.forfeit.Load() { // since the flush began
		failed = fmt.Errorf("%w: %w", ErrLost, g.why())
	}
	if failed != nil {
		return fmt.Errorf("flush: %w", failed)
	}
	return nil
}

// Discard tells the devices that the rows, off and n being multiples of Row, are not needed any more. What they read as
// is undefined. Errors of devices do not matter; a device that never answers goes out, since it might discard later
// what is written then.
func (g *Group) Discard(off, n int64) error {
	if err := g.checkRange(off, n, g.Row()); err != nil {
		return fmt.Errorf("discard of %w", err)
	}
	if n == 0 {
		return nil
	}
	o := g.begin()
	defer o.release()
	g.layout.Load().devices(func(c int, d *Device) {
		if d.begin() {
			r := o.add(doDiscard, c, d)
			r.off, r.length = g.devOff(off/int64(g.Row())), n/int64(g.data)
		}
	})
	if len(o.reqs) == 0 {
		return nil
	}
	o.start(o.reqs)
	o.wait(0, hardTicks, 0)
	o.leave()
	return nil
}
