package raid

import (
	"bytes"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

// maxGuesses bounds how often Recover asks whether a combination of different guesses for different rows is right.
const maxGuesses = 1 << 14

// Recover obtains the len(b) bytes at off for which ok holds, when what Read put into b was not right: it reads
// everything again and tries other copies, and what follows when up to as many columns as there is parity are wrong.
// Rows in which a guess made the difference are rewritten in place on the devices that lied, which count a checksum
// error each. When nothing satisfies ok it returns an error that wraps ErrUnrecoverable, and b is undefined. What ok is
// given is valid during the call only.
func (g *Group) Recover(b []byte, off int64, ok func([]byte) bool) error {
	return g.RecoverPart(b, off, 0, len(b), ok)
}

// RecoverPart is Recover when ok looks at b[from:to] only, multiples of 64. Whatever lies beside that is not rewritten:
// a guess that is right for a part of a row says nothing about the rest of it.
func (g *Group) RecoverPart(b []byte, off int64, from, to int, ok func([]byte) bool) error {
	return g.recover(b, off, from, to, func(s *rowset, part []byte, sus []int64) bool { return s.guess(part, sus, ok) }, ok)
}

// RecoverBlocks is Recover for blocks that can be checked one by one, which finds any number of bad ones: bad returns
// the indexes of the 4096-byte blocks that are known to be wrong.
func (g *Group) RecoverBlocks(b []byte, off int64, bad func([]byte) []int) error {
	ok := func(b []byte) bool { return len(bad(b)) == 0 }
	return g.recover(b, off, 0, len(b), func(s *rowset, part []byte, _ []int64) bool {
		skip := (off/blockSize - s.row*int64(g.data))
		lost := s.sort(func() map[int64]bool { return s.rowsOf(bad(part), skip) })
		return len(lost) == 0
	}, ok)
}

func (g *Group) recover(b []byte, off int64, lo, hi int, try func(s *rowset, part []byte, sus []int64) bool, ok func([]byte) bool) error {
	if err := g.checkRange(off, int64(len(b)), blockSize); err != nil {
		return fmt.Errorf("recover of %w", err)
	}
	d := int64(g.data)
	first := off / blockSize
	row := first / d
	rows := (first+int64(len(b))/blockSize+d-1)/d - row
	if rows <= 0 {
		return nil
	}
	s, err := g.load(row, rows)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	defer s.close()
	skip := (first - row*d) * blockSize
	part := s.data[skip : skip+int64(len(b)) : skip+int64(len(b))]
	sus := s.start()
	before, given := bytes.Clone(part), bytes.Clone(b)
	if !ok(part) && !s.passes(func(pass int) bool {
		if pass > 0 { // other values: any row may be suspicious
			sus = sus[:0]
			for i := range rows {
				sus = append(sus, i)
			}
		}
		return try(s, part, sus)
	}) {
		if len(s.copies) == 1 {
			s.copies[0].dev.sums.Add(1)
		}
		return fmt.Errorf("%d bytes at %d of the raid group: %w", len(b), off, ErrUnrecoverable)
	}
	copy(b, part)
	s.use(0)
	s.verified(int(skip)+lo, int(skip)+hi)
	for _, m := range s.copies {
		lied := 0
		changed := func(i int64) bool {
			from, to := max(i*int64(g.Row())-skip, int64(lo)), min((i+1)*int64(g.Row())-skip, int64(hi))
			return from < to && (!bytes.Equal(before[from:to], part[from:to]) || d == 1 && !bytes.Equal(given[from:to], part[from:to]))
		}
		// In a row in which nothing changed, blocks outside b have not been verified: they stay as they are.
		_, err := s.write(m, func(i int64) bool {
			return !m.stale[i] && (!m.readable[i] && s.known(i) >= g.data || changed(i) && s.differs(m, i))
		})
		_ = err // what could not be repaired is found again
		for i := range s.rows {
			if !m.stale[i] && m.readable[i] && changed(i) && s.differs(m, i) {
				lied++
			}
		}
		m.dev.sums.Add(uint64(lied))
	}
	return nil
}

// start solves all rows believing everything and returns those that are suspicious: what is believed is contradictory,
// or there is too little of it.
func (s *rowset) start() (sus []int64) {
	for i := range s.rows {
		switch s.solve(i, 0, s.rowData(i)) {
		case contradict:
			sus = append(sus, i)
		case tooFew:
			sus = append(sus, i)
			unknown(s.rowData(i))
		case consistent:
			s.clean[i] = s.known(i) == s.n
		}
	}
	return sus
}

// unknown fills b with what no check takes for content.
func unknown(b []byte) {
	for i := range b {
		b[i] = byte(i*37) ^ 0xa5
	}
}

// passes runs try with each choice of values until it is true.
func (s *rowset) passes(try func(pass int) bool) bool {
	for pass := range passes {
		if pass > 0 && !s.use(pass) {
			continue
		}
		if try(pass) {
			return true
		}
	}
	return false
}

// known returns the number of columns of a row that have a value.
func (s *rowset) known(row int64) (n int) {
	for _, v := range s.val[int(row)*s.n : int(row+1)*s.n] {
		if v != nil {
			n++
		}
	}
	return n
}

// rowsOf returns the rows in which data blocks with these indexes are, skip being the index of the first in its row.
func (s *rowset) rowsOf(blocks []int, skip int64) map[int64]bool {
	rows := map[int64]bool{}
	for _, k := range blocks {
		rows[(int64(k)+skip)/int64(s.g.data)] = true
	}
	return rows
}

// sort finds the right data of rows one by one, all of them at the same time: bad says which rows are wrong as data
// stands. It returns the rows that stay wrong.
func (s *rowset) sort(bad func() map[int64]bool) map[int64]bool {
	wrong := bad()
	if len(wrong) == 0 {
		return nil
	}
	for _, h := range append([]uint64{0}, s.g.suspicions()...) {
		var tried []int64
		for i := range wrong {
			if s.doubt(i, h) || h == 0 {
				tried = append(tried, i)
			}
		}
		if len(tried) == 0 {
			continue
		}
		now := bad()
		for _, i := range tried {
			if !now[i] {
				delete(wrong, i)
			}
		}
		if len(wrong) == 0 {
			return nil
		}
	}
	return s.pairs(wrong, bad)
}

// guess finds the right data where there is one check for everything: first as if the same columns were wrong in all
// suspicious rows, then any combination.
func (s *rowset) guess(part []byte, sus []int64, ok func([]byte) bool) bool {
	sets := s.g.suspicions()
	for _, h := range append([]uint64{0}, sets...) {
		any := h == 0
		for _, i := range sus {
			if s.doubt(i, h) {
				any = true
			} else {
				s.solve(i, 0, s.rowData(i))
			}
		}
		if any && ok(part) {
			return true
		}
	}
	if len(sus) < 2 {
		return false
	}
	// The guesses of each row that differ from each other, counted through like the digits of a number.
	type digit struct {
		row  int64
		sets []uint64
		at   int
	}
	var digits []*digit
	for _, i := range sus {
		d := &digit{row: i}
		seen := map[uint32]bool{}
		for _, h := range append([]uint64{0}, sets...) {
			if s.doubt(i, h) || h == 0 {
				if sum := block.Sum(s.rowData(i)); !seen[sum] {
					seen[sum] = true
					d.sets = append(d.sets, h)
				}
			}
		}
		s.solve(i, d.sets[0], s.rowData(i))
		digits = append(digits, d)
	}
	for range maxGuesses {
		if ok(part) {
			return true
		}
		k := 0
		for ; k < len(digits); k++ {
			d := digits[k]
			d.at = (d.at + 1) % len(d.sets)
			s.solve(d.row, d.sets[d.at], s.rowData(d.row))
			if d.at != 0 {
				break
			}
		}
		if k == len(digits) {
			return false
		}
	}
	return false
}
