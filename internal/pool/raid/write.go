package raid

import (
	"fmt"
	"math/bits"
)

// column returns the physical column of shard s in a row.
func (g *Group) column(s int, row int64) int {
	return int((int64(s) + row/RotateRows) % int64(g.data+g.parity))
}

// shard returns the shard that a physical column holds in a row.
func (g *Group) shard(c int, row int64) int {
	n := int64(g.data + g.parity)
	return int((int64(c) + n - row/RotateRows%n) % n)
}

func (g *Group) devOff(row int64) int64 { return g.base + row*blockSize }

// checkRange reports an error unless off and n are multiples of unit within the group.
func (g *Group) checkRange(off, n int64, unit int) error {
	if off < 0 || n < 0 || off%int64(unit) != 0 || n%int64(unit) != 0 || off > g.Size()-n {
		return fmt.Errorf("%d bytes at %d: %w", n, off, ErrRange)
	}
	return nil
}

// Write writes whole rows: off and the total length of bufs are multiples of Row. The buffers are borrowed during the
// call; a device that hangs may still read them later, which is why it is out then and stale there. It succeeds when
// every unit that it touches has the rows on all columns but as many as the parity makes up for; the others are stale
// there.
func (g *Group) Write(bufs [][]byte, off int64) error {
	n := length(bufs)
	if err := g.checkRange(off, n, g.Row()); err != nil {
		return fmt.Errorf("write of %w", err)
	}
	if n == 0 {
		return nil
	}
	row, rows := off/int64(g.Row()), n/int64(g.Row())
	o := g.begin()
	defer o.release()
	g.spread(o, bufs, row, int(rows))
	return g.writeColumns(o, row, rows)
}

