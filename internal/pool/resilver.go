package pool

import (
	"errors"
	"slices"
	"time"

	"github.com/cstor-go/cstor/internal/pool/raid"
)

// lagging is a device that is in use and lacks something, and the moment since which it has missed nothing.
type lagging struct {
	m      *member
	moment uint64
}

// current reports whether the device has missed nothing since.
func (l *lagging) current() bool { return l.m.online() && l.m.dev.Moment() == l.moment }

// laggards returns the devices that are to be resilvered.
func (p *Pool) laggards() (all []lagging) {
	for _, m := range p.members() {
		if l := (lagging{m, m.dev.Moment()}); m.online() && m.dev.Stale() {
			all = append(all, l)
		}
	}
	return all
}

// resilverDue reports whether a device is to be resilvered now, and otherwise after what time to ask again.
func (p *Pool) resilverDue() (wait time.Duration, due bool) {
	u := &p.upkeep
	if len(p.laggards()) == 0 {
		return time.Hour, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if wait := u.retry.next.Sub(u.now()); wait > 0 {
		return wait, false
	}
	return 0, true
}

// resilver copies what devices lack to them: what is live in the segments in which they missed writes. It goes through
// the segments once. Where that does not do, since a device goes out or something cannot be had, the rest is for later.
func (p *Pool) resilver() {
	u := &p.upkeep
	late := p.laggards()
	names := make([]string, len(late))
	want := map[uint32]bool{}
	w := p.seg.where.Load()
	for i, l := range late {
		names[i] = l.m.dev.Name()
		stale := l.m.dev.StaleUnits()
		for s := stale.Next(0); s >= 0; s = stale.Next(s + 1) {
			if seg, ok := w.segment(l.m.group, s); ok {
				want[seg] = true
			}
		}
	}
	total := p.liveBytes(func(seg uint32) bool { return want[seg] })
	u.mu.Lock()
	if u.resilver.state != ActivityWaiting {
		u.resilver = task{ended: u.resilver.ended}
	}
	u.resilver.done, u.resilver.total = 0, total
	u.resilver.goOn(u.now())
	u.mu.Unlock()
	if p.opt.Log != nil {
		p.opt.Log.Info("resilver begins", "pool", p.cfg.Name, "devices", names, "bytes", total)
	}
	err := p.resilverSegments(late, want)
	if errors.Is(err, ErrClosed) {
		return
	}
	left := 0
	for _, l := range late {
		if l.m.online() {
			left += l.m.dev.StaleCount()
		}
	}
	u.mu.Lock()
	t := &u.resilver
	if err == nil && left == 0 {
		t.state, t.done, t.ended, u.retry = ActivityDone, t.total, u.now(), backoff{}
	} else {
		t.state = ActivityWaiting
		u.retry.failed(u.now())
	}
	x := t.progress(u.now())
	u.mu.Unlock()
	if p.opt.Log != nil {
		p.opt.Log.Info("resilver ends", "pool", p.cfg.Name, "devices", names, "state", x.State, "repaired", x.Repaired, "damaged", x.Errors, "left", left, "err", err)
	}
	p.save()
}

// resilverSegments goes through the segments that devices lack something of.
func (p *Pool) resilverSegments(late []lagging, want map[uint32]bool) error {
	u := &p.upkeep
	over := func() error {
		for i := range late {
			if late[i].current() {
				return nil
			}
		}
		return errAgain
	}
	pace := p.stepper(func() int64 { return 0 }, resilverShare, over)
	incomplete := false
	for lo := uint32(0); int64(lo) < int64(p.seg.count()); {
		hi := p.window(lo)
		some := false
		for seg := lo; seg < hi && !some; seg++ {
			some = want[seg]
		}
		if !some {
			lo = hi
			continue
		}
		w, err := p.newWalk(lo, hi, func(seg uint32) bool { return want[seg] })
		if err != nil {
			return err
		}
		w.stale, w.pace, w.found = true, pace, p.found
		err = w.all(lo, func(seg uint32, lost bool) error {
			if !p.healed(seg, late, lost) {
				incomplete = true
			}
			n := p.liveOf(seg)
			u.mu.Lock()
			u.resilver.done += n
			u.mu.Unlock()
			return nil
		})
		u.mu.Lock()
		u.resilver.repaired += w.repaired
		u.resilver.errors += w.errors
		u.mu.Unlock()
		if err != nil {
			return err
		}
		lo = hi
	}
	if incomplete {
		return errAgain
	}
	return nil
}

// healed notes that all that is live in a segment has been brought to the devices. What is lost is lost for them too,
// unless a device that is not there may have it.
func (p *Pool) healed(seg uint32, late []lagging, lost bool) bool {
	sp := p.seg.where.Load().span(seg)
	if lost {
		return false
	}
	sp.group.dirty.Store(true) // what a device had already may be in its cache only: it is flushed before a checkpoint calls it healed
	ok := true
	for i := range late {
		if l := &late[i]; l.m.group == sp.group.index {
			ok = l.m.dev.Healed(int(sp.unit+seg-sp.first), l.moment) && ok
		}
	}
	return ok
}

// allThere reports whether every column of a group has a device in use.
func (p *Pool) allThere(group int) bool {
	for _, c := range p.seg.where.Load().groups[group].Columns() {
		there := false
		for _, d := range c.Devices {
			there = there || d.State() == raid.Online
		}
		if !there {
			return false
		}
	}
	return true
}

// someAway reports whether a column of some group has no device in use.
func (p *Pool) someAway() bool {
	return slices.ContainsFunc(p.seg.where.Load().groups, func(g *groupState) bool { return !p.allThere(g.index) })
}

// liveBytes returns the bytes that are live in some segments.
func (p *Pool) liveBytes(of func(seg uint32) bool) (n int64) {
	const step = 1 << 16
	for lo := 0; lo < p.seg.count(); lo += step {
		p.idx.mu.RLock()
		for i := lo; i < min(lo+step, p.seg.count()); i++ {
			if of(uint32(i)) {
				n += int64(p.seg.pageLive[i]) + int64(p.seg.deltaLive[i])
			}
		}
		p.idx.mu.RUnlock()
	}
	return n
}

// liveOf returns the bytes that are live in one segment.
func (p *Pool) liveOf(seg uint32) int64 {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	return int64(p.seg.pageLive[seg]) + int64(p.seg.deltaLive[seg])
}
