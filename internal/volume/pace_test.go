package volume

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// paceModel is what requests and a rebuild share: one server, which does one thing after the other, in the order in which
// they come. Requests come at random times and take random times, both exponential. A rebuild moves one piece at a time.
type paceModel struct {
	pace     pace
	rng      *rand.Rand
	now      time.Duration
	free     time.Duration // the server has done all that has come
	asked    time.Duration
	pending  []paceRequest // in the order in which they are done
	arrival  time.Duration
	piece    time.Duration // when the rebuild brings the next one
	tick     time.Duration
	load     float64 // requests a second
	slower   float64 // how much longer requests take, zero: no longer
	rebuilds bool

	moved  int64
	took   []time.Duration
	lowest int64 // rate in this run
}

type paceRequest struct{ since, done time.Duration }

const (
	modelRequest = 40 * time.Microsecond // of the server's time, on average
	modelPiece   = 64 << 10
	modelMove    = 25 * time.Microsecond // for one: 2.6 GB/s alone
	modelTick    = 50 * time.Millisecond
)

func newPaceModel(seed uint64) *paceModel {
	return &paceModel{rng: rand.New(rand.NewPCG(seed, 7)), tick: modelTick}
}

// run lets time pass, with that many requests a second, and returns how long they took, and what the rebuild moved in bytes/s.
func (m *paceModel) run(d time.Duration, load float64, rebuilds bool) (p99 time.Duration, rate float64) {
	end := m.now + d
	m.load, m.took, m.moved, m.lowest = load, m.took[:0], 0, paceMost
	m.arrival = m.next()
	if rebuilds && !m.rebuilds {
		m.piece = max(m.piece, m.now)
	}
	m.rebuilds = rebuilds
	for m.now < end {
		m.now = min(m.tick, m.arrival, end)
		if m.rebuilds {
			m.now = min(m.now, m.piece)
		}
		m.step()
	}
	if len(m.took) > 0 {
		slices.Sort(m.took)
		p99 = m.took[len(m.took)*99/100]
	}
	return p99, float64(m.moved) / d.Seconds()
}

// next returns when the next request comes.
func (m *paceModel) next() time.Duration {
	if m.load == 0 {
		return 1 << 62
	}
	return m.now + time.Duration(m.rng.ExpFloat64()/m.load*float64(time.Second))
}

// step does what is due now.
func (m *paceModel) step() {
	for len(m.pending) > 0 && m.pending[0].done <= m.now {
		r := m.pending[0]
		m.pending = m.pending[1:]
		m.pace.answered(paceWrite, r.since, r.done)
		m.took = append(m.took, r.done-r.since)
	}
	if m.now >= m.arrival {
		takes := float64(modelRequest) * m.rng.ExpFloat64()
		if m.slower > 0 {
			takes *= m.slower
		}
		m.free = max(m.free, m.now) + time.Duration(takes)
		m.pending = append(m.pending, paceRequest{m.now, m.free})
		m.asked = m.now
		m.arrival = m.next()
	}
	if m.rebuilds && m.now >= m.piece {
		m.free = max(m.free, m.now) + modelMove
		m.moved += modelPiece
		m.piece = m.free
		if r := m.pace.rate; r > 0 {
			m.piece = max(m.piece, m.now+time.Duration(float64(modelPiece)/float64(r)*float64(time.Second)))
		}
	}
	if m.now >= m.tick {
		m.tick += modelTick
		m.pace.look(m.now, m.asked, m.rebuilds, len(m.pending) > 0, false)
		if r := m.pace.rate; r != 0 {
			m.lowest = min(m.lowest, r)
		}
	}
}

func overSeeds(t *testing.T, f func(t *testing.T, m *paceModel)) {
	for seed := range uint64(5) {
		m := newPaceModel(seed)
		f(t, m)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

const halfLoad = 12000 // requests a second: about half of what the server can do

// TestPaceConverges rebuilds under half of the load that is possible: requests take no longer than they may, and the rebuild
// gets much of what they leave. Without a pace the server is full.
func TestPaceConverges(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		before, _ := m.run(20*time.Second, halfLoad, false)
		known := m.pace.kinds
		m.run(10*time.Second, halfLoad, true)
		during, rate := m.run(20*time.Second, halfLoad, true)
		t.Logf("p99 %v before, %v during, %.2f; %.0f MB/s, lowest %d", before, during, float64(during)/float64(before), rate/1e6, m.lowest/1e6)
		if float64(during) > 1.25*float64(before) {
			t.Errorf("p99 is %v, before the rebuild %v", during, before)
		}
		if rate < 2*paceLeast {
			t.Errorf("the rebuild gets %.0f MB/s", rate/1e6)
		}
		if m.pace.kinds[paceWrite].usual != known[paceWrite].usual {
			t.Error("how long requests took beside the rebuild counts as usual")
		}
	})
}

// TestPaceAfterAPeak has a rebuild begin soon after requests took much longer than they do now, as many at a time were under
// way: what is usual is what they take now. As usual as at the peak they would take 1.2 times as long.
func TestPaceAfterAPeak(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		peak, _ := m.run(20*time.Second, 1.9*halfLoad, false)
		before, _ := m.run(6*time.Second, halfLoad, false)
		m.run(20*time.Second, halfLoad, true)
		during, rate := m.run(20*time.Second, halfLoad, true)
		t.Logf("p99 %v at the peak, %v before, %v during, %.2f; %.0f MB/s", peak, before, during, float64(during)/float64(before), rate/1e6)
		if float64(during) > 1.12*float64(before) {
			t.Errorf("p99 is %v, before the rebuild %v", during, before)
		}
	})
}

