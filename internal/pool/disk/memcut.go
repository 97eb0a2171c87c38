package disk

import "math/rand/v2"

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

// Clone returns a device of its own with the same content, all of it stable.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := NewMem(m.name, m.size.Load())
	for k, v := range m.data {
		n.data[k] = v
	}
	return n
}
