package pool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// This file has what all changes of a pool's devices are made of.
//
// A device joins in three steps. It gets a label of generation 0, which no other device counts as the pool's; whoever
// opens the pool now leaves it alone. Then the labels of all others list it. Then its own label is written anew. So a
// member that the labels list always has a label.

// memberOf returns the member with a GUID, nil if there is none.
func (p *Pool) memberOf(guid block.GUID) *member {
	for _, m := range p.members() {
		if m.guid == guid {
			return m
		}
	}
	return nil
}

// patiently does something on a device that is not in use yet, and does not wait for ever.
func (p *Pool) patiently(dev disk.Device, do func() error) error { return p.opt.patiently(dev, do) }

func (o *Options) patiently(dev disk.Device, do func() error) error {
	if o.Manual {
		return do()
	}
	result := make(chan error, 1)
	go func() { result <- do() }()
	timer := time.NewTimer(lateDeadlines * o.Deadline)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return fmt.Errorf("device %s: %w", dev.Name(), errNoAnswer)
	}
}

// probe reads what is on a device that is not in use yet, after having asked how large it is.
func (p *Pool) probe(dev disk.Device) (l *label.Label, err error) {
	type found struct {
		l   *label.Label
		err error
	}
	c := make(chan found, 1)
	err = p.patiently(dev, func() error {
		if r, ok := dev.(disk.Refresher); ok {
			if err := r.Refresh(); err != nil {
				return err
			}
		}
		l, err := label.Probe(dev)
		c <- found{l, err}
		return nil
	})
	if err != nil {
		return nil, err
	}
	f := <-c
	return f.l, f.err
}

// admit reports why a device cannot become a member. It can when it is blank, or has been left by an earlier attempt to
// make it one.
func (p *Pool) admit(dev disk.Device, need int64) error {
	l, err := p.probe(dev)
	switch {
	case errors.Is(err, ErrBlank):
	case err != nil:
		return err
	case l.Pool != p.cfg.GUID:
		return &ErrForeign{Device: dev.Name(), Found: fmt.Sprintf("cStor pool %s (%v)", l.Name, l.Pool)}
	case p.labels.now.Load().Index(l.Device) >= 0:
		return fmt.Errorf("device %s is a member of the pool already (%v)", dev.Name(), l.Device)
	case l.Generation > 0 && !l.Members[l.Index(l.Device)].Replacing:
		return &ErrForeign{Device: dev.Name(), Found: fmt.Sprintf("a former device of cStor pool %s (%v)", l.Name, l.Device)}
	}
	if dev.Size() < need {
		return fmt.Errorf("device %s has %d bytes, %d are needed", dev.Name(), dev.Size(), need)
	}
	return nil
}

// prepare puts labels of generation 0 on devices that are about to become the last members of next.
func (p *Pool) prepare(next *label.Label, news []*member) error {
	l := next.Clone()
	l.Generation, l.Change = 0, p.opt.Rand()
	errs := make([]error, len(news))
	var wg sync.WaitGroup
	for i, m := range news {
		wg.Go(func() {
			d := m.dev.Disk()
			errs[i] = p.patiently(d, func() error { return label.Write(d, own(l, m.guid, m.size.Load())) })
		})
	}
	wg.Wait()
	for _, m := range news {
		m.last = l.Change
		x := &next.Members[next.Index(m.guid)]
		x.Last, x.Try = l.Change, l.Change
	}
	return errors.Join(errs...)
}

// Adopt gives the pool another name and owner, in the labels of all devices that are online. Those of a device that is out
// follow when it is back.
func (p *Pool) Adopt(name, owner string) error {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	if err := namesFit(name, owner); err != nil {
		return p.wrap("adopt", err)
	}
	err := p.usable()
	if err == nil {
		err = p.relabel(func(l *label.Label) bool {
			changed := l.Name != name || l.Owner != owner
			l.Name, l.Owner = name, owner
			return changed
		})
	}
	if err != nil {
		return p.wrap("adopt", err)
	}
	return nil
}

// setMembers replaces the list of members. labels.mu is held.
func (p *Pool) setMembers(all []*member) { p.devices.Store(&all) }

// without returns the members but one.
func (p *Pool) without(gone *member) []*member {
	return slices.DeleteFunc(slices.Clone(p.members()), func(m *member) bool { return m == gone })
}

// Return gives the pool a device back that is a member but out of use: it failed, or was not there. It may have another
// name than before. What it missed is copied to it in the background. The pool owns it from then on; after an error it
// remains the caller's.
func (p *Pool) Return(dev disk.Device) error {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	m, err := p.takeBack(dev)
	if err != nil {
		return p.wrap("return of device "+dev.Name(), err)
	}
	p.devs = append(p.devs, dev)
	if p.opt.Log != nil {
		p.opt.Log.Info("device is back", "pool", p.cfg.Name, "device", dev.Name(), "guid", m.guid.String(), "stale", m.dev.StaleCount())
	}
	p.upkeep.tryAgain()
	return nil
}

// tryAgain forgets what did not work.
func (u *upkeep) tryAgain() {
	u.mu.Lock()
	u.retry = backoff{}
	u.mu.Unlock()
	u.wake()
}

func (p *Pool) takeBack(dev disk.Device) (*member, error) {
	if err := p.usable(); err != nil {
		return nil, err
	}
	l, err := p.probe(dev)
	if err != nil {
		return nil, err
	}
	if l.Pool != p.cfg.GUID {
		return nil, &ErrForeign{Device: dev.Name(), Found: fmt.Sprintf("cStor pool %s (%v)", l.Name, l.Pool)}
	}
	m := p.memberOf(l.Device)
	if m != nil && !m.online() {
		if err := p.patiently(dev, func() error { return label.Mend(dev, l) }); err != nil {
			return nil, err
		}
	}
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	now := p.labels.now.Load()
	switch {
	case m == nil:
		return nil, fmt.Errorf("device %s (%v) is not a member of pool %s any more; wipe it if it may be used", dev.Name(), l.Device, l.Name)
	case m.online():
		return nil, fmt.Errorf("device %s (%v) is in use already, as %s", dev.Name(), l.Device, m.dev.Name())
	case m.busy():
		return nil, fmt.Errorf("device %s: %w of before", dev.Name(), raid.ErrStuck)
	case diverged(now, l):
		return nil, fmt.Errorf("device %s (%v) was used without the others: each has changes that the other lacks; wipe it and let it replace itself", dev.Name(), l.Device)
	}
	was := m.dev.Disk()
	m.came.Add(1)
	if err := m.dev.Return(dev); err != nil {
		return nil, err
	}
	if was == dev {
		p.forget(was)
	} else if was != nil {
		defer p.letGo(was)
	}
	m.last = l.Change
	m.size.Store(l.Size)
	return m, nil
}

// diverged reports whether a device with label l, which is out of use, has been used without those whose labels say
// now.
func diverged(now, l *label.Label) bool {
	me := now.Members[now.Index(l.Device)]
	if l.Generation > now.Generation {
		return true
	}
	known := func(m label.Member, change uint64) bool { return m.Last == change || m.Try == change }
	if l.Change == now.Change || known(me, l.Change) {
		return false
	}
	for _, x := range l.Members {
		i := now.Index(x.GUID)
		if x.Out && !x.Left && i >= 0 && x.GUID != l.Device && !now.Members[i].Out && me.Out && !known(x, now.Change) {
			return true
		}
	}
	return false
}
