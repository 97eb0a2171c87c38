package pool

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// slowDevice lets others come while it is written to: until one waits for the log, if there is anybody who may.
type slowDevice struct {
	disk.Device
	pool *atomic.Pointer[Pool]
}

func (d slowDevice) WritevAt(bufs [][]byte, off int64) error {
	for i := 0; i < 200000 && !d.awaited(); i++ {
		runtime.Gosched()
	}
	return d.Device.WritevAt(bufs, off)
}

func (d slowDevice) awaited() bool {
	p := d.pool.Load()
	if p == nil {
		return true
	}
	p.joint.mu.Lock()
	defer p.joint.mu.Unlock()
	return len(p.joint.waiting) > 0
}

// togetherBlocks is the size of a replica of manyWriters.
const togetherBlocks = 64

// oneWriter writes to a replica of its own while others do to theirs.
type oneWriter struct {
	name string
	ops  []Op // with version i+1 at i
	// Of each operation: places in the record of the devices before and behind its call and behind the flush that covers
	// it, and when the call began and ended, counted over all writers.
	from, to, synced []int
	began, ended     []int64
}

// manyWriters is a pool to which several write at once, with everything that was done to its devices.
type manyWriters struct {
	l       layout
	seed    uint64
	opt     Options
	rec     *disk.Recorder
	created int
	writers []*oneWriter
	stats   Stats
}

func recordWriters(t *testing.T, l layout, seed uint64) *manyWriters {
	w := &manyWriters{l: l, seed: seed, opt: Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, PageCacheBytes: 64 << 10}}
	mems := l.blank(12 << 20)
	groups := l.arrange(mems)
	var pool atomic.Pointer[Pool] // once there are writers
	for _, g := range groups {
		for i := range g.Devices {
			g.Devices[i] = slowDevice{g.Devices[i], &pool}
		}
	}
	w.rec = disk.Record(mems...)
	p, err := Create(groups, Config{Name: "cut"}, w.opt)
	must(t, err)
	var replicas []*Replica
	for i := range 6 {
		x := &oneWriter{name: fmt.Sprint("v", i)}
		r, err := p.CreateReplica(x.name, togetherBlocks*block.Size)
		must(t, err)
		w.writers, replicas = append(w.writers, x), append(replicas, r)
	}
	must(t, p.Sync())
	w.created = w.rec.Len()
	pool.Store(p)
	var clock atomic.Int64
	var all sync.WaitGroup
	for i, x := range w.writers {
		all.Go(func() { x.write(t, p, replicas[i], rand.New(rand.NewPCG(seed, uint64(i))), w.rec, &clock) })
	}
	all.Wait()
	pool.Store(nil)
	w.stats = p.Stats()
	must(t, p.Check())
	must(t, p.Close())
	return w
}

// write makes calls of one or a few operations each, and flushes now and then.
func (x *oneWriter) write(t *testing.T, p *Pool, r *Replica, rng *rand.Rand, rec *disk.Recorder, clock *atomic.Int64) {
	for range 30 {
		from := len(x.ops)
		for range 1 + rng.IntN(3) {
			v := uint64(len(x.ops) + 1)
			b, n := rng.Uint64N(togetherBlocks-8), 1+rng.IntN(8)
			o := discard(b, uint64(n), v)
			switch rng.IntN(6) {
			case 0:
			case 1:
				o = write(b, n, v)
			default:
				o = Op{Kind: OpWrite, Block: b, Count: uint32(n), Version: ver(v), Data: noise(n, v<<8+uint64(x.name[1]))}
			}
			x.ops = append(x.ops, o)
		}
		place, begin := rec.Len(), clock.Add(1)
		if err := r.Apply(x.ops[from:]); err != nil {
			t.Error(err)
			return
		}
		end := clock.Add(1)
		for range len(x.ops) - from {
			x.from, x.to = append(x.from, place), append(x.to, rec.Len())
			x.began, x.ended = append(x.began, begin), append(x.ended, end)
		}
		if rng.IntN(4) > 0 {
			continue
		}
		if err := p.Sync(); err != nil {
			t.Error(err)
			return
		}
		for at := rec.Len(); len(x.synced) < len(x.ops); {
			x.synced = append(x.synced, at)
		}
	}
}

