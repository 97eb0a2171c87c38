package target_test

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
)

// TestOneOfTwo takes one of two replicas away while it is written to. The volume goes on with the other one, and has both
// again when it is back; how long the longest write took is logged.
func TestOneOfTwo(t *testing.T) {
	c := startMemCluster(&memCluster{t: t, witness: true}, 2)
	value := byte(0)
	write := func(until func() bool) {
		t.Helper()
		longest, n := time.Duration(0), 0
		for deadline := time.Now().Add(patience); !until(); n++ {
			if time.Now().After(deadline) {
				t.Fatalf("%+v", c.target.Status())
			}
			value++
			start := time.Now()
			c.must(<-ask(c.target, value, 0, block.Size))
			longest = max(longest, time.Since(start))
		}
		t.Logf("%d writes, the longest took %v", n, longest)
	}
	alone := func() bool {
		st := c.target.Status()
		have, serving := harness.Healthy(st)
		return serving && have == 1 && !st.Redundant && st.Lacks != ""
	}
	write(func() bool { return c.target.Status().Redundant })
	c.pools[1].stop = sync.OnceFunc(c.pools[1].stop)
	go c.pools[1].stop()
	write(alone)
	got := make([]byte, block.Size)
	c.must(c.client.Read(got, 0))
	if !bytes.Equal(got, bytes.Repeat([]byte{value}, block.Size)) {
		t.Errorf("%d was written, %d was read", value, got[0])
	}
	c.reopen(c.pools[1])
	write(func() bool { return c.target.Status().Redundant })
	c.compareAll()
}
