package sim

import (
	"bytes"
	"errors"
	"math"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// app is the application: requests at random, and the history of what it saw.
type app struct {
	w        *world
	clock    uint64     // orders what the application does and sees
	cuts     uint64     // when power was lost last
	changes  []*request // that succeeded, in this order
	lastID   uint64
	depth    int
	open     int
	requests []*request
	lost     []*request // without an answer, or superseded, and not known whether they may yet take effect
	writes   [blocks][]*request
	reads    [blocks][]seen
	final    bool // every block is being read for the last time
	done     bool
}

type reqState uint8

const (
	reqOpen reqState = iota
	reqDone
	reqReleased
	reqLost // its target died, or lost the session: it may take effect or not
)

// request is one request; its id is the content that a write leaves in every block.
type request struct {
	id      uint64
	kind    block.Op
	block   uint64
	count   uint32
	t       *target
	state   reqState
	begun   uint64
	ended   uint64 // never, unless it succeeded
	lostAt  uint64 // when it got lost
	bound   uint64 // if it took effect at all, then before this; zero: not known
	version block.Version
	fua     bool // stable as soon as it succeeds
	durable bool // must not get lost, whatever happens
	gone    bool // got lost with the power, after it had succeeded
	told    bool // the application knows by a flush that failed
	given   bool // given up: see giveUp
	opening volume.EpochStart
	refused bool // was never executed
	again   bool // proposed to a successor: what is answered with an error may have been executed before
	got     []uint64
	payload []byte
	last    bool
}

const never = math.MaxUint64

// data is what a write consists of.
func (r *request) data() []byte {
	if r.payload == nil {
		r.payload = bytes.Repeat(content(r.id), int(r.count))
	}
	return r.payload
}

// seen is one block of a read.
type seen struct {
	content      uint64
	begun, ended uint64
}

func (a *app) tick() uint64 { a.clock++; return a.clock }

func (a *app) start(w *world) {
	a.w = w
	a.depth = 1 + w.rng.IntN(12)
	w.after(0, nil, a.work)
	w.after(0, nil, a.watch)
}

// work keeps up to depth requests open until the faults stop.
func (a *app) work() {
	w := a.w
	if w.calm {
		return
	}
	t, depth, kinds := w.target, a.depth, 1.0
	if w.other != nil && w.chance(0.4) {
		t, depth, kinds = w.other, 4*a.depth, 0.45 // mostly reads: it may well hold the others
	}
	if t != nil && t.open < depth {
		b := uint64(w.rng.IntN(blocks))
		n := uint32(min(1+uint64(w.rng.IntN(4)), blocks-b))
		switch x := w.rng.Float64() * kinds; {
		case x < 0.40:
			a.submit(t, &request{kind: block.Read, block: b, count: n})
		case x < 0.82:
			a.submit(t, &request{kind: block.Write, block: b, count: n})
		case x < 0.92:
			a.submit(t, &request{kind: block.Discard, block: b, count: n})
		default:
			a.submit(t, &request{kind: block.Flush})
		}
	}
	w.after(w.between(0, 6*ms), nil, a.work)
}

// submit hands a request to a target.
func (a *app) submit(t *target, r *request) {
	w := a.w
	a.lastID++
	a.open++
	t.open++
	r.id, r.t, r.begun, r.ended = a.lastID, t, a.tick(), never
	a.requests = append(a.requests, r)
	if r.kind == block.Write || r.kind == block.Discard {
		for b := r.block; b < r.block+uint64(r.count); b++ {
			a.writes[b] = append(a.writes[b], r)
		}
	}
	w.after(0, &t.process, func() {
		c, now := t.core, t.clock(w)
		switch r.kind {
		case block.Read:
			c.Read(now, &volume.ReadOp{Block: r.block, Count: r.count, Tag: r})
		case block.Flush:
			c.Flush(now, r)
		case block.Write:
			c.Propose(now, &volume.Op{Kind: volume.OpWrite, FUA: w.chance(0.2), Block: r.block, Count: r.count, Tag: r})
		case block.Discard:
			c.Propose(now, &volume.Op{Kind: volume.OpDiscard, Block: r.block, Count: r.count, Tag: r})
		}
		if !w.chance(0.2) { // else with whatever comes next: shells work in batches
			t.ready()
		}
	})
}

// finish takes a request's only answer.
func (a *app) finish(r *request) {
	if r.state != reqOpen {
		a.w.fail("request %d was answered twice", r.id)
	}
	r.state = reqDone
	a.open--
	r.t.open--
}

func (a *app) completed(r *request, err error) {
	if r.state == reqLost {
		return // answered to nobody
	}
	a.finish(r)
	switch {
	case err == nil:
		a.succeeded(r)
	case errors.Is(err, block.ErrSuperseded):
		a.lose(r)
		a.w.cover.Retries++
	case errors.Is(err, block.ErrNoSpace):
		r.refused = !r.again
		a.w.cover.NoSpace++
	default:
		a.w.cover.Retries++ // it may take effect all the same
	}
}

// lose notes that a request gets no answer any more: it may have taken effect.
func (a *app) lose(r *request) {
	r.lostAt = a.tick()
	a.lost = append(a.lost, r)
}

// succeeded notes a request's success. The target that answers it had the volume after it was asked: what was lost before that
// has taken effect by now, or never will.
func (a *app) succeeded(r *request) {
	r.ended = a.tick()
	a.w.cover.Completed++
	a.keep(r)
	if r.t == a.w.other {
		a.w.cover.SecondAnswers++
	}
	a.lost = slices.DeleteFunc(a.lost, func(l *request) bool {
		if l.lostAt > r.begun {
			return false
		}
		l.bound = r.ended
		return true
	})
}

func (a *app) released(r *request) {
	switch r.state {
	case reqLost:
	case reqDone:
		r.state = reqReleased
	default:
		a.w.fail("request %d was released in state %d", r.id, r.state)
	}
}

func (a *app) read(r *request, err error) {
	if r.state == reqLost {
		return
	}
	a.finish(r)
	switch {
	case errors.Is(err, block.ErrMedium):
		a.w.cover.Damaged++
	case err != nil:
		a.w.cover.Retries++
	default:
		a.succeeded(r)
		for i, content := range r.got {
			b := r.block + uint64(i)
			a.reads[b] = append(a.reads[b], seen{content, r.begun, r.ended})
		}
		if len(r.got) != int(r.count) {
			a.w.fail("read %d shows %d blocks of %d", r.id, len(r.got), r.count)
		}
	}
	if r.last && err != nil {
		a.w.fail("last read of block %d failed: %v", r.block, err)
	}
}

// targetDied leaves the requests that a target was asked without an answer.
func (a *app) targetDied(t *target) {
	for _, r := range a.requests {
		if r.t == t && r.state == reqOpen {
			r.state = reqLost
			a.lose(r)
			a.open--
		}
	}
}

// watch ends the run when the faults are over, everything was answered and the volume is as it was wanted.
func (a *app) watch() {
	w := a.w
	a.requests = slices.DeleteFunc(a.requests, func(r *request) bool { return r.state != reqOpen })
	if w.chance(0.25) {
		w.checkDisks()
	}
	if w.calm && a.open == 0 && w.settled() {
		if a.final {
			a.done = true
			return
		}
		a.final = true
		for b := range uint64(blocks) {
			a.submit(w.target, &request{kind: block.Read, block: b, count: 1, last: true})
		}
	}
	w.after(8*ms, nil, a.watch)
}
