package target_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestDiffersWithoutTheRecord starts a target that cannot read its record, with replicas of which each has another part of
// what was under way when the target before ended. None may become incomplete; they become equal all the same.
func TestDiffersWithoutTheRecord(t *testing.T) {
	c := startMemCluster(&memCluster{t: t, witness: true}, 3)
	c.must(c.client.Write(bytes.Repeat([]byte{7}, 8*block.Size), 0, false))
	c.target.Close()
	nowhere := filepath.Join(t.TempDir(), "file")
	c.must(os.WriteFile(nowhere, nil, 0o600))
	c.target, c.addr = c.startTarget(filepath.Join(nowhere, "record"), 3) // every access fails
	c.client = harness.Client{Device: c.target}
	incomplete := func() (n int) {
		for _, p := range c.pools {
			for _, st := range p.srv.Status() {
				if !st.Complete {
					n++
				}
			}
		}
		return n
	}
	for i, p := range c.pools {
		p.stop()
		p.dev.Reopen()
		var err error
		p.pool, err = pool.Open([]disk.Device{p.dev}, pool.Options{})
		c.must(err)
		r := p.pool.Replica("v-" + p.name)
		for n := range uint64(i) {
			v := r.Applied()
			v.N++
			c.must(r.Apply([]pool.Op{{Kind: pool.OpWrite, Block: n, Count: 2, Version: v, Data: bytes.Repeat([]byte{byte(n)}, 2*block.Size)}}))
		}
		c.serve(p)
	}
	c.waitHealthy(3)
	if n := incomplete(); n > 0 {
		t.Errorf("%d replicas are incomplete", n)
	}
	got := make([]byte, 4*block.Size)
	c.must(c.client.Read(got, 0))
	for i, want := range []byte{0, 1, 1, 7} {
		if got[i*block.Size] != want {
			t.Errorf("block %d holds %d, want %d", i, got[i*block.Size], want)
		}
	}
	c.must(c.client.Write(bytes.Repeat([]byte{9}, block.Size), 0, true))
	c.compareAll()
}
