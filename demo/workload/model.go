package workload

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
)

// Mismatch is a block that was read and is not what it may be.
type Mismatch struct {
	Block uint64
	Found string
	Want  string
}

func (m *Mismatch) Error() string {
	return fmt.Sprintf("block %d (byte %d): found %s; right would be %s", m.Block, m.Block*block.Size, m.Found, m.Want)
}

// model knows what every block of the volume may hold. A block behaves as an atomic register: an operation takes effect
// once, some time between its submission and its completion, and what was completed or read stays until overwritten.
//
// Most blocks can hold one thing only and cost four bytes. A block with I/O in flight, or for which several orders of
// concurrent writes are possible, has a history of the values that it may have.
type model struct {
	mu      sync.Mutex
	clock   uint64 // counts submissions and completions
	last    uint32 // number of the last operation
	settled []uint32
	open    map[uint64]*history
	spare   []*history
}

// value is what one operation makes of a block. Times are of the model's clock; 0 means not yet.
type value struct {
	id         uint32
	zero       bool
	submitted  uint64
	completed  uint64
	superseded uint64 // from then on it can no longer be read
}

type history struct {
	values []value
	users  int // operations in flight
}

// token is what an operation needs to know of its own beginning.
type token struct {
	id   uint32 // of a write or discard
	time uint64
}

func newModel(blocks uint64) *model {
	m := &model{clock: 1, settled: make([]uint32, blocks), open: map[uint64]*history{}}
	for i := range m.settled {
		m.settled[i] = pack(0, true)
	}
	return m
}

func pack(id uint32, zero bool) uint32 {
	if zero {
		return id<<1 | 1
	}
	return id << 1
}

// begin notes that an operation is about to be submitted.
func (m *model) begin(o operation) token {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	t := token{time: m.clock}
	writes := o.op == block.Write || o.op == block.Discard
	if writes {
		m.last++
		t.id = m.last
	}
	for b := o.first; b < o.first+o.count; b++ {
		h := m.history(b)
		h.users++
		if writes {
			h.values = append(h.values, value{id: t.id, zero: o.op == block.Discard, submitted: m.clock})
		}
	}
	return t
}

func (m *model) history(b uint64) *history {
	if h := m.open[b]; h != nil {
		return h
	}
	var h *history
	if n := len(m.spare); n > 0 {
		h, m.spare = m.spare[n-1], m.spare[:n-1]
	} else {
		h = &history{}
	}
	s := m.settled[b]
	h.values = append(h.values[:0], value{id: s >> 1, zero: s&1 == 1, completed: 1})
	m.open[b] = h
	return h
}

// finish notes that a write or discard has completed.
func (m *model) finish(o operation, t token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	for b := o.first; b < o.first+o.count; b++ {
		h := m.open[b]
		for i := range h.values {
			if v := &h.values[i]; v.id == t.id {
				v.completed = m.clock
			} else {
				m.supersede(v, t.time)
			}
		}
		m.leave(b, h)
	}
}

// supersede notes that v is overwritten if it was completed before the given time.
func (m *model) supersede(v *value, before uint64) {
	if v.completed != 0 && v.completed < before && v.superseded == 0 {
		v.superseded = m.clock
	}
}

// abandon notes that an operation has ended without success: a write may or may not have taken effect.
func (m *model) abandon(o operation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	for b := o.first; b < o.first+o.count; b++ {
		m.leave(b, m.open[b])
	}
}

// leave ends an operation's use of a block, and settles the block when only one value is left.
func (m *model) leave(b uint64, h *history) {
	h.users--
	if h.users > 0 {
		return
	}
	keep := h.values[:0]
	for _, v := range h.values {
		if v.superseded == 0 {
			keep = append(keep, v)
		}
	}
	h.values = keep
	if len(keep) == 1 && keep[0].completed != 0 {
		m.settled[b] = pack(keep[0].id, keep[0].zero)
		delete(m.open, b)
		m.spare = append(m.spare, h)
	}
}

// finishRead notes that a read has completed and returns what is wrong with what it saw.
func (m *model) finishRead(o operation, t token, seen []content) (bad []Mismatch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	for i, c := range seen {
		b := o.first + uint64(i)
		h := m.open[b]
		if want := m.observe(h, t, c); want != "" {
			bad = append(bad, Mismatch{Block: b, Found: m.describe(h, c), Want: want})
		}
		m.leave(b, h)
	}
	return bad
}

// observe checks one block against its history and drops the values that the observation rules out. It returns what
// would have been right if c is not.
func (m *model) observe(h *history, t token, c content) (want string) {
	match, matches := 0, 0
	var right []string
	for i := range h.values {
		v := &h.values[i]
		if v.superseded != 0 && v.superseded <= t.time {
			continue
		}
		right = append(right, v.String())
		if c.fault == "" && c.zero == v.zero && (c.zero || c.id == v.id) {
			match = i
			matches++
		}
	}
	switch matches {
	case 0:
		return strings.Join(right, " or ")
	case 1:
		// What was completed before this read began came before what the read saw, and so did what was completed
		// before that was submitted.
		for i := range h.values {
			if i != match {
				m.supersede(&h.values[i], max(t.time, h.values[match].submitted))
			}
		}
	}
	return ""
}

func (v *value) String() string {
	switch {
	case v.zero && v.id == 0:
		return "zeroes (never written)"
	case v.zero:
		return fmt.Sprintf("zeroes (discarded by operation %d)", v.id)
	}
	return fmt.Sprintf("the content of operation %d", v.id)
}

// describe adds to a wrong content what the model knows about it.
func (m *model) describe(h *history, c content) string {
	switch {
	case c.fault != "":
		return c.fault
	case c.zero:
		return "zeroes: a write is lost"
	case c.id > m.last:
		return fmt.Sprintf("%s, which was never submitted", c)
	}
	return fmt.Sprintf("%s: it was overwritten before the read began, a newer write is lost or the read is stale", c)
}
