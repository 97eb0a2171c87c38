package pool

import (
	"slices"
	"sync"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// roundsDevice lets reads go on only when as many wait as are expected to be under way at once.
type roundsDevice struct {
	*disk.Mem
	mu       sync.Mutex
	only     map[int64]bool // nil, or the offsets of the reads that this is about
	stages   []int          // how many reads are to come before others can be known; none: reads are not held up
	waiting  []int64
	last     int64 // highest address of the round before in this stage
	gate     chan struct{}
	rounds   int
	problems []string
}

// expect makes the device hold up reads from now on.
func (d *roundsDevice) expect(stages ...int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stages, d.rounds, d.last, d.gate = stages, 0, -1, make(chan struct{})
}

// saw returns the number of rounds since expect.
func (d *roundsDevice) saw(t *testing.T) int {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.problems {
		t.Error(x)
	}
	if len(d.stages) > 0 {
		t.Errorf("reads of stages %v did not come", d.stages)
	}
	return d.rounds
}

func (d *roundsDevice) ReadAt(b []byte, off int64) error {
	d.mu.Lock()
	if len(d.stages) == 0 || d.only != nil && !d.only[off] {
		d.mu.Unlock()
		return d.Mem.ReadAt(b, off)
	}
	gate := d.gate
	if d.waiting = append(d.waiting, off); len(d.waiting) == min(d.stages[0], readsAtOnce) {
		d.release()
	}
	d.mu.Unlock()
	<-gate // if too few come, the device hangs, and the pool fails
	return d.Mem.ReadAt(b, off)
}

// release lets a round go on.
func (d *roundsDevice) release() {
	if first := slices.Min(d.waiting); first < d.last {
		d.problems = append(d.problems, "reads are not in the order of addresses")
	}
	d.last = slices.Max(d.waiting)
	d.rounds++
	if d.stages[0] -= len(d.waiting); d.stages[0] == 0 {
		d.stages, d.last = d.stages[1:], -1
	}
	d.waiting = d.waiting[:0]
	close(d.gate)
	d.gate = make(chan struct{})
}

// TestReadAhead: what is not in memory of the index is read many at a time, by an append, a drain, the cleaner and replay.
func TestReadAhead(t *testing.T) {
	const chunks = aheadChunks
	opt := Options{SegmentBytes: 1 << 20, DeltaEntries: 8192}
	d := &roundsDevice{Mem: disk.NewMem("mem0", 64<<20)}
	p, err := Create(Stripe(d), Config{Name: "test"}, opt)
	must(t, err)
	r, err := p.CreateReplica("v", chunks*dirSpan*block.ChunkBlocks*block.Size)
	must(t, err)
	v := uint64(0)
	ops := func() (ops []Op) { // one for each directory block
		for i := range uint64(chunks) {
			v++
			ops = append(ops, write(i*dirSpan*block.ChunkBlocks, 1, v))
		}
		return ops
	}
	must(t, r.Apply(ops()))
	must(t, p.Close())
	d.Mem.Reopen()
	p = openIdle(t, []disk.Device{d}, opt)
	r = p.Replica("v")

	d.expect(1, chunks) // a node, and the blocks
	must(t, r.Apply(ops()))
	if n := d.saw(t); n != 1+chunks/readsAtOnce {
		t.Fatalf("%d rounds of reads for an append", n)
	}

	d.expect(1, chunks, chunks) // and the pages
	forgetIndex(p)
	s := &p.drain
	p.freeze()
	for s.next < len(s.work) {
		must(t, p.drainStep())
	}
	if n := d.saw(t); n != 1+2*chunks/readsAtOnce {
		t.Fatalf("%d rounds of reads for a drain", n)
	}
	must(t, p.drained())
	must(t, p.cycle())

	c := &p.cleaner
	for _, o := range ops() {
		c.found = append(c.found, candidate{key: index.Key(r.slot, o.Block)})
	}
	d.expect(1, chunks, chunks)
	forgetIndex(p)
	_, err = c.inUse(nil, func(float64) {})
	must(t, err)
	if n := d.saw(t); n != 1+2*chunks/readsAtOnce {
		t.Fatalf("%d rounds of reads to find out what is in use", n)
	}

	d.expect(1, chunks)
	forgetIndex(p)
	var ref chunkRef
	for from, ok := uint64(0), true; ok; {
		_, from, ok, err = r.next(from, nil, &ref)
		must(t, err)
	}
	if n := d.saw(t); n != 1+chunks/readsAtOnce {
		t.Fatalf("%d rounds of reads for a walk", n)
	}

	for _, o := range ops() { // in batches of their own
		must(t, r.Apply([]Op{o}))
	}
	must(t, p.Sync())
	d.only = map[int64]bool{}
	for i := range r.dir {
		_, off := p.where(r.dir[i].addr)
		d.only[off&^(block.Size-1)] = true
		for _, s := range r.dir[i].node.slots {
			_, off := p.where(s.addr)
			d.only[off&^(block.Size-1)] = true
		}
	}
	killed := &roundsDevice{Mem: d.Mem.Kill(), only: d.only}
	_ = closeIdle(p)
	d = killed
	d.expect(1, chunks)
	p = openIdle(t, []disk.Device{d}, opt)
	if n := d.saw(t); n != 1+chunks/readsAtOnce {
		t.Fatalf("%d rounds of reads for a replay", n)
	}
	must(t, p.Check())
	must(t, closeIdle(p))
}

// forgetIndex takes all that is on the devices of the index out of memory.
func forgetIndex(p *Pool) {
	p.cache = newPageCache(p.opt.PageCacheBytes)
	c := &p.idx.dirs
	c.pages = p.cache
	for _, node := range []bool{false, true} {
		for _, it := range slices.Clone(c.ring) {
			if it.node == node && !it.dirty && it.pins == 0 {
				c.remove(it)
			}
		}
	}
}
