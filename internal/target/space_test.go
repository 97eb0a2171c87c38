package target_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
)

// TestPoolFull writes more than the pools have room for: writes are refused, what was written stays readable, and after
// space was given back writes work again.
func TestPoolFull(t *testing.T) {
	hc, err := harness.NewCluster(harness.ClusterSpec{
		Dir: t.TempDir(), Size: 1 << 30, Replicas: 2, Pools: 2, DeviceSize: 512 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	c := adopt(t, hc, 2)
	b := make([]byte, 1<<20)
	fill := func(i int64) { rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b) }
	written := int64(0)
	for ; written < 1024; written++ {
		fill(written)
		if err = c.client.Write(b, written<<20, false); err != nil {
			break
		}
	}
	if !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("after %d MiB: %v", written, err)
	}
	t.Logf("%d MiB written", written)
	c.waitHealthy(2)
	got := make([]byte, len(b))
	for i := range written {
		fill(i)
		c.must(c.client.Read(got, i<<20))
		if string(got) != string(b) {
			t.Fatalf("MiB %d differs", i)
		}
	}
	c.must(c.client.Discard(0, written/2<<20))
	fill(5000)
	c.must(harness.Eventually(patience, func() (bool, error) {
		err := c.client.Write(b, 0, false)
		return err == nil, err
	}))
	c.must(c.client.Read(got, 0))
	if string(got) != string(b) {
		t.Fatal("what was written after space was given back differs")
	}
	c.compare(0, 1)
}

// TestZeroesAndDiscard checks the edges of ranges that do not cover whole blocks.
func TestZeroesAndDiscard(t *testing.T) {
	c := newCluster(t, 1, 1)
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = 0xff
	}
	for _, x := range []struct{ off, n int64 }{{512, 1024}, {512, 8192}, {4096, 8192}, {3584, 1024}, {0, 512}, {0, 64 << 10}, {512, 63 << 10}} {
		c.must(c.client.Write(b, 0, false))
		c.must(c.client.WriteZeroes(x.off, x.n))
		c.expect(b, x.off, x.off+x.n)
		c.must(c.client.Write(b, 0, false))
		c.must(c.client.Discard(x.off, x.n))
		c.expect(b, (x.off+block.Size-1)&^(block.Size-1), (x.off+x.n)&^(block.Size-1))
	}
}

// expect checks that [from, to) is zero and the rest of b is not.
func (c *cluster) expect(b []byte, from, to int64) {
	c.t.Helper()
	got := make([]byte, len(b))
	c.must(c.client.Read(got, 0))
	for i, x := range got {
		inside := int64(i) >= from && int64(i) < to
		if inside != (x == 0) {
			c.t.Fatalf("byte %d is %#x, zeroes are expected in [%d,%d)", i, x, from, to)
		}
	}
}

// TestHold checks that requests wait while there is no quorum, and go on when it returns.
func TestHold(t *testing.T) {
	c := newCluster(t, 3, 3)
	c.must(c.client.Write(make([]byte, 8192), 0, true))
	c.Pools[0].Kill()
	c.Pools[1].Kill()
	done := make(chan error, 3)
	go func() { done <- c.client.Write([]byte("x"+string(make([]byte, 511))), 512, true) }()
	go func() { done <- c.client.Read(make([]byte, 512), 4096) }()
	go func() { done <- c.client.Flush() }()
	c.must(harness.Eventually(patience, func() (bool, error) {
		return !c.target.Status().Serving, errors.New("still serving")
	}))
	c.must(c.Pools[0].Start())
	for range 3 {
		c.must(<-done)
	}
	c.must(c.Pools[1].Start())
	c.waitHealthy(3)
	b := make([]byte, 512)
	c.must(c.client.Read(b, 512))
	if b[0] != 'x' {
		t.Fatal("the write that was held is lost")
	}
	if _, err := c.Compare(context.Background(), 0, 1); err != nil {
		t.Fatal(err)
	}
}
