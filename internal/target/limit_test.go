package target_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/volume"
)

const limitWrite = 256 << 10

// limitData is what a write of these tests at that place writes.
func limitData(i int64) []byte {
	b := make([]byte, limitWrite)
	rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b)
	return b
}

// fill writes at all places of [from, to) at once, and returns those that were refused for lack of room; nothing else may
// happen to any.
func (c *memCluster) fill(from, to int64) (refused map[int64]bool) {
	c.t.Helper()
	refused = map[int64]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for g := range int64(16) {
		wg.Go(func() {
			for i := from + g; i < to; i += 16 {
				err := c.client.Write(limitData(i), i*limitWrite, false)
				mu.Lock()
				if refused[i] = err != nil; err == nil {
					delete(refused, i)
				}
				mu.Unlock()
				if err != nil && !errors.Is(err, block.ErrNoSpace) {
					c.t.Errorf("write %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	return refused
}

// check reads all places of [0, n) that were not refused.
func (c *memCluster) check(n int64, refused map[int64]bool) {
	c.t.Helper()
	got := make([]byte, limitWrite)
	for i := range n {
		if refused[i] {
			continue
		}
		c.must(c.client.Read(got, i*limitWrite))
		if !bytes.Equal(got, limitData(i)) {
			c.t.Fatalf("place %d differs", i)
		}
	}
}

// TestReadOnlyLimit writes until one pool, or all, are above their read-only limit: further writes are refused with a clear
// error, nothing hangs and nobody drops out, reads and discards go on, and so do writes when there is room.
func TestReadOnlyLimit(t *testing.T) {
	for _, limited := range []int{1, 2} {
		t.Run(fmt.Sprintf("pools=%d", limited), func(t *testing.T) {
			c := newMemCluster(t, 2)
			for _, p := range c.pools[:limited] {
				p.pool.SetReadOnlyPercent(6)
			}
			const n = volumeSize / limitWrite
			refused := c.fill(0, n)
			if len(refused) == 0 || len(refused) == n {
				t.Fatalf("%d writes of %d were refused", len(refused), n)
			}
			c.must(harness.Eventually(patience, func() (bool, error) {
				told, st := 0, c.target.Status()
				for _, r := range st.Replicas {
					if strings.Contains(r.LastError, "read-only limit") {
						told++
					}
				}
				return told == limited, fmt.Errorf("%d of %d are said to have no room: %+v", told, limited, st)
			}))
			st := c.target.Status()
			if have, serving := harness.Healthy(st); have != 2 || !serving || st.Epoch != 1 {
				t.Fatalf("%+v", st)
			}
			c.check(n, refused)
			if err := c.client.Write(limitData(0), 0, true); !errors.Is(err, block.ErrNoSpace) {
				t.Errorf("a write above the limit: %v", err)
			}
			c.must(c.client.Flush())
			c.must(c.client.Discard(0, volumeSize/2))
			c.must(harness.Eventually(patience, func() (bool, error) {
				err := c.client.Write(limitData(1), limitWrite, false)
				return err == nil, err
			}))
			c.compareAll()
		})
	}
}

// TestRebuildAtLimit has a replica join whose pool is above its limit before the rebuild is done: the volume's writes go on,
// the rebuild waits and says for what, takes what makes room, and goes on when there is room.
func TestRebuildAtLimit(t *testing.T) {
	c := newMemCluster(t, 2)
	const n = volumeSize / limitWrite
	if refused := c.fill(0, n/2); len(refused) > 0 {
		t.Fatalf("%d writes were refused", len(refused))
	}
	c.limit = 2
	c.target.Want(volume.Desired{Founding: 2, Factor: 3})
	c.addPool()
	added := c.waits("room")
	since := added().Since
	if refused := c.fill(n/2, n/2+16); len(refused) > 0 {
		t.Fatalf("%d writes were refused", len(refused))
	}
	if r := added(); r.Mode != volume.Rebuilding || r.Since != since {
		t.Errorf("the rebuild was interrupted: %+v", r)
	}
	c.pools[2].pool.SetReadOnlyPercent(100)
	c.waitHealthy(3)
	c.check(n/2+16, nil)
	c.compareAll()
}

// waits waits until the last pool's replica says that its rebuild waits for that, and returns what tells how it is.
func (c *memCluster) waits(why string) func() volume.Replica {
	c.t.Helper()
	last := func() volume.Replica {
		for _, r := range c.target.Status().Replicas {
			if r.Name == "v-"+c.pools[len(c.pools)-1].name {
				return r
			}
		}
		return volume.Replica{}
	}
	c.must(harness.Eventually(patience, func() (bool, error) {
		return strings.Contains(last().Progress.WaitingFor, why), fmt.Errorf("%+v", last())
	}))
	return last
}

// TestRebuildLimit has a rebuild go on as slowly as the volume's limit wants, then the pool's, and as fast as it can when there
// is none any more.
func TestRebuildLimit(t *testing.T) {
	c := newMemCluster(t, 2)
	const n = volumeSize / limitWrite
	if refused := c.fill(0, n); len(refused) > 0 {
		t.Fatalf("%d writes were refused", len(refused))
	}
	const slow = 4 << 20 // bytes/s
	c.target.Want(volume.Desired{Founding: 2, Factor: 3, RebuildLimit: slow})
	c.addPool()
	c.waits("the volume has a limit")
	c.pools[2].srv.SetRebuildLimit(slow / 2)
	c.target.Want(volume.Desired{Founding: 2, Factor: 3})
	c.waits("the pool has a limit")
	c.pools[2].srv.SetRebuildLimit(0)
	c.waitHealthy(3)
	c.check(n, nil)
	c.compareAll()
}
