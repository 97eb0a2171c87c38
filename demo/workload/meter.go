package workload

import (
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
)

// Report tells what an application has done and seen.
type Report struct {
	Phases     []PhaseReport
	Errors     int   // requests that the device failed
	Mismatches int   // blocks that were not what they may be
	Verified   int64 // blocks read and compared
}

// Phase returns the report of the phase of that name, or an empty one.
func (r Report) Phase(name string) PhaseReport {
	for _, p := range r.Phases {
		if p.Name == name {
			return p
		}
	}
	return PhaseReport{Name: name}
}

// Ops returns the number of operations of all phases.
func (r Report) Ops() (n uint64) {
	for _, p := range r.Phases {
		n += p.Ops
	}
	return n
}

// PhaseReport sums up one phase.
type PhaseReport struct {
	Name                     string
	Ops                      uint64
	Reads, Writes            uint64
	Discards, Flushes        uint64
	ReadBytes, WrittenBytes  int64
	P50, P99, Max            time.Duration // of reads, writes, discards and flushes together
	Stall                    time.Duration // longest time in which nothing completed although something was outstanding
	StallAt, Started, Length time.Duration // since the application was made; when the longest stall ended
}

// meter records every I/O in the phase in which it completes.
type meter struct {
	mu          sync.Mutex
	born        time.Time
	phases      []*phase
	outstanding int
	progress    time.Time // last completion, or when the first of the outstanding requests was submitted
}

type phase struct {
	report  PhaseReport
	latency Histogram
}

func newMeter(first string) *meter {
	return &meter{born: time.Now(), phases: []*phase{{report: PhaseReport{Name: first}}}}
}

func (m *meter) current() *phase { return m.phases[len(m.phases)-1] }

func (m *meter) phase(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.stall(now)
	m.end(now)
	m.phases = append(m.phases, &phase{report: PhaseReport{Name: name, Started: now.Sub(m.born)}})
}

func (m *meter) end(now time.Time) {
	p := m.current()
	p.report.Length = now.Sub(m.born) - p.report.Started
}

// stall notes how long nothing has completed by now.
func (m *meter) stall(now time.Time) {
	if m.outstanding == 0 {
		return
	}
	if r := &m.current().report; now.Sub(m.progress) > r.Stall {
		r.Stall, r.StallAt = now.Sub(m.progress), now.Sub(m.born)
	}
}

func (m *meter) submitted(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.outstanding == 0 {
		m.progress = now
	}
	m.outstanding++
}

func (m *meter) completed(start, now time.Time, r *block.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stall(now)
	m.progress = now
	m.outstanding--
	p := m.current()
	p.latency.Record(now.Sub(start))
	p.report.Ops++
	switch r.Op {
	case block.Read:
		p.report.Reads++
		p.report.ReadBytes += r.Length
	case block.Write:
		p.report.Writes++
		p.report.WrittenBytes += r.Length
	case block.Discard:
		p.report.Discards++
	case block.Flush:
		p.report.Flushes++
	}
}

func (m *meter) report() []PhaseReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.stall(now)
	m.end(now)
	reports := make([]PhaseReport, len(m.phases))
	for i, p := range m.phases {
		r := p.report
		r.P50, r.P99, r.Max = p.latency.Quantile(0.50), p.latency.Quantile(0.99), p.latency.Max()
		reports[i] = r
	}
	return reports
}