// content returns what the first n operations leave.
func (x *oneWriter) content(n int) []byte {
	b := make([]byte, togetherBlocks*block.Size)
	for i := range x.ops[:n] {
		o := &x.ops[i]
		at := b[o.Block*block.Size : (o.Block+uint64(o.Count))*block.Size]
		if clear(at); o.Kind == OpWrite {
			copy(at, o.Data)
		}
	}
	return b
}

// TestPowerCutTogether cuts the power while several write at once and share appends. Of each replica a prefix of what was
// done to it is there, which has what was flushed; and of all together: nothing is there that began when something had
// ended that is not.
func TestPowerCutTogether(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		seed := *cutSeed
		if seed == 0 {
			seed = rand.Uint64N(1e9)
		}
		w := recordWriters(t, l, seed)
		rng := rand.New(rand.NewPCG(seed, 100))
		calls, lost, partly := 0, 0, 0
		for _, x := range w.writers {
			for i := range x.ops {
				if i == 0 || x.began[i] != x.began[i-1] {
					calls++
				}
			}
		}
		t.Logf("-powercut.seed=%d -layout=%s: %d calls in %d batches", seed, l.name, calls, w.stats.Batches)
		if int(w.stats.Batches) > calls*3/4 {
			t.Errorf("%d batches for %d calls: they did not come together", w.stats.Batches, calls)
		}
		sparse := max(1, (w.rec.Len()-w.created)/60)
		few := func() bool { return *cutAt < 0 && (lost < 10 || partly < 3) }
		for round := 0; round == 0 || few() && round < 10; round++ { // what becomes of what was not flushed is left to chance
			for r := w.rec.Replay(); !t.Failed(); {
				if r.At() >= w.created && (*cutAt == r.At() || *cutAt < 0 && rng.IntN(sparse) == 0) {
					l, p := w.cut(t, r, rng)
					lost, partly = lost+l, partly+p
				}
				if !r.Next() {
					break
				}
			}
		}
		if few() {
			t.Errorf("operations were lost in %d cuts only, some of those that were not flushed in %d", lost, partly)
		}
	})
}

// cut is one power cut. It returns 1 each if operations were lost whose calls had ended, and if others were found that were
// not flushed.
func (w *manyWriters) cut(t *testing.T, r *disk.Replay, rng *rand.Rand) (lost, partly int) {
	fate, all := disk.Fate(rng.IntN(int(disk.Fates))), rng.IntN(2) == 0
	kept := true
	mems := r.Cut(rng, func(int) disk.Fate {
		if !all {
			fate = disk.Fate(rng.IntN(int(disk.Fates)))
		}
		kept = kept && fate == disk.Kept
		return fate
	})
	fail := func(format string, x ...any) {
		t.Helper()
		t.Fatalf("-layout=%s -powercut.seed=%d -powercut.at=%d: %s", w.l.name, w.seed, r.At(), fmt.Sprintf(format, x...))
	}
	verified(devicesOf(mems), fail)
	p, err := Open(devicesOf(mems), w.opt)
	if err != nil {
		fail("open: %v", err)
	}
	defer func() {
		disk.StopAll(mems)
		p.Close()
	}()
	newest, oldest := int64(0), int64(never) // beginning of what is there, end of what is not
	for _, x := range w.writers {
		v := p.Replica(x.name)
		n := int(v.Applied().N)
		need, most := 0, 0
		for i := range x.ops {
			if i < len(x.synced) && x.synced[i] <= r.At() || kept && x.to[i] <= r.At() {
				need = i + 1
			}
			if x.from[i] < r.At() {
				most = i + 1
			}
		}
		if n < need || n > most {
			fail("replica %s has %d operations, %d were flushed and %d begun", x.name, n, need, most)
		}
		if 0 < n && n < len(x.ops) && x.began[n] == x.began[n-1] {
			fail("replica %s has %d operations, which is a part of a call", x.name, n)
		}
		got := make([]byte, togetherBlocks*block.Size)
		if err := v.Read(0, got, nil); err != nil || !bytes.Equal(got, x.content(n)) {
			fail("replica %s has not what the first %d operations leave: %v", x.name, n, err)
		}
		if n > 0 {
			newest = max(newest, x.began[n-1])
		}
		if n < len(x.ops) {
			oldest = min(oldest, x.ended[n])
		}
		if n < most && x.to[n] <= r.At() {
			lost = 1
		}
		if n > need {
			partly = 1
		}
	}
	if oldest < newest {
		fail("something is there that began when something had ended that is not")
	}
	if err := p.Check(); err != nil {
		fail("%v", err)
	}
	return lost, partly
}
