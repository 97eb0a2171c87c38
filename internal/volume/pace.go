package volume

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// The pace of rebuilds. A target sees how long its volume's requests take, and lets rebuilds have what these leave: as fast as
// they can while nothing is asked for, and otherwise as fast as requests take no longer than they usually do. The law is
// additive increase, multiplicative decrease (Chiu and Jain 1989), decided ten times a second: one look that finds requests
// slower halves the rate, so that from the highest to the least takes half a second; every other look adds a little.
//
// What is usual is remembered from when no rebuild went on. When requests stay slow although the rebuilds have long been at
// their least, it is the load that has changed; then, and when a rebuild went on from the beginning, what requests take
// while the rebuilds are at their least is usual.
const (
	paceLeast = 32 << 20 // bytes/s that the rebuilds of a volume may always move
	paceFirst = 64 << 20 // bytes/s when requests come again, or when a rebuild begins
	paceMost  = 1 << 30  // bytes/s, while there are requests
	paceGain  = 40 << 20 // bytes/s that are added in a second

	paceLook   = 100 * time.Millisecond // between two looks, if so many requests were answered:
	paceEnough = 20
	paceLate   = 500 * time.Millisecond // between two looks if they were not
	paceIdle   = 500 * time.Millisecond // without a request for so long rebuilds take everything
	paceDoubt  = 10 * time.Second       // slow at the least rate for so long: it is the load
	paceAge    = 300                    // looks after which what was usual counts 1/e
	paceKnown  = 50                     // answers that say what is usual,
	paceLooks  = 20                     // of so many looks
	paceFaster = 1.25                   // so many times faster than usual for as long, it is not usual any more
)

// pace decides how fast the rebuilds of a volume may go. The zero value knows nothing yet. It has no clock: times are those of
// the core's events.
type pace struct {
	rate     int64         // bytes/s for all rebuilds together; zero: as fast as they can
	looked   time.Duration // when it was last decided
	since    time.Duration // since when the rate is the same, and what is usual known
	rebuilds bool          // there were some at that time
	from     time.Duration // requests that came before were held, and say nothing
	kinds    [paceKinds]paceTimes
}

// paceKind is a kind of request. How long they take differs by more than a rebuild makes of it, so each has its own usual.
type paceKind int

const (
	paceRead paceKind = iota
	paceLargeRead
	paceWrite
	paceLargeWrite
	paceSync // a flush, or a write with FUA
	paceKinds
)

// paceSmall is the number of blocks of the largest request that counts as small.
const paceSmall = 16

// paceTimes is how long requests of a kind take: since the last look, and usually.
type paceTimes struct {
	answered int
	now      [paceSteps]uint32
	usual    paceSum
	late     paceSum // of late, whether or not there are rebuilds
}

// paceSum is how long requests took in several looks.
type paceSum struct {
	looks int
	total float64
	count [paceSteps]float32 // total is the sum
}

// Times are counted in steps of a sixteenth of a power of two, from 8 µs on; the last ones take what is longer than 17 s.
const (
	paceShift = 13
	paceSteps = 21 << 4
)

func paceStep(d time.Duration) int {
	n := uint64(max(d, 1<<paceShift))
	e := bits.Len64(n) - 1
	return min((e-paceShift)<<4|int(n>>(e-4))&15, paceSteps-1)
}

// paceTime is the least time that is counted in a step.
func paceTime(step int) time.Duration {
	return time.Duration(16+step&15) << (step>>4 + paceShift - 4)
}

// paceMarks say when requests are slower than usual: when more of them than usual take longer than a quantile of what is usual,
// and somewhat more. The first one is what half of them take, and is soon certain; the second is the tail, of which little is
// allowed since a rebuild shows there first.
var paceMarks = [...]struct{ quantile, factor float64 }{{0.5, 1.5}, {0.99, 1.15}}

// answered notes that a request which came at since was answered at now.
func (p *pace) answered(kind paceKind, since, now time.Duration) {
	if since >= p.from {
		t := &p.kinds[kind]
		t.answered++
		t.now[paceStep(now-since)]++
	}
}

// look decides the rate. It is called at least every paceLook; rebuilds says that some go on, busy that there are requests
// under way, asked when the last one came. held: nothing is served, so that nothing is in a rebuild's way.
func (p *pace) look(now, asked time.Duration, rebuilds, busy, held bool) {
	if held || !busy && now-asked >= paceIdle {
		if held {
			p.from = now
		}
		p.rate = 0
		p.restart(now, rebuilds)
		return
	}
	if p.rate == 0 || rebuilds && !p.rebuilds {
		p.rate = paceFirst
		p.restart(now, rebuilds)
		return
	}
	n := 0
	for k := range p.kinds {
		n += p.kinds[k].answered
	}
	took := now - p.looked
	if took < paceLook || n < paceEnough && took < paceLate {
		return
	}
	judged, slow := 0, n == 0 && busy
	for k := range p.kinds {
		if t := &p.kinds[k]; t.known() {
			judged += t.answered
			slow = slow || t.slow()
		}
	}
	known := 2*judged >= n
	if known && p.rebuilds && p.rate == paceLeast && now-p.since > paceDoubt {
		for k := range p.kinds {
			p.kinds[k].forget()
		}
		known = false
	}
	for k := range p.kinds {
		p.kinds[k].learn(!p.rebuilds || p.rate == paceLeast && !known)
	}
	was := p.rate
	switch {
	case !rebuilds:
		p.rate = paceFirst
	case slow || !known:
		p.rate = max(p.rate/2, paceLeast)
	default:
		p.rate = min(p.rate+int64(paceGain*took.Seconds()), paceMost)
	}
	if p.rate != was || !known {
		p.since = now
	}
	p.restart(now, rebuilds)
}

