package main

import (
	"bytes"
	"os"
	"runtime"
	"time"
)

// runDelay is how long the kernel has kept a thread from a CPU although it could have run: CPUs were with others, of this
// process or not. What a request takes less that is what the engine and the device are answerable for.
type runDelay struct {
	f   *os.File
	buf [128]byte
}

// lockThread keeps the calling goroutine on its thread until unlock.
func lockThread() (d *runDelay, unlock func()) {
	runtime.LockOSThread()
	f, err := os.Open("/proc/thread-self/schedstat")
	if err != nil { // a kernel that does not count it
		return nil, runtime.UnlockOSThread
	}
	return &runDelay{f: f}, func() { f.Close(); runtime.UnlockOSThread() }
}

// now returns the sum so far, 0 for nil.
func (d *runDelay) now() time.Duration {
	if d == nil {
		return 0
	}
	n, _ := d.f.ReadAt(d.buf[:], 0)
	_, rest, _ := bytes.Cut(d.buf[:n], []byte(" ")) // how long it was on a CPU; how long it waited for one; how often it got one
	ns := time.Duration(0)
	for _, c := range rest {
		if c < '0' || c > '9' {
			break
		}
		ns = 10*ns + time.Duration(c-'0')
	}
	return ns
}
