package disk

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// PowerCutAll ends several devices at the same instant, each with the fate that fate returns for it.
func PowerCutAll(mems []*Mem, fate func(i int) Fate, rng *rand.Rand) (found []*Mem) {
	StopAll(mems)
	for i, m := range mems {
		found = append(found, m.PowerCut(fate(i), rng))
	}
	return found
}

// KillAll ends several devices at the same instant as the death of the process does.
func KillAll(mems []*Mem) (found []*Mem) {
	StopAll(mems)
	for _, m := range mems {
		found = append(found, m.Kill())
	}
	return found
}

// StopAll makes every request of several devices fail from the same instant on.
func StopAll(mems []*Mem) {
	for _, m := range mems {
		m.mu.Lock()
	}
	for _, m := range mems {
		m.off = true
		m.mu.Unlock()
	}
}

// Clone returns a device with the same content, all of it stable.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := NewMem(m.name, m.Size())
	n.base, n.data, n.bad, n.absent = m.base, maps.Clone(m.data), maps.Clone(m.bad), m.absent
	return n
}

// Used returns the blocks that hold data, ascending.
func (m *Mem) Used() (blocks []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.base {
		if m.get(k) != nil {
			blocks = append(blocks, k)
		}
	}
	for k, b := range m.data {
		if b != nil && m.base[k] == nil {
			blocks = append(blocks, k)
		}
	}
	slices.Sort(blocks)
	return blocks
}

// Ops returns the number of reads, writes and flushes since the last call of Inject.
func (m *Mem) Ops() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}
