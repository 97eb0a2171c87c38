package pool

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// smallFS mounts a file system of that many bytes, or skips the test. With CSTOR_REQUIRE=all it fails instead.
func smallFS(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		if os.Getenv("CSTOR_REQUIRE") == "all" {
			t.Fatal("no file system of a limited size: ", err)
		}
		t.Skip("needs root to mount a file system of a limited size: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sparse makes a file without space behind it and opens it.
func sparse(t *testing.T, dir, name string, size int64) disk.Device {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return openFile(t, path)
}

func openFile(t *testing.T, path string) disk.Device {
	t.Helper()
	d, err := disk.Open(path, disk.Options{})
	must(t, err)
	return d
}

// noRoom is what is said of a device whose file system is full.
const noRoom = "the file system that the file is on is full, make room there"

// TestFileSystemFull: the file system of a device that is a sparse file has no room left before the pool has none. The
// pool loses nothing that was flushed, can be looked at, says what to do, and goes on when it is opened after that.
func TestFileSystemFull(t *testing.T) {
	dir := smallFS(t, "size=12m")
	opt := Options{SegmentBytes: 256 << 10}
	p, err := Create(Stripe(sparse(t, dir, "a", 64<<20)), Config{Name: "test"}, opt)
	must(t, err)
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	flushed, n := uint64(0), uint64(0)
	for err == nil {
		n++
		if err = r.Apply([]Op{{Kind: OpWrite, Block: (n - 1) * 32, Count: 32, Version: ver(n), Data: noise(32, n)}}); err == nil && n%4 == 0 {
			if err = p.Sync(); err == nil {
				flushed = n
			}
		}
	}
	same := func(p *Pool) {
		t.Helper()
		got := make([]byte, 32*block.Size)
		for v := uint64(1); v <= flushed; v++ {
			must(t, p.Replica("v").Read((v-1)*32, got, nil))
			if !bytes.Equal(got, noise(32, v)) {
				t.Fatalf("version %d of %d that were flushed is not there", v, flushed)
			}
		}
	}
	full := func(err error) {
		t.Helper()
		if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), noRoom) {
			t.Error(err)
		}
	}
	full(err)
	if s := p.Stats(); s.Health != HealthFaulted || !strings.Contains(s.Failure, noRoom) || flushed < 32 {
		t.Error(s.Health, s.Failure, flushed)
	}
	same(p)
	full(p.Close())
	d := openFile(t, filepath.Join(dir, "a"))
	for range 3 { // which must not make it worse
		_, err := Open([]disk.Device{d}, opt)
		full(err)
	}
	rep, err := Verify([]disk.Device{d}, opt)
	must(t, err)
	if rep.Damage > 0 {
		t.Error(rep.Findings)
	}
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=80m"))
	p, err = Open([]disk.Device{d}, opt)
	must(t, err)
	same(p)
	must(t, p.Replica("v").Apply([]Op{{Kind: OpWrite, Block: n * 32, Count: 32, Version: ver(n + 1), Data: noise(32, n)}}))
	must(t, p.Sync())
	must(t, p.Check())
	must(t, p.Close())
}

// TestFileSystemFullMirror: a mirror goes on without the device whose file system is full. That one may come back at any
// time: while there is no room it goes out again, then it gets what it lacks.
func TestFileSystemFullMirror(t *testing.T) {
	dir := smallFS(t, "size=12m")
	p, err := Create([]Group{{Kind: raid.Mirror, Devices: []disk.Device{sparse(t, dir, "a", 64<<20), sparse(t, t.TempDir(), "b", 64<<20)}}}, Config{Name: "test"},
		Options{SegmentBytes: 256 << 10})
	must(t, err)
	r, err := p.CreateReplica("v", 32<<20)
	must(t, err)
	for n := uint64(1); n <= 128; n++ {
		must(t, r.Apply([]Op{{Kind: OpWrite, Block: (n - 1) * 32, Count: 32, Version: ver(n), Data: noise(32, n)}}))
	}
	must(t, p.Sync())
	out := func() {
		t.Helper()
		if s := p.Stats(); s.Health != HealthDegraded || !strings.Contains(s.Failure, noRoom) {
			t.Error(s.Health, s.Failure)
		}
		p.rest() // the device is let go
	}
	back := func() {
		t.Helper()
		must(t, p.Return(openFile(t, filepath.Join(dir, "a"))))
		p.rest()
	}
	out()
	back()
	out()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=80m"))
	back()
	if s := p.Stats(); s.Health != HealthOnline {
		t.Error(s.Health, s.Failure)
	}
	must(t, p.Check())
	must(t, p.Close())
	d := openFile(t, filepath.Join(dir, "a"))
	defer d.Close()
	rep, err := Verify([]disk.Device{d}, Options{})
	must(t, err)
	if rep.Damage != 1 || rep.Findings[0].What != FoundDevice { // the other one is not there
		t.Error(rep.Findings)
	}
}
