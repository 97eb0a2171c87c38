package raid

import (
	"fmt"
	"slices"
)

// HealResult is what Heal found and did.
type HealResult struct {
	Rewritten int   // blocks written to devices
	Wrong     int   // blocks that a device read back other than they should be
	Lost      []int // indexes of data blocks, counted from off, that no copy and no parity gives
}

// Heal makes rows right on all devices that are online; off and n, the bytes of data, are multiples of Row. check gets
// the data and returns the indexes of 4096-byte blocks that are known to be wrong; it must know every block of the rows
// that matters, since the others are taken as they are, unless all other columns contradict one, and parity is made to
// agree with them. It may be nil, and is called several times. Devices whose content is wrong count a checksum error per
// block. What was stale is written whatever it holds; the marks stay, see Device.ClearStale. With blocks that cannot be
// had the error wraps ErrUnrecoverable, and their rows are left alone; the other rows are healed.
func (g *Group) Heal(off, n int64, check func(data []byte) (bad []int)) (HealResult, error) {
	return g.HealParts(off, n, nil, check)
}

// HealParts is Heal when only some parts of the data are in use, see AddParts; nil: all are. Columns are made right as a
// whole. But in parts of which no data block of a row has anything in use they may differ without anybody's fault: a repair
// may have been of the others only, see RecoverPart, and leaves what a device lied about in these.
func (g *Group) HealParts(off, n int64, used []uint64, check func(data []byte) (bad []int)) (HealResult, error) {
	return g.heal(off, n, used, check, true)
}

// Settle is Heal for rows whose write a crash may have cut short: that devices differ there is not their fault.
func (g *Group) Settle(off, n int64, check func(data []byte) (bad []int)) (HealResult, error) {
	return g.heal(off, n, nil, check, false)
}

func (g *Group) heal(off, n int64, used []uint64, check func(data []byte) (bad []int), blame bool) (res HealResult, err error) {
	if err := g.checkRange(off, n, g.Row()); err != nil {
		return res, fmt.Errorf("heal of %w", err)
	}
	if n == 0 {
		return res, nil
	}
	s, err := g.load(off/int64(g.Row()), n/int64(g.Row()))
	if err != nil {
		return res, fmt.Errorf("heal: %w", err)
	}
	defer s.close()
	s.used = used
	leave := s.examine(check)
	res.Lost = s.lost(leave)
	kept := func(i int64) bool { _, ok := leave[i]; return ok }
	for _, m := range s.copies {
		for i := range s.rows {
			if blame && !kept(i) && m.readable[i] && !m.stale[i] && s.wrong(m, i) {
				res.Wrong++
				m.dev.sums.Add(1)
			}
		}
		k, e := s.write(m, func(i int64) bool { return !kept(i) && (m.stale[i] || s.differs(m, i)) })
		if res.Rewritten += k; e != nil && err == nil {
			err = fmt.Errorf("heal: %w", e)
		}
	}
	if len(res.Lost) > 0 {
		err = fmt.Errorf("heal of %d bytes at %d of the raid group: %d blocks: %w", n, off, len(res.Lost), ErrUnrecoverable)
	}
	return res, err
}

// examine finds the right data of all rows. It returns the rows of which it cannot be had; true: since they are lost,
// false: since nobody knows them, although nobody may need them either.
func (s *rowset) examine(check func(data []byte) (bad []int)) (leave map[int64]bool) {
	g := s.g
	sus := s.start()
	leave = map[int64]bool{}
	for _, i := range sus {
		if s.known(i) < g.data { // unless check missed and found it, nobody knows the row
			leave[i] = check == nil
		} else {
			s.outvote(i)
		}
	}
	if check != nil {
		bad := func() map[int64]bool {
			rows := s.rowsOf(check(s.data), 0)
			for i := range rows {
				delete(leave, i)
			}
			return rows
		}
		var lost map[int64]bool
		s.passes(func(int) bool {
			lost = s.sort(bad)
			return len(lost) == 0
		})
		for i := range lost {
			leave[i] = true
		}
	}
	s.use(0)
	return leave
}

// outvote takes a row without the column that all others contradict, if there is one. Nobody may need what that holds, but
// to make parity agree with it takes away what other blocks of the row may depend on: a power cut can tear that write.
func (s *rowset) outvote(row int64) {
	for c := range s.n {
		if s.solve(row, 1<<c, s.rowData(row)) == consistent {
			return
		}
	}
	s.solve(row, 0, s.rowData(row))
}

// lost returns the indexes of the data blocks in rows that examine calls lost.
func (s *rowset) lost(leave map[int64]bool) (blocks []int) {
	for i, l := range leave {
		for k := 0; l && k < s.g.data; k++ {
			blocks = append(blocks, int(i)*s.g.data+k)
		}
	}
	slices.Sort(blocks)
	return blocks
}
