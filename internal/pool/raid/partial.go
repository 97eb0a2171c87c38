package raid

// A part of a row can be verified without the rest. Codes work byte by byte: what is known about some bytes of the
// data says what the same bytes of all columns must be, and nothing about others.

// partSize is the unit in which parts of a column's block are told apart: 64 in a block.
const partSize = blockSize / 64

// verified says that only data[from:to] is known to be right. In these bytes the data blocks that they belong to may be
// rewritten. Not so the other columns of the row, unless all of its data is known there: a guess that is right for one
// block may owe that to a lie of another column, and be wrong for a third one, which is right on its device.
func (s *rowset) verified(from, to int) {
	s.only = nil
	if from == 0 && to == len(s.data) {
		return
	}
	s.only = make([]uint64, len(s.data)/blockSize)
	AddParts(s.only, from, to)
}

// AddParts adds the parts that hold data[from:to] to sets of parts, one per data block: bit k stands for the 64 bytes from
// k*64 on.
func AddParts(sets []uint64, from, to int) {
	for at := from; at < to; {
		in := at % blockSize
		n := min(blockSize-in, to-at)
		for k := in / partSize; k*partSize < in+n; k++ {
			sets[at/blockSize] |= 1 << k
		}
		at += n
	}
}

// parts returns the parts of a column's block in a row that may be rewritten.
func (s *rowset) parts(row int64, col int) uint64 {
	if s.only == nil {
		return ^uint64(0)
	}
	d := int64(s.g.data)
	known := s.only[row*d : (row+1)*d]
	all := ^uint64(0)
	for _, m := range known {
		all &= m
	}
	if s.g.data > 1 {
		if sh := s.g.shard(col, s.row+row); sh < s.g.data {
			return known[sh]
		}
	}
	return all
}

// wanted puts what a device should hold in a row into dst: what is right, and what it holds where nobody knows.
func (s *rowset) wanted(m *replica, row int64, dst []byte) {
	s.right(row, m.col, dst)
	parts := s.parts(row, m.col)
	if parts == ^uint64(0) || !m.readable[row] {
		return
	}
	is := s.part(m.buf, row)
	for k := range 64 {
		if parts>>k&1 == 0 {
			copy(dst[k*partSize:(k+1)*partSize], is[k*partSize:])
		}
	}
}

// wrong reports whether a device holds something else than it should where it matters in a row: in the parts of which any
// data block has something that is in use, since all columns are needed there.
func (s *rowset) wrong(m *replica, row int64) bool {
	if s.used == nil {
		return s.differs(m, row)
	}
	d := int64(s.g.data)
	used := uint64(0)
	for _, parts := range s.used[row*d : (row+1)*d] {
		used |= parts
	}
	return s.differsIn(m, row, used)
}
