package target_test

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/volume"
)

// slowDevice takes its time for each flush.
type slowDevice struct {
	*disk.Mem
	flush atomic.Int64 // nanoseconds
}

func (d *slowDevice) Flush() error {
	time.Sleep(time.Duration(d.flush.Load()))
	return d.Mem.Flush()
}

// TestSlowFlush has a target take over, and a replica join, while every flush of the devices takes longer than the deadline
// for answers.
func TestSlowFlush(t *testing.T) {
	c := startMemCluster(&memCluster{t: t, settings: volume.Settings{Deadline: 300 * time.Millisecond, FlushDeadline: 5 * time.Second}}, 2)
	data := make([]byte, 1<<20)
	data[5] = 5
	c.must(c.client.Write(data, 0, true))
	c.flush = 500 * time.Millisecond
	for _, p := range c.pools {
		p.slow.flush.Store(int64(c.flush))
	}
	c.target, c.addr = c.startTarget(filepath.Join(t.TempDir(), "record"), 2)
	c.client = harness.Client{Device: c.target}
	for _, p := range c.pools {
		c.must(p.srv.Attach(c.spec(p, c.addr)))
	}
	c.waitHealthy(2)
	c.must(c.client.Write(data, 1<<20, false))
	c.target.Want(volume.Desired{Founding: 2, Factor: 3})
	c.addPool()
	c.must(harness.Eventually(patience, func() (bool, error) {
		st := c.target.Status()
		n, serving := harness.Healthy(st)
		return n == 3 && serving && len(st.Committed.Members) == 3, fmt.Errorf("%+v", st)
	}))
	c.compareAll()
	for _, p := range c.pools {
		p.slow.flush.Store(0)
	}
}
