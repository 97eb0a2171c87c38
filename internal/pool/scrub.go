package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/pool/label"
)

// ScrubOptions of a scrub.
type ScrubOptions struct {
	Rate int64 // bytes of stored data per second; 0: as fast as leaves users most of the time
}

// scrubTask is a scrub as it goes on, and what is kept of it when the pool is closed.
type scrubTask struct {
	task
	run  uint64 // number of the scrub in this process
	rate int64
	next uint32    // segment from which on there is something to do
	base time.Time // from which on the time to the next one counts
	// saved is when a checkpoint was last asked for that says how far the scrub is.
	saved time.Time
}

func (t *scrubTask) active() bool { return t.state == ActivityRunning || t.state == ActivityPaused }

// Scrub reads and checks everything that is stored, on all devices, and repairs what is damaged, in the background. It
// begins a scrub, or lets one that is paused or runs go on with these options.
func (p *Pool) Scrub(opt ScrubOptions) error {
	if err := p.usable(); err != nil {
		return p.wrap("scrub", err)
	}
	u := &p.upkeep
	u.mu.Lock()
	u.scrub.rate = max(opt.Rate, 0)
	if !u.scrub.active() {
		p.beginScrub()
	} else if u.scrub.state == ActivityPaused {
		u.scrub.goOn(u.now())
	}
	u.mu.Unlock()
	p.save()
	u.wake()
	return nil
}

// SetScrub changes Options.ScrubEvery, and the rate of the scrub that runs and of those that begin by themselves, as in
// ScrubOptions.
func (p *Pool) SetScrub(every time.Duration, rate int64) {
	u := &p.upkeep
	u.mu.Lock()
	p.opt.ScrubEvery, u.scrub.rate = every, max(rate, 0)
	u.mu.Unlock()
	u.wake()
}

// beginScrub begins at the beginning. upkeep.mu is held.
func (p *Pool) beginScrub() {
	u := &p.upkeep
	u.damage = nil
	u.scrub = scrubTask{task: task{ended: u.scrub.ended}, run: u.scrub.run + 1, rate: u.scrub.rate, base: u.scrub.base}
	u.scrub.goOn(u.now())
	if p.opt.Log != nil {
		p.opt.Log.Info("scrub begins", "pool", p.cfg.Name)
	}
}

// PauseScrub stops the scrub where it is, until ResumeScrub, even if the pool is closed and opened meanwhile.
func (p *Pool) PauseScrub() error { return p.changeScrub("pause", ActivityRunning, ActivityPaused) }

// ResumeScrub lets a paused scrub go on.
func (p *Pool) ResumeScrub() error { return p.changeScrub("resume", ActivityPaused, ActivityRunning) }

// StopScrub ends the scrub. The next one begins at the beginning.
func (p *Pool) StopScrub() error { return p.changeScrub("stop", "", ActivityStopped) }

func (p *Pool) changeScrub(what, from, to string) error {
	if err := p.usable(); err != nil {
		return p.wrap(what+" scrub", err)
	}
	u := &p.upkeep
	u.mu.Lock()
	t := &u.scrub
	if !t.active() || from != "" && t.state != from {
		state := t.state
		u.mu.Unlock()
		if state == ActivityNone {
			state = "not there"
		}
		return p.wrap(what+" scrub", fmt.Errorf("the scrub is %s", state))
	}
	switch t.state = to; to {
	case ActivityRunning:
		t.goOn(u.now())
	case ActivityStopped:
		t.base = u.now()
	}
	u.mu.Unlock()
	if p.opt.Log != nil {
		p.opt.Log.Info("scrub is asked to "+what, "pool", p.cfg.Name)
	}
	p.save()
	u.wake()
	return nil
}

// scrubDue reports whether there is something to scrub now, and begins a scrub when its time has come.
func (p *Pool) scrubDue() bool {
	u := &p.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	if every := p.opt.ScrubEvery; every > 0 && !u.scrub.active() && u.now().Sub(u.scrub.base) >= every {
		p.beginScrub()
	}
	return u.scrub.state == ActivityRunning
}

