package pool

import (
	"errors"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// Damage is something that nothing could repair: it reads as an error until it is overwritten.
type Damage struct {
	Replica string // "" if it is not a replica's, or not known whose
	Block   uint64 // first one that is concerned
	Device  string
	Offset  int64 // on Device
	What    string
}

// maxDamage bounds the list of damages.
const maxDamage = 1000

// Damage returns what the last scrub, and resilvers since it began, could not repair; at most the first 1000.
func (p *Pool) Damage() []Damage {
	p.upkeep.mu.Lock()
	defer p.upkeep.mu.Unlock()
	return slices.Clone(p.upkeep.damage)
}

// found notes damage and tells the operator. It returns false for what is known.
func (p *Pool) found(d Damage) (news bool) {
	u := &p.upkeep
	u.mu.Lock()
	known := slices.Contains(u.damage, d)
	if !known && len(u.damage) < maxDamage {
		u.damage = append(u.damage, d)
	}
	n := len(u.damage)
	u.mu.Unlock()
	if p.opt.Log != nil && !known && n < maxDamage {
		p.opt.Log.Error("stored data is damaged and cannot be repaired", "pool", p.cfg.Name, "what", d.What, "replica", d.Replica, "block", d.Block, "device", d.Device, "offset", d.Offset)
	}
	return !known
}

// sound returns those of some pieces, in blocks counted from an address that could not be healed or elsewhere, which
// are not damaged themselves. It reports those that are and that something refers to, but a destroyed replica.
func (w *walk) sound(pieces []piece, from uint64, lost []int) (kept []piece) {
	asked := 0
	w.chunk.r = nil
	for i := range pieces {
		x := &pieces[i]
		if x.touches(from, lost) {
			w.secure(x)
		}
		switch {
		case x.kind != pieceZero && !x.lost || !x.touches(from, lost):
			kept = append(kept, *x)
			continue
		case x.kind == pieceZero, x.kind == pieceState:
			continue // nobody needs it
		}
		if x.kind == pieceBlock {
			if refers, sure := w.indexed(x, &asked); sure && (!refers || w.chunk.r.isDestroyed()) {
				continue
			}
		}
		if !x.reported {
			x.reported = true
			w.damaged(x)
		}
	}
	return kept
}

// touches reports whether x is in one of some blocks, which are counted from an address.
func (x *piece) touches(from uint64, blocks []int) bool {
	for _, k := range blocks {
		if at := from + uint64(k)<<block.Shift; at < x.end() && x.at < at+block.Size {
			return true
		}
	}
	return false
}

// damaged reports a piece that nothing can bring back.
func (w *walk) damaged(x *piece) {
	p := w.p
	d := Damage{Block: x.block(), What: x.kind.String()}
	d.Device, d.Offset = p.where(x.at)
	p.idx.mu.RLock()
	if x.kind.ofReplica() && int(x.slot) < len(p.idx.bySlot) && p.idx.bySlot[x.slot] != nil {
		d.Replica = p.idx.bySlot[x.slot].name
	}
	p.idx.mu.RUnlock()
	if w.found(d) {
		w.errors++
		p.count.sumErrors.Add(1)
	}
}

// damagedPage reports a page that could not be read when the index was gone through. A part of the directory is found by
// itself.
func (w *walk) damagedPage(c *chunkPieces) {
	w.hidden = w.hidden || w.p.someAway()
	var e *ChecksumError
	d := Damage{Replica: c.r.name, Block: c.number * block.ChunkBlocks, What: piecePage.String()}
	if errors.As(c.err, &e) {
		d.Device, d.Offset = e.Device, e.Offset
	}
	if (e == nil || e.What != "directory") && w.found(d) {
		w.errors++
	}
}
