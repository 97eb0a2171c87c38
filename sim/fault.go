package sim

import (
	"time"

	"github.com/cstor-go/cstor/internal/volume"
)

// fault is one kind of misfortune and how often it comes.
type fault struct {
	every time.Duration // on average
	do    func()
}

// scheduleFaults lets every kind of fault come again and again, some rarer or more often from run to run.
func (w *world) scheduleFaults() {
	some := func() *replica { return w.replicas[w.rng.IntN(len(w.replicas))] }
	faults := []fault{
		{400 * ms, w.killTarget},
		{700 * ms, func() { w.freeze(w.targetProcess(), w.between(0, 150*ms)) }},
		{250 * ms, func() { w.bounce(some()) }},
		{900 * ms, func() { // all at once
			for _, r := range w.replicas {
				w.bounce(r)
			}
		}},
		{300 * ms, func() { w.freeze(&some().process, w.between(0, 250*ms)) }},
		{150 * ms, func() { // a connection breaks
			if c := some().conn; c != nil {
				c.cut()
			}
		}},
		{250 * ms, func() { // a connection goes silent
			if c := some().conn; c != nil {
				c.hush(w.between(0, 200*ms))
			}
		}},
		{400 * ms, func() { // a link is down
			r := some()
			r.down = w.now + w.between(0, 400*ms)
			if c := r.conn; c != nil {
				c.cut()
			}
		}},
		{600 * ms, func() { w.strand(some()) }},
		{1200 * ms, func() { w.partition(2 + w.rng.IntN(3)) }},
		{250 * ms, w.secondTarget},
		{500 * ms, func() { w.fill(some()) }},
		{60 * ms, func() { some().disk.collect() }},
		{250 * ms, w.act},
	}
	for _, f := range faults {
		every := time.Duration(float64(f.every) * (0.4 + 2.5*w.rng.Float64()))
		var again func()
		again = func() {
			if w.calm {
				return
			}
			if len(w.replicas) > 0 {
				f.do()
			}
			w.after(time.Duration(w.rng.ExpFloat64()*float64(every)), nil, again)
		}
		w.after(time.Duration(w.rng.ExpFloat64()*float64(every)), nil, again)
	}
	w.after(0, nil, w.reconcile)
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

// mischief happens around a message that changes what a replica is: the target, the replica or all the others' links
// fail just before or just after it arrives.
func (w *world) mischief(c *conn, m volume.Message) {
	switch m.(type) {
	case volume.Claim, volume.Found, volume.Join, volume.Stream, volume.Promote, volume.SetList:
	default:
		return
	}
	if w.calm || !w.chance(0.02) {
		return
	}
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
	r.full = !r.full && w.chance(0.3)
	w.spaceChanged(r)
}

// calmDown ends the faults and repairs what can be repaired.
func (w *world) calmDown() {
	w.logf("faults end")
	w.calm = true
	for _, r := range w.replicas {
		r.down = 0
		if r.full {
			r.full = false
			w.spaceChanged(r)
		}
		w.after(w.between(0, 50*ms), nil, r.start)
	}
	if w.other != nil {
		w.other.kill()
	}
	w.after(w.between(0, 50*ms), nil, w.startTarget)
}