// restart begins the time until the next look.
func (p *pace) restart(now time.Duration, rebuilds bool) {
	p.looked, p.rebuilds = now, rebuilds
	for k := range p.kinds {
		if t := &p.kinds[k]; t.answered > 0 {
			t.answered = 0
			clear(t.now[:])
		}
	}
}

func (t *paceTimes) known() bool { return t.usual.known() }

// known reports whether s is enough to say something.
func (s *paceSum) known() bool { return s.looks >= paceLooks && s.total >= paceKnown }

// slow reports whether more requests took long than can be chance.
func (t *paceTimes) slow() bool {
	for _, m := range paceMarks {
		mark := paceStep(time.Duration(float64(t.usual.quantile(m.quantile)) * m.factor))
		over := 0
		for _, n := range t.now[mark+1:] {
			over += int(n)
		}
		usual := float64(t.answered) * (1 - m.quantile)
		if float64(over) > usual+2*math.Sqrt(usual*m.quantile) {
			return true
		}
	}
	return false
}

// quantile returns what a share q of the requests take at most.
func (s *paceSum) quantile(q float64) time.Duration {
	left := s.total * (1 - q)
	for i := paceSteps - 1; i > 0; i-- {
		if left -= float64(s.count[i]); left < 0 {
			return paceTime(i + 1)
		}
	}
	return paceTime(1)
}

// forget makes nothing usual.
func (t *paceTimes) forget() { t.usual = paceSum{} }

// learn adds what was answered since the last look to what is usual, if it is. Requests are not faster beside a rebuild than by
// themselves: when they were much faster for a while, that is usual, with or without one.
func (t *paceTimes) learn(usual bool) {
	if t.answered == 0 {
		return
	}
	if usual {
		t.usual.add(&t.now, 1-1./paceAge)
	}
	if t.late.add(&t.now, 1); !t.late.known() {
		return
	}
	const tail = 0.99
	if t.known() && paceFaster*float64(t.late.quantile(tail)) < float64(t.usual.quantile(tail)) {
		t.usual = t.late
	}
	t.late = paceSum{}
}

// add adds a look to what was there, which counts only keep of what it did.
func (s *paceSum) add(look *[paceSteps]uint32, keep float32) {
	s.looks++
	s.total = 0
	for i, n := range look {
		s.count[i] = s.count[i]*keep + float32(n)
		s.total += float64(s.count[i])
	}
}

// kind is op's kind of request; ok is false for those that are not looked at.
func (op *Op) kind() (k paceKind, ok bool) {
	switch {
	case op.Kind != OpWrite:
		return 0, false
	case op.FUA:
		return paceSync, true
	case op.Count > paceSmall:
		return paceLargeWrite, true
	}
	return paceWrite, true
}

func (r *ReadOp) kind() paceKind {
	if r.Count > paceSmall {
		return paceLargeRead
	}
	return paceRead
}

// busy reports whether requests are under way.
func (c *Core) busy() bool {
	if c.finished() < c.last() || len(c.held)+len(c.flushes)+len(c.reads)+len(c.answered) > 0 {
		return true
	}
	return slices.ContainsFunc(c.peers, func(p *peer) bool { return len(p.reads) > 0 })
}

// paceRebuilds tells those who rebuild how fast they may. What the volume may move is shared out evenly.
func (c *Core) paceRebuilds() {
	n := int64(0)
	for _, p := range c.peers {
		if p.state == pulling {
			n++
		}
	}
	c.pace.look(c.now, c.asked, n > 0, c.busy(), !c.serving || c.suspended)
	if n == 0 || c.phase != open {
		return
	}
	rate, why := c.pace.rate, "the application, whose requests go first"
	if limit := c.desired.RebuildLimit; limit > 0 && (rate == 0 || rate > limit) {
		rate, why = limit, "its turn: the volume has a limit for rebuilds"
	}
	for _, p := range c.peers {
		if p.state != pulling || !p.report.Paces {
			continue
		}
		m := Pace{Attempt: p.attempt}
		if rate > 0 {
			m.BytesPerSec, m.For = uint64(max(rate/n, 1)), why
		}
		if m != p.paced {
			p.paced = m
			c.send(p, m)
		}
	}
}
