package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// maxStretch is the number of bytes that are read at once when they cannot go straight to their destination.
const maxStretch = 256 << 10

// stretches recycles memory for reads of stretches.
var stretches = sync.Pool{New: func() any { b := disk.Buffer(maxStretch); return &b }}

// stretch is a range of a segment, whole blocks, that one read brings.
type stretch struct {
	n        int    // places that it serves
	from, to uint64 // addresses
	direct   bool   // the bytes are the content of the places
}

// fetch reads the content of places of a chunk into dst, what is close together on a device with one read, and checks
// it. The caller is entered as a reader. inline says that it holds no lock: see segments.readInline.
func (r *Replica) fetch(places []place, chunk uint64, dst []byte, inline bool) error {
	for len(places) > 0 {
		if !places[0].stored {
			clear(dst[:block.Size])
			places, dst = places[1:], dst[block.Size:]
			continue
		}
		x := r.p.stretch(places)
		if err := r.obtain(&x, places[:x.n], chunk, dst[:x.n*block.Size], inline); err != nil {
			return err
		}
		places, dst = places[x.n:], dst[x.n*block.Size:]
	}
	return nil
}

// stretch chooses how many of the places, the first of which is stored, to serve with one read. Blocks that lie one
// after the other as they are go straight to their destination. Otherwise the range may have gaps, since what was
// written together lies together, but in the order of the log; no more is read than twice the content.
func (p *Pool) stretch(places []place) stretch {
	const mask = block.Size - 1
	first := places[0].loc
	x := stretch{n: 1, from: first.Addr() &^ mask, to: (first.End() + mask) &^ mask, direct: first.Raw()}
	if x.direct {
		for x.n < len(places) {
			y := &places[x.n]
			if !y.stored || !y.loc.Raw() || y.loc.Addr() != x.to || p.seg.of(y.loc) != p.seg.of(first) {
				break
			}
			x.to = y.loc.End()
			x.n++
		}
		if x.n == len(places) || x.to-x.from >= maxStretch {
			return x
		}
	}
	from, to := x.from, x.to
	for i := 1; i < len(places); i++ {
		y := &places[i]
		if !y.stored {
			continue
		}
		if p.seg.of(y.loc) != p.seg.of(first) {
			break
		}
		from, to = min(from, y.loc.Addr()&^mask), max(to, (y.loc.End()+mask)&^mask)
		if to-from > maxStretch {
			break
		}
		if i >= x.n && to-from <= 2*uint64(i+1)*block.Size {
			x = stretch{n: i + 1, from: from, to: to}
		}
	}
	return x
}

// obtain reads a stretch and puts the content of its places, checked, into dst.
func (r *Replica) obtain(x *stretch, places []place, chunk uint64, dst []byte, inline bool) error {
	b := dst
	if !x.direct {
		buf := stretches.Get().(*[]byte)
		defer stretches.Put(buf)
		b = (*buf)[:x.to-x.from]
	}
	read := r.p.seg.readAt
	if inline {
		read = r.p.seg.readInline
	}
	if err := read(b, x.from); err != nil {
		return fmt.Errorf("block %d: %w", chunk*block.ChunkBlocks+uint64(places[0].at), err)
	}
	for i := range places {
		y := &places[i]
		to := dst[i*block.Size : (i+1)*block.Size]
		if !y.stored {
			clear(to)
			continue
		}
		if at := y.loc.Addr() - x.from; !r.p.content(y, to, b[at:at+uint64(y.loc.Len())]) {
			return r.damaged(chunk*block.ChunkBlocks+uint64(y.at), y.loc)
		}
	}
	return nil
}

// content makes the content of a block, in dst, of its stored bytes, which may be there already. It reports whether the
// content is what the checksum says; damage of compressed bytes shows as a wrong checksum or before.
func (x *place) content(dst, stored []byte) bool {
	switch {
	case !x.loc.Raw():
		if compress.Unpack(dst, stored) != nil {
			return false
		}
	case &dst[0] != &stored[0]:
		copy(dst, stored)
	}
	return block.Sum(dst) == x.sum
}

// content makes the checked content of a block, in dst, of its stored bytes. When these are damaged they are replaced
// by what the redundancy of the raid group has; it returns false when there is nothing that fits the checksum.
func (p *Pool) content(x *place, dst, stored []byte) bool {
	return x.content(dst, stored) ||
		p.recoverPacked(stored, x.loc.Addr(), func(b []byte) bool { return x.content(dst, b) }) && x.content(dst, stored)
}
