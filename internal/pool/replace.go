package pool

import (
	"errors"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// A replacement goes through these labels, each of which is enough to go on from after a crash:
//
//	old, new flagged replacing   both are written; what the new one lacks is copied to it
//	old flagged left, new        a checkpoint says that the new one lacks nothing; the old one's labels are wiped
//	new
//
// While the second ones are written no flush is reported, so that nothing depends yet on whether they count.

var errReplaced = errors.New("replaced")

// leaver is a device whose place another one has taken.
type leaver struct {
	guid block.GUID
	m    *member     // nil: it left before the pool was opened
	disk disk.Device // nil: it is not there
	size int64
}

// Replace lets a device take the place of a member, which stays in use, if it is, until the other one has everything;
// then it leaves the pool and its labels are wiped. The new device must be blank and large enough. The pool owns it from
// then on; after an error it remains the caller's. While the replacement is under way, a failed new device can be given
// back (Return) or replaced by another one with a call for the same old device or for the one that failed.
func (p *Pool) Replace(old block.GUID, dev disk.Device) error {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	m, err := p.replaceDevice(old, dev)
	if err != nil {
		return p.wrap(fmt.Sprintf("replace device %v by %s", old, dev.Name()), err)
	}
	if p.opt.Log != nil {
		p.opt.Log.Info("device is being replaced", "pool", p.cfg.Name, "device", p.memberOf(old).dev.Name(), "by", dev.Name(), "guid", m.guid.String())
	}
	p.upkeep.tryAgain()
	return nil
}

func (p *Pool) replaceDevice(old block.GUID, dev disk.Device) (*member, error) {
	if err := p.usable(); err != nil {
		return nil, err
	}
	now := p.labels.now.Load()
	i := now.Index(old)
	if i < 0 || p.memberOf(old) == nil {
		return nil, errors.New("the pool has no such device")
	}
	x := now.Members[i]
	for _, y := range now.Members {
		if x.Replacing && !y.Replacing && !y.Left && y.Group == x.Group && y.Column == x.Column {
			x = y
		}
	}
	need := label.HeadBytes + label.TailBytes + p.unitBytes(x.Group)*int64(now.GroupSegments(x.Group))
	if err := p.admit(dev, need); err != nil {
		return nil, err
	}
	for _, y := range now.Members {
		if !y.Replacing || y.Group != x.Group || y.Column != x.Column {
			continue
		}
		r := p.memberOf(y.GUID)
		if r.online() {
			return nil, fmt.Errorf("it is being replaced already, by %s", r.dev.Name())
		}
		if err := p.cancelReplace(r, x.Column); err != nil {
			return nil, err
		}
	}
	add := func(l *label.Label, m *member) {
		l.Members = append(l.Members, label.Member{GUID: m.guid, Group: x.Group, Column: x.Column, Replacing: true, Out: true, Last: m.last, Try: m.last})
	}
	m := &member{guid: p.opt.newGUID(), group: x.Group}
	m.dev = raid.NewDevice(m.guid, dev)
	m.size.Store(dev.Size())
	next := p.labels.now.Load().Clone()
	add(next, m)
	done, err := p.mayBecome(next)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := p.prepare(next, []*member{m}); err != nil {
		return nil, err
	}
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	next = p.labels.now.Load().Clone()
	add(next, m)
	if err := p.writeLabels(next); err != nil {
		return nil, err
	}
	g := p.seg.where.Load().groups[x.Group]
	p.setMembers(append(p.without(nil), m))
	err = g.Replace(x.Column, m.dev)
	if err == nil {
		p.devs = append(p.devs, dev)
		err = p.writeLabels(p.labels.now.Load().Clone())
	}
	if err == nil && !m.online() {
		err = m.dev.Cause()
	}
	if err != nil {
		p.forget(dev)
		return nil, errors.Join(err, p.dropMember(m, x.Column))
	}
	return m, nil
}

// unitBytes returns the bytes of a segment on one device of a group.
func (p *Pool) unitBytes(group int) int64 {
	return p.seg.bytes() / int64(p.seg.where.Load().groups[group].row)
}

// cancelReplace ends the replacement of a column's device by one that is out of use. upkeep.change is held.
func (p *Pool) cancelReplace(r *member, column int) error {
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	if d := r.dev.Disk(); d != nil {
		p.letGo(d)
	}
	return p.dropMember(r, column)
}

// dropMember takes a member that is to replace another one out of the pool. labels.mu is held.
func (p *Pool) dropMember(r *member, column int) error {
	g := p.seg.where.Load().groups[r.group]
	if d, err := g.CancelReplace(column); err == nil {
		d.Fail(errReplaced)
	}
	p.setMembers(p.without(r))
	next := p.labels.now.Load().Clone()
	if i := next.Index(r.guid); i >= 0 {
		next.Members = append(next.Members[:i], next.Members[i+1:]...)
	}
	return p.writeLabels(next)
}

// forget takes a disk off the list of those that the pool closes.
func (p *Pool) forget(d disk.Device) {
	for i, x := range p.devs {
		if x == d {
			p.devs = append(p.devs[:i:i], p.devs[i+1:]...)
			return
		}
	}
}

// endReplacements lets devices that have everything by now take their places, and says goodbye to those that leave. It
// returns false when it is to be called again soon.
func (p *Pool) endReplacements() bool {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	now := p.labels.now.Load()
	grown := false
	for _, m := range p.members() {
		i := now.Index(m.guid)
		if !now.Members[i].Replacing || !m.online() || m.dev.Stale() {
			continue
		}
		if err := p.promote(m, now.Members[i].Column); err != nil {
			if p.opt.Log != nil && !errors.Is(err, ErrClosed) {
				p.opt.Log.Warn("device cannot take the place of the one that it replaces yet", "pool", p.cfg.Name, "device", m.dev.Name(), "err", err)
			}
			return false
		}
		grown = true // maybe: the new device may be larger
	}
	for len(p.upkeep.leave) > 0 {
		if err := p.sayGoodbye(&p.upkeep.leave[0]); err != nil {
			return false // the pool is closed, or has lost a group
		}
		p.upkeep.leave = p.upkeep.leave[1:]
	}
	if grown {
		p.takeRoom()
	}
	return true
}

// promote makes a new device the only one of its column, and the old one leave.
func (p *Pool) promote(m *member, column int) error {
	missed := m.dev.Missed()
	if m.dev.Stale() {
		return errAgain
	}
	if err := p.cycle(); err != nil { // the checkpoint says that it lacks nothing, if missed is still true then
		return err
	}
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	whole := func() bool {
		return !m.dev.Stale() && m.dev.Missed() == missed && !m.behind()
	}
	g := p.seg.where.Load().groups[m.group]
	var old *member
	for _, o := range p.members() {
		if o.dev == g.Columns()[column].Devices[0] {
			old = o
		}
	}
	if !whole() || old == nil || old == m {
		return errAgain
	}
	set := func(left bool) error {
		next := p.labels.now.Load().Clone()
		next.Members[next.Index(old.guid)].Left = left
		x := &next.Members[next.Index(m.guid)]
		x.Replacing, x.Out = !left, x.Out && !whole()
		return p.writeLabels(next)
	}
	there := old.online()
	if err := set(true); err != nil {
		return err
	}
	if !whole() {
		return errors.Join(errAgain, set(false))
	}
	d, err := g.Promote(column)
	if err != nil {
		return errors.Join(err, set(false))
	}
	d.Fail(errReplaced) // whoever still knows it as a device of the group leaves it alone
	p.setMembers(p.without(old))
	l := leaver{guid: old.guid, size: old.size.Load()}
	if there {
		l.m, l.disk = old, d.Disk()
	} else if d.Disk() != nil {
		p.letGo(d.Disk())
	}
	p.upkeep.leave = append(p.upkeep.leave, l)
	if p.opt.Log != nil {
		p.opt.Log.Info("device was replaced", "pool", p.cfg.Name, "device", d.Name(), "by", m.dev.Name())
	}
	return nil
}

// quiet waits until no request to a device that left is under way: what began before it left must not come after what is
// done to it now. It does not wait for ever.
func (p *Pool) quiet(m *member) error {
	for end := time.Now().Add(lateDeadlines * p.opt.Deadline); m != nil && m.busy(); time.Sleep(time.Millisecond) {
		if p.closed.Load() {
			return ErrClosed
		}
		if time.Now().After(end) {
			return raid.ErrStuck
		}
	}
	return nil
}

// sayGoodbye wipes the labels of a device that left, if it is there and answers, and takes it off the labels' list.
func (p *Pool) sayGoodbye(l *leaver) error {
	if l.disk != nil {
		err := p.quiet(l.m)
		if err == nil {
			err = p.patiently(l.disk, func() error { return label.Wipe(l.disk, l.size) })
		}
		if errors.Is(err, ErrClosed) {
			return err
		}
		if err != nil && p.opt.Log != nil {
			p.opt.Log.Warn("device left the pool but still has its labels; wipe it before it is used again", "pool", p.cfg.Name, "device", l.disk.Name(), "err", err)
		}
	}
	err := p.relabel(func(n *label.Label) bool {
		i := n.Index(l.guid)
		if i < 0 {
			return false
		}
		n.Members = append(n.Members[:i], n.Members[i+1:]...)
		return true
	})
	if err == nil && l.disk != nil {
		p.letGo(l.disk)
	}
	return err
}
