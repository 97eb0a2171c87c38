package disk

import (
	"math/rand/v2"
	"slices"
	"sync"
)

// memHang makes requests wait that match.
type memHang struct {
	match func(op string, off, length int64) bool
	waits func()
	end   chan struct{}
}

// HangIf makes the requests wait for which match is true; op is "read", "write", "flush" or "discard". waits is closed
// when the first one does; resume lets those that wait go on, and later ones pass. match is called with the device
// locked.
func (m *Mem) HangIf(match func(op string, off, length int64) bool) (waits <-chan struct{}, resume func()) {
	w := make(chan struct{})
	h := &memHang{match: match, waits: sync.OnceFunc(func() { close(w) }), end: make(chan struct{})}
	m.mu.Lock()
	m.hangs = append(m.hangs, h)
	m.mu.Unlock()
	return w, sync.OnceFunc(func() {
		m.mu.Lock()
		m.hangs = slices.DeleteFunc(m.hangs, func(x *memHang) bool { return x == h })
		m.mu.Unlock()
		close(h.end)
	})
}

// HangOp makes one request wait: the n-th from now on, 1-based, of those of the given kind.
func (m *Mem) HangOp(kind string, n int) (waits <-chan struct{}, resume func()) {
	return m.HangIf(func(op string, _, _ int64) bool {
		if op == kind {
			n--
		}
		return op == kind && n == 0
	})
}

// stall waits while the request matches a hang. The caller holds mu.
func (m *Mem) stall(op string, off, length int64) {
	for _, h := range slices.Clone(m.hangs) {
		if h.match(op, off, length) {
			h.waits()
			m.mu.Unlock()
			<-h.end
			m.mu.Lock()
		}
	}
}

// BadSectors makes the blocks of a range unreadable until they are written.
func (m *Mem) BadSectors(off, length int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bad == nil {
		m.bad = map[int64]bool{}
	}
	for b := off / Align; b*Align < off+length; b++ {
		m.bad[b] = true
	}
}

func (m *Mem) hasBad(off, length int64) bool {
	for b := off / Align; len(m.bad) > 0 && b*Align < off+length; b++ {
		if m.bad[b] {
			return true
		}
	}
	return false
}

// Corrupt overwrites a range with random bytes, behind the back of whoever uses the device.
func (m *Mem) Corrupt(off, length int64, rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for end := off + length; off < end; {
		b := new([Align]byte)
		if old := m.get(off / Align); old != nil {
			*b = *old
		}
		m.put(off/Align, b)
		for next := min(end, (off/Align+1)*Align); off < next; off++ {
			b[off%Align] = byte(rng.Uint32())
		}
	}
}

// Disappear makes every request fail with ENODEV until Reappear, as when a cable is pulled.
func (m *Mem) Disappear() { m.setAbsent(true) }

// Reappear ends Disappear. The content is as it was.
func (m *Mem) Reappear() { m.setAbsent(false) }

func (m *Mem) setAbsent(absent bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.absent = absent
}
