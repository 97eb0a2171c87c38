package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cstor-go/cstor/internal/harness"
)

// usage reads the CPU time of processes.
type usage struct {
	target *harness.Process
	pools  []*harness.Process
}

type times struct {
	target, pools time.Duration
	system        time.Duration // everything that this machine did, less this process
}

func (u *usage) read() (t times, err error) {
	if u.target != nil {
		if t.target, err = u.target.CPU(); err != nil {
			return t, err
		}
	}
	for _, p := range u.pools {
		d, err := p.CPU()
		if err != nil {
			return t, err
		}
		t.pools += d
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line)[1:] {
		var ticks int64
		fmt.Sscan(f, &ticks)
		switch i {
		case 3, 4, 7, 8, 9: // idle, iowait, steal; guest is in user already
		default:
			t.system += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return t, err
	}
	t.system -= time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return t, nil
}
