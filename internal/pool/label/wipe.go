package label

import (
	"bytes"
	"fmt"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

// Wipe makes a device that was a pool's blank to everybody: it clears the label areas at both ends, of the device as it
// is and of the sizes, if other, that its labels may name. The tails go first, so that power loss leaves a device that
// is recognised as the pool's until it is blank.
func Wipe(dev disk.Device, sizes ...int64) error {
	zeroes := disk.Buffer(TailBytes)
	tails := map[int64]bool{dev.Size() - TailBytes: true}
	for _, s := range sizes {
		if s >= HeadBytes+TailBytes && s <= dev.Size() {
			tails[s-TailBytes] = true
		}
	}
	for off := range tails {
		if err := dev.WritevAt([][]byte{zeroes}, off); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	// The labels of the head go last, the first of them at the very end.
	for _, off := range []int64{secondCopy, 0} {
		if err := dev.WritevAt([][]byte{zeroes[:HeadBytes-off]}, off); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
		if err := dev.Flush(); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	return nil
}

// Mend makes all copies of a device's label say what the best of them, l, does, so that the next Write, which begins
// with two of them, may be interrupted as well. The copies that do are left alone.
func Mend(dev disk.Device, l *Label) error {
	b, err := l.Encode()
	if err != nil {
		return err
	}
	mended := false
	for _, c := range Copies(dev, l.Size) {
		if bytes.Equal(c.raw, b) {
			continue
		}
		if err := dev.WritevAt([][]byte{b}, c.Off); err != nil {
			return fmt.Errorf("label: %w", err)
		}
		mended = true
	}
	if !mended {
		return nil
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("label: %w", err)
	}
	return nil
}
