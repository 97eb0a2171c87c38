package sim

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// kind is one kind of misfortune and how often it comes, on average.
type kind struct {
	name  string
	every time.Duration
	do    func()
}

// Fault is one misfortune of a run.
type Fault struct {
	Number int
	At     time.Duration
	Name   string
	do     func()
	rng    *rand.Rand
}

// kinds of faults. Those that need a replica find one.
func (w *world) kinds() []kind {
	some := func() *replica { return w.replicas[w.rng.IntN(len(w.replicas))] }
	return []kind{
		{"kill the target", 400 * ms, w.killTarget},
		{"freeze the target", 700 * ms, func() { w.freeze(w.targetProcess(), w.between(0, 150*ms)) }},
		{"restart a replica", 250 * ms, func() { w.bounce(some()) }},
		{"restart all replicas", 900 * ms, func() {
			for _, r := range w.replicas {
				w.bounce(r)
			}
		}},
		{"freeze a replica", 300 * ms, func() { w.freeze(&some().process, w.between(0, 250*ms)) }},
		{"break a connection", 150 * ms, func() {
			if c := some().conn; c != nil {
				c.cut()
			}
		}},
		{"silence a connection", 250 * ms, func() {
			if c := some().conn; c != nil {
				c.hush(w.between(0, 200*ms))
			}
		}},
		{"take a link down", 400 * ms, func() {
			r := some()
			r.down = w.now + w.between(0, 400*ms)
			if c := r.conn; c != nil {
				c.cut()
			}
		}},
		{"strand a replica", 600 * ms, func() { w.strand(some()) }},
		{"partition", 1200 * ms, func() { w.partition(2 + w.rng.IntN(3)) }},
		{"second target", 180 * ms, w.secondTarget},
		{"fill a pool", 500 * ms, func() { w.fill(some()) }},
		{"cut the power of a replica", 700 * ms, func() { some().powerCut(w.rng) }},
		{"cut all power", 2500 * ms, func() {
			for _, r := range w.replicas {
				r.powerCut(w.rng)
			}
		}},
		{"cut the power during an operation", 500 * ms, func() { some().disk.dev.left = 1 + w.rng.IntN(60) }},
		{"damage a read", 250 * ms, func() { some().spoil = w.rng }},
		{"mischief", 400 * ms, func() { w.mischiefs = append(w.mischiefs, mischief{1 + w.rng.IntN(40), w.rng}) }},
		{"fail a pull", 200 * ms, func() { w.pullFails = true }},
		{"change the membership", 125 * ms, w.act},
		{"API server away", 1000 * ms, func() { w.record.down = w.now + w.between(0, 600*ms) }},
		{"API server in doubt", 900 * ms, func() { w.record.unsure = w.now + w.between(0, 900*ms) }},
		{"restore the record", 1500 * ms, w.restore},
		{"switch the witness", 1500 * ms, func() { w.operator.want.Witness = !w.operator.want.Witness; w.tell() }},
		{"reboot a machine", 3000 * ms, func() { some().reboot() }},
		{"stop the target over a power cut", 600 * ms, w.oversleep},
	}
}

// Faults returns the faults of a run, all of them, in the order in which they come.
func Faults(o Options) []Fault {
	o.setDefaults()
	return (&world{seed: o.Seed}).faults(o.Chaos)
}

