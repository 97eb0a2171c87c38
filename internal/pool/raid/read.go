package raid

import (
	"fmt"
	"math/bits"
)

// Read fills b from off; both are multiples of 4096. What is on devices that are out or stale is made from the others.
// The content is not verified: devices may lie, see Recover.
func (g *Group) Read(b []byte, off int64) error {
	if err := g.checkRange(off, int64(len(b)), blockSize); err != nil {
		return fmt.Errorf("read of %w", err)
	}
	if g.parity == 0 {
		return g.readPlain(b, off)
	}
	for len(b) > 0 {
		n := g.window(off, len(b))
		if err := g.readWindow(b[:n], off); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// unitsOf returns the first and the last unit of rows.
func (g *Group) unitsOf(row, rows int64) (first, last int) {
	return int(row / g.unitRows), int((row + max(rows, 1) - 1) / g.unitRows)
}

// maxMirrorRead bounds the private buffer of one request of a mirror.
const maxMirrorRead = 1 << 20

// window returns how many of n bytes at off lie in rows of one unit in which columns keep their roles.
func (g *Group) window(off int64, n int) int {
	size := int64(g.Row())
	row := off / size
	end := (row/g.unitRows + 1) * g.unitRows
	if g.data > 1 {
		end = min(end, (row/RotateRows+1)*RotateRows)
	} else {
		end = min(end, row+maxMirrorRead/blockSize)
	}
	return int(min(int64(n), end*size-off))
}

// source returns a device from which a column of a unit can be read, let in, or nil.
func (g *Group) source(col *Column, unit int) *Device {
	for _, d := range col.Devices {
		if d.begin() {
			if !d.isStale(unit, unit) {
				return d
			}
			d.end()
		}
	}
	return nil
}

// readWindow reads a window with as few requests as possible, and by all means when one of these fails.
func (g *Group) readWindow(b []byte, off int64) error {
	first := off / blockSize // data blocks
	last := first + int64(len(b))/blockSize - 1
	d := int64(g.data)
	row, rows := first/d, last/d-first/d+1
	unit := int(row / g.unitRows)
	o := g.begin()
	defer o.release()
	lay := g.layout.Load()
	mem := o.memory(len(b))
	ready := true
	if d == 1 {
		if src := g.idlest(lay, unit, off); src != nil {
			r := o.add(doRead, 0, src)
			r.off, r.buf = g.devOff(row), mem
		} else {
			ready = false
		}
	} else {
		for s := int64(0); s < d && ready; s++ {
			from, to := (first-s+d-1)/d, (last-s+d)/d // rows in which block s is wanted
			if to <= from {
				continue
			}
			c := g.column(int(s), row)
			src := g.source(&lay.cols[c], unit)
			if src == nil {
				ready = false
				break
			}
			r := o.add(doRead, c, src)
			n := (to - from) * blockSize
			r.off, r.buf, mem = g.devOff(from), mem[:n:n], mem[n:]
		}
	}
	if !ready {
		o.cancel()
		return g.readHard(b, first, row, rows, nil)
	}
	for _, r := range o.reqs {
		r.length = int64(len(r.buf))
	}
	o.start(o.reqs)
	ok := o.wait(0, lateTicks, 0)
	for _, r := range o.reqs {
		ok = ok && r.err == nil
	}
	if !ok {
		return g.readHard(b, first, row, rows, o)
	}
	if d == 1 {
		copy(b, o.reqs[0].buf)
		return nil
	}
	for _, r := range o.reqs {
		s := int64(g.shard(r.col, row))
		at := (r.off-g.base)/blockSize*d + s - first
		for p := 0; p < len(r.buf); p += blockSize {
			copy(b[at*blockSize:(at+1)*blockSize], r.buf[p:p+blockSize])
			at += d
		}
	}
	return nil
}

// idlest returns the copy of a mirror with the fewest requests under way, let in. Between equals the offset decides, so
// that sequential readers stay on one disk for a while.
func (g *Group) idlest(lay *layout, unit int, off int64) *Device {
	n := len(lay.cols)
	turn := int(off / (1 << 20) % int64(n))
	for range 2 { // a device may go out between the choice and its use
		var best *Device
		var least int32
		for i := range n {
			for _, d := range lay.cols[(turn+i)%n].Devices {
				if !d.online() || d.isStale(unit, unit) {
					continue
				}
				if k := d.inflight.Load(); best == nil || k < least {
					best, least = d, k
				}
			}
		}
		if best == nil {
			return nil
		}
		if best.begin() {
			return best
		}
	}
	return nil
}

// readHard reads a window, whose rows and first wanted block are given, from whatever columns there are. tried is an
// op whose requests failed or are late.
func (g *Group) readHard(b []byte, first, row, rows int64, tried *op) error {
	w := g.openWindow(row, rows)
	defer w.close()
	w.avoid(tried)
	if err := w.gather(); err != nil {
		if rows == 1 || len(w.errs) == 0 {
			return err
		}
		return g.readRows(b, first)
	}
	d := int64(g.data)
	for at := int64(0); at < int64(len(b))/blockSize; at++ {
		k := first + at
		s, r := int(k%d), k/d-row
		copy(b[at*blockSize:(at+1)*blockSize], w.shard(s)[r*blockSize:(r+1)*blockSize])
	}
	return nil
}

// readRows reads data blocks row by row, since devices may fail in different rows.
func (g *Group) readRows(b []byte, first int64) error {
	d := int64(g.data)
	for len(b) > 0 {
		row := first / d
		n := min(int64(len(b)), ((row+1)*d-first)*blockSize)
		if err := g.readHard(b[:n], first, row, 1, nil); err != nil {
			return err
		}
		b, first = b[n:], first+n/blockSize
	}
	return nil
}

// lowest returns the lowest n members of a mask.
func lowest(m uint64, n int) (out uint64) {
	for ; n > 0 && m != 0; n-- {
		out |= m & -m
		m &= m - 1
	}
	return out
}

func maskOf(n int) uint64 { return 1<<n - 1 }

func popcount(m uint64) int { return bits.OnesCount64(m) }
