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
	"github.com/cstor-go/cstor/internal/pool/raid"
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

// TestBlockDevicesChange changes the real block devices of a pool, which only one may hold at a time: one that failed
// comes back under the same name, one is replaced and let go, one becomes larger.
func TestBlockDevicesChange(t *testing.T) {
	const size = 32 << 20
	var paths, files [3]string
	for i := range paths {
		paths[i], files[i] = loopDevice(t, size)
	}
	open := func(path string) disk.Device {
		t.Helper()
		d, err := disk.Open(path, disk.Options{})
		must(t, err)
		return d
	}
	p, err := Create([]Group{{Kind: raid.Mirror, Devices: []disk.Device{open(paths[0]), open(paths[1])}}}, Config{Name: "test"}, Options{SegmentBytes: 256 << 10})
	must(t, err)
	defer p.Close()
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 500, 1)}))
	must(t, p.Sync())

	p.members()[1].dev.Fail(errors.New("test"))
	must(t, r.Apply([]Op{write(400, 500, 2)}))
	must(t, p.Sync())
	p.rest()
	must(t, p.Return(open(paths[1]))) // nobody holds it any more
	p.rest()
	must(t, p.Replace(p.members()[0].guid, open(paths[2])))
	p.rest()
	old := open(paths[0])
	if l, err := Probe(old); !errors.Is(err, ErrBlank) {
		t.Fatalf("a device that left carries %v: %v", l, err)
	}
	must(t, old.Close())
	before := p.Stats().Capacity
	for i := 1; i < 3; i++ {
		must(t, os.Truncate(files[i], 2*size))
		if out, err := exec.Command("losetup", "--set-capacity", paths[i]).CombinedOutput(); err != nil {
			t.Fatalf("losetup --set-capacity: %v: %s", err, out)
		}
	}
	must(t, p.Expand())
	if now := p.Stats(); now.Capacity < before*3/2 || now.Health != HealthOnline {
		t.Fatalf("%+v, capacity was %d", now, before)
	}
	must(t, p.Scrub(ScrubOptions{}))
	p.rest()
	if x := p.Activity().Scrub; x.State != ActivityDone || x.Repaired > 0 || x.Errors > 0 {
		t.Fatalf("%+v %v", x, p.Damage())
	}
	must(t, p.Close())
	p, err = Open([]disk.Device{open(paths[2]), open(paths[1])}, Options{})
	must(t, err)
	got := make([]byte, 900*block.Size)
	must(t, p.Replica("v").Read(0, got, nil))
	if !bytes.Equal(got, append(fill(500, 1)[:400*block.Size], fill(500, 2)...)) {
		t.Error("content differs")
	}
	must(t, p.Close())
}
