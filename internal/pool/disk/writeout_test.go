package disk

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestWriteOut writes so much that the device tells the kernel to write it out, and goes on meanwhile.
func TestWriteOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4*cachedMost); err != nil {
		t.Fatal(err)
	}
	dev, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := dev.(*file)
	ran := 0
	d.RunWith(func(work func()) {
		ran++
		go work()
	})
	piece := Buffer(cachedMost / 8)
	told := false
	for off := int64(0); off < d.Size(); off += int64(len(piece)) {
		before := d.cached.Load()
		if err := d.WritevAt([][]byte{piece}, off); err != nil {
			t.Fatal(err)
		}
		told = told || d.cached.Load() <= before
	}
	if !told {
		t.Fatalf("%d bytes were written, and nobody told the kernel", d.Size())
	}
	if ran == 0 {
		t.Fatal("the device did that on its own")
	}
	for d.writing.Load() {
		runtime.Gosched()
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLockedUntilAnswered: a device that is closed while a request is under way stays locked until that is over.
func TestLockedUntilAnswered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, make([]byte, Align), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := dev.(*file)
	if err := d.enter("write", 0, Align); err != nil { // as one that hangs does
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	for d.mu.TryRLock() { // until Close waits for it
		d.mu.RUnlock()
		runtime.Gosched()
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	d.mu.RUnlock()
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	again, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
