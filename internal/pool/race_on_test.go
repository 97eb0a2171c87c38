//go:build race

package pool

// raceDetector: a device that hangs may still read from buffers of the write that it missed, after that write has
// returned and the device is out. The race detector rightly sees that, and there is nothing to be done about it.
const raceDetector = true
