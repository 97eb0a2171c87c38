package raid

// maxPairs bounds how often pairs asks for what is wrong.
const maxPairs = 4096

// pairs goes on where sort ends: what the caller checks may reach from one row into the next, so that a row does not
// look right before its neighbour is, for which other columns may be wrong. It tries all combinations of two rows, and
// returns the rows that stay wrong.
func (s *rowset) pairs(wrong map[int64]bool, bad func() map[int64]bool) map[int64]bool {
	left := maxPairs
	for i := range s.rows {
		if wrong[i] && s.pair(i, wrong[i+1], bad, &left) {
			delete(wrong, i)
		}
	}
	return wrong
}

// pair looks for values of row i, and of the next one if both is true, with which row i is right.
func (s *rowset) pair(i int64, both bool, bad func() map[int64]bool, left *int) bool {
	sets := append([]uint64{0}, s.g.suspicions()...)
	next := sets
	if !both {
		next = sets[:1]
	}
	for a := -1; a < len(sets); a++ { // -1: as the pair before left it
		if a >= 0 && !s.doubt(i, sets[a]) && sets[a] != 0 {
			continue
		}
		for _, h := range next {
			if both && !s.doubt(i+1, h) && h != 0 {
				continue
			}
			if *left--; *left < 0 {
				return false
			}
			if !bad()[i] {
				return true
			}
		}
	}
	return false
}
