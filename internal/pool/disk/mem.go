package disk

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// Mem is a device in memory that can fail in the ways devices fail. What is written is seen by reads at once and
// becomes stable with Flush; PowerCut decides, from a seed, what becomes of the rest.
type Mem struct {
	name string
	size atomic.Int64

	base map[int64]*[Align]byte // what lies below data; shared with others and never changed through m

	mu       sync.Mutex
	data     map[int64]*[Align]byte // as the operating system sees it; nil: zeroes
	unstable []memWrite             // writes since the last Flush, oldest first
	rec      *Recorder              // not nil: is told of everything that changes the device
	recIndex int
	closed   bool
	off      bool // lost power
	faults   Faults
	ops      int64 // reads, writes and flushes so far
	flushes  int64
	hang     chan struct{} // not nil: requests wait until it is closed
	waits    func()        // called before one waits
	hangs    []*memHang
	bad      map[int64]bool // blocks that cannot be read until they are written
	absent   bool
}

// memWrite is an unflushed write of one block. old is what was there before; nil means zeroes.
type memWrite struct {
	block int64
	old   *[Align]byte
	new   *[Align]byte
}

// Faults are the failures that a Mem injects. Counts are 1-based over reads, writes and flushes together, from the call
// of Inject; zero means never.
type Faults struct {
	FailOp    int64 // this operation fails with EIO
	FailFrom  int64 // this and every later operation fails with EIO
	FailFlush bool  // every flush fails with EIO
	FailWrite bool  // every write fails with EIO
	FailRead  bool  // every read fails with EIO

	LoseOp    int64 // this operation, if it is a write, is acknowledged and forgotten
	LoseFrom  int64 // this and every later write likewise
	LoseWrite bool  // every write is acknowledged and forgotten
}

// Fate is what a power cut does to unflushed writes.
type Fate int

const (
	Lost   Fate = iota // all of them are gone
	Kept               // all of them are there
	Torn               // each is there, gone, or there in some of its 512-byte sectors
	Prefix             // the first ones are there, one is torn, the later ones are gone
)

// NewMem returns a device of size bytes (rounded down to Align) full of zeroes.
func NewMem(name string, size int64) *Mem {
	m := &Mem{name: name, data: map[int64]*[Align]byte{}}
	m.size.Store(size - size%Align)
	return m
}

// Grow makes the device larger.
func (m *Mem) Grow(size int64) { m.size.Store(size - size%Align) }

// Inject sets the faults from now on.
func (m *Mem) Inject(f Faults) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults, m.ops = f, 0
}

// Hang makes every request wait until resume is called. waits is closed when the first one does.
func (m *Mem) Hang() (waits <-chan struct{}, resume func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c, w := make(chan struct{}), make(chan struct{})
	m.hang, m.waits = c, sync.OnceFunc(func() { close(w) })
	return w, sync.OnceFunc(func() {
		m.mu.Lock()
		m.hang = nil
		m.mu.Unlock()
		close(c)
	})
}

// FlipBit inverts one bit at the byte offset off, behind the back of whoever uses the device.
func (m *Mem) FlipBit(off int64, bit uint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := new([Align]byte)
	if old := m.get(off / Align); old != nil {
		*b = *old
	}
	b[off%Align] ^= 1 << (bit % 8)
	m.put(off/Align, b)
}

// PowerCut ends the device: everything fails from now on. It returns the device as it is found when power is back.
func (m *Mem) PowerCut(fate Fate, rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	n := NewMem(m.name, m.Size())
	n.base = m.base
	for k, v := range m.data {
		n.data[k] = v
	}
	if fate == Kept {
		return n
	}
	for i := len(m.unstable) - 1; i >= 0; i-- { // back to what was stable
		w := m.unstable[i]
		n.put(w.block, w.old)
	}
	cut := len(m.unstable)
	if fate == Prefix && cut > 0 {
		cut = rng.IntN(cut)
	}
	for i, w := range m.unstable {
		switch {
		case fate == Torn && rng.IntN(3) == 0, fate == Prefix && i < cut:
			n.put(w.block, w.new)
		case fate == Torn && rng.IntN(2) == 0, fate == Prefix && i == cut:
			n.put(w.block, torn(n.get(w.block), w.new, rng))
		}
	}
	return n
}

// torn returns a block some of whose 512-byte sectors are those of new, the others those of old.
func torn(old, new *[Align]byte, rng *rand.Rand) *[Align]byte {
	b := *image(old)
	n := image(new)
	for s := 0; s < Align; s += 512 {
		if rng.IntN(2) == 0 {
			copy(b[s:s+512], n[s:])
		}
	}
	return &b
}

var zeroes [Align]byte

// image returns the content that b stands for.
func image(b *[Align]byte) *[Align]byte {
	if b == nil {
		return &zeroes
	}
	return b
}

