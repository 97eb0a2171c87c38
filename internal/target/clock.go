package target

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock is the time that leases are counted by. It goes on while the process is stopped, and while the whole machine is
// suspended: Go's monotonic clock stands still then, and the leases run out at members that go on. That is noticed by the wall
// clock, which costs no system call, and measured by CLOCK_BOOTTIME.
type clock struct {
	start time.Time
	boot  func() time.Duration // since the machine was started, suspended or not
	base  time.Duration        // boot's, at start
	ahead time.Duration        // how far the wall clock was ahead of the monotonic one when boot was last asked
	slept time.Duration        // for how long the machine had been suspended by then
}

// leap is how much the wall clock has to change to be looked into; leases count with a greater margin.
const leap = 10 * time.Millisecond

func newClock(boot func() time.Duration) clock {
	return clock{start: time.Now(), boot: boot, base: boot()}
}

// now is the time since the start. Calls must not overlap.
func (c *clock) now() time.Duration { return c.at(time.Now(), time.Since(c.start)) }

func (c *clock) at(wall time.Time, awake time.Duration) time.Duration {
	ahead := wall.Round(0).Sub(c.start.Round(0)) - awake
	if d := ahead - c.ahead; d > leap || d < -leap {
		c.ahead = ahead
		c.slept = max(c.slept, c.boot()-c.base-awake)
	}
	return awake + c.slept
}

func boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // there is no Linux without it
	}
	return time.Duration(ts.Nano())
}
