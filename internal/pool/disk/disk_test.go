package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func tempFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFile: a file as a device: whole blocks, vectors of any number, one user at a time.
func TestFile(t *testing.T) {
	for _, direct := range []bool{false, true} {
		path := tempFile(t, 1<<20+100)
		d, err := Open(path, Options{Direct: direct})
		if errors.Is(err, syscall.EINVAL) {
			t.Log("no O_DIRECT here")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if d.Size() != 1<<20 || d.Name() != path {
			t.Fatal(d.Size(), d.Name())
		}
		if _, err := Open(path, Options{}); !errors.Is(err, ErrBusy) {
			t.Fatal(err)
		}
		a, b := bytes.Repeat([]byte{1}, 4096*3-100), bytes.Repeat([]byte{2}, 100)
		var many [][]byte // more vectors than one pwritev takes
		for range 40 * 4096 / 64 {
			many = append(many, bytes.Repeat([]byte{3}, 64))
		}
		if err := d.WritevAt([][]byte{a, nil, b}, 4096); err != nil {
			t.Fatal(err)
		}
		if err := d.WritevAt(many, 16384); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 44*4096)
		if err := d.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		want := append(make([]byte, 4096), a...)
		want = append(want, b...)
		want = append(want, bytes.Repeat([]byte{3}, 40*4096)...)
		if !bytes.Equal(got, want) {
			t.Fatal("content")
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := d.Discard(4096, 4096); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ off, n int64 }{{1, 4096}, {0, 100}, {1 << 20, 4096}, {-4096, 4096}} {
			if err := d.ReadAt(make([]byte, c.n), c.off); !errors.Is(err, ErrRange) {
				t.Fatal(c, err)
			}
			if err := d.WritevAt([][]byte{make([]byte, c.n)}, c.off); !errors.Is(err, ErrRange) {
				t.Fatal(c, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
		d, err = Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	if _, err := Open(t.TempDir(), Options{}); !errors.Is(err, ErrNotStorage) {
		t.Fatal(err)
	}
	if _, err := Open("/dev/null", Options{}); !errors.Is(err, ErrNotStorage) {
		t.Fatal(err)
	}
}

// TestMemPowerCut: what was flushed is there after a power cut, the rest as its fate says.
func TestMemPowerCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	block := func(v byte) []byte { return bytes.Repeat([]byte{v}, Align) }
	read := func(m *Mem, b int64) []byte {
		got := make([]byte, Align)
		if err := m.ReadAt(got, b*Align); err != nil {
			t.Fatal(err)
		}
		return got
	}
	torn := false
	for range 200 {
		for _, fate := range []Fate{Lost, Kept, Torn, Prefix} {
			m := NewMem("m", 1<<20)
			m.WritevAt([][]byte{block(1)}, 0)
			m.Flush()
			m.WritevAt([][]byte{block(2)}, 0)
			m.WritevAt([][]byte{block(3)}, Align)
			n := m.PowerCut(fate, rng)
			if err := m.Flush(); !errors.Is(err, ErrPowerOff) {
				t.Fatal(err)
			}
			a, b := read(n, 0), read(n, 1)
			switch fate {
			case Lost:
				if a[0] != 1 || b[0] != 0 {
					t.Fatal("lost")
				}
			case Kept:
				if a[0] != 2 || b[0] != 3 {
					t.Fatal("kept")
				}
			case Torn:
				torn = torn || !bytes.Equal(a, block(a[0]))
			case Prefix:
				if b[0] == 3 && a[0] != 2 {
					t.Fatal("prefix")
				}
			}
		}
	}
	if !torn {
		t.Fatal("nothing was torn")
	}
	m := NewMem("m", 1<<20)
	m.Inject(Faults{FailOp: 2})
	if m.Flush() != nil || m.Flush() == nil || m.Flush() != nil {
		t.Fatal("the second operation fails")
	}
}

// TestMemHungWrite: a write that hangs takes what is in its buffers when it goes on, as devices do.
func TestMemHungWrite(t *testing.T) {
	m := NewMem("m", 2*Align)
	b := bytes.Repeat([]byte{1}, Align)
	waits, resume := m.HangOp("write", 1)
	done := make(chan error, 1)
	go func() { done <- m.WritevAt([][]byte{b}, Align) }()
	<-waits
	b[7] = 2
	resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := make([]byte, Align)
	if err := m.ReadAt(got, Align); err != nil || !bytes.Equal(got, b) {
		t.Fatal(err, "the write took its data before it hung")
	}
}
