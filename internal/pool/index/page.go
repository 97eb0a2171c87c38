// Package index holds the two forms in which the engine keeps where blocks are: pages, the compact and immutable
// on-disk form for one chunk of 512 blocks, and tables, the pointer-free hash tables of updates that are not in a page
// yet. It does no I/O and no locking. Decoding arbitrary bytes neither panics nor reads outside them.
package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

const (
	pageMagic = 0x32504743 // "CGP2"
	pageFixed = 64
	// Granule is the unit of page lengths in bytes.
	Granule = 64
	// MinPage is the smallest encoded page in bytes.
	MinPage = pageFixed + 128
	// MaxPage is the largest encoded page in bytes.
	MaxPage = MaxHeads + MaxHistories*histRef + MaxInline
	// MaxHeads is that of a page without older versions.
	MaxHeads = 64 + 128 + block.ChunkBlocks*(8+8+4+2+8) + Granule
)

// ErrDamaged is wrapped when a page does not decode.
var ErrDamaged = errors.New("damaged index page")

// Bitmap has one bit for each block of a chunk.
type Bitmap [block.ChunkBlocks / 64]uint64

func (m *Bitmap) Has(i int) bool { return m[i>>6]>>(i&63)&1 != 0 }
func (m *Bitmap) Set(i int)      { m[i>>6] |= 1 << (i & 63) }
func (m *Bitmap) Unset(i int)    { m[i>>6] &^= 1 << (i & 63) }

// Count returns the number of bits set.
func (m *Bitmap) Count() (n int) {
	for _, w := range m {
		n += bits.OnesCount64(w)
	}
	return n
}

// rank returns the number of bits set before i.
func (m *Bitmap) rank(i int) int {
	n := 0
	for w := range i >> 6 {
		n += bits.OnesCount64(m[w])
	}
	return n + bits.OnesCount64(m[i>>6]&(1<<(i&63)-1))
}

// Page is the decoded form: for each block its newest version (zero: never written), and location and checksum when it
// has data; the older versions that snapshots show; and where more of them are.
type Page struct {
	Stored Bitmap
	Hole   Bitmap // never written, but hides what a clone's origin has
	Ver    [block.ChunkBlocks]block.Version
	Loc    [block.ChunkBlocks]Loc
	Sum    [block.ChunkBlocks]uint32
	Old    []Old     // newer than what Hist has of the same block
	Hist   []HistRef // newest first
}

// Reset makes p the page of a chunk that was discarded as a whole at v; the zero version: never written.
func (p *Page) Reset(v block.Version) {
	p.Stored, p.Hole = Bitmap{}, Bitmap{}
	p.Old, p.Hist = p.Old[:0], p.Hist[:0]
	for i := range p.Ver {
		p.Ver[i] = v
	}
}

// Uniform reports whether no block has data, all have the same version and there are no others, which needs no page.
func (p *Page) Uniform() (v block.Version, ok bool) {
	if p.Stored != (Bitmap{}) || p.Hole != (Bitmap{}) || len(p.Old) > 0 || len(p.Hist) > 0 {
		return v, false
	}
	for i := range p.Ver {
		if p.Ver[i] != p.Ver[0] {
			return v, false
		}
	}
	return p.Ver[0], true
}

// At returns the newest version of a block, which has one.
func (p *Page) At(b int) Old {
	return Old{Block: uint16(b), Ver: p.Ver[b], Loc: p.Loc[b], Sum: p.Sum[b], Stored: p.Stored.Has(b)}
}

// SetNewest makes o the newest version of its block.
func (p *Page) SetNewest(o Old) {
	b := int(o.Block)
	p.Ver[b], p.Loc[b], p.Sum[b] = o.Ver, o.Loc, o.Sum
	p.Stored.Unset(b)
	if o.Stored {
		p.Stored.Set(b)
	}
}

// Rewind makes p, whose older versions are all in Old, what it was at a version: per block the newest version that is
// not newer.
func (p *Page) Rewind(at block.Version) {
	for b := range p.Ver {
		if at.Less(p.Ver[b]) {
			p.SetNewest(Old{Block: uint16(b)})
		}
	}
	for i := len(p.Old) - 1; i >= 0; i-- { // from the oldest of a block to the newest
		if o := p.Old[i]; !at.Less(o.Ver) && !o.Ver.Less(p.Ver[o.Block]) {
			p.SetNewest(o)
		}
	}
	p.Old = p.Old[:0]
}

