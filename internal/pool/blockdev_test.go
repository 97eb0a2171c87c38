package pool

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// loopDevice makes a real block device of size bytes, or skips the test. With CSTOR_REQUIRE=all it fails instead.
func loopDevice(t *testing.T, size int64) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	must(t, err)
	must(t, f.Truncate(size))
	must(t, f.Close())
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		if os.Getenv("CSTOR_REQUIRE") == "all" {
			t.Fatalf("no loop device: %v: %s", err, out)
		}
		t.Skipf("needs root and loop devices: losetup: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach: %v: %s", err, out)
		}
	})
	return device, file
}

// TestBlockDevice runs a pool on a real block device: size, exclusive use, discard, and what is found again on it.
func TestBlockDevice(t *testing.T) {
	const size = 64 << 20
	path, file := loopDevice(t, size)
	for _, direct := range []bool{false, true} {
		d, err := disk.Open(path, disk.Options{Direct: direct})
		must(t, err)
		if d.Size() != size {
			t.Fatalf("size %d, want %d", d.Size(), size)
		}
		if other, err := disk.Open(path, disk.Options{}); !errors.Is(err, disk.ErrBusy) {
			t.Fatalf("opened twice: %v, %v", other, err)
		}
		p, err := Create(Stripe(d), Config{Name: "test", Owner: "owner"}, Options{SegmentBytes: 1 << 20})
		must(t, err)
		r, err := p.CreateReplica("vol", 32<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 1000, 1), discard(100, 200, 2)}))
		must(t, p.Sync())
		must(t, p.Close()) // closes the device as well

		d, err = disk.Open(path, disk.Options{Direct: direct})
		must(t, err)
		p, err = Open([]disk.Device{d}, Options{})
		must(t, err)
		want := fill(1000, 1)
		clear(want[100*block.Size : 300*block.Size])
		got := make([]byte, len(want))
		must(t, p.Replica("vol").Read(0, got, nil))
		if !bytes.Equal(got, want) {
			t.Fatal("other contents after opening again")
		}
		must(t, p.DestroyReplica("vol"))
		must(t, p.Close())

		d, err = disk.Open(path, disk.Options{Direct: direct})
		must(t, err)
		must(t, d.Discard(0, size))
		must(t, d.Close())
		blank, err := disk.Open(path, disk.Options{ReadOnly: true})
		must(t, err)
		if l, err := Probe(blank); !errors.Is(err, ErrBlank) {
			t.Fatalf("after a discard of everything: %v, %v", l, err)
		}
		must(t, blank.Close())
	}
	if st, err := os.Stat(file); err != nil || st.Size() != size {
		t.Fatalf("file behind the device: %v, %v", st, err)
	}
}
