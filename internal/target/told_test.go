package target_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/cstor-go/cstor/internal/volume"
)

// TestStartsWithoutItsRecord: the replicas of a volume know who they are. It serves while nobody says what is wanted and its
// record cannot be read.
func TestStartsWithoutItsRecord(t *testing.T) {
	if testing.Short() {
		t.Skip("runs processes")
	}
	c := newCluster(t, 2, 2)
	data := bytes.Repeat([]byte{7}, 8192)
	c.must(c.client.Write(data, 4096, false))
	c.target.Close()
	spec := c.Target.Spec.Target
	spec.Record = filepath.Join(c.Pools[0].Spec.Pool.Devices[0], "record") // below a file: every access fails
	spec.Desired = volume.Desired{}
	c.startTarget()
	c.waitHealthy(2)
	got := make([]byte, len(data))
	c.must(c.client.Read(got, 4096))
	if !bytes.Equal(got, data) {
		t.Error("what was written is not there")
	}
	c.must(c.client.Write(data, 0, true))
}
