package walkthrough

import (
	"context"
	"strings"
	"sync"
	"time"

	cstorv1 "github.com/cstor-go/cstor/api/cstor/v1"
	"github.com/cstor-go/cstor/demo/lab"
)

// What the processes may use, in bytes of anonymous memory.
const (
	poolMemoryLimit   = 300 << 20
	targetMemoryLimit = 80 << 20
)

// memory follows how much memory the pools and the target use.
type memory struct {
	mu           sync.Mutex
	pool, target int64 // the most that any of them used
}

const memoryEvery = 500 * time.Millisecond

// watchMemory measures until ctx ends.
func watchMemory(ctx context.Context, l *lab.Lab, volume string) *memory {
	m := &memory{}
	go func() {
		var processes []lab.Process
		tick := time.NewTicker(memoryEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			if len(processes) == 0 {
				processes, _ = l.Processes(ctx) // tried again
			}
			for _, p := range processes {
				bytes, err := p.AnonymousMemory()
				if err != nil {
					processes = nil // one has gone: look anew
					break
				}
				m.note(strings.HasPrefix(p.Pod, cstorv1.TargetDeployment(volume)), p, bytes)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return m
}

func (m *memory) note(target bool, p lab.Process, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case target:
		m.target = max(m.target, bytes)
	case p.Container == cstorv1.AppPool:
		m.pool = max(m.pool, bytes)
	}
}

func (m *memory) most() (pool, target int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pool, m.target
}
