package volume

import (
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// maxHistory is how many epochs a History keeps, the newest ones: a State has to fit into one record of a pool's log.
const maxHistory = 256

// CommonPoint returns the last version that two replicas share: up to it both hold the same operations, after it at
// least one of them went another way. a and b are what was applied under the histories ha and hb up to lastA and
// lastB. The zero Version means that they share nothing, or that a History goes back too far to tell: everything has
// to be compared.
//
// A target opens an epoch once, on one replica, and at one number, and all who have its entry have it from
// there together with everything before it. So equal entries mean one stream; of the newest that is equal they share
// what both have of it (replication rule 27). Entries that were trimmed only make the common point older than it is.
// Entries without Nonce are compared by the rest; one with and one without are of two targets, since all who have an epoch have
// its entry from the one that opened it, word for word.
func CommonPoint(ha History, lastA block.Version, hb History, lastB block.Version) block.Version {
	for i := len(ha) - 1; i >= 0; i-- {
		j := slices.Index(hb, ha[i])
		if j < 0 {
			continue
		}
		if n := min(ha.end(i, lastA), hb.end(j, lastB)); n >= ha[i].First { // else one of them ends before this epoch
			return block.Version{Epoch: ha[i].Epoch, N: n}
		}
	}
	return block.Version{}
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

// lossy returns the newest epoch that is marked so, zero if none is.
func (h History) lossy() EpochStart {
	for _, e := range slices.Backward(h) {
		if e.Lossy {
			return e
		}
	}
	return EpochStart{}
}

// contradicts reports whether an epoch is in both histories and was not opened by the same target. Then what has the same
// version need not be the same operation.
func (h History) contradicts(o History) bool {
	return slices.ContainsFunc(h, func(x EpochStart) bool {
		return slices.ContainsFunc(o, func(y EpochStart) bool { return x.Epoch == y.Epoch && x != y })
	})
}

// without returns those entries of h that o lacks.
func (h History) without(o History) (rest History) {
	for _, e := range h {
		if !slices.Contains(o, e) {
			rest = append(rest, e)
		}
	}
	return rest
}

// with returns a copy of h with one more entry, trimmed.
func (h History) with(e EpochStart) History { return append(slices.Clip(h), e).trimmed() }

// trimmed returns the newest entries of h.
func (h History) trimmed() History { return h[max(len(h)-maxHistory, 0):] }
