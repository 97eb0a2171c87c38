package disk

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// Recorder keeps everything that changes several Mems, in one order: writes with their data, flushes, discards. Replay
// walks the record and produces, at every point of it, the devices as a power cut at that point may leave them.
type Recorder struct {
	mu     sync.Mutex
	events []event
	devs   []recorded
}

// recorded is a device when its recording began.
type recorded struct {
	name string
	size int64
	base map[int64]*[Align]byte
}

// event is one operation of one device.
type event struct {
	dev   int
	block int64
	count int64  // blocks; 0: a flush
	data  []byte // of a write; nil: a discard
}

// Record records what is done to the devices from now on. What they hold now counts as stable.
func Record(devs ...*Mem) *Recorder {
	r := &Recorder{}
	for _, m := range devs {
		r.Add(m)
	}
	return r
}

// Add records a further device, which gets the next index.
func (r *Recorder) Add(m *Mem) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	d := recorded{name: m.name, size: m.Size(), base: map[int64]*[Align]byte{}}
	maps.Copy(d.base, m.base)
	maps.Copy(d.base, m.data)
	m.rec, m.recIndex = r, len(r.devs)
	r.devs = append(r.devs, d)
}

// Len returns the number of operations so far.
func (r *Recorder) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// Hash returns a digest of the operations so far, of devices and data.
func (r *Recorder) Hash() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := fnv.New64a()
	for _, e := range r.events {
		fmt.Fprintf(h, "%d %d %d %t ", e.dev, e.block, e.count, e.data != nil)
		h.Write(e.data)
	}
	return h.Sum64()
}

func (r *Recorder) note(e event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
}

// The methods below are called by a Mem under its lock; a nil Recorder records nothing.

func (r *Recorder) wrote(dev int, block int64, data []byte) {
	if r != nil && len(data) > 0 {
		r.note(event{dev: dev, block: block, count: int64(len(data) / Align), data: data})
	}
}

func (r *Recorder) flushed(dev int) {
	if r != nil {
		r.note(event{dev: dev})
	}
}

func (r *Recorder) discarded(dev int, block, count int64) {
	if r != nil && count > 0 {
		r.note(event{dev: dev, block: block, count: count})
	}
}

// Fates that only a Replay knows, besides those of PowerCut.
const (
	OneLost Fate = Prefix + 1 + iota // one operation is lost, in whole or in part, the others are there
	OneKept                          // one operation is there, the others are lost
	Fates                            // number of fates
)

// Replay is a place in a record.
type Replay struct {
	r    *Recorder
	at   int
	devs []replayed
}

// replayed is a device at a place in the record. Block images are shared with the record and never changed.
type replayed struct {
	stable  map[int64]*[Align]byte
	pending []event // unflushed, oldest first
}

// Replay returns the beginning of the record. Several walks may go on at once, but not while anything is recorded.
func (r *Recorder) Replay() *Replay {
	p := &Replay{r: r}
	for i := range r.devs {
		p.devs = append(p.devs, replayed{stable: maps.Clone(r.devs[i].base)})
	}
	return p
}

// At returns the number of operations before this place.
func (p *Replay) At() int { return p.at }

// Unflushed reports whether any device has writes or discards here of which a power cut may leave less than all.
func (p *Replay) Unflushed() bool {
	return slices.ContainsFunc(p.devs, func(d replayed) bool { return len(d.pending) > 0 })
}

// Next goes on by one operation; false at the end of the record. Devices that Cut returned are not to be used any more.
func (p *Replay) Next() bool {
	if p.at == len(p.r.events) {
		return false
	}
	e := p.r.events[p.at]
	p.at++
	d := &p.devs[e.dev]
	if e.count > 0 {
		d.pending = append(d.pending, e)
		return true
	}
	for _, w := range d.pending {
		for i := range w.count {
			if b := w.image(i); b != nil {
				d.stable[w.block+i] = b
			} else {
				delete(d.stable, w.block+i)
			}
		}
	}
	d.pending = d.pending[:0]
	return true
}

// image returns the i-th block of an operation, nil for a discard.
func (e *event) image(i int64) *[Align]byte {
	if e.data == nil {
		return nil
	}
	return (*[Align]byte)(e.data[i*Align:])
}

// Cut returns the devices as they are found after a power cut here: what was flushed, and of the rest what fate leaves
// of it, for each device as fate says for its index.
func (p *Replay) Cut(rng *rand.Rand, fate func(dev int) Fate) []*Mem {
	var out []*Mem
	for i := range p.devs {
		d := &p.devs[i]
		m := NewMem(p.r.devs[i].name, p.r.devs[i].size)
		m.base = d.stable
		m.suffer(d.pending, fate(i), rng)
		out = append(out, m)
	}
	return out
}

// suffer applies what fate leaves of unflushed operations.
func (m *Mem) suffer(pending []event, fate Fate, rng *rand.Rand) {
	if len(pending) == 0 || fate == Lost {
		return
	}
	one := rng.IntN(len(pending))
	for n := range pending {
		e := &pending[n]
		switch {
		case fate == Kept, fate == Prefix && n < one, fate == OneLost && n != one, fate == OneKept && n == one:
			m.keep(e)
		case fate == Torn, fate == Prefix && n == one, fate == OneLost && rng.IntN(2) == 0:
			m.keepSome(e, rng)
		}
	}
}

func (m *Mem) keep(e *event) {
	for i := range e.count {
		m.put(e.block+i, e.image(i))
	}
}

// keepSome lets each block of an operation be lost, kept, or torn at sectors; often all of them alike, since most
// operations are lost or kept as a whole.
func (m *Mem) keepSome(e *event, rng *rand.Rand) {
	switch rng.IntN(6) {
	case 0:
		return
	case 1:
		m.keep(e)
		return
	}
	odds := 2 + rng.IntN(10)
	for i := range e.count {
		switch k := rng.IntN(odds); {
		case k > 1:
			m.put(e.block+i, e.image(i))
		case k == 1 && e.data != nil:
			m.put(e.block+i, torn(m.get(e.block+i), e.image(i), rng))
		}
	}
}