// TestPaceBacksOff has requests take three times as long all of a sudden while a rebuild has much: within a second it has the
// least. When that lasts, it is what is usual, and the rebuild has more again.
func TestPaceBacksOff(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		m.run(20*time.Second, halfLoad/8, false)
		m.run(20*time.Second, halfLoad/8, true)
		if m.pace.rate < 4*paceLeast {
			t.Errorf("under little load the rebuild has %d MB/s after 20 s", m.pace.rate/1e6)
		}
		m.slower = 3
		m.run(time.Second, halfLoad/8, true)
		if m.pace.rate != paceLeast {
			t.Errorf("after a second the rebuild has %d MB/s", m.pace.rate/1e6)
		}
		m.run(20*time.Second, halfLoad/8, true)
		if m.run(10*time.Second, halfLoad/8, true); m.pace.rate < 2*paceLeast {
			t.Errorf("when that has become usual the rebuild has %d MB/s", m.pace.rate/1e6)
		}
	})
}

// TestPaceOfAnOverload has more requests than the server can do, from before what is usual is known: the rebuild goes on.
func TestPaceOfAnOverload(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		m.run(time.Second, 0, true)
		m.run(5*time.Second, 3*halfLoad, true)
		if m.lowest != paceLeast {
			t.Errorf("the rebuild has at least %d MB/s", m.lowest/1e6)
		}
	})
}

// TestPaceWhenIdle ends the load and begins it again: the rebuild takes everything soon, and gives way at once.
func TestPaceWhenIdle(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		m.run(20*time.Second, halfLoad, false)
		m.run(5*time.Second, halfLoad, true)
		m.run(paceIdle+2*modelTick, 0, true)
		if m.pace.rate != 0 {
			t.Errorf("without requests the rebuild has %d MB/s", m.pace.rate/1e6)
		}
		if _, rate := m.run(time.Second, 0, true); rate < 2e9 {
			t.Errorf("the rebuild moves %.0f MB/s", rate/1e6)
		}
		m.run(2*modelTick, halfLoad, true)
		if m.pace.rate > paceFirst || m.pace.rate == 0 {
			t.Errorf("as requests come again the rebuild has %d MB/s", m.pace.rate/1e6)
		}
	})
}

// TestPaceLearns begins with a rebuild under load, before it is known how long requests take: they are left alone until it is.
func TestPaceLearns(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		m.run(2*time.Second, halfLoad, true)
		if m.pace.rate != paceLeast {
			t.Errorf("nothing is known, and the rebuild has %d MB/s", m.pace.rate/1e6)
		}
		if _, rate := m.run(20*time.Second, halfLoad, true); rate < 1.5*paceLeast {
			t.Errorf("the rebuild gets %.0f MB/s", rate/1e6)
		}
	})
}

// TestPaceOfFew has so few requests that there is hardly one for each look.
func TestPaceOfFew(t *testing.T) {
	overSeeds(t, func(t *testing.T, m *paceModel) {
		m.run(60*time.Second, 5, false)
		if _, rate := m.run(60*time.Second, 5, true); rate < 4*paceLeast {
			t.Errorf("the rebuild gets %.0f MB/s", rate/1e6)
		}
	})
}

// TestPaceOfHeldRequests has nothing served, and then all that was held at once: it says nothing of how long requests take.
func TestPaceOfHeldRequests(t *testing.T) {
	m := newPaceModel(1)
	m.run(20*time.Second, halfLoad, false)
	usual := m.pace.kinds[paceWrite].usual.quantile(0.99)
	held := m.now
	for range 1000 {
		m.now += 10 * time.Millisecond
		m.pace.look(m.now, m.now, true, true, true)
		if m.pace.rate != 0 {
			t.Fatalf("while nothing is served the rebuild has %d MB/s", m.pace.rate/1e6)
		}
	}
	for i := range 1000 {
		m.pace.answered(paceWrite, held+time.Duration(i), m.now)
	}
	m.pace.look(m.now+paceLook, m.now, false, true, false)
	m.pace.look(m.now+2*paceLook, m.now, false, true, false)
	if now := m.pace.kinds[paceWrite].usual.quantile(0.99); now != usual {
		t.Errorf("what is usual was %v and is %v", usual, now)
	}
}

// TestPaceSteps looks at the bounds of what is counted as one time.
func TestPaceSteps(t *testing.T) {
	for d := time.Duration(1 << paceShift); d < 10*time.Second; d += d/100 + 1 {
		if s := paceStep(d); paceTime(s) > d || paceTime(s+1) <= d || float64(paceTime(s+1)) > 1.07*float64(paceTime(s)) {
			t.Fatalf("%v is step %d, from %v to %v", d, s, paceTime(s), paceTime(s+1))
		}
	}
	if paceStep(-1) != 0 || paceStep(time.Hour) != paceSteps-1 {
		t.Error("what is too short or too long for any step")
	}
}

// BenchmarkPace notes an answer.
func BenchmarkPace(b *testing.B) {
	var p pace
	b.ReportAllocs()
	for n := range b.N {
		p.answered(paceWrite, 0, time.Duration(n)<<8&(1<<24-1))
	}
}
