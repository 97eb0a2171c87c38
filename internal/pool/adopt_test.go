package pool

import (
	"errors"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// A pool gets another name and owner, of which a device hears later that was away.
func TestAdopt(t *testing.T) {
	mems := []*disk.Mem{disk.NewMem("a", 64<<20), disk.NewMem("b", 64<<20)}
	p, err := Create([]Group{{Kind: raid.Mirror, Devices: []disk.Device{mems[0], mems[1]}}}, Config{Name: "old", Owner: "one"}, Options{})
	if err == nil {
		err = p.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	mems[0].Reopen()
	if p, err = Open([]disk.Device{mems[0]}, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Adopt(strings.Repeat("x", MaxName+1), "one"); !errors.Is(err, ErrTooLarge) || p.Stats().Health == HealthFaulted {
		t.Fatal(err)
	}
	if err := p.Adopt("new", "two"); err != nil {
		t.Fatal(err)
	}
	owned := func(m *disk.Mem, owner string) {
		t.Helper()
		if l, err := label.Probe(m); err != nil || l.Owner != owner {
			t.Errorf("device %s: %+v, %v", m.Name(), l, err)
		}
	}
	mems[1].Reopen()
	owned(mems[0], "two")
	owned(mems[1], "one")
	if err := p.Return(mems[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateReplica("r", 1<<20); err != nil { // flushes
		t.Fatal(err)
	}
	owned(mems[1], "two")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Adopt("x", "y"); !errors.Is(err, ErrClosed) {
		t.Errorf("adopted after it was closed: %v", err)
	}
}
