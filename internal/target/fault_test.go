package target_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/harness"
	"github.com/cstor-go/cstor/internal/pool"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/replica"
	"github.com/cstor-go/cstor/internal/target"
	"github.com/cstor-go/cstor/internal/volume"
)

// memPool is a pool in memory, whose device can be made to fail, with its replica server; all in this process.
type memPool struct {
	name string
	dev  *disk.Mem
	slow *slowDevice // around dev, below the pool as long as it is not reopened
	pool *pool.Pool
	srv  *replica.Server
	addr string
	stop func()
}

// memCluster is a target and pools in this process.
type memCluster struct {
	t      *testing.T
	addr   string
	target *target.Target
	client harness.Client
	pools  []*memPool
	seed   uint64

	settings volume.Settings // of targets started from now on
	flush    time.Duration   // what a flush takes on pools made from now on
	limit    int             // read-only limit, likewise
	witness  bool            // of targets started from now on
}

func newMemCluster(t *testing.T, pools int) *memCluster {
	t.Helper()
	return startMemCluster(&memCluster{t: t}, pools)
}

func startMemCluster(c *memCluster, pools int) *memCluster {
	t := c.t
	t.Helper()
	c.seed = rand.Uint64()
	t.Logf("seed %d", c.seed)
	c.target, c.addr = c.startTarget(filepath.Join(t.TempDir(), "record"), pools)
	c.client = harness.Client{Device: c.target}
	for range pools {
		c.addPool()
	}
	t.Cleanup(func() {
		for _, p := range c.pools {
			p.stop()
		}
	})
	c.waitHealthy(pools)
	return c
}

// addPool makes a pool with a replica of the volume.
func (c *memCluster) addPool() {
	c.t.Helper()
	i := len(c.pools)
	p := &memPool{name: fmt.Sprintf("pool-%d", i), dev: disk.NewMem(fmt.Sprint("mem", i), 512<<20)}
	var err error
	p.slow = &slowDevice{Mem: p.dev}
	p.pool, err = pool.Create(pool.Stripe(p.slow), pool.Config{Name: p.name, Owner: p.name}, pool.Options{ReadOnlyPercent: c.limit})
	c.must(err)
	p.slow.flush.Store(int64(c.flush))
	c.pools = append(c.pools, p)
	c.serve(p)
}

// damage flips a bit in each block of a pool's device that holds a block of data.
func (c *memCluster) damage(p *memPool, data []byte) {
	c.t.Helper()
	ours := map[string]bool{}
	for i := 0; i < len(data); i += block.Size {
		ours[string(data[i:i+block.Size])] = true
	}
	b := make([]byte, block.Size)
	hit := 0
	for off := int64(0); off < p.dev.Size(); off += block.Size {
		c.must(p.dev.ReadAt(b, off))
		if ours[string(b)] {
			p.dev.FlipBit(off, 3)
			hit++
		}
	}
	if hit != len(ours) {
		c.t.Fatalf("%d blocks of %d found", hit, len(ours))
	}
}