// Kill ends the device as the death of the process does: later calls fail, and what was written is all there in the
// returned device, unflushed as before.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	n := NewMem(m.name, m.Size())
	n.base, n.data, n.unstable, n.rec, n.recIndex = m.base, m.data, m.unstable, m.rec, m.recIndex
	m.data, m.unstable, m.rec = nil, nil, nil
	return n
}

// Reopen makes a closed device usable again.
func (m *Mem) Reopen() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = false
}

// Bytes returns how many bytes of the device hold data: blocks written and not discarded.
func (m *Mem) Bytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.base)
	for k, b := range m.data {
		if m.base[k] != nil {
			n--
		}
		if b != nil {
			n++
		}
	}
	return int64(n) * Align
}

// Flushes returns the number of flushes so far.
func (m *Mem) Flushes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushes
}

// get returns the content of a block, nil for zeroes.
func (m *Mem) get(block int64) *[Align]byte {
	if b, ok := m.data[block]; ok {
		return b
	}
	return m.base[block]
}

func (m *Mem) put(block int64, b *[Align]byte) {
	if b == nil && m.base[block] == nil {
		delete(m.data, block)
	} else {
		m.data[block] = b
	}
}

// enter locks m for a request, or returns the error that it meets.
func (m *Mem) enter(op string, off, length int64, fail func(Faults) bool) error {
	m.mu.Lock()
	for m.hang != nil {
		c := m.hang
		m.waits()
		m.mu.Unlock()
		<-c
		m.mu.Lock()
	}
	m.stall(op, off, length)
	m.ops++
	f := m.faults
	var err error
	switch {
	case m.off:
		err = ErrPowerOff
	case m.absent:
		err = syscall.ENODEV
	case m.closed:
		err = os.ErrClosed
	case f.FailOp == m.ops, f.FailFrom > 0 && m.ops >= f.FailFrom, fail(f):
		err = syscall.EIO
	}
	if err != nil {
		m.mu.Unlock()
		return &RequestError{Device: m.name, Op: op, Off: off, Len: length, Err: err}
	}
	if err := check(m.name, off, length, m.Size()); err != nil {
		m.mu.Unlock()
		return err
	}
	return nil
}

func (m *Mem) ReadAt(b []byte, off int64) error {
	if err := m.enter("read", off, int64(len(b)), func(f Faults) bool { return f.FailRead }); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if m.hasBad(off, int64(len(b))) {
		return &RequestError{Device: m.name, Op: "read", Off: off, Len: int64(len(b)), Err: syscall.EIO}
	}
	for at := 0; at < len(b); at += Align {
		if src := m.get((off + int64(at)) / Align); src != nil {
			copy(b[at:at+Align], src[:])
		} else {
			clear(b[at : at+Align])
		}
	}
	return nil
}

func (m *Mem) WritevAt(bufs [][]byte, off int64) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	if err := m.enter("write", off, n, func(f Faults) bool { return f.FailWrite }); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if f := m.faults; f.LoseWrite || f.LoseOp == m.ops || f.LoseFrom > 0 && m.ops >= f.LoseFrom {
		return nil
	}
	flat := make([]byte, 0, n) // now: a write that hung takes what its buffers have become
	for _, b := range bufs {
		flat = append(flat, b...)
	}
	for at := 0; at < len(flat); at += Align {
		n := (*[Align]byte)(flat[at:])
		k := (off + int64(at)) / Align
		delete(m.bad, k)
		m.unstable = append(m.unstable, memWrite{block: k, old: m.get(k), new: n})
		m.put(k, n)
	}
	m.rec.wrote(m.recIndex, off/Align, flat)
	return nil
}

func (m *Mem) Flush() error {
	if err := m.enter("flush", 0, 0, func(f Faults) bool { return f.FailFlush }); err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.unstable = nil
	m.flushes++
	m.rec.flushed(m.recIndex)
	return nil
}

// Discard forgets the content of the range, stable at once: the harshest that a device may do.
func (m *Mem) Discard(off, length int64) error {
	if err := m.enter("discard", off, length, func(f Faults) bool { return f.FailWrite }); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for b := off / Align; b < (off+length)/Align; b++ {
		m.put(b, nil)
	}
	m.rec.discarded(m.recIndex, off/Align, length/Align)
	keep := m.unstable[:0]
	for _, w := range m.unstable {
		if w.block < off/Align || w.block >= (off+length)/Align {
			keep = append(keep, w)
		}
	}
	m.unstable = keep
	return nil
}

func (m *Mem) Name() string { return m.name }
func (m *Mem) Size() int64  { return m.size.Load() }

// Close makes later requests fail. The content stays; see Reopen.
func (m *Mem) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("device %s: close: %w", m.name, os.ErrClosed)
	}
	m.closed = true
	return nil
}
