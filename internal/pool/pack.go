package pool

import (
	"bytes"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// packer makes the data of a unit ready for the log, before the log is locked: it finds blocks of zeroes, which are not
// stored, and compresses what shrinks.
type packer struct {
	comp   compress.Packer
	lens   []uint8 // per block, as in wal.Record
	out    []byte  // the compressed blocks, one after the other; zeroes follow up to a whole number of blocks
	raw    int     // blocks stored as they are
	zeroes int
	lensAt int // what next has handed out
	outAt  int
	held   []*liveChunk // scratch of the caller
}

// maxPacker is the largest memory of a packer that is kept.
const maxPacker = 4 << 20

var packers = sync.Pool{New: func() any { return &packer{out: disk.Buffer(128 << 10)[:0]} }}

func getPacker() *packer {
	s := packers.Get().(*packer)
	s.lens, s.out, s.raw, s.zeroes, s.lensAt, s.outAt = s.lens[:0], s.out[:0], 0, 0, 0, 0
	return s
}

// release ends the use of everything that next returned.
func (s *packer) release() {
	if cap(s.out) <= maxPacker {
		packers.Put(s)
	}
}

// add takes blocks, whose checksums are known, of r.
func (s *packer) add(r *Replica, data []byte, sums []uint32) {
	a := compress.Algorithm(r.p.compression.Load())
	pace := r.pace.Begin()
	for i, sum := range sums {
		b := data[i*block.Size : (i+1)*block.Size]
		if sum == block.ZeroSum && bytes.Equal(b, zeroRow[:block.Size]) {
			s.lens = append(s.lens, 0)
			s.zeroes++
			continue
		}
		n := 0
		if a != compress.Off && pace.Try() {
			n = s.comp.Pack(a, s.room(), b)
			pace.Tried(n > 0)
		}
		if n == 0 {
			s.lens = append(s.lens, wal.MaxLen)
			s.raw++
			continue
		}
		s.lens = append(s.lens, uint8(n/wal.Granule))
		s.out = s.out[:len(s.out)+n]
	}
	r.pace.End(pace)
}

// room returns memory behind out for one compressed block.
func (s *packer) room() []byte {
	at := len(s.out)
	if cap(s.out)-at < compress.MaxPacked {
		b := disk.Buffer(2 * cap(s.out))
		copy(b, s.out)
		s.out = b[:at]
	}
	return s.out[at : at+compress.MaxPacked]
}

// seal ends adding. It returns how many data blocks all of it takes in a batch.
func (s *packer) seal() int {
	n := len(s.out)
	clear(s.out[n : blocksFor(n)*block.Size])
	return wal.AreaBlocks(s.raw, n)
}

// next returns lengths and compressed blocks of the next n blocks, in the order in which they were added.
func (s *packer) next(n int) (lens []uint8, packed []byte) {
	lens = s.lens[s.lensAt : s.lensAt+n]
	s.lensAt += n
	if s.raw == len(s.lens) {
		return nil, nil
	}
	raw, size := wal.DataLen(wal.Write, uint32(n), lens)
	if raw == n {
		return nil, nil
	}
	packed = s.out[s.outAt : s.outAt+size]
	s.outAt += size
	return lens, packed
}

// count adds what was packed to the pool's counters.
func (s *packer) count(c *counters) {
	if s.raw == len(s.lens) {
		return
	}
	c.blocksZero.Add(uint64(s.zeroes))
	c.blocksPacked.Add(uint64(len(s.lens) - s.raw - s.zeroes))
}

// SetCompression changes how data is compressed that is written from now on.
func (p *Pool) SetCompression(a compress.Algorithm) { p.compression.Store(uint32(a)) }

// Compression returns how data is compressed that is written now.
func (p *Pool) Compression() compress.Algorithm { return compress.Algorithm(p.compression.Load()) }