// faults draws the faults of a run. Some kinds come more often in one run than in another.
func (w *world) faults(until time.Duration) (all []Fault) {
	for i, k := range w.kinds() {
		rng := w.source(concernFaults + uint64(i))
		every := float64(k.every) * (0.4 + 2.5*rng.Float64())
		for at := rng.ExpFloat64() * every; at < float64(until); at += rng.ExpFloat64() * every {
			all = append(all, Fault{At: time.Duration(at), Name: k.name, do: k.do, rng: rand.New(rand.NewPCG(rng.Uint64(), 0))})
		}
	}
	slices.SortStableFunc(all, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	for i := range all {
		all[i].Number = i
	}
	return all
}

// inject queues the faults of a run.
func (w *world) inject(o Options) {
	for _, f := range w.faults(o.Chaos) {
		if o.Only != nil && !slices.Contains(o.Only, f.Number) {
			continue
		}
		w.push(&event{at: f.At, rng: f.rng, do: func() {
			if len(w.replicas) > 0 {
				w.logf("fault %d: %s", f.Number, f.Name)
				f.do()
			}
		}})
	}
}

func (w *world) targetProcess() *process {
	if w.target == nil {
		return nil
	}
	return &w.target.process
}

func (w *world) freeze(p *process, d time.Duration) {
	if p != nil && p.alive {
		w.logf("frozen for %v", d)
		p.frozen = max(p.frozen, w.now+d) // never shorter: what comes would overtake what has come
	}
}

func (w *world) killTarget() {
	if w.target != nil {
		w.target.end()
		w.after(w.between(0, 60*ms), nil, w.startTarget)
	}
}

// oversleep stops the target with writes under way while machines lose power, and lets another one take over: what they had
// acknowledged is read by the first one when it goes on.
func (w *world) oversleep() {
	t := w.target
	if !w.two || t == nil || w.other != nil || !t.logins || w.calm {
		return
	}
	w.logf("target is stopped over a power cut")
	w.cover.Oversleeps++
	for range 4 {
		w.app.submit(t, &request{kind: block.Write, block: uint64(w.rng.IntN(blocks)), count: 1})
	}
	w.other, w.target, t.lasts = t, nil, true
	w.after(w.between(0, ms), nil, func() { w.freeze(&t.process, w.between(300*ms, 700*ms)) })
	w.after(w.between(2*ms, 8*ms), nil, func() {
		for _, r := range w.replicas {
			if w.chance(0.8) {
				r.powerCut(w.rng)
			}
		}
		w.after(w.between(0, 20*ms), nil, w.startTarget)
	})
	w.after(w.between(1000*ms, 1500*ms), nil, func() {
		if w.other == t {
			t.kill()
		}
	})
}

// bounce kills a replica and starts it again.
func (w *world) bounce(r *replica) {
	r.kill()
	d := w.between(0, 60*ms)
	if w.chance(0.2) {
		d = w.between(0, 700*ms)
	}
	w.after(d, nil, r.start)
}

// strand leaves one replica alone with the operations that are under way, and takes it and the target away: whoever
// takes over does so without them, unless they come back in time.
func (w *world) strand(r *replica) {
	t := w.target
	if t == nil || r.conn == nil {
		return
	}
	w.logf("%s is stranded", r.name)
	for _, id := range sortedConns(t.conns) {
		if c := t.conns[id]; c.r != r {
			c.silence(atReplica, 40*ms)
			c.silence(atTarget, 40*ms)
			w.after(w.between(5*ms, 39*ms), nil, c.lose)
		}
	}
	w.after(w.between(4*ms, 40*ms), nil, func() {
		if w.target == t && !w.calm {
			w.killTarget()
			r.kill()
			w.after(w.between(20*ms, 400*ms), nil, r.start)
		}
	})
}

// partition lets some of the replicas reach the target and the others not, for a while, and then others again, with a
// new target most of the time: histories part, and rebuilds begin with one source and go on with another.
func (w *world) partition(rounds int) {
	if w.calm || rounds == 0 {
		return
	}
	d := w.between(20*ms, 160*ms)
	for _, r := range w.replicas {
		if w.chance(0.45) {
			r.down = w.now + d
			if r.conn != nil {
				r.conn.lose()
			}
		} else {
			r.down = 0
		}
	}
	w.after(d, nil, func() {
		if w.chance(0.7) && !w.calm {
			w.killTarget()
		}
		w.partition(rounds - 1)
	})
}

// mischief is a fault that waits for one of the messages that change what a replica is.
type mischief struct {
	left int // such messages until then, that one included
	rng  *rand.Rand
}

// meddle is told of messages, and lets the mischief happen whose turn it is.
func (w *world) meddle(c *conn, m volume.Message) {
	switch m.(type) {
	case volume.Claim, volume.Found, volume.Join, volume.Stream, volume.Stage, volume.Promote, volume.SetList:
	default:
		return
	}
	w.mischiefs = slices.DeleteFunc(w.mischiefs, func(x mischief) bool {
		over := x.left == 1
		if over && !w.calm {
			w.with(x.rng, func() { w.mischief(c, m) })
		}
		return over
	})
	for i := range w.mischiefs {
		w.mischiefs[i].left--
	}
}

// mischief lets the target, the replica or all the others' links fail just before or just after a message arrives.
func (w *world) mischief(c *conn, m volume.Message) {
	w.logf("mischief at %T to %s", m, c.r.name)
	if w.chance(0.4) {
		for _, id := range sortedConns(c.t.conns) {
			if o := c.t.conns[id]; o != c {
				o.lose()
			}
		}
	}
	if w.chance(0.6) {
		w.after(w.between(0, 4*ms), nil, func() {
			if w.target == c.t && !w.calm {
				w.killTarget()
			}
		})
	}
	if w.chance(0.5) {
		w.after(w.between(0, 4*ms), nil, func() {
			if !w.calm {
				w.bounce(c.r)
			}
		})
	}
}

// fill makes a replica's pool full, or empties it.
func (w *world) fill(r *replica) {
	if !r.alive {
		return
	}
	switch {
	case r.full:
		r.must(r.disk.empty())
	case w.chance(0.3):
		r.must(r.disk.fill())
	}
	r.tellSpace()
}

// calmDown ends the faults and repairs what can be repaired.
func (w *world) calmDown() {
	w.logf("faults end")
	w.calm = true
	w.record.down, w.record.unsure = 0, 0
	for _, r := range w.replicas {
		r.down, r.spoil, r.disk.dev.left = 0, nil, 0
		if r.alive {
			r.must(r.disk.empty())
		}
		w.after(w.between(0, 50*ms), nil, r.start)
	}
	if w.other != nil && !w.other.lasts {
		w.other.kill()
	}
	w.after(w.between(0, 50*ms), nil, w.startTarget)
}
