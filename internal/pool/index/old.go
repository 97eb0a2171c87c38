package index

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// Old is a version of a block that a newer one has replaced and that a snapshot shows. Lists of them are in order of
// block, the newest first. The zero version says that the block was never written, where a clone would otherwise show
// what its origin has.
type Old struct {
	Ver    block.Version
	Loc    Loc
	Sum    uint32
	Block  uint16 // within the chunk
	Stored bool   // has data at Loc
}

// CompareOld is the order of lists.
func CompareOld(a, b Old) int {
	if a.Block != b.Block {
		return int(a.Block) - int(b.Block)
	}
	return b.Ver.Compare(a.Ver)
}

const (
	oldFixed = 32
	maxOld   = 2 + 8 + 4 + 2 + 8 + 8 // bytes of one version, its epoch's number and the epoch included
	oldData  = 1 << 15               // in the block number: has data
)

// oldShape is how wide the fields of a list are.
type oldShape struct {
	locBase, nBase uint64
	locW, nW, eW   int
	shift          uint
	epochs         []uint64
}

func (s *oldShape) stride() int { return 2 + s.locW + 4 + s.eW + s.nW }

// shapeOf measures a list. epochs is scratch.
func shapeOf(old []Old, epochs []uint64) (s oldShape) {
	s.shift, s.epochs = block.Shift, epochs[:0]
	for i := range old {
		if old[i].Stored && old[i].Loc&(block.Size-1) != locLen {
			s.shift = 0
			break
		}
	}
	loLoc, hiLoc, loN, hiN := ^uint64(0), uint64(0), ^uint64(0), uint64(0)
	last := 0
	for i := range old {
		o := &old[i]
		if o.Stored {
			l := uint64(o.Loc) >> s.shift
			loLoc, hiLoc = min(loLoc, l), max(hiLoc, l)
		}
		loN, hiN = min(loN, o.Ver.N), max(hiN, o.Ver.N)
		if last < len(s.epochs) && s.epochs[last] == o.Ver.Epoch {
			continue
		}
		if last = slices.Index(s.epochs, o.Ver.Epoch); last < 0 {
			last = len(s.epochs)
			s.epochs = append(s.epochs, o.Ver.Epoch)
		}
	}
	if loLoc <= hiLoc {
		s.locBase, s.locW = loLoc, width(hiLoc-loLoc)
	}
	if loN <= hiN {
		s.nBase, s.nW = loN, width(hiN-loN)
	}
	if len(s.epochs) > 1 {
		s.eW = width(uint64(len(s.epochs) - 1))
	}
	return s
}

// OldLen returns the bytes that a list takes.
func OldLen(old []Old) int {
	if len(old) == 0 {
		return 0
	}
	var epochs [64]uint64
	s := shapeOf(old, epochs[:])
	return oldFixed + 8*len(s.epochs) + len(old)*s.stride()
}

// appendOld appends an encoded list to b.
func appendOld(b []byte, old []Old) []byte {
	var epochs [64]uint64
	s := shapeOf(old, epochs[:])
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(old)))
	b = le.AppendUint16(b, uint16(len(s.epochs)))
	b = append(b, byte(s.locW), byte(s.nW), byte(s.eW), byte(s.shift), 0, 0, 0, 0, 0, 0)
	b = le.AppendUint64(b, s.locBase)
	b = le.AppendUint64(b, s.nBase)
	for _, e := range s.epochs {
		b = le.AppendUint64(b, e)
	}
	stride, last := s.stride(), 0
	at := len(b)
	b = slices.Grow(b, len(old)*stride)[:at+len(old)*stride]
	for i := range old {
		o := &old[i]
		x := b[at+i*stride : at+(i+1)*stride]
		clear(x)
		name := o.Block
		if o.Stored {
			name |= oldData
			putUint(x[2:], s.locW, uint64(o.Loc)>>s.shift-s.locBase)
			le.PutUint32(x[2+s.locW:], o.Sum)
		}
		le.PutUint16(x, name)
		if s.epochs[last] != o.Ver.Epoch {
			last = slices.Index(s.epochs, o.Ver.Epoch)
		}
		putUint(x[6+s.locW:], s.eW, uint64(last))
		putUint(x[6+s.locW+s.eW:], s.nW, o.Ver.N-s.nBase)
	}
	return b
}