// Find returns the newest version of a block that is not newer than at, of a page whose older versions are all in Old.
func (p *Page) Find(b int, at block.Version) (o Old, ok bool) {
	if (!p.Ver[b].IsZero() || p.Hole.Has(b)) && !at.Less(p.Ver[b]) {
		return p.At(b), true
	}
	i, _ := slices.BinarySearchFunc(p.Old, Old{Block: uint16(b), Ver: at}, CompareOld)
	if i < len(p.Old) && int(p.Old[i].Block) == b {
		return p.Old[i], true
	}
	return Old{}, false
}

func width(v uint64) int { return (bits.Len64(v) + 7) / 8 }

// putUint puts the low w bytes of v at the front of b, and zeroes behind them where there is room for eight, and returns
// what is behind the w bytes: of several numbers the first is put first.
func putUint(b []byte, w int, v uint64) []byte {
	if len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, v)
	} else {
		for i := range w {
			b[i] = byte(v >> (8 * i))
		}
	}
	return b[w:]
}

func getUint(b []byte, w int) (v uint64) {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b) & (1<<(8*w) - 1)
	}
	for i := range w {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

// MaxLen returns a bound of the bytes that p takes when it is encoded.
func (p *Page) MaxLen() int { return MaxHeads + len(p.Hist)*histRef + OldLen(p.Old) }

// Encode writes p behind dst, which must have MaxLen bytes of room, and returns the longer slice. id is a number that
// no other page of the pool has; slot and chunk say whose page it is.
func (p *Page) Encode(dst []byte, id uint64, slot uint32, chunk uint64) []byte {
	var versioned Bitmap
	var epochs [block.ChunkBlocks]uint64
	var epochOf [block.ChunkBlocks]uint16
	nEpochs, last, shift := 0, -1, uint(block.Shift)
	for i := range p.Loc {
		if p.Stored.Has(i) && p.Loc[i]&(block.Size-1) != locLen {
			shift = 0
			break
		}
	}
	loLoc, hiLoc, loN, hiN := ^uint64(0), uint64(0), ^uint64(0), uint64(0)
	for i := range p.Ver {
		if v := p.Ver[i]; !v.IsZero() || p.Hole.Has(i) {
			versioned.Set(i)
			if last < 0 || epochs[last] != v.Epoch {
				for last = 0; last < nEpochs && epochs[last] != v.Epoch; last++ {
				}
				if last == nEpochs {
					epochs[last] = v.Epoch
					nEpochs++
				}
			}
			epochOf[i] = uint16(last)
			loN, hiN = min(loN, v.N), max(hiN, v.N)
		}
		if p.Stored.Has(i) {
			loLoc, hiLoc = min(loLoc, uint64(p.Loc[i])>>shift), max(hiLoc, uint64(p.Loc[i])>>shift)
		}
	}
	if loLoc > hiLoc {
		loLoc, hiLoc = 0, 0
	}
	if loN > hiN {
		loN, hiN = 0, 0
	}
	locW, nW, eW := width(hiLoc-loLoc), width(hiN-loN), 0
	if nEpochs > 1 {
		eW = width(uint64(nEpochs - 1))
	}
	stored, nv := p.Stored.Count(), versioned.Count()
	heads := pageFixed + 128 + 8*nEpochs + stored*(locW+4) + nv*(eW+nW)
	start := len(dst)
	dst = dst[:start+heads]
	for i := range p.Hist {
		dst = p.Hist[i].append(dst)
	}
	olds := len(dst) - start
	if len(p.Old) > 0 {
		dst = appendOld(dst, p.Old)
	}
	length := (len(dst) - start + Granule - 1) &^ (Granule - 1)
	end := len(dst)
	dst = dst[:start+length]
	clear(dst[end:])
	b := dst[start:]
	clear(b[:pageFixed])
	le := binary.LittleEndian
	le.PutUint32(b[0:], pageMagic)
	// b[4:8] is the checksum
	le.PutUint64(b[8:], id)
	le.PutUint64(b[16:], chunk)
	le.PutUint32(b[24:], slot)
	le.PutUint32(b[28:], uint32(length))
	le.PutUint64(b[32:], loLoc)
	le.PutUint64(b[40:], loN)
	le.PutUint16(b[48:], uint16(nEpochs))
	b[50], b[51], b[52], b[53] = byte(locW), byte(nW), byte(eW), byte(shift)
	le.PutUint16(b[54:], uint16(len(p.Hist)))
	if len(p.Old) > 0 {
		le.PutUint32(b[56:], uint32(olds))
	}
	at := pageFixed
	for w := range p.Stored {
		le.PutUint64(b[at+8*w:], p.Stored[w])
		le.PutUint64(b[at+64+8*w:], versioned[w])
	}
	at += 128
	for _, e := range epochs[:nEpochs] {
		le.PutUint64(b[at:], e)
		at += 8
	}
	part := func(n int) (x []byte) {
		x, at = b[at:at+n:at+n], at+n
		return x
	}
	locs, sums, eps, ns := part(stored*locW), part(4*stored), part(nv*eW), part(nv*nW)
	for i := range p.Ver {
		if p.Stored.Has(i) {
			le.PutUint32(sums, p.Sum[i])
			locs, sums = putUint(locs, locW, uint64(p.Loc[i])>>shift-loLoc), sums[4:]
		}
		if versioned.Has(i) {
			eps, ns = putUint(eps, eW, uint64(epochOf[i])), putUint(ns, nW, p.Ver[i].N-loN)
		}
	}
	le.PutUint32(b[4:], block.Sum(b[8:]))
	return dst
}

// View gives access to single blocks of an encoded page without decoding all of it.
type View struct {
	b                   []byte
	stored, versioned   Bitmap
	locBase, nBase      uint64
	locW, nW, eW        int
	shift               uint
	locs, sums, eps, ns int  // offsets
	hist, nHist         int  // offset and number of references to history pages
	old                 int  // offset of older versions, 0: none
	sound               bool // these were checked
}

// Open checks the encoded page b against what it should be and prepares v for access. v refers to b afterwards.
// checked skips, for pages that were checked before, End included, what takes time in proportion to the page.
func (v *View) Open(b []byte, id uint64, slot uint32, chunk uint64, checked bool) error {
	le := binary.LittleEndian
	if len(b) < pageFixed+128 || le.Uint32(b) != pageMagic {
		return fmt.Errorf("no page: %w", ErrDamaged)
	}
	if !checked && le.Uint32(b[4:]) != block.Sum(b[8:]) {
		return fmt.Errorf("checksum: %w", ErrDamaged)
	}
	if le.Uint64(b[8:]) != id || le.Uint64(b[16:]) != chunk || le.Uint32(b[24:]) != slot || int(le.Uint32(b[28:])) != len(b) {
		return fmt.Errorf("page of something else: %w", ErrDamaged)
	}
	nEpochs := int(le.Uint16(b[48:]))
	*v = View{b: b, sound: checked, locBase: le.Uint64(b[32:]), nBase: le.Uint64(b[40:]), locW: int(b[50]), nW: int(b[51]), eW: int(b[52]), shift: uint(b[53])}
	at := pageFixed
	for w := range v.stored {
		v.stored[w] = le.Uint64(b[at+8*w:])
		v.versioned[w] = le.Uint64(b[at+64+8*w:])
		if v.stored[w]&^v.versioned[w] != 0 {
			return fmt.Errorf("data without version: %w", ErrDamaged)
		}
	}
	stored, nv := v.stored.Count(), v.versioned.Count()
	v.locs = at + 128 + 8*nEpochs
	v.sums = v.locs + stored*v.locW
	v.eps = v.sums + 4*stored
	v.ns = v.eps + nv*v.eW
	if nEpochs > block.ChunkBlocks || nv > 0 && nEpochs == 0 || v.locW > 8 || v.nW > 8 || v.eW > 2 || v.shift != 0 && v.shift != block.Shift || v.ns+nv*v.nW > len(b) {
		return fmt.Errorf("fields out of limits: %w", ErrDamaged)
	}
	v.hist, v.nHist, v.old = v.ns+nv*v.nW, int(le.Uint16(b[54:])), int(le.Uint32(b[56:]))
	if at := v.hist + v.nHist*histRef; v.nHist > MaxHistories || at > len(b) || v.old != 0 && (v.old != at || len(b) > MaxPage) {
		return fmt.Errorf("older versions out of limits: %w", ErrDamaged)
	}
	for i := 0; v.eW > 0 && i < nv && !checked; i++ {
		if int(getUint(b[v.eps+i*v.eW:], v.eW)) >= nEpochs {
			return fmt.Errorf("epoch out of limits: %w", ErrDamaged)
		}
	}
	return nil
}

// Stored returns which blocks have data.
func (v *View) Stored() *Bitmap { return &v.stored }

// Version returns the version of block i; zero: never written.
func (v *View) Version(i int) block.Version {
	if !v.versioned.Has(i) {
		return block.Version{}
	}
	return v.version(v.versioned.rank(i))
}

func (v *View) version(rank int) block.Version {
	e := 0
	if v.eW > 0 {
		e = int(getUint(v.b[v.eps+rank*v.eW:], v.eW))
	}
	return block.Version{
		Epoch: binary.LittleEndian.Uint64(v.b[pageFixed+128+8*e:]),
		N:     v.nBase + getUint(v.b[v.ns+rank*v.nW:], v.nW),
	}
}

// Known reports whether the page has a version of block i, which is zero for a hole that hides something.
func (v *View) Known(i int) bool { return v.versioned.Has(i) }

// HasOld reports whether the page has or refers to older versions.
func (v *View) HasOld() bool { return v.old != 0 || v.nHist > 0 }

// Old opens the older versions that are in the page.
func (v *View) Old(o *OldView) error {
	if v.old == 0 {
		return o.open(nil, true)
	}
	return o.open(v.b[v.old:], v.sound)
}

// Histories returns the number of history pages, History one of them.
func (v *View) Histories() int { return v.nHist }
func (v *View) History(i int) (h HistRef) {
	h.decode(v.b[v.hist+i*histRef:])
	return h
}

// Data returns location and checksum of block i; false when it has no data.
func (v *View) Data(i int) (loc Loc, sum uint32, ok bool) {
	if !v.stored.Has(i) {
		return 0, 0, false
	}
	r := v.stored.rank(i)
	loc, sum = v.data(r)
	return loc, sum, true
}

func (v *View) data(rank int) (Loc, uint32) {
	loc := v.locBase
	if v.locW > 0 {
		loc += getUint(v.b[v.locs+rank*v.locW:], v.locW)
	}
	loc <<= v.shift
	if v.shift != 0 {
		loc |= locLen
	}
	return Loc(loc), binary.LittleEndian.Uint32(v.b[v.sums+4*rank:])
}

// End returns the address behind the last stored byte that the page refers to, 0 if it refers to nothing.
func (v *View) End() (end uint64) {
	var o OldView
	v.sound = false
	if v.Old(&o) != nil {
		return ^uint64(0)
	}
	v.sound = true
	end = o.end()
	for i := range v.nHist {
		h := v.History(i)
		end = max(end, h.Addr()+uint64(h.Len()))
	}
	stored := v.stored.Count()
	if v.shift == 0 || v.locW == 0 {
		for n := range stored {
			loc, _ := v.data(n)
			end = max(end, loc.End())
		}
		return end
	}
	last := uint64(0) // all of them are whole blocks, so the highest number is that of the last one
	b, w := v.b[v.locs:], v.locW
	for n := range stored {
		last = max(last, getUint(b[n*w:], w))
	}
	switch last += v.locBase; {
	case stored == 0:
		return end
	case last < v.locBase || last > uint64(MaxLoc)>>v.shift:
		return ^uint64(0)
	}
	return max(end, Loc(last<<v.shift|locLen).End())
}

// Decode fills p from v, which End accepted.
func (v *View) Decode(p *Page) {
	p.Stored, p.Hole = v.stored, Bitmap{}
	s, n := 0, 0
	for i := range p.Ver {
		p.Ver[i] = block.Version{}
		if v.versioned.Has(i) {
			if p.Ver[i] = v.version(n); p.Ver[i].IsZero() {
				p.Hole.Set(i)
			}
			n++
		}
		if v.stored.Has(i) {
			p.Loc[i], p.Sum[i] = v.data(s)
			s++
		}
	}
	p.Old, p.Hist = p.Old[:0], p.Hist[:0]
	if v.old != 0 {
		var o OldView
		if v.Old(&o) == nil {
			p.Old = o.Append(p.Old)
		}
	}
	for i := range v.nHist {
		p.Hist = append(p.Hist, v.History(i))
	}
}
