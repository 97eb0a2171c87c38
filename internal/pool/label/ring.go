package label

import (
	"encoding/binary"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

const (
	ringOffset = 128 << 10 // within the label area at either end
	ringSlots  = 32
	// MaxExtents is the number of pieces that a checkpoint's root can have.
	MaxExtents = (blockSize - 64) / 16
)

var ringMagic = [8]byte{'c', 'S', 't', 'o', 'r', 'G', 'o', 'R'}

// Extent is a piece of a checkpoint's root in the pool's address space.
type Extent struct {
	Addr uint64
	Len  uint32 // bytes
	Sum  uint32 // CRC-32C
}

// Ring is one slot of the ring: where a checkpoint is.
type Ring struct {
	Pool       block.GUID
	Generation uint64
	Root       []Extent
}

// Encode returns the slot as one block.
func (r *Ring) Encode() ([]byte, error) {
	if len(r.Root) == 0 || len(r.Root) > MaxExtents {
		return nil, fmt.Errorf("ring: root of %d pieces", len(r.Root))
	}
	le := binary.LittleEndian
	b := make([]byte, blockSize)
	copy(b, ringMagic[:])
	le.PutUint32(b[8:], Format)
	copy(b[16:], r.Pool[:])
	le.PutUint64(b[32:], r.Generation)
	le.PutUint32(b[40:], uint32(len(r.Root)))
	for i, e := range r.Root {
		le.PutUint64(b[64+16*i:], e.Addr)
		le.PutUint32(b[72+16*i:], e.Len)
		le.PutUint32(b[76+16*i:], e.Sum)
	}
	le.PutUint32(b[12:], checksum(b))
	return b, nil
}

// DecodeRing reads a slot.
func DecodeRing(b []byte) (*Ring, error) {
	le := binary.LittleEndian
	if len(b) != blockSize || [8]byte(b[:8]) != ringMagic || le.Uint32(b[12:]) != checksum(b) {
		return nil, fmt.Errorf("ring slot: %w", ErrDamaged)
	}
	if f := le.Uint32(b[8:]); f > Format {
		return nil, fmt.Errorf("ring slot: format %d: %w", f, ErrNewerFormat)
	}
	r := &Ring{Pool: block.GUID(b[16:32]), Generation: le.Uint64(b[32:])}
	n := int(le.Uint32(b[40:]))
	if n == 0 || n > MaxExtents {
		return nil, fmt.Errorf("ring slot: root of %d pieces: %w", n, ErrDamaged)
	}
	for i := range n {
		r.Root = append(r.Root, Extent{Addr: le.Uint64(b[64+16*i:]), Len: le.Uint32(b[72+16*i:]), Sum: le.Uint32(b[76+16*i:])})
	}
	return r, nil
}

// WriteRing writes the slot of r's generation at both ends of a device of size bytes. What it points at must be stable;
// the slot itself is after the next flush of the device.
func WriteRing(dev disk.Device, size int64, r *Ring) error {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	slot := ringOffset + int64(r.Generation%ringSlots)*blockSize
	for _, off := range []int64{slot, size - TailBytes + slot} {
		if err := dev.WritevAt([][]byte{b}, off); err != nil {
			return fmt.Errorf("ring: %w", err)
		}
	}
	return nil
}

// ReadRing returns the newest slot that a device of size bytes has for the pool, nil when there is none. An error says
// that not all of them could be read.
func ReadRing(dev disk.Device, size int64, pool block.GUID) (best *Ring, err error) {
	b := disk.Buffer(ringSlots * blockSize)
	for _, off := range []int64{0, size - TailBytes} {
		if e := readBlocks(dev, b, off+ringOffset); e != nil {
			err = fmt.Errorf("ring: %w", e)
		}
		for s := 0; s < len(b); s += blockSize {
			if r, e := DecodeRing(b[s : s+blockSize]); e == nil && r.Pool == pool && (best == nil || r.Generation > best.Generation) {
				best = r
			}
		}
	}
	return best, err
}