// scrub goes on with the scrub until it is over or something is more urgent.
func (p *Pool) scrub() {
	u := &p.upkeep
	t := &u.scrub
	u.mu.Lock()
	lo, run := t.next, t.run
	u.mu.Unlock()
	total := p.liveBytes(func(seg uint32) bool { return seg >= lo })
	u.mu.Lock()
	t.total = t.done + total
	t.goOn(u.now())
	u.mu.Unlock()
	err := p.scrubSegments(lo, run)
	switch {
	case err == nil:
		err = p.refreshLabels()
	case errors.Is(err, errInterrupted), errors.Is(err, ErrClosed):
		return
	}
	u.mu.Lock()
	if t.run != run || t.state != ActivityRunning {
		u.mu.Unlock()
		return
	}
	now := u.now()
	t.ended, t.base, t.state = now, now, ActivityDone
	if err != nil { // a group has lost too much, or the pool has failed: there is nothing to read
		t.state = ActivityStopped
	} else {
		t.done = t.total
	}
	x := t.progress(now)
	t.next = 0
	u.mu.Unlock()
	if p.opt.Log != nil {
		p.opt.Log.Info("scrub ends", "pool", p.cfg.Name, "state", x.State, "bytes", x.Done, "repaired", x.Repaired, "damaged", x.Errors, "err", err)
	}
	p.save()
}

const (
	saveSegments = 256 // after so many segments, or so much time, the position of a scrub is made stable
	saveEvery    = time.Minute
)

// scrubSegments scrubs the segments from lo on.
func (p *Pool) scrubSegments(lo uint32, run uint64) error {
	u := &p.upkeep
	t := &u.scrub
	over := func() error {
		u.mu.Lock()
		running := t.state == ActivityRunning && t.run == run
		u.mu.Unlock()
		if _, due := p.resilverDue(); due || !running {
			return errInterrupted
		}
		return nil
	}
	rate := func() int64 {
		u.mu.Lock()
		defer u.mu.Unlock()
		return t.rate
	}
	pace := p.stepper(rate, scrubShare, over)
	for int64(lo) < int64(p.seg.count()) {
		hi := p.window(lo)
		w, err := p.newWalk(lo, hi, func(uint32) bool { return true })
		if err != nil {
			return err
		}
		w.pace, w.found = pace, p.found
		note := func(done int64) {
			u.mu.Lock()
			if t.run == run {
				t.done, t.repaired, t.errors = t.done+done, t.repaired+w.repaired, t.errors+w.errors
			}
			w.repaired, w.errors = 0, 0
			u.mu.Unlock()
		}
		err = w.all(lo, func(seg uint32, _ bool) error {
			note(p.liveOf(seg))
			u.mu.Lock()
			defer u.mu.Unlock()
			if t.run != run {
				return errInterrupted
			}
			t.next = seg + 1
			save := t.next%saveSegments == 0 || u.now().Sub(t.saved) >= saveEvery
			if save {
				t.saved = u.now()
				p.save()
			}
			return nil
		})
		note(0)
		if err != nil {
			return err
		}
		lo = hi
	}
	return nil
}

// refreshLabels writes all labels and the newest announcement of a checkpoint anew, in case that copies of them are
// damaged.
func (p *Pool) refreshLabels() error {
	if err := p.relabel(func(*label.Label) bool { return true }); err != nil {
		return err
	}
	return p.cycle()
}

// encodeScrub appends what is kept of the scrub.
func (p *Pool) encodeScrub(b []byte) []byte {
	u := &p.upkeep
	u.mu.Lock()
	defer u.mu.Unlock()
	t := &u.scrub
	state := byte(0)
	for i, s := range scrubStates {
		if s == t.state {
			state = byte(i)
		}
	}
	b = append(b, state)
	for _, v := range []uint64{uint64(t.next), uint64(t.rate), uint64(t.done), uint64(t.total), uint64(t.repaired), uint64(t.errors), unix(t.ended), unix(t.base)} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

// scrubStates in the order of their numbers in a root.
var scrubStates = []string{ActivityNone, ActivityRunning, ActivityPaused, ActivityStopped, ActivityDone}

// decodeScrub reads what encodeScrub wrote.
func decodeScrub(r *rootReader) (t scrubTask) {
	const any = 1<<63 - 1
	if s := r.fixed(1); s < uint64(len(scrubStates)) {
		t.state = scrubStates[s]
	} else {
		r.bad = true
	}
	t.next = uint32(r.uint(label.MaxSegments))
	for _, v := range []*int64{&t.rate, &t.done, &t.total, &t.repaired, &t.errors} {
		*v = int64(r.uint(any))
	}
	t.ended, t.base = fromUnix(r.uint(any)), fromUnix(r.uint(any))
	return t
}

func unix(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(t.Unix(), 0))
}

func fromUnix(v uint64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(int64(v), 0)
}
