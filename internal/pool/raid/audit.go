package raid

import "fmt"

// Fault is a block of a device that is not what it should be.
type Fault struct {
	Device     *Device
	Off        int64 // on the device
	At         int64 // in the group: the first byte of data of the row
	Unreadable bool  // it cannot be read; otherwise it reads as something else
	Parity     bool  // what it should hold is not data
}

// Audit is Heal that changes nothing: it returns the blocks of devices that are online that differ from what they
// should be, stale ones left out, and the indexes of data blocks, counted from off, in rows that cannot be had as check
// wants them. check gets the data and returns the indexes of 4096-byte blocks that are known to be wrong. Where it
// accepts several contents of a row, a column that all others contradict is wrong; otherwise the data columns are
// believed before parity, and the first copies before others.
func (g *Group) Audit(off, n int64, check func(data []byte) (bad []int)) (faults []Fault, lost []int, err error) {
	return g.AuditParts(off, n, nil, check)
}

// AuditParts is Audit when only some parts of the data are in use, see HealParts: a column in which nothing but others
// differ has no fault.
func (g *Group) AuditParts(off, n int64, used []uint64, check func(data []byte) (bad []int)) (faults []Fault, lost []int, err error) {
	if err := g.checkRange(off, n, g.Row()); err != nil {
		return nil, nil, fmt.Errorf("audit of %w", err)
	}
	if n == 0 {
		return nil, nil, nil
	}
	s, err := g.load(off/int64(g.Row()), n/int64(g.Row()))
	if err != nil {
		return nil, nil, fmt.Errorf("audit: %w", err)
	}
	defer s.close()
	s.used = used
	leave := s.examine(check)
	for i := range s.rows {
		_, unknown := leave[i]
		for _, m := range s.copies {
			f := Fault{Device: m.dev, Off: g.devOff(s.row + i), At: (s.row + i) * int64(g.Row()), Unreadable: !m.readable[i]}
			f.Parity = g.data > 1 && g.shard(m.col, s.row+i) >= g.data
			if !m.stale[i] && (f.Unreadable || !unknown && s.wrong(m, i)) {
				faults = append(faults, f)
			}
		}
	}
	return faults, s.lost(leave), nil
}
