package pool

import (
	"bytes"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// refKind says what a reference leads to.
type refKind uint8

const (
	refData    refKind = iota // a block of a replica
	refPage                   // index page
	refHistory                // history page
	refDir                    // directory block
	refRoot                   // piece of the root of the newest checkpoint
	refHeader                 // of a batch
	refState                  // state record of a replica, in a batch that a replay reads
)

func (k refKind) String() string {
	return [...]string{"data", "index page", "history page", "directory block", "checkpoint", "batch header", "state record"}[k]
}

// ref is something that is in use: where it is, whose, and how to tell that it is intact.
type ref struct {
	at     uint64 // address
	id     uint64 // refPage
	number uint64 // block of the replica; chunk of a page; first chunk of a directory block; number of a batch
	ver    block.Version
	slot   uint32 // replica
	n      uint32 // bytes
	sum    uint32
	kind   refKind
	hist   *index.HistRef
	known  []byte // the content itself
}

func (x *ref) end() uint64    { return x.at + uint64(x.n) }
func (x *ref) loc() index.Loc { return index.MakeLoc(x.at, int(x.n)) }

// same reports whether two references are to the same content of the same block: a table and a page may agree.
func (x *ref) same(y *ref) bool {
	return x.kind == refData && y.kind == refData && x.at == y.at && x.n == y.n && x.slot == y.slot && x.number == y.number && x.sum == y.sum
}

// intact reports whether stored is what x refers to. content has room for a block.
func (x *ref) intact(stored, content []byte) bool {
	switch {
	case x.known != nil:
		return bytes.Equal(stored, x.known)
	case x.kind == refData:
		at := place{loc: x.loc(), sum: x.sum}
		return at.content(content, stored)
	case x.kind == refPage:
		var v index.View
		return v.Open(stored, x.id, x.slot, x.number, false) == nil
	case x.kind == refHistory:
		var v index.OldView
		return index.OpenHistory(&v, stored, x.hist, x.slot, x.number, false) == nil
	}
	return block.Sum(stored) == x.sum
}

// eachRef calls f for everything that the index of a pool at rest refers to. broken is told of index pages that cannot be
// had, which hide what they refer to.
func (p *Pool) eachRef(f func(x *ref), broken func(r *Replica, chunk uint64, err error)) {
	for _, r := range p.idx.bySlot {
		if r == nil {
			continue
		}
		p.replicaRefs(r, f, broken)
	}
	for _, e := range p.root {
		f(&ref{at: e.Addr, n: e.Len, kind: refRoot, sum: e.Sum})
	}
}

// replicaRefs is eachRef for one replica.
func (p *Pool) replicaRefs(r *Replica, f func(x *ref), broken func(r *Replica, chunk uint64, err error)) {
	err := p.eachDir(r, func(s *dirSlot, first uint64) {
		f(&ref{at: s.addr, n: s.size, kind: refDir, sum: s.sum, slot: r.slot, number: first})
	})
	if err != nil {
		broken(r, 0, err)
	}
	var d chunkRef
	for n := uint64(0); ; {
		c, next, ok, err := r.next(n, nil, &d)
		switch n = next; {
		case err != nil:
			broken(r, c, err)
		case !ok:
			return
		default:
			p.chunkRefs(r, c, &d, f, broken)
		}
	}
}

// chunkRefs is eachRef for one chunk.
func (p *Pool) chunkRefs(r *Replica, chunk uint64, d *chunkRef, f func(x *ref), broken func(r *Replica, chunk uint64, err error)) {
	data := func(b uint64, loc index.Loc, sum uint32, v block.Version) {
		f(&ref{at: loc.Addr(), n: uint32(loc.Len()), kind: refData, sum: sum, slot: r.slot, number: b, ver: v})
	}
	for t := range p.idx.tables {
		for n := d.heads[t]; n != 0; n = p.idx.tables[t].At(n).Next {
			if e := p.idx.tables[t].At(n); e.State() == index.Stored {
				data(e.Block(), e.Loc(), e.Sum, e.Version())
			}
		}
	}
	if d.page == 0 {
		return
	}
	f(&ref{at: d.pageAddr(), n: uint32(d.pageLen()), kind: refPage, slot: r.slot, number: chunk, id: d.id})
	var v index.View
	e, err := p.loadPage(r, chunk, d, &v)
	if err != nil {
		broken(r, chunk, err)
		return
	}
	defer p.cache.release(e)
	for i := range block.ChunkBlocks {
		if loc, sum, ok := v.Data(i); ok {
			data(chunk*block.ChunkBlocks+uint64(i), loc, sum, v.Version(i))
		}
	}
	if !d.older && !d.deep {
		return
	}
	var pg index.Page
	v.Decode(&pg)
	for i := range pg.Hist {
		h := &pg.Hist[i]
		f(&ref{at: h.Addr(), n: uint32(h.Len()), kind: refHistory, slot: r.slot, number: chunk, id: h.ID, hist: h})
		if pg.Old, err = p.history(r, chunk, h, pg.Old); err != nil {
			broken(r, chunk, err)
		}
	}
	for i := range pg.Old {
		if x := &pg.Old[i]; x.Stored {
			data(chunk*block.ChunkBlocks+uint64(x.Block), x.Loc, x.Sum, x.Ver)
		}
	}
}

// describe says what x is, for people.
func (p *Pool) describe(x *ref) string {
	r := "replica of slot " + fmt.Sprint(x.slot)
	if int(x.slot) < len(p.idx.bySlot) && p.idx.bySlot[x.slot] != nil {
		r = "replica " + p.idx.bySlot[x.slot].name
	}
	switch x.kind {
	case refData:
		return fmt.Sprintf("%s block %d version %v", r, x.number, x.ver)
	case refPage:
		return fmt.Sprintf("%s index page of chunk %d", r, x.number)
	case refHistory:
		return fmt.Sprintf("%s history page of chunk %d", r, x.number)
	case refDir:
		return fmt.Sprintf("%s part of the directory from chunk %d on", r, x.number)
	case refState:
		return r + " state record"
	case refHeader:
		return fmt.Sprintf("header of batch %d", x.number)
	}
	return "root of the newest checkpoint"
}
