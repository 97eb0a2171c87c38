package raid

import (
	"fmt"
	"sync"
	"time"
)

// writePlain writes rows of a stripe in the caller's goroutine: there is nothing to go on with without the device, and
// a hand-over costs more than all else. A device that never answers is taken out by the watch, so that everybody knows;
// this call returns when it does. It returns false when the column is being replaced.
func (g *Group) writePlain(bufs [][]byte, row, rows int64) (done bool, err error) {
	lay := g.layout.Load()
	if len(lay.cols[0].Devices) != 1 {
		return false, nil
	}
	d := lay.cols[0].Devices[0]
	first, last := int(row/g.unitRows), int((row+rows-1)/g.unitRows)
	if !d.begin() {
		return true, fmt.Errorf("write: %w: %w", ErrLost, g.why())
	}
	d.dirty.addRange(first, last)
	w := g.watch.begin(g, d, doWrite, g.devOff(row), rows*blockSize)
	err = d.disk.Load().d.WritevAt(bufs, g.devOff(row))
	g.watch.end(w)
	d.dirty.addRange(first, last) // a flush may have taken the marks meanwhile, and missed the write
	d.end()
	if err != nil {
		d.writes.Add(1)
		return true, fmt.Errorf("write: %w", err)
	}
	d.succeeded()
	if now := g.layout.Load(); now != lay { // a new device beside this one did not get it
		now.devices(func(_ int, x *Device) {
			if x != d {
				x.stale.addRange(first, last)
			}
		})
	}
	return true, nil
}

// flushPlain flushes a stripe in the caller's goroutine, as writePlain writes: two changes of goroutine would be a
// fifth of what a small write and its flush take.
func (g *Group) flushPlain(d *Device) error {
	if !d.begin() {
		return fmt.Errorf("flush: %w: %w", ErrLost, g.why())
	}
	w := g.watch.begin(g, d, doFlush, 0, 0)
	err := d.flush(d.disk.Load().d)
	g.watch.end(w)
	d.end()
	if err != nil {
		d.writes.Add(1)
		return fmt.Errorf("flush: %w", err)
	}
	d.succeeded()
	return nil
}

// watch looks after requests that nobody can give up on. It works while there are any.
type watch struct {
	mu          sync.Mutex
	ticks       int
	timer       *time.Timer
	armed       bool
	first, last *watched // oldest first
	free        *watched
}

// watched is a write or flush under way.
type watched struct {
	dev         *Device
	kind        requestKind
	off, length int64
	start       int // tick
	prev, next  *watched
}

func (w *watch) begin(g *Group, d *Device, kind requestKind, off, length int64) *watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.free
	if x == nil {
		x = new(watched)
	} else {
		w.free = x.next
	}
	*x = watched{dev: d, kind: kind, off: off, length: length, start: w.ticks, prev: w.last}
	if w.last == nil {
		w.first = x
	} else {
		w.last.next = x
	}
	w.last = x
	if !w.armed {
		w.armed = true
		if w.timer == nil {
			w.timer = time.AfterFunc(g.tick, func() { w.look(g) })
		} else {
			w.timer.Reset(g.tick)
		}
	}
	return x
}

func (w *watch) end(x *watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.prev == nil {
		w.first = x.next
	} else {
		x.prev.next = x.next
	}
	if x.next == nil {
		w.last = x.prev
	} else {
		x.next.prev = x.prev
	}
	*x = watched{next: w.free}
	w.free = x
}

// look is called once a tick. It takes a device out that has not answered for as long as anything may take.
func (w *watch) look(g *Group) {
	w.mu.Lock()
	w.ticks++
	x := w.first
	if w.armed = x != nil; w.armed {
		w.timer.Reset(g.tick)
	}
	var late watched
	if x != nil && w.ticks-x.start >= hardTicks {
		late = *x
	}
	w.mu.Unlock()
	if d := late.dev; d != nil && d.online() {
		d.takeOut(fmt.Errorf("device %s: %s of %d bytes at %d: %w (%v)", d.Name(), late.kind, late.length, late.off, ErrHung,
			time.Duration(hardTicks)*g.tick), true)
	}
}
