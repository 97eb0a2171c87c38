package raid

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// window is rows of one unit, in which the columns keep their roles, as far as they are read.
type window struct {
	g         *Group
	o         *op
	lay       *layout
	row, rows int64
	unit      int
	have      uint64    // columns whose content is known: read, or made from others
	buf       [][]byte  // their content
	mem       []byte    // room for each column once
	used      uint64    // columns whose room is taken
	tried     *op       // an earlier attempt with failed or late requests
	shunned   []*Device // no more requests to these
	errs      []*request
}

func (g *Group) openWindow(row, rows int64) *window {
	o := g.begin()
	return &window{g: g, o: o, lay: g.layout.Load(), row: row, rows: rows, unit: int(row / g.unitRows), buf: make([][]byte, g.data+g.parity)}
}

func (w *window) close() { w.o.release() }

// avoid makes the window leave alone the devices that have failed or not answered a request of o.
func (w *window) avoid(o *op) {
	if o == nil {
		return
	}
	w.tried = o
	for _, r := range o.reqs {
		switch {
		case !r.done.Load():
			w.shunned = append(w.shunned, r.dev)
		case r.err != nil:
			w.failed(r)
		}
	}
}

func (w *window) failed(r *request) {
	r.dev.readFailed(r.err)
	w.shunned = append(w.shunned, r.dev)
	w.errs = append(w.errs, r)
}

func (w *window) shuns(d *Device) bool {
	for _, s := range w.shunned {
		if s == d {
			return true
		}
	}
	return false
}

// gather reads columns until there are as many as data blocks in a row.
func (w *window) gather() error {
	g, o := w.g, w.o
	n, size := g.data+g.parity, w.rows*blockSize
	if w.mem == nil {
		w.mem = o.memory(n * int(size))
	}
	for {
		o.ticks = 0
		from := len(o.reqs)
		for s := 0; s < n && popcount(w.have)+len(o.reqs)-from < g.data; s++ {
			c := g.column(s, w.row)
			if w.have>>c&1 != 0 {
				continue
			}
			for _, d := range w.lay.cols[c].Devices {
				if w.shuns(d) || !d.begin() {
					continue
				}
				if d.isStale(w.unit, w.unit) {
					d.end()
					continue
				}
				r := o.add(doRead, c, d)
				r.off, r.length, r.good = g.devOff(w.row), size, true
				r.buf = w.room(c)
				break
			}
		}
		if len(o.reqs) == from { // no more to ask
			return w.last()
		}
		o.eager.Store(from > 0) // some may be late for good
		o.start(o.reqs[from:])
		o.wait(from, lateTicks, 0)
		for _, r := range o.reqs[from:] {
			if !r.done.Load() {
				w.shunned = append(w.shunned, r.dev)
			} else if r.err != nil {
				w.failed(r)
			}
		}
		if w.collect() >= g.data {
			w.finish()
			return nil
		}
	}
}

// room returns memory for a column that nobody else reads into.
func (w *window) room(c int) []byte {
	size := w.rows * blockSize
	if w.used>>c&1 != 0 { // a late request may still read into the column's own
		return disk.Buffer(int(size))
	}
	w.used |= 1 << c
	return w.mem[int64(c)*size : int64(c+1)*size : int64(c+1)*size]
}

// collect takes what has arrived and returns the number of columns that are there.
func (w *window) collect() int {
	for _, r := range w.o.reqs {
		if r.done.Load() && r.err == nil && w.have>>r.col&1 == 0 {
			w.have |= 1 << r.col
			w.buf[r.col] = r.buf
		}
	}
	return popcount(w.have)
}

// last waits for the requests that are late, since there is nothing else to do.
func (w *window) last() error {
	retry := false
	for _, o := range []*op{w.tried, w.o} {
		if o == nil || o.left.Load() == 0 {
			continue
		}
		late := make([]*request, 0, len(o.reqs))
		for _, r := range o.reqs {
			if !r.done.Load() {
				late = append(late, r)
			}
		}
		o.wait(0, hardTicks, 0)
		for _, r := range late {
			switch {
			case !r.done.Load():
				r.dev.reads.Add(1)
				r.hung(true)
			case r.err != nil:
				w.failed(r)
			case o == w.tried: // it answers again
				for i, d := range w.shunned {
					if d == r.dev {
						w.shunned[i] = nil
					}
				}
				retry = true
			}
		}
	}
	if w.collect() >= w.g.data {
		w.finish()
		return nil
	}
	if retry {
		w.tried = nil
		return w.gather()
	}
	if len(w.errs) > 0 {
		return fmt.Errorf("%w: %w", ErrLost, w.errs[0].err)
	}
	return fmt.Errorf("%w: %w", ErrLost, w.g.why())
}

