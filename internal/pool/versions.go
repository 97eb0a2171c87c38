package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// The functions of this file are what the cleaner needs to know about versions: which page or history page refers to a
// place, and whether the version there is still needed. No page changes meanwhile: drain.cycle is held.

// findPlace looks for the version of block b of a chunk that has its data at loc, all of loc, in its page, which v has
// open, and in the history.
func (p *Pool) findPlace(r *Replica, chunk uint64, d *chunkRef, v *index.View, b int, loc index.Loc) (o index.Old, ok bool, err error) {
	if at, sum, stored := v.Data(b); stored && at == loc {
		return index.Old{Block: uint16(b), Ver: v.Version(b), Loc: at, Sum: sum, Stored: true}, true, nil
	}
	if !v.HasOld() {
		return o, false, nil
	}
	var old index.OldView
	if err := v.Old(&old); err != nil {
		return o, false, p.pageError(r, chunk, d, err)
	}
	if o, ok = old.FindAt(b, loc); ok {
		return o, true, nil
	}
	for i := range v.Histories() {
		h := v.History(i)
		if b < int(h.First) || b > int(h.Last) {
			continue
		}
		e, err := p.loadHistory(r, chunk, &h, &old)
		if err != nil {
			return o, false, err
		}
		o, ok = old.FindAt(b, loc)
		if p.cache.release(e); ok {
			return o, true, nil
		}
	}
	return o, false, nil
}

// olderVersions returns the older versions of a chunk, whose page v has open.
func (p *Pool) olderVersions(r *Replica, chunk uint64, d *chunkRef, v *index.View) (all []index.Old, err error) {
	if !v.HasOld() {
		return nil, nil
	}
	var old index.OldView
	if err := v.Old(&old); err != nil {
		return nil, p.pageError(r, chunk, d, err)
	}
	all = old.Append(nil)
	for i := range v.Histories() {
		h := v.History(i)
		if all, err = p.history(r, chunk, &h, all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// needed reports whether a version of a block, which its page or the history has, may outlive the next drain: unless
// the tables have a newer one and no snapshot shows it. The index lock is held.
func (p *Pool) needed(r *Replica, d *chunkRef, b uint64, v block.Version) bool {
	e, found := p.lookup(r, d, b)
	return !found || r.snaps.show(v, e.Version())
}
