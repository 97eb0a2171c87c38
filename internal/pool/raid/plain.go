package raid

import (
	"fmt"
	"time"
)

// A request of a group without redundancy is a call of one device, and a hand-over to another goroutine costs more than all
// else of a small one. So there are calls for those who mind that, and can bear that a device that begins to hang keeps
// them: WriteInline, ReadInline and FlushInline make the request in the caller's goroutine, as long as the device answers
// promptly. All others are handed over, so that who waits can leave.

// promptly is how long writes and flushes of a device take at most while they are worth saving the hand-over for.
const promptly = time.Millisecond

// watched is a request that the watch of its device knows of.
type watched struct {
	kind  requestKind
	turn  uint32
	began time.Duration
}

// clock is cheaper than time.Now.
func clock() time.Duration { return time.Since(epoch) }

var epoch = time.Now()

func (d *Device) start(kind requestKind) watched {
	return watched{kind: kind, turn: d.watch.begin(d, kind), began: clock()}
}

func (d *Device) stop(x watched) {
	d.took[x.kind].Store(int64(clock() - x.began))
	d.watch.end(x.turn, x.kind)
}

// prompt returns the only device of a group without redundancy, let in, if a request of that kind is to be made in the
// caller's goroutine; else nil.
func (g *Group) prompt(lay *layout, kind requestKind) *Device {
	if g.parity > 0 || len(lay.cols[0].Devices) != 1 {
		return nil
	}
	d := lay.cols[0].Devices[0]
	if !g.inline && (d.watch.late.Load() || kind != doRead && d.took[kind].Load() >= int64(promptly)) || !d.begin() {
		return nil
	}
	return d
}

// WriteInline is Write for who prefers to be kept by a device that hangs to being slower. The device goes out
// nevertheless, so that everybody else hears of it.
func (g *Group) WriteInline(bufs [][]byte, off int64) error {
	lay := g.layout.Load()
	if d := g.prompt(lay, doWrite); d != nil {
		return g.writeInline(lay, d, bufs, off)
	}
	return g.Write(bufs, off)
}

func (g *Group) writeInline(lay *layout, d *Device, bufs [][]byte, off int64) error {
	n := length(bufs)
	if n == 0 || g.checkRange(off, n, blockSize) != nil {
		d.end()
		return g.Write(bufs, off) // which says so
	}
	first, last := g.unitsOf(off/blockSize, n/blockSize)
	d.dirty.addRange(first, last)
	x := d.start(doWrite)
	err := d.disk.Load().d.WritevAt(bufs, g.base+off)
	d.stop(x)
	d.dirty.addRange(first, last) // a flush may have taken the marks meanwhile, and missed the write
	d.end()
	if err != nil {
		d.writes.Add(1)
		return fmt.Errorf("write: %w", err)
	}
	d.succeeded()
	if now := g.layout.Load(); now != lay { // a new device beside this one did not get it
		now.devices(func(_ int, x *Device) {
			if x != d {
				x.miss(first, last)
			}
		})
	}
	return g.stillIn(d, "write")
}

// stillIn returns an error if d, the only device of which a request was made, went out or was replaced meanwhile: what it has
// done since does not count, and the device that takes its place had no part in it. So it does if d is that device, and
// the one before went out with what d lacks.
func (g *Group) stillIn(d *Device, what string) error {
	if g.layout.Load().has(0, d) && !g.forfeit.Load() {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", what, ErrLost, g.why())
}

// FlushInline is Flush for who prefers to be kept by a device that hangs to being slower.
func (g *Group) FlushInline() error {
	d := g.prompt(g.layout.Load(), doFlush)
	if d == nil {
		return g.Flush()
	}
	x := d.start(doFlush)
	err := d.flush(d.disk.Load().d)
	d.stop(x)
	d.end()
	if err != nil {
		d.writes.Add(1)
		return fmt.Errorf("flush: %w", err)
	}
	d.succeeded()
	return g.stillIn(d, "flush")
}

// ReadInline is Read for who prefers to be kept by a device that hangs to being slower.
func (g *Group) ReadInline(b []byte, off int64) error {
	if d := g.prompt(g.layout.Load(), doRead); d != nil {
		n := int64(len(b))
		if first, last := g.unitsOf(off/blockSize, n/blockSize); g.checkRange(off, n, blockSize) == nil && !d.isStale(first, last) {
			turn := d.watch.begin(d, doRead) // without the time, which would be felt
			err := d.disk.Load().d.ReadAt(b, g.base+off)
			d.watch.end(turn, doRead)
			d.end()
			if err != nil {
				d.reads.Add(1)
				return fmt.Errorf("read: %w", err)
			}
			return nil
		}
		d.end()
	}
	return g.Read(b, off)
}

// readPlain reads where there is nothing to fall back on but the device that takes the place of another. What a device
// that hangs may still write to belongs to the request.
func (g *Group) readPlain(b []byte, off int64) error {
	first, last := g.unitsOf(off/blockSize, int64(len(b))/blockSize)
	var failed error
	for _, d := range g.layout.Load().cols[0].Devices {
		if !d.begin() {
			continue
		}
		if d.isStale(first, last) {
			d.end()
			continue
		}
		err := g.readFrom(d, b, off)
		if err == nil {
			return nil
		}
		d.reads.Add(1)
		failed = err
	}
	if failed == nil {
		failed = fmt.Errorf("%w: %w", ErrLost, g.why())
	}
	return fmt.Errorf("read: %w", failed)
}

// readFrom reads from a device, let in, of a group without redundancy.
func (g *Group) readFrom(d *Device, b []byte, off int64) error {
	if g.inline {
		defer d.end()
		return d.disk.Load().d.ReadAt(b, g.base+off)
	}
	o := g.begin()
	defer o.release()
	r := o.add(doRead, 0, d)
	r.off, r.length, r.buf = g.base+off, int64(len(b)), o.memory(len(b))
	o.start(o.reqs)
	if !o.wait(0, hardTicks, 0) {
		r.hung(true)
		return fmt.Errorf("device %s: %w", d.Name(), ErrHung)
	}
	if r.err == nil {
		copy(b, r.buf)
	}
	return r.err
}

func length(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}