// OldView gives access to an encoded list.
type OldView struct {
	b      []byte // epochs, then versions
	n      int
	s      oldShape
	stride int
	at     int
}

// open checks a list that fills b, apart from padding at its end. checked leaves out what takes time in proportion to it, for
// lists that were checked before.
func (v *OldView) open(b []byte, checked bool) error {
	*v = OldView{}
	if len(b) == 0 {
		return nil
	}
	if len(b) < oldFixed {
		return fmt.Errorf("older versions of %d bytes: %w", len(b), ErrDamaged)
	}
	le := binary.LittleEndian
	n, epochs := le.Uint32(b), int(le.Uint16(b[4:]))
	v.s = oldShape{locW: int(b[6]), nW: int(b[7]), eW: int(b[8]), shift: uint(b[9]), locBase: le.Uint64(b[16:]), nBase: le.Uint64(b[24:])}
	v.b, v.stride, v.at = b[oldFixed:], v.s.stride(), 8*epochs
	if v.s.locW > 8 || v.s.nW > 8 || v.s.eW > 2 || v.s.shift != 0 && v.s.shift != block.Shift ||
		n == 0 || epochs == 0 || uint64(v.at)+uint64(n)*uint64(v.stride) > uint64(len(v.b)) {
		return fmt.Errorf("older versions: fields out of limits: %w", ErrDamaged)
	}
	v.n = int(n)
	for i := 0; i < v.n && !checked; i++ {
		x := v.b[v.at+i*v.stride:]
		if v.block(i) >= block.ChunkBlocks || int(getUint(x[6+v.s.locW:v.stride], v.s.eW)) >= epochs {
			return fmt.Errorf("older version %d: fields out of limits: %w", i, ErrDamaged)
		}
	}
	return nil
}

// Len returns the number of versions.
func (v *OldView) Len() int { return v.n }

func (v *OldView) block(i int) int {
	return int(binary.LittleEndian.Uint16(v.b[v.at+i*v.stride:]) &^ oldData)
}

// At returns version i of the list.
func (v *OldView) At(i int) (o Old) {
	le := binary.LittleEndian
	x := v.b[v.at+i*v.stride : v.at+(i+1)*v.stride]
	name := le.Uint16(x)
	o.Block, o.Stored = name&^oldData, name&oldData != 0
	e := int(getUint(x[6+v.s.locW:], v.s.eW))
	o.Ver = block.Version{Epoch: le.Uint64(v.b[8*e:]), N: v.s.nBase + getUint(x[6+v.s.locW+v.s.eW:], v.s.nW)}
	if o.Stored {
		loc := v.s.locBase + getUint(x[2:], v.s.locW)
		loc <<= v.s.shift
		if v.s.shift != 0 {
			loc |= locLen
		}
		o.Loc, o.Sum = Loc(loc), le.Uint32(x[2+v.s.locW:])
	}
	return o
}

// Find returns the newest version of a block that is not newer than at.
func (v *OldView) Find(b int, at block.Version) (o Old, ok bool) {
	for i := v.first(b); i < v.n && v.block(i) == b; i++ {
		if o = v.At(i); !at.Less(o.Ver) {
			return o, true
		}
	}
	return Old{}, false
}

// FindAt returns the version of a block that has its data at loc.
func (v *OldView) FindAt(b int, loc Loc) (o Old, ok bool) {
	for i := v.first(b); i < v.n && v.block(i) == b; i++ {
		if o = v.At(i); o.Stored && o.Loc == loc {
			return o, true
		}
	}
	return Old{}, false
}

// first returns the place of the first version of a block that is not before b.
func (v *OldView) first(b int) int {
	lo, hi := 0, v.n
	for lo < hi {
		if m := (lo + hi) / 2; v.block(m) < b {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// Append appends all versions to dst.
func (v *OldView) Append(dst []Old) []Old {
	dst = slices.Grow(dst, v.n)
	for i := range v.n {
		dst = append(dst, v.At(i))
	}
	return dst
}

func (v *OldView) end() (end uint64) {
	for i := range v.n {
		if o := v.At(i); o.Stored {
			end = max(end, o.Loc.End())
		}
	}
	return end
}
