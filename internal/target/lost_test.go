package target_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/replica"
)

// TestLost cuts the power of the only replica between a write and the flush after it: that flush fails, and no later one.
func TestLost(t *testing.T) {
	c := newMemCluster(t, 1)
	p := c.pools[0]
	data := bytes.Repeat([]byte{1}, block.Size)
	c.must(c.client.Write(data, 0, false))
	c.must(c.client.Flush())
	c.must(c.client.Write(data, block.Size, false))
	after := p.dev.PowerCut(disk.Lost, nil)
	p.stop()
	var err error
	p.dev = after
	p.pool, err = pool.Open([]disk.Device{after}, pool.Options{})
	c.must(err)
	c.must(replica.Suspect(p.pool))
	c.serve(p)
	c.waitHealthy(1)
	if err := c.client.Flush(); !errors.Is(err, block.ErrLost) {
		t.Errorf("flush after the loss: %v", err)
	}
	c.must(c.client.Flush())
	got := make([]byte, 2*block.Size)
	c.must(c.client.Read(got, 0))
	if !bytes.Equal(got[:block.Size], data) {
		t.Error("what was flushed is lost")
	}
	if !bytes.Equal(got[block.Size:], make([]byte, block.Size)) {
		t.Error("nothing is lost: the test shows nothing")
	}
	c.reopen(p)
	c.waitHealthy(1)
	c.must(c.client.Flush())
}
