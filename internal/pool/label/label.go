// Package label reads and writes what identifies a device of a pool: the labels, four copies of one block at the head
// and the tail of the device, and the ring that points at the newest checkpoint. It also recognises what others put on
// disks, so that a pool never takes a device that is not its own. It relies on a device that reads and writes aligned
// blocks; it promises that nothing but a blank device or a pool's own is ever reported as usable, and that decoding
// arbitrary bytes neither panics nor allocates more than the bytes' own size.
package label

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

const (
	// Format is the version of the on-disk format that this code writes, and the newest that it reads.
	Format = 1
	// HeadBytes and TailBytes are reserved at the two ends of a device for labels and ring.
	HeadBytes = 1 << 20
	TailBytes = 1 << 20
	// MaxDevices is the number of devices that a pool can have.
	MaxDevices = 64
	// MaxName is the length of the longest name and owner in bytes.
	MaxName = 255

	blockSize = disk.Align
	headerLen = 96
	memberLen = 24
)

var magic = [8]byte{'c', 'S', 't', 'o', 'r', 'G', 'o', 'L'}

var (
	// ErrBlank means that the device carries nothing at all.
	ErrBlank = errors.New("device is blank")
	// ErrDamaged means that there are labels or other structures of ours that do not decode.
	ErrDamaged = errors.New("damaged")
	// ErrNewerFormat means that a later release wrote this pool.
	ErrNewerFormat = errors.New("written in a newer format than this release reads")
)

// ErrForeign says what somebody else's data on a device looks like.
type ErrForeign struct {
	Device string
	Found  string
}

func (e *ErrForeign) Error() string {
	return fmt.Sprintf("device %s is not blank: found %s; wipe it if it may be used", e.Device, e.Found)
}

// Member is one device of a pool as the labels of all of them list it.
type Member struct {
	GUID     block.GUID
	Segments uint64 // number of segments on it
}

// Label is what each device says about its pool and itself.
type Label struct {
	Pool         block.GUID
	Device       block.GUID
	Name         string // of the pool
	Owner        string
	Layout       string // "stripe"
	Index        int    // of this device in Members
	Members      []Member
	Generation   uint64 // grows with every change of the labels; the highest wins
	Size         int64  // bytes of the device when it was added
	SegmentBytes int64
}

// offsets returns where the copies are on a device of that size.
func offsets(size int64) [4]int64 {
	return [4]int64{0, 64 << 10, size - TailBytes, size - TailBytes + 64<<10}
}

// Encode returns the label as one block.
func (l *Label) Encode() ([]byte, error) {
	if len(l.Name) > MaxName || len(l.Owner) > MaxName || len(l.Members) == 0 || len(l.Members) > MaxDevices ||
		l.Index < 0 || l.Index >= len(l.Members) || l.Layout != "stripe" {
		return nil, fmt.Errorf("label of pool %s: out of limits", l.Name)
	}
	b := make([]byte, blockSize)
	le := binary.LittleEndian
	copy(b, magic[:])
	le.PutUint32(b[8:], Format)
	// b[12:16] is the checksum
	copy(b[16:], l.Pool[:])
	copy(b[32:], l.Device[:])
	le.PutUint64(b[48:], l.Generation)
	le.PutUint64(b[56:], uint64(l.Size))
	le.PutUint64(b[64:], uint64(l.SegmentBytes))
	le.PutUint16(b[72:], uint16(l.Index))
	le.PutUint16(b[74:], uint16(len(l.Members)))
	b[76], b[77] = byte(len(l.Name)), byte(len(l.Owner))
	b[78] = 1 // layout: stripe
	at := headerLen
	for _, m := range l.Members {
		copy(b[at:], m.GUID[:])
		le.PutUint64(b[at+16:], m.Segments)
		at += memberLen
	}
	at += copy(b[at:], l.Name)
	copy(b[at:], l.Owner)
	le.PutUint32(b[12:], checksum(b))
	return b, nil
}

// checksum covers the block with the checksum field as zero.
func checksum(b []byte) uint32 {
	var zero [4]byte
	s := block.UpdateSum(block.Sum(b[:12]), zero[:])
	return block.UpdateSum(s, b[16:])
}

