package target

import (
	"testing"
	"time"
)

func TestClockGoesOnWhileTheMachineIsSuspended(t *testing.T) {
	boot := time.Hour
	c := newClock(func() time.Duration { return boot })
	at := func(awake, wall time.Duration) time.Duration { return c.at(c.start.Add(wall), awake) }
	if got := at(time.Second, time.Second); got != time.Second {
		t.Errorf("after a second: %v", got)
	}
	boot += 2 * time.Second
	if got := at(2*time.Second, time.Minute); got != 2*time.Second {
		t.Errorf("somebody set the wall clock: %v", got)
	}
	boot += time.Hour + time.Second
	if got := at(3*time.Second, time.Minute+time.Hour+time.Second); got != time.Hour+3*time.Second {
		t.Errorf("after it was suspended for an hour: %v", got)
	}
	if got := at(4*time.Second, time.Second); got < time.Hour+4*time.Second-leap {
		t.Errorf("the wall clock was set back: %v", got)
	}
}
