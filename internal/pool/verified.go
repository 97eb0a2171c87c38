package pool

import (
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// Everything that is read is checked by who reads it. What fails the check is asked for again through the functions of
// this file, which try all that the redundancy of the raid group offers and rewrite what was wrong.

// recover obtains the whole blocks at addr for which ok holds into b. It returns false when there are none.
func (p *Pool) recover(b []byte, addr uint64, ok func([]byte) bool) bool {
	return p.recoverPart(b, addr, 0, len(b), ok)
}

// recoverPart is recover when ok looks at b[from:to] only.
func (p *Pool) recoverPart(b []byte, addr uint64, from, to int, ok func([]byte) bool) bool {
	if p.seg.checkRange(addr, len(b)) != nil {
		return false
	}
	g, off := p.seg.locate(addr)
	if !g.Redundant() {
		return false
	}
	if err := g.RecoverPart(b, off, from, to, ok); err != nil {
		return false
	}
	g.dirty.Store(true) // after the writes: the next flush covers them
	n := p.count.repaired.Add(1)
	few := n&(n-1) == 0 || n%1000 == 0 // not one line for each block of a bad disk
	if device, at := g.place(off); p.opt.Log != nil && p.offline == nil && few {
		p.opt.Log.Warn("damaged block was repaired from the redundancy of its raid group", "pool", p.cfg.Name, "group", g.name(), "device", device,
			"offset", at, "repaired", n)
	}
	return true
}

// recoverPacked obtains bytes that need not be aligned, and for which ok holds, into dst.
func (p *Pool) recoverPacked(dst []byte, addr uint64, ok func([]byte) bool) bool {
	if p.seg.checkRange(addr, len(dst)) != nil {
		return false
	}
	from := addr &^ (block.Size - 1)
	to := (addr + uint64(len(dst)) + block.Size - 1) &^ (block.Size - 1)
	b := disk.Buffer(int(to - from))
	inside := func(b []byte) []byte { return b[addr-from:][:len(dst):len(dst)] }
	at := int(addr - from)
	if !p.recoverPart(b, from, at, at+len(dst), func(b []byte) bool { return ok(inside(b)) }) {
		return false
	}
	copy(dst, inside(b))
	return true
}

// readSummed reads bytes whose checksum is known and that need not be aligned.
func (p *Pool) readSummed(dst []byte, addr uint64, sum uint32) error {
	if err := p.readPacked(dst, addr); err != nil {
		return err
	}
	ok := func(b []byte) bool { return block.Sum(b) == sum }
	if !ok(dst) && !p.recoverPacked(dst, addr, ok) {
		p.count.sumErrors.Add(1)
		device, off := p.where(addr)
		return fmt.Errorf("checksum at %s offset %d: %w", device, off, ErrDamaged)
	}
	return nil
}

// where returns the device of an address and the offset on it, for messages.
func (p *Pool) where(addr uint64) (device string, off int64) {
	if addr >= p.seg.limit() {
		return "none", -1
	}
	g, at := p.seg.locate(addr)
	return g.place(at)
}

// wanted is header for a place where the caller knows what it looks for: when what is there is something else, the
// other copies are asked.
func (l *logReader) wanted(seg, blk uint32, want func(h *wal.Header) bool) (h wal.Header, b []byte, err error) {
	h, b, err = l.header(seg, blk)
	if err == nil && want(&h) {
		if a := l.ahead; a != nil && h.Flags&wal.FlagLink == 0 {
			a.stride, a.blocks = padded(&h, l.p.seg.row(seg)), uint32(h.HeaderBlocks)
		}
		return h, b, nil
	}
	p := l.p
	addr := uint64(seg)<<p.seg.shift + uint64(blk)<<block.Shift
	if g, _ := p.seg.locate(addr); !g.Redundant() {
		if err == nil {
			err = wal.ErrDamaged
		}
		return h, nil, err
	}
	var lengths [wal.MaxHeaderBlocks + 1]bool // that copies of the first block claim
	l.n = 0
	p.recover(l.buf[:block.Size], addr, func(b []byte) bool {
		if n := wal.Size(b); n > 0 && uint32(n) <= p.seg.blocks()-blk {
			lengths[n] = true
		}
		return false
	})
	for n := range lengths {
		if !lengths[n] {
			continue
		}
		b := l.buf[:n*block.Size]
		if p.recover(b, addr, func(b []byte) bool {
			x, err := wal.Decode(b)
			return err == nil && x.HeaderBlocks == n && l.fits(&x, seg, blk) && want(&x)
		}) {
			l.seg, l.from, l.n = seg, blk, uint32(n)
			h, err = wal.Decode(b)
			return h, b, err
		}
	}
	return h, nil, wal.ErrDamaged
}
