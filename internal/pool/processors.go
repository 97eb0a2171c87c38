package pool

import (
	"os"
	"runtime"
)

// Processors gives a process that runs a pool more of Go's processors than it has CPUs, unless GOMAXPROCS says something
// else. Device I/O is system calls that wait, and Go's scheduler lets each of them keep a processor until its monitor
// takes that away, 20 µs to 10 ms later. With one for each of few CPUs, about as many requests reach the device at a time,
// whatever the number of readers, and who comes back from one waits for a processor while CPUs are idle.
func Processors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(2*runtime.GOMAXPROCS(0), 4))
	}
}
