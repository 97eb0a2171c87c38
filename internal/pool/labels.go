package pool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// labels are what the devices of the pool say of it. What they say of a device that misses writes must be on all others
// before anything is called stable that it could deny when it comes back.
type labels struct {
	mu  sync.Mutex                  // held while labels are written
	now atomic.Pointer[label.Label] // apart from the fields that are each device's own; never changed
	// unseen: those of some device were not read when the pool was opened. They may be one change ahead, if power was lost
	// while labels were written, and must not win when that device comes back.
	unseen bool
}

// recordOut writes labels that call those devices out that are behind, unless the labels of all devices do already. One that
// came back, or was opened with labels of before a change that another one has, has not: what goes on from a change must
// not be lost with the device that has it alone. It fails when a group has lost more than its redundancy.
func (p *Pool) recordOut() error {
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	now, news := p.labels.now.Load(), p.labels.unseen
	for _, m := range p.members() {
		news = news || m.behind() && !now.Members[now.Index(m.guid)].Out || m.online() && m.last != now.Change
	}
	if !news {
		return nil
	}
	return p.writeLabels(now.Clone())
}

// recordIn writes labels that do not call out any more what is not behind.
func (p *Pool) recordIn() error {
	return p.relabel(func(l *label.Label) (changed bool) {
		for _, m := range p.members() {
			x := &l.Members[l.Index(m.guid)]
			if x.Out && !m.behind() {
				x.Out, changed = false, true
			}
		}
		return changed
	})
}

// relabel changes the labels of all devices that are online. change returns false when there is nothing to do.
func (p *Pool) relabel(change func(l *label.Label) bool) error {
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	next := p.labels.now.Load().Clone()
	if !change(next) {
		return nil
	}
	return p.writeLabels(next)
}

// writeLabels makes next what the labels say. labels.mu is held. A device that fails meanwhile goes out, and the others
// are told.
func (p *Pool) writeLabels(next *label.Label) error {
	for {
		if err := p.lost(); err != nil {
			return err
		}
		var targets []*member
		next.Generation++
		if p.labels.unseen {
			next.Generation++
		}
		next.Change = p.opt.Rand()
		for _, m := range p.members() {
			x := &next.Members[next.Index(m.guid)]
			x.Out = x.Out || m.behind()
			if m.online() {
				x.Last, x.Try = m.last, next.Change
				targets = append(targets, m)
			}
		}
		failed := p.onDevices("label", targets, func(m *member) error { return label.Write(m.dev.Disk(), own(next, m.guid, m.size.Load())) })
		for _, m := range targets {
			if !slices.Contains(failed, m) {
				m.last = next.Change
			}
		}
		p.labels.now.Store(next.Clone())
		if len(failed) == 0 {
			p.labels.unseen = false
			return nil
		}
	}
}

// mendLabels makes up for copies of labels that are damaged, or that a change was not written to, on devices that are
// about to be used. A device on which that fails goes out.
func (p *Pool) mendLabels(a *assembly) {
	own := map[*member]*label.Label{}
	var targets []*member
	for _, m := range p.members() {
		if i := a.label.Index(m.guid); m.online() && a.members[i] != nil {
			own[m], targets = a.members[i].label, append(targets, m)
		}
	}
	p.onDevices("label", targets, func(m *member) error { return label.Mend(m.dev.Disk(), own[m]) })
}

// lost returns which group has lost more than its redundancy, nil if none has.
func (p *Pool) lost() error {
	for _, g := range p.seg.where.Load().groups {
		if g.State() == raid.Faulted {
			return fmt.Errorf("%s: %w: %w", g.name(), raid.ErrLost, p.cause(g.index))
		}
	}
	return nil
}

// cause says why devices of a group are not online.
func (p *Pool) cause(group int) error {
	var errs []error
	for _, m := range p.members() {
		if e := m.dev.Cause(); e != nil && m.group == group {
			errs = append(errs, fmt.Errorf("device %s is %s: %w", m.dev.Name(), m.dev.State(), e))
		}
	}
	return errors.Join(errs...)
}

const (
	lateDeadlines = 5  // of waiting for a label or ring on a device that the group can spare
	hardDeadlines = 15 // on any device
)

// errOut means that nothing was done on a device, since it is out of use.
var errOut = errors.New("device is out of use")

// onDevices does something on several devices at once, that are in use. A device on which that fails, or does not end in
// time, is taken out; these are returned.
func (p *Pool) onDevices(what string, targets []*member, do func(m *member) error) (failed []*member) {
	if p.opt.Manual {
		return oneByOne(what, targets, do)
	}
	type result struct {
		m   *member
		err error
	}
	results := make(chan result, len(targets))
	for _, m := range targets {
		m.io.Add(1)
		go func() {
			err := errOut
			if m.online() { // who waits until it is not busy any more looks at the two the other way round
				err = do(m)
			}
			m.io.Add(-1)
			results <- result{m, err}
		}()
	}
	waiting := slices.Clone(targets)
	fail := func(m *member, err error) {
		if err != errOut {
			m.dev.Fail(fmt.Errorf("%s: %w", what, err))
		}
		failed = append(failed, m)
	}
	tick := time.NewTicker(p.opt.Deadline)
	defer tick.Stop()
	for ticks := 0; len(waiting) > 0; {
		select {
		case r := <-results:
			if i := slices.Index(waiting, r.m); i >= 0 {
				waiting = slices.Delete(waiting, i, i+1)
				if r.err != nil {
					fail(r.m, r.err)
				}
			}
		case <-tick.C:
			ticks++
			waiting = slices.DeleteFunc(waiting, func(m *member) bool {
				late := ticks >= lateDeadlines && m.dev.FailSpared(fmt.Errorf("%s: %w", what, raid.ErrHung)) || ticks >= hardDeadlines
				if late {
					fail(m, raid.ErrHung)
				}
				return late
			})
		}
	}
	return failed
}

// writeRing announces a checkpoint on every device that is online.
func (p *Pool) writeRing(r *label.Ring) error {
	var targets []*member
	came := map[*member]uint64{}
	for _, m := range p.members() {
		n := m.came.Load() // before the look whether it is online: if it comes back later it counts as not told
		if m.online() {
			targets, came[m] = append(targets, m), n
		}
	}
	p.onDevices("ring", targets, func(m *member) error {
		err := label.WriteRing(m.dev.Disk(), m.size.Load(), r)
		if err == nil {
			m.announced.Store(came[m])
		}
		return err
	})
	for _, g := range p.seg.where.Load().groups {
		g.dirty.Store(true)
	}
	return p.lost()
}

// members returns the devices of the pool in the order of the labels' list. The slice is never changed.
func (p *Pool) members() []*member { return *p.devices.Load() }
