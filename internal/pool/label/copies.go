package label

import (
	"errors"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// Copy is what is at one of the places of a device where a label belongs.
type Copy struct {
	Off   int64 // on the device
	Label *Label
	Err   error // why there is no label: ErrBlank, ErrDamaged, a read error, …
	raw   []byte
}

// Copies reads all copies of a device's label. size is the one in a label of the device, or the device's when there is
// no label.
func Copies(dev disk.Device, size int64) (all [4]Copy) {
	for i, off := range offsets(size) {
		c := &all[i]
		c.Off, c.raw = off, disk.Buffer(blockSize)
		if c.Err = dev.ReadAt(c.raw, off); c.Err != nil {
			continue
		}
		c.Label, c.Err = Decode(c.raw)
		if errors.Is(c.Err, errNoLabel) {
			c.Err = fmt.Errorf("no label: %w", ErrDamaged)
			if zero(c.raw) {
				c.Err = ErrBlank
			}
		}
	}
	return all
}

// sector is what a device writes as a whole whatever happens.
const sector = 512

// Torn reports whether a copy that does not decode can be what power loss left of a change of the labels: some sectors
// of a label that says the same as good but for what changes do not touch, and some of good.
func (c *Copy) Torn(good *Label) bool {
	if c.raw == nil || !errors.Is(c.Err, ErrDamaged) {
		return false
	}
	old, err := good.Encode()
	if err != nil {
		return false
	}
	same, differ := 0, 0
	for at := 0; at < blockSize; at += sector {
		switch a, b := c.raw[at:at+sector], old[at:at+sector]; {
		case string(a) == string(b):
			if !zero(a) {
				same++
			}
		default:
			differ++
		}
	}
	if same == 0 || differ == 0 {
		return false // a change writes the first sector as a whole
	}
	mask := func(b []byte) string {
		m := append([]byte(nil), b...)
		clear(m[12:16]) // checksum, generation, change
		clear(m[48:56])
		clear(m[72:80])
		for i := range good.Members {
			at := headerLen + groupLen*len(good.Groups) + memberLen*i
			clear(m[at+18 : at+memberLen])
		}
		return string(m)
	}
	return mask(c.raw) == mask(old)
}

// Slot is one place of the ring.
type Slot struct {
	Off  int64
	Ring *Ring
	Err  error // why there is nothing: ErrBlank, ErrDamaged, a read error, …
}

// Slots reads the ring at both ends of a device of size bytes: 32 slots at the head, then 32 at the tail.
func Slots(dev disk.Device, size int64, pool block.GUID) (all []Slot) {
	b := disk.Buffer(blockSize)
	for _, end := range []int64{0, size - TailBytes} {
		for i := range int64(ringSlots) {
			s := Slot{Off: end + ringOffset + i*blockSize}
			if s.Err = dev.ReadAt(b, s.Off); s.Err == nil {
				s.Ring, s.Err = DecodeRing(b)
				switch {
				case s.Err == nil && (s.Ring.Pool != pool || s.Ring.Generation%ringSlots != uint64(i)):
					s.Ring, s.Err = nil, fmt.Errorf("ring slot of another pool or place: %w", ErrDamaged)
				case s.Err != nil && zero(b):
					s.Err = ErrBlank
				}
			}
			all = append(all, s)
		}
	}
	return all
}

// RingSlots is the number of slots of the ring at one end of a device.
const RingSlots = ringSlots

func zero(b []byte) bool { return firstNonZero(b) < 0 }
