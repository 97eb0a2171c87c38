package workload

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// memory is a device in memory that can be told to misbehave.
type memory struct {
	mu   sync.Mutex
	data []byte
	// write, if set, is called in the place of each write.
	write func(d *memory, r *block.Request)
	// read, if set, may change what a read returns.
	read func(d *memory, r *block.Request)
	// hold, if set, keeps requests of the device until it returns.
	hold func(r *block.Request)
}

func newMemory(size int64) *memory { return &memory{data: make([]byte, size)} }

func (d *memory) Size() int64 { return int64(len(d.data)) }

func (d *memory) Submit(batch []*block.Request) {
	for _, r := range slices.Clone(batch) {
		go d.serve(r)
	}
}

func (d *memory) serve(r *block.Request) {
	if d.hold != nil {
		d.hold(r)
	}
	d.mu.Lock()
	switch r.Op {
	case block.Read:
		r.Data = slices.Clone(d.data[r.Offset : r.Offset+r.Length])
		r.Buf = block.WrapBuffer(r.Data)
		if d.read != nil {
			d.read(d, r)
		}
	case block.Write:
		if d.write != nil {
			d.write(d, r)
		} else {
			copy(d.data[r.Offset:], r.Data)
		}
		r.Buf.Release()
	case block.Discard:
		clear(d.data[r.Offset : r.Offset+r.Length])
	}
	d.mu.Unlock()
	r.Client.Complete([]*block.Request{r})
}

const mib = 1 << 20

func newTestApp(d block.Device) *App {
	return New(Config{Device: d, Extents: Spread(d.Size(), 2*mib, 2), Seed: 1})
}

// exercise fills, runs the steady load until it did ops operations or failed, and verifies.
func exercise(t *testing.T, d block.Device, ops uint64) *App {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a := newTestApp(d)
	if a.Fill(ctx, nil) != nil {
		return a
	}
	run := a.Start(ctx, Load{Depth: 8})
	for a.Report().Ops() < ops && a.Err() == nil && ctx.Err() == nil {
		select {
		case <-a.Failed():
		case <-time.After(time.Millisecond):
		}
	}
	run.Stop()
	_ = a.Verify(ctx, nil) // in Err, too
	if ctx.Err() != nil {
		t.Fatal("the application did not get on")
	}
	return a
}

func TestHonestDevice(t *testing.T) {
	a := exercise(t, newMemory(16*mib), 20000)
	if err := a.Err(); err != nil {
		t.Fatal(err)
	}
	r := a.Report()
	if p := r.Phase("all"); p.Reads == 0 || p.Writes == 0 || p.Discards == 0 || p.Flushes == 0 || p.P50 == 0 || p.Max < p.P99 {
		t.Errorf("report misses something: %+v", p)
	}
	if r.Verified < 16*mib/block.Size {
		t.Errorf("only %d blocks were verified", r.Verified)
	}
}

// TestFaultyDevices has one device per way to lose data; the application has to find each and name it.
func TestFaultyDevices(t *testing.T) {
	var writes int
	sometimes := func() bool { writes++; return writes%500 == 499 }
	faults := map[string]struct {
		device *memory
		want   string
	}{
		"lost write": {&memory{write: func(d *memory, r *block.Request) {
			if !sometimes() {
				copy(d.data[r.Offset:], r.Data)
			}
		}}, "lost"},
		"torn block": {&memory{write: func(d *memory, r *block.Request) {
			data := r.Data
			if sometimes() {
				data = data[:len(data)-block.Size/2]
			}
			copy(d.data[r.Offset:], data)
		}}, "torn or damaged"},
		"misdirected write": {&memory{write: func(d *memory, r *block.Request) {
			copy(d.data[r.Offset:], r.Data)
			if sometimes() {
				copy(d.data[(r.Offset+mib)%(15*mib):], r.Data)
			}
		}}, "misdirected"},
		"flipped bit": {&memory{read: func(d *memory, r *block.Request) {
			if sometimes() {
				r.Data[len(r.Data)/2+77] ^= 4
			}
		}}, "damaged"},
		"foreign data": {&memory{read: func(d *memory, r *block.Request) {
			if sometimes() {
				copy(r.Data, "something else")
			}
		}}, "never wrote"},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			writes = 0
			f.device.data = make([]byte, 16*mib)
			a := exercise(t, f.device, 50000)
			if err := a.Err(); err == nil || !strings.Contains(err.Error(), f.want) {
				t.Errorf("a device with this fault was reported as: %v", err)
			}
		})
	}
}

