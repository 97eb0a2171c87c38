package initiator_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/initiator"
	"github.com/cstor-go/cstor/internal/iscsi"
	"github.com/cstor-go/cstor/internal/iscsi/memdisk"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0: a new one")

func newRand(t testing.TB) *rand.Rand {
	n := *seed
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("seed %d", n)
	return rand.New(rand.NewPCG(n, 0))
}

const targetName = "iqn.2016-09.com.openebs.cstor:test"

// portal is a target on a loopback port.
type portal struct {
	*iscsi.Server
	addr string
}

func serve(t testing.TB, disk block.Device, change func(*iscsi.Config)) *portal {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, l, disk, change)
}

func serveOn(t testing.TB, l net.Listener, disk block.Device, change func(*iscsi.Config)) *portal {
	t.Helper()
	cfg := iscsi.Config{TargetName: targetName, Serial: "6f1c1c1e-0000-4000-8000-000000000001", Device: disk,
		Log: slog.New(slog.NewTextHandler(logWriter{t}, nil))}
	if !testing.Verbose() {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if change != nil {
		change(&cfg)
	}
	s, err := iscsi.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(l); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return &portal{s, l.Addr().String()}
}

type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

func (p *portal) config() initiator.Config {
	return initiator.Config{Portal: p.addr, TargetName: targetName}
}

func dial(t testing.TB, cfg initiator.Config) *initiator.Session {
	t.Helper()
	s, err := initiator.Dial(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// until polls a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

// parameters are the ways to transfer data that must all give the same result.
var parameters = []struct {
	name   string
	change func(*initiator.Config)
}{
	{"default", func(*initiator.Config) {}},
	{"digests", func(c *initiator.Config) { c.HeaderDigest, c.DataDigest = true, true }},
	{"header digest", func(c *initiator.Config) { c.HeaderDigest = true }},
	{"R2T only", func(c *initiator.Config) { c.InitialR2T, c.NoImmediateData, c.MaxR2T = true, true, 1 }},
	{"unsolicited", func(c *initiator.Config) { c.NoImmediateData, c.FirstBurst, c.MaxBurst = true, 32768, 65536 }},
	{"small bursts", func(c *initiator.Config) {
		c.FirstBurst, c.MaxBurst, c.MaxReceive, c.MaxR2T = 1536, 4608, 2048, 8
		c.DataDigest = true
	}},
}

// TestRandomIO compares random operations with a model in memory, at several depths and with all parameters.
func TestRandomIO(t *testing.T) {
	for _, p := range parameters {
		t.Run(p.name, func(t *testing.T) {
			disk := memdisk.NewAsync(diskSize)
			defer disk.Close()
			cfg := serve(t, disk, func(c *iscsi.Config) { c.MaxInFlight = 6 << 20 }).config()
			p.change(&cfg)
			s := dial(t, cfg)
			randomIO(t, s, newRand(t), 120, nil)
		})
	}
}

const diskSize = 24 << 20

// randomIO runs operations on disjoint regions in parallel, one at a time in each, against a model of the region.
func randomIO(t *testing.T, s *initiator.Session, r *rand.Rand, ops int, each func(i int)) {
	const regions = 4
	ctx := testContext(t)
	var wg sync.WaitGroup
	for g := range int64(regions) {
		r := rand.New(rand.NewPCG(r.Uint64(), uint64(g)))
		wg.Go(func() {
			base, size := g*diskSize/regions, int64(diskSize/regions)
			model := make([]byte, size)
			for i := range ops / regions {
				if each != nil && g == 0 {
					each(i)
				}
				if err := randomOp(ctx, s, r, base, model); err != nil {
					t.Errorf("region %d operation %d: %v", g, i, err)
					return
				}
			}
			got := make([]byte, size)
			if err := s.ReadAt(ctx, got, base); err != nil || !bytes.Equal(got, model) {
				t.Errorf("region %d differs from the model at the end (%v)", g, err)
			}
		})
	}
	wg.Wait()
}

func randomOp(ctx context.Context, s *initiator.Session, r *rand.Rand, base int64, model []byte) error {
	sizes := []int64{512, 1024, 4096, 4608, 8192, 12288, 65536, 131072, 262144, 262656}
	if r.IntN(16) == 0 {
		sizes = []int64{1 << 20, 4 << 20, 5 << 20} // the last is more than one command
	}
	length := sizes[r.IntN(len(sizes))]
	offset := r.Int64N((int64(len(model))-length)/512+1) * 512
	part := model[offset : offset+length]
	switch r.IntN(10) {
	case 0:
		return s.Flush(ctx)
	case 1:
		clear(part)
		return s.WriteZeroes(ctx, base+offset, length)
	case 2:
		start, end := (offset+4095)&^4095, (offset+length)&^4095
		if start < end {
			clear(model[start:end])
		}
		return s.Discard(ctx, base+offset, length)
	case 3, 4, 5, 6:
		fill := r.Uint64()
		for i := 0; i < len(part); i += 8 {
			binary.LittleEndian.PutUint64(part[i:], fill)
			fill = fill*6364136223846793005 + 1
		}
		return s.WriteAt(ctx, bytes.Clone(part), base+offset, r.IntN(4) == 0)
	}
	got := make([]byte, length)
	if err := s.ReadAt(ctx, got, base+offset); err != nil {
		return err
	}
	if !bytes.Equal(got, part) {
		return errors.New("read differs from the model")
	}
	return nil
}

// TestReconnect breaks the connection again and again under random I/O; nothing may fail or be lost.
func TestReconnect(t *testing.T) {
	disk := memdisk.NewAsync(diskSize)
	defer disk.Close()
	p := serve(t, disk, nil)
	cfg := p.config()
	cfg.Reconnect, cfg.RetryInterval = true, time.Millisecond
	s := dial(t, cfg)
	r := newRand(t)
	randomIO(t, s, r, 160, func(i int) {
		if i%8 == 7 {
			s.Disconnect()
		}
	})
	if n := len(s.Pauses()); n < 3 {
		t.Errorf("%d reconnects", n)
	}
}

// superseding is a device that ends some requests because another target has served them.
type superseding struct {
	block.Device
	every, asked atomic.Int64
}

func (d *superseding) Submit(batch []*block.Request) {
	for _, r := range batch {
		if n := d.every.Load(); n == 0 || d.asked.Add(1)%n != 0 {
			d.Device.Submit([]*block.Request{r})
			continue
		}
		if r.Op == block.Write {
			r.Buf.Release()
		}
		r.Err = block.ErrSuperseded
		go r.Client.Complete([]*block.Request{r})
	}
}

// TestSuperseded has requests end as superseded, and sessions dropped, under random I/O: the initiator logs in again and
// repeats what was not answered; nothing fails.
func TestSuperseded(t *testing.T) {
	disk := memdisk.NewAsync(diskSize)
	defer disk.Close()
	d := &superseding{Device: disk}
	p := serve(t, d, nil)
	cfg := p.config()
	cfg.Reconnect, cfg.RetryInterval = true, time.Millisecond
	s := dial(t, cfg)
	d.every.Store(20)
	randomIO(t, s, newRand(t), 160, func(i int) {
		switch i {
		case 20:
			d.every.Store(0)
		case 30:
			p.Drop()
		}
	})
	if n := len(s.Pauses()); n < 3 {
		t.Errorf("%d reconnects", n)
	}
}

// TestTargetRestart replaces the whole target under random I/O.
func TestTargetRestart(t *testing.T) {
	disk := memdisk.NewAsync(diskSize)
	defer disk.Close()
	p := serve(t, disk, nil)
	cfg := p.config()
	cfg.Reconnect, cfg.RetryInterval = true, time.Millisecond
	s := dial(t, cfg)
	old := p
	randomIO(t, s, newRand(t), 160, func(i int) {
		if i == 12 || i == 25 {
			if i == 12 {
				old.Close()
			} else if err := old.Shutdown(testContext(t)); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			l, err := net.Listen("tcp", p.addr)
			if err != nil {
				t.Errorf("listen again: %v", err)
				return
			}
			old = serveOn(t, l, disk, nil)
		}
	})
	if n := len(s.Pauses()); n < 2 {
		t.Errorf("%d reconnects", n)
	}
}
