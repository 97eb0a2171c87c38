package raid

import (
	"bytes"
	"fmt"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// rowset is rows with everything that the devices say about them, and what is believed.
type rowset struct {
	g         *Group
	o         *op
	row, rows int64
	n         int // columns
	copies    []*replica
	val       [][]byte // row*n+column: the value in use, nil if there is none
	data      []byte   // what is believed, as in the linear space
	clean     []bool   // per row: all columns are readable and agree with data
	shards    [][]byte
	tmp       []byte   // one row of all shards
	only      []uint64 // per data block: its parts that are known to be right; nil: all, see verified
	used      []uint64 // per data block: its parts that are in use; nil: all, see HealParts
}

// replica is what one device says about the rows of its column.
type replica struct {
	dev      *Device
	col      int
	buf      []byte // nil if nothing was read
	readable []bool // per row
	stale    []bool // per row
}

// load reads the rows from all devices. The caller closes the rowset.
func (g *Group) load(row, rows int64) (*rowset, error) {
	n := g.data + g.parity
	s := &rowset{g: g, o: g.begin(), row: row, rows: rows, n: n, clean: make([]bool, rows), val: make([][]byte, int(rows)*n), shards: make([][]byte, n)}
	lay := g.layout.Load()
	lay.devices(func(c int, d *Device) {
		if !d.begin() {
			return
		}
		m := &replica{dev: d, col: c, readable: make([]bool, rows), stale: make([]bool, rows)}
		all := true
		for i := range rows {
			unit := int((row + i) / g.unitRows)
			m.stale[i] = d.isStale(unit, unit)
			all = all && m.stale[i]
		}
		s.copies = append(s.copies, m)
		if all { // read as the last resort only
			d.end()
			return
		}
		r := s.o.add(doRead, c, d)
		r.off, r.length, r.good = g.devOff(row), rows*blockSize, true
	})
	total := rows * blockSize
	mem := s.o.memory(int(total)*(len(s.o.reqs)+g.data) + n*blockSize)
	for _, r := range s.o.reqs {
		r.buf, mem = mem[:total:total], mem[total:]
	}
	s.data, mem = mem[:total*int64(g.data)], mem[total*int64(g.data):]
	s.tmp = mem
	if len(s.o.reqs) > 0 {
		s.o.start(s.o.reqs)
		s.o.wait(0, lateTicks, g.data)
	}
	for _, r := range s.o.reqs {
		m := s.find(r.dev)
		switch {
		case !r.done.Load():
			r.dev.reads.Add(1)
			r.hung(s.o.ticks >= hardTicks)
			if g.parity == 0 && !g.canLose(r.dev) {
				s.close()
				return nil, fmt.Errorf("device %s: %w", r.dev.Name(), ErrHung)
			}
		case r.err == nil:
			m.buf = r.buf
			for i := range rows {
				m.readable[i] = !m.stale[i]
			}
		default:
			r.dev.readFailed(r.err)
			m.buf = r.buf
			if rows > 1 {
				for i := range rows {
					m.readable[i] = !m.stale[i] && g.readBlock(r.dev, row+i, s.part(m.buf, i))
				}
			}
		}
	}
	s.use(0)
	if len(s.copies) < g.data {
		s.close()
		return nil, fmt.Errorf("%w: %w", ErrLost, g.why())
	}
	return s, nil
}

func (s *rowset) close() { s.o.release() }

func (s *rowset) find(d *Device) *replica {
	for _, m := range s.copies {
		if m.dev == d {
			return m
		}
	}
	return nil
}

// passes is the number of ways in which the values of columns can be chosen, see use.
const passes = 3

// use chooses the values of columns: 0 what is readable and not stale, of the current device if there are two; 1 of the
// new device; 2 of stale units too. It reports whether this changes anything.
func (s *rowset) use(pass int) (changes bool) {
	if pass == 2 {
		for _, m := range s.copies {
			s.readStale(m)
		}
	}
	next := make([][]byte, len(s.val))
	for k := range s.copies {
		m := s.copies[k]
		if pass > 0 { // the last device of a column comes first
			m = s.copies[len(s.copies)-1-k]
		}
		for i := range s.rows {
			v := &next[int(i)*s.n+m.col]
			if *v == nil && m.readable[i] && (!m.stale[i] || pass == 2) {
				*v = s.part(m.buf, i)
			}
		}
	}
	for i, v := range next {
		if old := s.val[i]; v != nil && (old == nil || &old[0] != &v[0] && !bytes.Equal(old, v)) {
			changes = true
		}
	}
	s.val = next
	return changes
}

// readStale reads the stale rows of a device. They may be old, so only a check makes them worth anything.
func (s *rowset) readStale(m *replica) {
	for i := range s.rows {
		if !m.stale[i] || m.readable[i] {
			continue
		}
		if m.buf == nil {
			m.buf = disk.Buffer(int(s.rows) * blockSize)
		}
		m.readable[i] = s.g.readBlock(m.dev, s.row+i, s.part(m.buf, i))
	}
}

func (s *rowset) part(b []byte, row int64) []byte {
	return b[row*blockSize : (row+1)*blockSize : (row+1)*blockSize]
}

// rowData returns the place of a row in data.
func (s *rowset) rowData(row int64) []byte {
	size := int64(s.g.Row())
	return s.data[row*size : (row+1)*size : (row+1)*size]
}

// verdict is what solve found.
type verdict uint8

const (
	tooFew     verdict = iota // columns
	contradict                // the columns that are believed contradict each other
	plain                     // no more columns are believed than data blocks need
	consistent                // more are, and they agree
)

// solve puts the data of a row into dst as it is when the columns in wrong are not believed.
func (s *rowset) solve(row int64, wrong uint64, dst []byte) verdict {
	g := s.g
	val := s.val[int(row)*s.n : int(row+1)*s.n]
	if g.data == 1 {
		v := tooFew
		for c, b := range val {
			switch {
			case b == nil || wrong>>c&1 != 0:
			case v == tooFew:
				copy(dst, b)
				v = plain
			case !bytes.Equal(dst, b):
				return contradict
			default:
				v = consistent
			}
		}
		return v
	}
	var have uint64
	for sh := range s.shards {
		c := g.column(sh, s.row+row)
		s.shards[sh] = s.tmp[sh*blockSize : (sh+1)*blockSize : (sh+1)*blockSize]
		if val[c] == nil || wrong>>c&1 != 0 {
			continue
		}
		have |= 1 << sh
		if sh < g.data {
			s.shards[sh] = dst[sh*blockSize : (sh+1)*blockSize : (sh+1)*blockSize]
			copy(s.shards[sh], val[c])
		} else {
			s.shards[sh] = val[c]
		}
	}
	if popcount(have) < g.data {
		return tooFew
	}
	src := lowest(have, g.data)
	missing := maskOf(g.data) &^ have
	for sh := range g.data {
		if missing>>sh&1 != 0 {
			s.shards[sh] = dst[sh*blockSize : (sh+1)*blockSize : (sh+1)*blockSize]
		}
	}
	g.code.rebuild(s.shards, src, missing)
	if have == src {
		return plain
	}
	for sh := g.data; sh < s.n; sh++ { // parity that was not needed
		if (have&^src)>>sh&1 == 0 {
			continue
		}
		s.shards[sh] = s.tmp[sh*blockSize : (sh+1)*blockSize : (sh+1)*blockSize]
		g.code.rebuild(s.shards, maskOf(g.data), 1<<sh)
		if !bytes.Equal(s.shards[sh], val[g.column(sh, s.row+row)]) {
			return contradict
		}
	}
	return consistent
}

// suspicions returns the sets of columns that may be wrong in a row, most likely first. More than these cannot be made
// up for.
func (g *Group) suspicions() (sets []uint64) {
	n := g.data + g.parity
	if g.data == 1 {
		for c := range n {
			sets = append(sets, maskOf(n)&^(1<<c))
		}
		return sets
	}
	for a := range n {
		sets = append(sets, 1<<a)
	}
	for a := 0; a < n && g.parity > 1; a++ {
		for b := range a {
			sets = append(sets, 1<<a|1<<b)
		}
	}
	return sets
}

// doubt solves a row under a suspicion that says something, and reports whether the result is worth a check.
func (s *rowset) doubt(row int64, wrong uint64) bool {
	s.clean[row] = false
	v := s.solve(row, wrong, s.rowData(row))
	return v == consistent || v == plain || v == contradict && s.g.data == 1
}

// write makes a device agree with data in those rows for which want is true.
// It returns how many blocks were written, and an error when a device that is still online did not take one.
func (s *rowset) write(m *replica, want func(row int64) bool) (written int, err error) {
	for i := int64(0); i < s.rows; {
		if !want(i) {
			i++
			continue
		}
		end := i + 1
		for end < s.rows && end-i < maxRepairRows && want(end) {
			end++
		}
		if e := s.g.repair(m.dev, s.row+i, int(end-i), func(k int, dst []byte) { s.wanted(m, i+int64(k), dst) }); e == nil {
			written += int(end - i)
		} else if err == nil && m.dev.online() {
			err = e
		}
		i = end
	}
	return written, err
}

// maxRepairRows bounds one repairing write.
const maxRepairRows = 128

// right puts what a column holds in a row, according to data, into dst.
func (s *rowset) right(row int64, col int, dst []byte) {
	g := s.g
	data := s.rowData(row)
	sh := 0
	if g.data > 1 {
		sh = g.shard(col, s.row+row)
	}
	if sh < g.data {
		copy(dst, data[sh*blockSize:])
		return
	}
	for i := range g.data {
		s.shards[i] = data[i*blockSize : (i+1)*blockSize : (i+1)*blockSize]
	}
	for i := g.data; i < s.n; i++ {
		s.shards[i] = nil
	}
	s.shards[sh] = dst[:blockSize:blockSize]
	g.code.rebuild(s.shards, maskOf(g.data), 1<<sh)
}

// differs reports whether a device holds something else in a row than it should.
func (s *rowset) differs(m *replica, row int64) bool { return s.differsIn(m, row, ^uint64(0)) }

// differsIn is differs for some parts of the block.
func (s *rowset) differsIn(m *replica, row int64, parts uint64) bool {
	if !m.readable[row] {
		return true
	}
	if s.clean[row] && &s.part(m.buf, row)[0] == &s.val[int(row)*s.n+m.col][0] {
		return false
	}
	is, buf := s.part(m.buf, row), s.tmp[:blockSize:blockSize]
	s.wanted(m, row, buf)
	for k := 0; k < blockSize; k += partSize {
		if parts>>(k/partSize)&1 != 0 && !bytes.Equal(is[k:k+partSize], buf[k:k+partSize]) {
			return true
		}
	}
	return false
}