// writeColumns writes o.iovs to the rows. Columns without parity are on their way while parity is computed.
func (g *Group) writeColumns(o *op, row, rows int64) error {
	first, last := int(row/g.unitRows), int((row+rows-1)/g.unitRows)
	lay := g.layout.Load()
	good := 0
	add := func(c int) {
		ok := false
		for _, d := range lay.cols[c].Devices {
			if !d.begin() {
				o.skipped = append(o.skipped, d)
				continue
			}
			r := o.add(doWrite, c, d)
			r.off, r.length, r.bufs, r.first, r.last = g.devOff(row), rows*blockSize, o.iovs[c], first, last
			r.good = !d.isStale(first, last)
			ok = ok || r.good
		}
		if ok {
			good++
		}
	}
	coded := g.coded(row, rows)
	for c := range lay.cols {
		if coded>>c&1 == 0 {
			add(c)
		}
	}
	ready := len(o.reqs)
	for m := coded; m != 0; m &= m - 1 {
		add(bits.TrailingZeros64(m))
	}
	if good < g.data {
		o.cancel()
		return fmt.Errorf("write: %w: %w", ErrLost, g.why())
	}
	for _, d := range o.skipped {
		d.miss(first, last)
	}
	for _, r := range o.reqs {
		r.dev.dirty.addRange(first, last)
	}
	o.start(o.reqs[:ready])
	g.encode(o, row, int(rows))
	o.start(o.reqs[ready:])
	o.wait(0, lateTicks, g.data)
	o.leave()
	// Who heals may have cleared the mark of a device that came back since we skipped it, and did not see these rows.
	for _, d := range o.skipped {
		d.miss(first, last)
	}
	if now := g.layout.Load(); now != lay {
		now.devices(func(_ int, d *Device) {
			if !o.wrote(d) {
				d.miss(first, last)
			}
		})
	}
	if err := g.settleWrite(o, first, last); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// settleWrite decides what becomes of a write and of the devices that failed it.
func (g *Group) settleWrite(o *op, first, last int) error {
	failed, enough := g.missed(o, first, last)
	if enough {
		for _, r := range failed {
			r.dev.writes.Add(1)
			if r.done.Load() && r.err != nil && !r.dev.takeOut(fmt.Errorf("write error: %w", r.err), false) {
				g.changed(r.dev, "device missed a write and cannot be spared")
			}
		}
		return nil
	}
	var err error // nothing that counts is missing on these devices: the rows are not written
	for _, r := range failed {
		r.dev.writes.Add(1)
		switch {
		case err != nil:
		case r.done.Load() && r.err != nil:
			err = r.err
		default:
			err = fmt.Errorf("device %s: %w", r.dev.Name(), ErrHung)
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: %w", ErrLost, g.why())
	}
	return err
}

// missed returns the requests of a write that failed, and whether enough columns have the rows without them. Then it marks
// the units on their devices, before any other device goes out that has the rows; else what these hold besides stays good.
func (g *Group) missed(o *op, first, last int) (failed []*request, enough bool) {
	for _, r := range o.reqs {
		if !r.done.Load() || r.err != nil {
			g.mu.Lock()
			defer g.mu.Unlock()
			break
		}
	}
	enough = g.have(o, first, last) >= g.data
	for _, r := range o.reqs {
		if r.done.Load() && r.err == nil {
			continue
		}
		failed = append(failed, r)
		if enough {
			r.dev.miss(first, last)
		}
	}
	return failed, enough
}

// have counts the columns of which a device that is still in use there has taken a write and is not stale there.
func (g *Group) have(o *op, first, last int) (n int) {
	lay := g.layout.Load()
	var seen uint64
	for _, r := range o.reqs {
		if seen>>r.col&1 == 0 && r.done.Load() && r.err == nil && r.good && lay.has(r.col, r.dev) && !r.dev.isStale(first, last) {
			seen |= 1 << r.col
			n++
		}
	}
	return n
}

// wrote reports whether o has written to d, or has marked it.
func (o *op) wrote(d *Device) bool {
	for _, r := range o.reqs {
		if r.dev == d {
			return true
		}
	}
	return false
}

// why says which devices are gone.
func (g *Group) why() error {
	var err error
	n := 0
	g.layout.Load().devices(func(_ int, d *Device) {
		if d.online() && !d.Stale() {
			return
		}
		n++
		switch cause := d.Cause(); {
		case err != nil:
		case cause != nil:
			err = fmt.Errorf("device %s: %w", d.Name(), cause)
		default:
			err = fmt.Errorf("device %s is stale", d.Name())
		}
	})
	if n > 1 {
		return fmt.Errorf("%w (and %d more)", err, n-1)
	}
	if err == nil {
		err = fmt.Errorf("devices are all there again")
	}
	return err
}

// coded returns the columns that wait for parity: those that hold it in some of the rows. Of many rows all wait, since
// the data is in the processor's cache when parity has been computed, and most columns would wait anyway.
func (g *Group) coded(row, rows int64) (cols uint64) {
	switch {
	case g.data == 1:
		return 0
	case rows > RotateRows/2:
		return maskOf(g.data + g.parity)
	}
	for turn := row / RotateRows; turn <= (row+rows-1)/RotateRows; turn++ {
		for p := range g.parity {
			cols |= 1 << g.column(g.data+p, turn*RotateRows)
		}
	}
	return cols
}

// encode computes the parity of what spread has laid out.
func (g *Group) encode(o *op, row int64, rows int) {
	if g.data == 1 {
		return
	}
	for r := range rows {
		for s := range o.shards {
			o.shards[s] = o.iovs[g.column(s, row+int64(r))][r]
		}
		g.code.encode(o.shards)
	}
}

// spread makes the lists of what each column gets: blocks of the caller's buffers, and room for parity in the op's
// memory.
func (g *Group) spread(o *op, bufs [][]byte, row int64, rows int) {
	if g.data == 1 {
		o.iov = append(o.iov, bufs...) // a copy of the list: a device that hangs may look at it when the caller's has changed
		for c := range o.iovs {
			o.iovs[c] = o.iov
		}
		return
	}
	n := g.data + g.parity
	if cap(o.iov) < n*rows {
		o.iov = make([][]byte, n*rows)
	}
	o.iov = o.iov[:n*rows]
	for c := range o.iovs {
		o.iovs[c] = o.iov[c*rows : c*rows : (c+1)*rows]
	}
	pieces := 0 // blocks that are spread over several buffers and have to be put together
	for _, b := range bufs {
		if len(b)%blockSize != 0 {
			pieces = g.data * rows
			break
		}
	}
	mem := o.memory((g.parity*rows + pieces) * blockSize)
	parity, whole := mem[:g.parity*rows*blockSize], mem[g.parity*rows*blockSize:]
	var cur []byte
	next := 0
	for r := range rows {
		for s := range g.data {
			for len(cur) == 0 {
				cur = bufs[next]
				next++
			}
			if len(cur) >= blockSize {
				o.shards[s], cur = cur[:blockSize:blockSize], cur[blockSize:]
				continue
			}
			b := whole[:blockSize:blockSize]
			whole = whole[blockSize:]
			for at := 0; at < blockSize; {
				if len(cur) == 0 {
					cur = bufs[next]
					next++
				}
				k := copy(b[at:], cur)
				at, cur = at+k, cur[k:]
			}
			o.shards[s] = b
		}
		for p := range g.parity {
			at := (p*rows + r) * blockSize
			o.shards[g.data+p] = parity[at : at+blockSize : at+blockSize]
		}
		for s, b := range o.shards {
			c := g.column(s, row+int64(r))
			o.iovs[c] = append(o.iovs[c], b)
		}
	}
}
