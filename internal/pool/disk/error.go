package disk

import "fmt"

// RequestError says which request of which device failed, and how.
type RequestError struct {
	Device string
	Op     string // "read", "write", "flush", …
	Off    int64  // bytes
	Len    int64  // bytes
	Err    error
}

func (e *RequestError) Error() string {
	if e.Len == 0 && e.Off == 0 {
		return fmt.Sprintf("device %s: %s: %v", e.Device, e.Op, e.Err)
	}
	return fmt.Sprintf("device %s: %s of %d bytes at %d: %v", e.Device, e.Op, e.Len, e.Off, e.Err)
}

// Unwrap returns the cause.
func (e *RequestError) Unwrap() error { return e.Err }
