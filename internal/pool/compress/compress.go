// Package compress makes single blocks of 4 KiB smaller. What it returns says how it was made, so that blocks of
// different algorithms lie side by side, and is whole granules long: two bytes (bits 0–11: bytes that follow, bits
// 12–15: the algorithm), the compressed bytes, zeroes. A block that does not shrink enough is left as it is.
//
// The package keeps no checksums: Unpack of damaged bytes fails or returns other content, which the caller's checksum
// of the content tells apart. It neither panics nor reads or writes outside what it is given nor allocates in
// proportion to what damaged bytes claim.
package compress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/cstor-go/cstor/internal/block"
)

// Algorithm is how blocks are compressed from now on.
type Algorithm uint8

const (
	LZ4  Algorithm = iota // the default
	Zstd                  // smaller, at two to four times the cost
	Off                   // blocks are stored as they are; all-zero blocks still cost nothing
)

func (a Algorithm) String() string {
	switch a {
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	case Off:
		return "off"
	}
	return fmt.Sprintf("algorithm %d", uint8(a))
}

// Parse reads what String prints.
func Parse(s string) (Algorithm, error) {
	for a := LZ4; a <= Off; a++ {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, fmt.Errorf("compression %q is unknown, want lz4, zstd or off", s)
}

const (
	// Granule is the unit of stored lengths in bytes.
	Granule = 64
	// MaxPacked is the largest result of Pack: a block is worth compressing only if it saves 512 bytes.
	MaxPacked = block.Size - 512

	head = 2 // bytes before the compressed ones
)

// The numbers that stand for the algorithms on disk.
const (
	codeLZ4  = 1
	codeZstd = 2
)

// ErrDamaged is returned by Unpack for bytes that are not the result of Pack.
var ErrDamaged = errors.New("compressed block is damaged")

// Packer compresses. The zero value is ready; it is large, to be recycled, and not for concurrent use.
type Packer struct {
	lz4  lz4.CompressorCCompat // for blocks of 4 KiB denser than lz4.Compressor, and sooner done with noise
	slow []byte                // zstd writes here, since it may need more than what is accepted
}

// zstdEncoder and zstdDecoder are shared by all users of the process.
var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true),
			zstd.WithWindowSize(block.Size), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(block.Size), zstd.WithDecoderMaxWindow(block.Size),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// Pack compresses one block into dst, which has at least MaxPacked bytes, and returns how many bytes of it, whole
// granules, are to be stored; 0 when that does not pay.
func (p *Packer) Pack(a Algorithm, dst, src []byte) int {
	dst = dst[:MaxPacked]
	n, code := 0, uint16(0)
	switch a {
	case LZ4:
		n, _ = p.lz4.CompressBlock(src[:block.Size], dst[head:]) // 0 if it does not fit
		code = codeLZ4
	case Zstd:
		if p.slow == nil {
			p.slow = make([]byte, 0, block.Size+1024)
		}
		out := zstdEncoder().EncodeAll(src[:block.Size], p.slow[:0])
		if len(out) > MaxPacked-head {
			return 0
		}
		n, code = copy(dst[head:], out), codeZstd
	}
	if n == 0 {
		return 0
	}
	binary.LittleEndian.PutUint16(dst, code<<12|uint16(n))
	n += head
	full := (n + Granule - 1) &^ (Granule - 1)
	clear(dst[n:full])
	return full
}

// Unpack restores the block that Pack made src of into dst, which has the size of a block.
func Unpack(dst, src []byte) error {
	if len(dst) != block.Size || len(src) < head {
		return ErrDamaged
	}
	x := binary.LittleEndian.Uint16(src)
	n := int(x & 0xfff)
	if n == 0 || head+n > len(src) || len(src)-head-n >= Granule {
		return ErrDamaged
	}
	for _, b := range src[head+n:] {
		if b != 0 {
			return ErrDamaged
		}
	}
	switch x >> 12 {
	case codeLZ4:
		if m, err := lz4.UncompressBlock(src[head:head+n], dst); err != nil || m != block.Size {
			return ErrDamaged
		}
	case codeZstd:
		out, err := zstdDecoder().DecodeAll(src[head:head+n], dst[:0:block.Size])
		if err != nil || len(out) != block.Size || &out[0] != &dst[0] {
			return ErrDamaged
		}
	default:
		return ErrDamaged
	}
	return nil
}