// finish takes devices out that have not answered while the others have, and writes what could not be read.
func (w *window) finish() {
	for _, o := range []*op{w.tried, w.o} {
		if o == nil {
			continue
		}
		if o.wait(0, 1, 0) { // a last chance: when everything was slow, it comes at the same time as the others
			continue
		}
		for _, r := range o.reqs {
			if !r.done.Load() {
				r.dev.reads.Add(1)
				r.hung(false)
			}
		}
	}
	for _, r := range w.errs {
		w.g.rewrite(r.dev, w.row, w.rows, w.column(r.col))
	}
	w.errs = nil
}

// column returns the content of a column, which is made from others if it was not read.
func (w *window) column(c int) []byte {
	if w.have>>c&1 == 0 {
		g := w.g
		if w.buf[c] = w.room(c); g.data == 1 {
			for i := range w.buf {
				if w.have>>i&1 != 0 {
					copy(w.buf[c], w.buf[i])
					break
				}
			}
		} else {
			var have uint64
			shards := make([][]byte, len(w.buf))
			for s := range shards {
				i := g.column(s, w.row)
				if shards[s] = w.buf[i]; w.have>>i&1 != 0 {
					have |= 1 << s
				}
			}
			g.code.rebuild(shards, lowest(have, g.data), 1<<g.shard(c, w.row))
		}
		w.have |= 1 << c
	}
	return w.buf[c]
}

// shard returns the content of a shard.
func (w *window) shard(s int) []byte { return w.column(w.g.column(s, w.row)) }

// rewrite writes to a device those rows of its column that it cannot read. What can be read is left alone: content is
// not verified here, and what is right must not be replaced by what follows from a lie elsewhere.
func (g *Group) rewrite(d *Device, row, rows int64, content []byte) {
	for i := range rows {
		if !d.online() {
			return
		}
		if rows > 1 && g.readBlock(d, row+i, nil) {
			continue
		}
		// A device that does not take it is out, or cannot be spared and stays as it was.
		_ = g.repair(d, row+i, 1, func(_ int, dst []byte) { copy(dst, content[i*blockSize:]) })
	}
}

// readBlock reads one row of a device into dst, which may be nil, and reports whether that worked.
func (g *Group) readBlock(d *Device, row int64, dst []byte) bool {
	if !d.begin() {
		return false
	}
	o := g.begin()
	defer o.release()
	r := o.add(doRead, 0, d)
	r.off, r.length, r.buf = g.devOff(row), blockSize, o.memory(blockSize)
	o.start(o.reqs)
	if !o.wait(0, lateTicks, 0) {
		d.reads.Add(1)
		r.hung(false)
		return false
	}
	copy(dst, r.buf)
	return r.err == nil
}

// repair writes rows of a device that are there already. block gives the content of the i-th. A device that does not
// take it goes out if the group can spare it, one that does not answer in any case.
func (g *Group) repair(d *Device, row int64, rows int, block func(i int, dst []byte)) error {
	if g.readOnly {
		return nil
	}
	if !d.begin() {
		return d.Cause()
	}
	o := g.begin()
	defer o.release()
	first, last := g.unitsOf(row, int64(rows))
	mem := o.memory(rows * blockSize)
	for i := range rows {
		block(i, mem[i*blockSize:(i+1)*blockSize])
	}
	o.iov = append(o.iov, mem)
	r := o.add(doWrite, 0, d)
	r.off, r.length, r.bufs, r.first, r.last = g.devOff(row), int64(len(mem)), o.iov, first, last
	d.dirty.addRange(first, last)
	o.start(o.reqs)
	o.wait(0, lateTicks, 0)
	o.leave()
	if !r.done.Load() {
		d.writes.Add(1)
		return fmt.Errorf("device %s: repair: %w", d.Name(), ErrHung)
	}
	if r.err != nil {
		d.writes.Add(1)
		d.takeOut(fmt.Errorf("write error: %w", r.err), false)
		return fmt.Errorf("repair: %w", r.err)
	}
	return nil
}