func (c *memCluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// startTarget runs a target until the end of the test.
func (c *memCluster) startTarget(record string, founding int) (*target.Target, string) {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	settings := c.settings
	settings.Backoff = 10 * time.Millisecond
	tgt := target.New(target.Config{
		Volume: "v", Size: volumeSize, ReplicaListen: l, Record: harness.FileRecord(record),
		Desired: volume.Desired{Founding: founding, Factor: founding, Witness: c.witness}, DropSessions: func() {},
		Settings: settings,
	})
	ended := make(chan struct{})
	go func() { tgt.Serve(context.Background()); close(ended) }()
	c.t.Cleanup(func() { tgt.Close(); <-ended })
	return tgt, l.Addr().String()
}

// serve runs the replica server of a pool that is open.
func (c *memCluster) serve(p *memPool) {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	p.addr = l.Addr().String()
	p.srv = replica.New(replica.Config{Pool: p.pool, PullListen: l})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { p.srv.Serve(ctx); close(ended) }()
	p.stop = func() { cancel(); <-ended; p.pool.Close() }
	c.must(p.srv.Attach(c.spec(p, c.addr)))
}

func (c *memCluster) spec(p *memPool, target string) replica.Spec {
	return replica.Spec{Name: "v-" + p.name, ReplicaID: p.name, Target: target, Size: volumeSize}
}

// reopen is what a pool process that is started again does.
func (c *memCluster) reopen(p *memPool) {
	c.t.Helper()
	p.stop()
	p.dev.Inject(disk.Faults{})
	p.dev.Reopen()
	var err error
	p.pool, err = pool.Open([]disk.Device{p.dev}, pool.Options{})
	c.must(err)
	c.serve(p)
}

func (c *memCluster) waitHealthy(n int) {
	c.t.Helper()
	c.must(harness.Eventually(patience, func() (bool, error) {
		st := c.target.Status()
		have, serving := harness.Healthy(st)
		return have == n && serving, fmt.Errorf("%+v", st)
	}))
}

func (c *memCluster) run(m *harness.Model, l *harness.Load, n int) {
	c.t.Helper()
	start, _ := m.Ops()
	c.must(harness.Eventually(patience, func() (bool, error) {
		ops, _ := m.Ops()
		return ops-start >= n || l.Wrong() != nil, fmt.Errorf("%d requests of %d; %+v", ops-start, n, c.target.Status())
	}))
	c.must(l.Wrong())
}

// finish ends a load of which nothing may have failed, and compares everything.
func (c *memCluster) finish(m *harness.Model, l *harness.Load) {
	c.t.Helper()
	c.must(l.Stop())
	if _, failed := m.Ops(); failed > 0 {
		c.t.Errorf("%d requests failed", failed)
	}
	c.must(m.Verify(c.client))
	c.compareAll()
}

// compareAll checks that all replicas are equal.
func (c *memCluster) compareAll() {
	c.t.Helper()
	for _, p := range c.pools[1:] {
		_, err := replica.Compare(context.Background(), c.pools[0].addr, "v-"+c.pools[0].name, p.addr, "v-"+p.name)
		c.must(err)
	}
}

// TestDeviceFails has a pool's device fail under load: the volume goes on without a failed request and says what happened,
// and the replica comes back when its pool has been opened again.
func TestDeviceFails(t *testing.T) {
	for name, faults := range map[string]disk.Faults{"write": {FailWrite: true}, "flush": {FailFlush: true}, "all": {FailFrom: 1}} {
		t.Run(name, func(t *testing.T) {
			c := newMemCluster(t, 3)
			m := harness.NewModel(volumeSize)
			l := harness.NewLoad(m, 8, c.seed, func() harness.Client { return c.client })
			c.run(m, l, 500)
			p := c.pools[0]
			p.dev.Inject(faults)
			c.run(m, l, 500)
			c.must(c.client.Flush())
			c.waitHealthy(2)
			for _, r := range c.target.Status().Replicas {
				if r.Name == "v-"+p.name && r.LastError == "" {
					t.Error("the target does not say what happened")
				}
			}
			if st := p.srv.Status(); st[0].InSync || st[0].LastError == "" {
				t.Errorf("the replica's status is %+v", st[0])
			}
			c.run(m, l, 500)
			c.reopen(p)
			c.waitHealthy(3)
			c.finish(m, l)
		})
	}
}

// TestDamagedBlocks flips bits on the devices: a read is served by a replica that is intact, and is an error when there is
// none, never wrong data.
func TestDamagedBlocks(t *testing.T) {
	c := newMemCluster(t, 3)
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	c.must(c.client.Write(data, 0, false))
	c.must(c.client.Flush())
	got := make([]byte, len(data))
	for i, p := range c.pools {
		c.damage(p, data)
		for range 6 { // whichever is asked first
			err := c.client.Read(got, 0)
			if i < 2 && (err != nil || !bytes.Equal(got, data)) {
				t.Fatalf("%d replicas damaged: %v, equal: %v", i+1, err, bytes.Equal(got, data))
			}
			if i == 2 && !errors.Is(err, block.ErrMedium) {
				t.Fatalf("all replicas damaged: %v", err)
			}
		}
	}
	// A write in part of a damaged block cannot be merged; one of the whole block heals it.
	if err := c.client.Write(data[:512], 512, false); !errors.Is(err, block.ErrMedium) {
		t.Errorf("write in part of a damaged block: %v", err)
	}
	c.must(c.client.Write(data, 0, false))
	c.must(c.client.Read(got, 0))
	if !bytes.Equal(got, data) {
		t.Error("what was written again differs")
	}
	c.waitHealthy(3)
}

// TestAnotherTarget has another target win the replicas from this one under load, which must then claim them again: what
// was not completed ends as superseded, is repeated, and nothing fails.
func TestAnotherTarget(t *testing.T) {
	c := newMemCluster(t, 3)
	m := harness.NewModel(volumeSize)
	l := harness.NewLoad(m, 16, c.seed, func() harness.Client { return c.client })
	c.run(m, l, 500)
	other, addr := c.startTarget(filepath.Join(t.TempDir(), "record"), 3)
	for range 3 {
		before := c.target.Status().Epoch
		for _, p := range c.pools {
			c.must(p.srv.Attach(c.spec(p, addr)))
		}
		c.must(harness.Eventually(patience, func() (bool, error) {
			st := other.Status()
			return st.Serving && st.Epoch > before, fmt.Errorf("%+v", st)
		}))
		for _, p := range c.pools {
			c.must(p.srv.Attach(c.spec(p, c.addr)))
		}
		c.waitHealthy(3)
		if after := c.target.Status().Epoch; after <= before+1 {
			t.Errorf("epoch %d after %d", after, before)
		}
		c.run(m, l, 500)
	}
	c.finish(m, l)
}

// asked is one request whose end is told as it is.
type asked chan error

func (asked) Complete(batch []*block.Request) {
	for _, r := range batch {
		r.Tag.(asked) <- r.Err
	}
}

// ask submits a write of one byte value to some sectors.
func ask(d block.Device, value byte, off, n int64) asked {
	a, data := make(asked, 1), bytes.Repeat([]byte{value}, int(n))
	d.Submit([]*block.Request{{
		Op: block.Write, Offset: off, Length: n, Data: data, Buf: block.WrapBuffer(data), Client: a, Tag: a,
	}})
	return a
}

// TestSuperseded leaves requests to a target that has lost its replicas to another one. When it has them back, these end
// without any effect, also those that were still reading the rest of their blocks: the other target was asked for the
// same, and for more.
func TestSuperseded(t *testing.T) {
	c := newMemCluster(t, 3)
	other, addr := c.startTarget(filepath.Join(t.TempDir(), "record"), 3)
	for _, p := range c.pools {
		c.must(p.srv.Attach(c.spec(p, addr)))
	}
	c.must(harness.Eventually(patience, func() (bool, error) {
		st := other.Status()
		return st.Serving, fmt.Errorf("%+v", st)
	}))
	held := []asked{
		ask(c.target, 1, 0, 4096),       // a whole block
		ask(c.target, 1, 8192, 512),     // a part of one
		ask(c.target, 1, 8192, 4096),    // lined up behind it
		ask(c.target, 1, 8192+512, 512), // and behind that
	}
	newer := bytes.Repeat([]byte{2}, 16384)
	c.must(harness.Client{Device: other}.Write(newer, 0, false))
	for _, p := range c.pools {
		c.must(p.srv.Attach(c.spec(p, c.addr)))
	}
	for i, a := range held {
		if err := <-a; !errors.Is(err, block.ErrSuperseded) {
			t.Errorf("request %d: %v", i, err)
		}
	}
	got := make([]byte, len(newer))
	c.must(c.client.Read(got, 0))
	if !bytes.Equal(got, newer) {
		t.Error("what the other target completed was overwritten")
	}
}

// TestDamagedSource rebuilds a replica from two others, one of which is damaged: the intact one is asked in the end, and
// nothing of the damage is copied.
func TestDamagedSource(t *testing.T) {
	for round := range 6 { // which source is tried first is a matter of the replicas' random identities
		damaged := round % 2
		c := newMemCluster(t, 2)
		data := make([]byte, 8<<20)
		rand.NewChaCha8([32]byte{byte(damaged)}).Read(data)
		c.must(c.client.Write(data, 0, false))
		c.damage(c.pools[damaged], data[7<<20:])
		c.target.Want(volume.Desired{Founding: 2, Factor: 3})
		c.addPool()
		c.waitHealthy(3)
		intact, added := c.pools[1-damaged], c.pools[2]
		_, err := replica.Compare(context.Background(), intact.addr, "v-"+intact.name, added.addr, "v-"+added.name)
		c.must(err)
	}
}