func TestStaleRead(t *testing.T) {
	old := make([]byte, 16*mib) // as everything was when it had been filled
	var reads int
	d := newMemory(16 * mib)
	d.read = func(d *memory, r *block.Request) {
		switch reads++; {
		case reads == 1:
			copy(old, d.data)
		case reads > 2000:
			copy(r.Data, old[r.Offset:])
		}
	}
	if err := exercise(t, d, 50000).Err(); err == nil || !strings.Contains(err.Error(), "overwritten before the read began") {
		t.Errorf("stale reads were reported as: %v", err)
	}
}

func TestDeviceError(t *testing.T) {
	d := newMemory(16 * mib)
	d.write = func(d *memory, r *block.Request) { r.Err = block.ErrNoSpace }
	a := exercise(t, d, 100)
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("write errors were reported as: %v", err)
	}
	if a.Report().Errors == 0 {
		t.Error("errors were not counted")
	}
}

func TestStall(t *testing.T) {
	d := newMemory(16 * mib)
	var once sync.Once
	release := make(chan struct{})
	stalled := make(chan struct{})
	d.hold = func(r *block.Request) {
		if r.Op != block.Flush {
			return
		}
		once.Do(func() { close(stalled) })
		<-release
	}
	a := newTestApp(d)
	a.Phase("stalled")
	done := make(chan error)
	go func() { done <- a.newWorker().do(t.Context(), operation{op: block.Flush}) }()
	<-stalled
	const long = 20 * time.Millisecond
	for begun := time.Now(); time.Since(begun) < long; {
		a.Report()
	}
	if got := a.Report().Phase("stalled").Stall; got < long {
		t.Errorf("while nothing completes for %v, the longest stall is %v", long, got)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestModelAgainstRegister runs random concurrent histories against a register that takes effect at a random moment
// between submission and completion: the model must accept all of them.
func TestModelAgainstRegister(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	type flight struct {
		o       operation
		token   token
		applied bool
		seen    content
	}
	m := newModel(1)
	state := content{zero: true}
	var flights []*flight
	apply := func(f *flight) {
		if f.applied {
			return
		}
		f.applied = true
		switch f.o.op {
		case block.Read:
			f.seen = state
		case block.Write:
			state = content{id: f.token.id}
		case block.Discard:
			state = content{zero: true}
		}
	}
	for range 100000 {
		switch p := random.IntN(3); {
		case p == 0 && len(flights) < 6:
			o := operation{op: []block.Op{block.Read, block.Read, block.Write, block.Discard}[random.IntN(4)], count: 1}
			flights = append(flights, &flight{o: o, token: m.begin(o)})
		case p == 1 && len(flights) > 0:
			apply(flights[random.IntN(len(flights))])
		case len(flights) > 0:
			i := random.IntN(len(flights))
			f := flights[i]
			flights = slices.Delete(flights, i, i+1)
			apply(f)
			if f.o.op != block.Read {
				m.finish(f.o, f.token)
			} else if bad := m.finishRead(f.o, f.token, []content{f.seen}); bad != nil {
				t.Fatal(&bad[0])
			}
		}
	}
}

// TestModelRemembersReads: what was read once is not read differently later, even if both were possible before.
func TestModelRemembersReads(t *testing.T) {
	m := newModel(1)
	write := func() (operation, token) {
		o := operation{op: block.Write, count: 1}
		return o, m.begin(o)
	}
	read := func(id uint32) []Mismatch {
		o := operation{op: block.Read, count: 1}
		token := m.begin(o)
		return m.finishRead(o, token, []content{{id: id}})
	}
	o1, a := write()
	o2, b := write() // concurrent with a
	m.finish(o1, a)
	m.finish(o2, b)
	if bad := read(a.id); bad != nil {
		t.Fatalf("either write may be the last: %v", &bad[0])
	}
	if bad := read(b.id); bad == nil {
		t.Error("a block changed without a write")
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	for i := 1; i <= 100000; i++ {
		h.Record(time.Duration(i) * time.Microsecond)
	}
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999} {
		want := time.Duration(q*100000) * time.Microsecond
		if got := h.Quantile(q); got < want*99/100 || got > want*104/100 {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
	}
	if h.Max() != 100*time.Millisecond || h.Quantile(1) != h.Max() {
		t.Errorf("max is %v, quantile 1 is %v", h.Max(), h.Quantile(1))
	}
	for _, v := range []uint64{0, 1, 31, 32, 63, 64, 65, 1000, 1 << 40, 1<<63 - 1} {
		if u := upper(bucket(v)); u < v || float64(u) > float64(v)*1.04 {
			t.Errorf("%d is in a bucket that ends at %d", v, u)
		}
	}
}

func BenchmarkStampAndInspect(b *testing.B) {
	s := newStamper(1)
	buf := make([]byte, block.Size)
	b.SetBytes(block.Size)
	b.ReportAllocs()
	for i := range b.N {
		s.stamp(buf, uint64(i), uint32(i))
		if c := s.inspect(buf, uint64(i)); c.fault != "" {
			b.Fatal(c)
		}
	}
}
