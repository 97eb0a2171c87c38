package volume

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// CommonPoint returns the last version that two replicas share: up to it both hold the same operations, after it at
// least one of them went another way. a and b are what was applied under the histories ha and hb up to lastA and
// lastB. The zero Version means that they share nothing.
//
// An epoch is opened by one target only and at one number, so that equal entries mean one stream; of the last entry
// that is equal they share what both have of it (replication rule 27).
func CommonPoint(ha History, lastA block.Version, hb History, lastB block.Version) block.Version {
	var common block.Version
	for i := range min(len(ha), len(hb)) {
		if ha[i] != hb[i] {
			break
		}
		n := min(ha.end(i, lastA), hb.end(i, lastB))
		if n < ha[i].First {
			break // one of them ends before this epoch
		}
		common = block.Version{Epoch: ha[i].Epoch, N: n}
		if n < ha.end(i, lastA) || n < hb.end(i, lastB) {
			break // one goes on in this epoch, the other does not
		}
	}
	return common
}

// end returns the number of the last operation of the i-th epoch when last is the last one of all.
func (h History) end(i int, last block.Version) uint64 {
	if i+1 < len(h) && h[i+1].First <= last.N {
		return h[i+1].First - 1
	}
	return last.N
}

// Epoch returns the newest epoch, zero of an empty history.
func (h History) Epoch() uint64 {
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].Epoch
}

// with returns a copy of h with one more entry.
func (h History) with(e EpochStart) History { return append(slices.Clip(h), e) }
