package disk

import "errors"

// ErrReadOnly is wrapped when somebody writes to a device that was opened for looking only.
var ErrReadOnly = errors.New("device is open for reading only")

// ReadOnly returns dev without what changes it: writes, flushes and discards fail with ErrReadOnly.
func ReadOnly(dev Device) Device { return readOnly{dev} }

type readOnly struct{ Device }

func (r readOnly) refuse(op string, off, length int64) error {
	return &RequestError{Device: r.Name(), Op: op, Off: off, Len: length, Err: ErrReadOnly}
}

func (r readOnly) WritevAt(bufs [][]byte, off int64) error {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	return r.refuse("write", off, n)
}

func (r readOnly) Flush() error { return r.refuse("flush", 0, 0) }

func (r readOnly) Discard(off, length int64) error { return r.refuse("discard", off, length) }