// Decode reads a block that Encode made. It returns ErrBlank for zeroes, ErrNewerFormat and ErrDamaged, or an error of
// its own when there is no label of ours at all.
func Decode(b []byte) (*Label, error) {
	if len(b) != blockSize {
		return nil, fmt.Errorf("label of %d bytes: %w", len(b), ErrDamaged)
	}
	if [8]byte(b[:8]) != magic {
		return nil, errNoLabel
	}
	le := binary.LittleEndian
	if f := le.Uint32(b[8:]); f > Format { // before the checksum, which a newer format may keep elsewhere
		return nil, fmt.Errorf("label: format %d: %w", f, ErrNewerFormat)
	}
	if le.Uint32(b[12:]) != checksum(b) {
		return nil, fmt.Errorf("label: checksum: %w", ErrDamaged)
	}
	l := &Label{
		Pool: block.GUID(b[16:32]), Device: block.GUID(b[32:48]), Generation: le.Uint64(b[48:]),
		Size: int64(le.Uint64(b[56:])), SegmentBytes: int64(le.Uint64(b[64:])), Index: int(le.Uint16(b[72:])), Layout: "stripe",
	}
	n, name, owner := int(le.Uint16(b[74:])), int(b[76]), int(b[77])
	switch {
	case n == 0 || n > MaxDevices || l.Index >= n, headerLen+n*memberLen+name+owner > blockSize, b[78] != 1,
		l.SegmentBytes < 256<<10 || l.SegmentBytes > 1<<30 || l.SegmentBytes&(l.SegmentBytes-1) != 0,
		l.Size < HeadBytes+TailBytes || l.Size%blockSize != 0:
		return nil, fmt.Errorf("label: values out of limits: %w", ErrDamaged)
	}
	at := headerLen
	for range n {
		m := Member{GUID: block.GUID(b[at : at+16]), Segments: le.Uint64(b[at+16:])}
		if m.Segments > 1<<32 {
			return nil, fmt.Errorf("label: %d segments: %w", m.Segments, ErrDamaged)
		}
		l.Members = append(l.Members, m)
		at += memberLen
	}
	own := l.Members[l.Index]
	if own.GUID != l.Device || int64(own.Segments) > (l.Size-HeadBytes-TailBytes)/l.SegmentBytes {
		return nil, fmt.Errorf("label: device is not its own member: %w", ErrDamaged)
	}
	l.Name, l.Owner = string(b[at:at+name]), string(b[at+name:at+name+owner])
	return l, nil
}

var errNoLabel = errors.New("no label")

// Write puts all copies of l on dev. They are stable after the device's next Flush.
func Write(dev disk.Device, l *Label) error {
	b, err := l.Encode()
	if err != nil {
		return err
	}
	for _, off := range offsets(l.Size) {
		if err := dev.WritevAt([][]byte{b}, off); err != nil {
			return fmt.Errorf("label: %w", err)
		}
	}
	return nil
}

// Probe reads what dev carries: the newest of its intact labels, or ErrBlank, *ErrForeign, ErrDamaged, ErrNewerFormat.
func Probe(dev disk.Device) (*Label, error) {
	if dev.Size() < HeadBytes+TailBytes {
		return nil, fmt.Errorf("device %s: %d bytes is too small for a pool: %w", dev.Name(), dev.Size(), disk.ErrRange)
	}
	head, tail := make([]byte, HeadBytes), make([]byte, TailBytes)
	if err := dev.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	if err := dev.ReadAt(tail, dev.Size()-TailBytes); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	var best *Label
	var bad error
	headIntact := false
	for i, b := range [][]byte{head[:blockSize], head[64<<10:][:blockSize], tail[:blockSize], tail[64<<10:][:blockSize]} {
		l, err := Decode(b)
		switch {
		case errors.Is(err, ErrNewerFormat):
			return nil, fmt.Errorf("device %s: %w", dev.Name(), err)
		case err == nil:
			headIntact = headIntact || i < 2
			if best == nil || l.Generation > best.Generation {
				best = l
			}
		case errors.Is(err, ErrDamaged):
			bad = err
		}
	}
	found := recognise(head, tail)
	switch {
	case best != nil && !headIntact && found != "" && !strings.HasPrefix(found, unknownData):
		// somebody formatted the device; what is left of our labels at the tail does not make it ours
		return nil, &ErrForeign{Device: dev.Name(), Found: found}
	case best != nil:
		if best.Size > dev.Size() {
			return nil, fmt.Errorf("device %s: %d bytes, but its label says %d: %w", dev.Name(), dev.Size(), best.Size, ErrDamaged)
		}
		return best, nil
	case bad != nil:
		return nil, fmt.Errorf("device %s: %w", dev.Name(), bad)
	case found != "":
		return nil, &ErrForeign{Device: dev.Name(), Found: found}
	default:
		return nil, fmt.Errorf("device %s: %w", dev.Name(), ErrBlank)
	}
}
