// Package disk is what the pool engine sees of a block device: aligned reads and vectored writes, flush, discard, size.
// Two implementations: a regular file or raw block device (Open), and memory with fault injection (Mem) on which the
// crash tests run. A device promises what the durability contract rests on: a write that returned survives the death
// of the process, and everything written before a successful Flush survives power loss.
package disk

import "errors"

// Align is the unit of offsets and lengths in bytes: one block.
const Align = 4096

// Device is random-access storage. Offsets and lengths are bytes, multiples of Align, within Size. All methods may be
// called concurrently. Errors name the device.
type Device interface {
	// ReadAt fills b from off.
	ReadAt(b []byte, off int64) error
	// WritevAt writes the buffers one after the other at off. The total length is a multiple of Align. Buffers are
	// borrowed during the call only.
	WritevAt(bufs [][]byte, off int64) error
	// Flush makes everything stable that was written before the call.
	Flush() error
	// Discard tells the device that the content of the range is not needed any more. What it reads as afterwards is
	// undefined. A device that cannot discard returns nil.
	Discard(off, length int64) error
	// Size returns the number of usable bytes, a multiple of Align.
	Size() int64
	// Name returns what the device is called in messages, a path for example.
	Name() string
	Close() error
}

// Refresher is a device whose size can change while it is open. Size is what it was when it was opened or refreshed.
type Refresher interface {
	Refresh() error
}

// Worker is a device that does something by itself, besides what it is called for.
type Worker interface {
	// RunWith sets what runs it: run calls work once, in another goroutine. Whoever waits until a device has answered
	// everything has to wait for that too.
	RunWith(run func(work func()))
}

var (
	// ErrBusy is wrapped when another process, or another Open in this one, holds the device.
	ErrBusy = errors.New("device is in use")
	// ErrRange is wrapped when a request is unaligned or outside the device.
	ErrRange = errors.New("request is unaligned or outside the device")
	// ErrNotStorage is wrapped when a path is neither a regular file nor a block device.
	ErrNotStorage = errors.New("neither a regular file nor a block device")
	// ErrPowerOff is returned by a Mem that lost power.
	ErrPowerOff = errors.New("device lost power")
)

func check(name string, off, length, size int64) error {
	if off < 0 || length < 0 || off%Align != 0 || length%Align != 0 || off > size-length {
		return &RequestError{Device: name, Op: "request", Off: off, Len: length, Err: ErrRange}
	}
	return nil
}
