package raid

// A part of a row can be verified without the rest. Codes work byte by byte: what is known about some bytes of the
// data says what the same bytes of all columns must be, and nothing about others.

// partSize is the unit in which parts of a column's block are told apart: 64 in a block.
const partSize = blockSize / 64

// verified says that only data[from:to] is known to be right.
func (s *rowset) verified(from, to int) {
	if from == 0 && to == len(s.data) {
		s.only = nil
		return
	}
	s.only = make([]uint64, s.rows)
	for at := from; at < to; {
		row := at / s.g.Row()
		in := at % blockSize
		n := min(blockSize-in, to-at)
		for k := in / partSize; k*partSize < in+n; k++ {
			s.only[row] |= 1 << k
		}
		at += n
	}
}

// wanted puts what a device should hold in a row into dst: what is right, and what it holds where nobody knows.
func (s *rowset) wanted(m *replica, row int64, dst []byte) {
	s.right(row, m.col, dst)
	if s.only == nil || s.only[row] == ^uint64(0) || !m.readable[row] {
		return
	}
	is := s.part(m.buf, row)
	for k := range 64 {
		if s.only[row]>>k&1 == 0 {
			copy(dst[k*partSize:(k+1)*partSize], is[k*partSize:])
		}
	}
}
