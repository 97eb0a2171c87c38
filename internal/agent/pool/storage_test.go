package pool

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	openebsv1alpha1 "github.com/cstor-go/cstor/api/openebs/v1alpha1"
	engine "github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/replica"
)

// storage is the node's real one, on which nobody serves replicas.
func storage() *Disks {
	nobody := server{&memPool{replicas: map[string]*replica.Status{}}}
	return &Disks{Serve: func(*engine.Pool) (Replicas, error) { return nobody, nil }, Stop: func() {}}
}

// files makes sparse files to be devices.
func files(t *testing.T, n int) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint("disk", i))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 64<<20); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestDisksOfEachKind(t *testing.T) {
	for _, c := range []struct {
		kind           string
		devices, spare int
	}{{"stripe", 1, 0}, {"mirror", 2, 1}, {"raidz", 3, 1}, {"raidz2", 6, 2}} {
		d, paths := storage(), files(t, 2*c.devices)
		set := Settings{ReadOnlyPercent: 85, Compression: "lz4", Log: slog.New(slog.DiscardHandler)}
		groups := []Group{{Kind: c.kind, Devices: paths[:c.devices]}, {Kind: c.kind, Devices: paths[c.devices:]}}
		p, _, err := d.Create(groups, engine.Config{Name: "p", Owner: "o"}, set)
		if err != nil {
			t.Fatalf("%s: %v", c.kind, err)
		}
		for i, m := range p.Devices() {
			if m.Name != paths[i] || m.Group != i/c.devices || m.Column != i%c.devices || m.Kind != c.kind || m.State != stateOnline || m.Size == 0 {
				t.Errorf("%s: device %d is %+v", c.kind, i, m)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		l, err := d.Probe(paths[0])
		if err != nil || l.Owner != "o" || len(l.Members) != 2*c.devices {
			t.Errorf("%s: %+v, %v", c.kind, l, err)
		}

		// As many as the groups can do without are missing.
		kept := slices.Concat(paths[c.spare:c.devices], paths[c.devices+c.spare:])
		if p, _, err = d.Open(kept, set); err != nil {
			t.Fatalf("%s without devices: %v", c.kind, err)
		}
		missing := 0
		for _, m := range p.Devices() {
			if m.State == stateUnavailable {
				missing++
			}
		}
		if missing != 2*c.spare || (p.Stats().Health == "DEGRADED") != (c.spare > 0) {
			t.Errorf("%s: %d devices are missing, pool is %s", c.kind, missing, p.Stats().Health)
		}
		if err := p.Destroy(); err != nil {
			t.Fatal(err)
		}
		for _, path := range kept {
			if _, err := d.Probe(path); !errors.Is(err, engine.ErrBlank) {
				t.Errorf("%s: %s was not given back: %v", c.kind, path, err)
			}
		}
		if _, _, err := d.Open(paths[c.spare+1:], set); err == nil {
			t.Errorf("%s: opened without too many", c.kind)
		}
	}
}

// TestMirrorOnDisks is an agent with the node's real disks: a mirror is made, and imported without one of them.
func TestMirrorOnDisks(t *testing.T) {
	w := newWorld(t, "", engine.ErrBlank)
	paths := files(t, 2)
	for i, name := range []string{"a", "b"} {
		w.addDevice(name, engine.ErrBlank)
		bd := get(w, name, &openebsv1alpha1.BlockDevice{})
		bd.Spec.Path = paths[i]
		if err := w.client.Update(w.ctx, bd); err != nil {
			t.Fatal(err)
		}
	}
	cr := w.instance()
	cr.UID = "5d3b1c9e-8f5e-4c37-9c57-2f1f3a6f1a11"
	if err := w.client.Delete(w.ctx, w.instance()); err != nil {
		t.Fatal(err)
	}
	cr.ResourceVersion = ""
	if err := w.client.Create(w.ctx, cr); err != nil {
		t.Fatal(err)
	}
	w.list("mirror", "a b")
	start := func() {
		t.Helper()
		w.restart()
		w.agent.Storage = storage()
		w.pass()
		w.pass()
	}
	start()
	if p := w.instance().Status.Phase; p != cstorv1.PoolOnline {
		t.Fatalf("phase %s: %v", p, w.agent.Ready())
	}
	if err := w.agent.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(paths[1], paths[1]+".away"); err != nil {
		t.Fatal(err)
	}
	start()
	if p := w.instance().Status.Phase; p != cstorv1.PoolDegraded {
		t.Errorf("phase %s", p)
	}
	w.wantEvents("Warning DeviceState b device was in UNAVAIL state")
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksUnavailable, "Following disks [b] are unavailable/faulted")
	if err := w.agent.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(paths[1]+".away", paths[1]); err != nil {
		t.Fatal(err)
	}
	start()
	w.wantCondition(cstorv1.DiskUnavailable, cstorv1.ReasonDisksAvailable, "")
	if err := w.agent.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestPoolIsMadeOnce(t *testing.T) {
	d, paths := storage(), files(t, 4)
	set := Settings{Log: slog.New(slog.DiscardHandler)}
	cr := &cstorv1.CStorPoolInstance{}
	cr.UID = types.UID("5d3b1c9e-8f5e-4c37-9c57-2f1f3a6f1a11")
	cfg := engine.Config{Name: "p", Owner: string(cr.UID), GUID: poolGUID(cr)}
	create := func(paths []string) error {
		p, _, err := d.Create([]Group{{Kind: "mirror", Devices: paths}}, cfg, set)
		if err != nil {
			return err
		}
		return p.Close()
	}
	if err := create(paths[:2]); err != nil {
		t.Fatal(err)
	}
	if err := create(paths[:2]); err == nil {
		t.Error("made anew over a pool that was complete")
	}
	// A crash in the middle of it leaves labels on some devices, and nothing else.
	l, err := d.Probe(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	dev, err := disk.Open(paths[2], disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(label.Write(dev, l), dev.Close()); err != nil {
		t.Fatal(err)
	}
	if err := create(paths[2:]); err != nil {
		t.Errorf("not made after a crash: %v", err)
	}
}

// stuckDevice does not answer to being closed before it is let go.
type stuckDevice struct {
	disk.Device
	answer chan struct{}
}

func (d stuckDevice) Close() error {
	<-d.answer
	return nil
}

// TestCloseOfHungDevice: what is opened in vain is closed again, as far as it answers.
func TestCloseOfHungDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung, fine := stuckDevice{answer: make(chan struct{})}, stuckDevice{answer: make(chan struct{})}
		time.AfterFunc(patience/2, func() { close(fine.answer) })
		closeAll([]disk.Device{hung, fine})
		select {
		case <-fine.answer:
		default:
			t.Error("the device that answers was not waited for")
		}
		close(hung.answer)
	})
}
