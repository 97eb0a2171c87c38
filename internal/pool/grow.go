package pool

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// AddGroups makes the pool larger by raid groups of blank devices; a stripe grows by groups of one device. Existing
// data stays where it is. The pool owns the devices from then on; after an error they remain the caller's, and either
// nothing has happened or the pool has failed.
func (p *Pool) AddGroups(groups []Group) error {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	if err := p.addGroups(groups); err != nil {
		return p.wrap("add raid groups", err)
	}
	if p.opt.Log != nil {
		p.opt.Log.Info("raid groups were added", "pool", p.cfg.Name, "groups", len(groups), "capacity", p.capacity())
	}
	return nil
}

// addGroups makes the new devices members first, without space. A checkpoint lists them then, so that it is known that
// they lack nothing; only then anything is written to the new space.
func (p *Pool) addGroups(groups []Group) error {
	if err := p.usable(); err != nil {
		return err
	}
	now := p.labels.now.Load()
	var news []*member
	var disks []disk.Device
	var spans []label.Span
	var states []*groupState
	members := slices.Clone(now.Members[:0])
	var kinds []label.Group
	for _, g := range groups {
		data, _, err := g.Kind.Shape(len(g.Devices))
		if err != nil {
			return err
		}
		at := len(now.Groups) + len(kinds)
		unit := p.seg.bytes() / int64(data)
		if unit < minRows*block.Size {
			return fmt.Errorf("%s of %d devices: its rows are too wide for the pool's segments of %d bytes", g.Kind, len(g.Devices), p.seg.bytes())
		}
		units := int64(raid.MaxUnits)
		cols := make([]raid.Column, len(g.Devices))
		for c, d := range g.Devices {
			if slices.Contains(disks, d) {
				return fmt.Errorf("device %s is there twice", d.Name())
			}
			if err := p.admit(d, label.HeadBytes+label.TailBytes+unit); err != nil {
				return err
			}
			m := &member{guid: p.opt.newGUID(), group: at, dev: nil}
			m.dev = raid.NewDevice(m.guid, d)
			m.size.Store(d.Size())
			units = min(units, (d.Size()-label.HeadBytes-label.TailBytes)/unit)
			news, disks, cols[c] = append(news, m), append(disks, d), raid.Column{Devices: []*raid.Device{m.dev}}
			members = append(members, label.Member{GUID: m.guid, Group: at, Column: c})
		}
		rg, err := raid.New(raid.Config{
			Kind: g.Kind, Columns: cols, Base: label.HeadBytes, UnitBytes: unit, Units: int(units),
			Deadline: p.opt.Deadline, Log: p.opt.Log, Changed: p.deviceChanged, Inline: p.opt.Manual,
		})
		if err != nil {
			return err
		}
		kinds = append(kinds, label.Group{Kind: uint8(g.Kind), Cache: g.Cache, Columns: len(g.Devices)})
		spans = append(spans, label.Span{Group: at, Segments: uint32(units)})
		states = append(states, &groupState{Group: rg, index: at, cache: g.Cache, row: uint32(data)})
	}
	if len(groups) == 0 {
		return errors.New("no groups")
	}
	add := func() *label.Label {
		l := p.labels.now.Load().Clone()
		l.Groups, l.Members, l.Spans = append(l.Groups, kinds...), append(l.Members, members...), append(l.Spans, spans...)
		for _, m := range news {
			x := &l.Members[l.Index(m.guid)]
			x.Last, x.Try = m.last, m.last
		}
		return l
	}
	if _, err := own(add(), news[0].guid, news[0].size.Load()).Encode(); err != nil {
		return err
	}
	done, err := p.mayBecome(add())
	if err != nil {
		return err
	}
	defer done()
	if err := p.prepare(add(), news); err != nil {
		return err
	}
	if err := p.join(add, news, states); err != nil {
		return p.fail(err)
	}
	p.devs = append(p.devs, disks...)
	if err := p.cycle(); err != nil {
		return err
	}
	p.enlarge(spans)
	return nil
}

// join makes devices members and their groups known, without space.
func (p *Pool) join(add func() *label.Label, news []*member, states []*groupState) error {
	p.labels.mu.Lock()
	defer p.labels.mu.Unlock()
	if err := p.writeLabels(add()); err != nil {
		return err
	}
	w := *p.seg.where.Load()
	w.groups = append(slices.Clone(w.groups), states...)
	p.seg.mu.Lock()
	w.spans = slices.Clone(p.seg.where.Load().spans)
	p.seg.where.Store(&w)
	p.seg.mu.Unlock()
	p.setMembers(append(p.without(nil), news...))
	return p.writeLabels(p.labels.now.Load().Clone())
}

// enlarge adds spans of free segments, which the labels list and the raid groups have room for, to the pool's space.
func (p *Pool) enlarge(spans []label.Span) {
	s, d := p.seg, &p.drain
	d.cycle.Lock()
	defer d.cycle.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	from := uint32(s.count())
	w := s.where.Load().with(spans)
	n := w.count()
	s.pageLive, s.deltaLive = extended(s.pageLive, n), extended(s.deltaLive, n)
	s.kind, s.pinned, s.birth = extended(s.kind, n), extended(s.pinned, n), extended(s.birth, n)
	s.free, s.undiscarded = extended(s.free, (n+63)/64), extended(s.undiscarded, (n+63)/64)
	if s.freed != nil {
		s.freed = extended(s.freed, (n+63)/64)
	}
	s.where.Store(w)
	for seg := from; seg < uint32(n); seg++ {
		s.setFree(seg)
	}
	p.cycles.mu.Lock()
	p.cycles.fruitless = 0 // who found no space may find some now
	p.cycles.mu.Unlock()
}

func extended[T any](s []T, n int) []T { return append(s, make([]T, n-len(s))...) }

// with returns the space with more spans. segments.mu is held.
func (w *space) with(spans []label.Span) *space {
	n := *w
	n.spans, n.of = slices.Clone(w.spans), slices.Clone(w.of)
	for _, sp := range spans {
		g := w.groups[sp.Group]
		n.spans = append(n.spans, span{group: g, first: uint32(len(n.of)), count: sp.Segments, unit: uint32(g.all), hint: uint32(len(n.of))})
		g.all += int(sp.Segments)
		if !g.cache {
			n.dataSegs += int(sp.Segments)
		}
		n.maxRow = max(n.maxRow, g.row)
		for range sp.Segments {
			n.of = append(n.of, uint8(len(n.spans)-1))
		}
	}
	return &n
}

// Expand takes the room of devices that have become larger: each raid group uses as much of its devices as the smallest
// of them has.
func (p *Pool) Expand() error {
	p.upkeep.change.Lock()
	defer p.upkeep.change.Unlock()
	before := p.capacity()
	if err := p.expand(); err != nil {
		return p.wrap("expand", err)
	}
	if now := p.capacity(); now != before && p.opt.Log != nil {
		p.opt.Log.Info("pool has grown with its devices", "pool", p.cfg.Name, "capacity", now)
	}
	return nil
}

// expand moves the tails of the devices first. The labels say where they are, and what a checkpoint announces is at
// both ends, before anything is written where the tails were. When that is interrupted the rest is done when the pool
// is opened.
func (p *Pool) expand() error {
	if err := p.usable(); err != nil {
		return err
	}
	grown := map[*member]int64{}
	for _, m := range p.members() {
		d := m.dev.Disk()
		if !m.online() {
			continue
		}
		if r, ok := d.(disk.Refresher); ok {
			if err := p.patiently(d, r.Refresh); err != nil {
				return err
			}
		}
		if d.Size() > m.size.Load() {
			grown[m] = d.Size()
		}
	}
	if len(grown) > 0 {
		p.labels.mu.Lock()
		for m, size := range grown {
			m.size.Store(size)
		}
		err := p.writeLabels(p.labels.now.Load().Clone())
		p.labels.mu.Unlock()
		if err == nil {
			err = p.cycle()
		}
		if err != nil {
			return err
		}
	}
	return p.useAll()
}

// useAll makes each group as large as the labels of its devices say that these are.
func (p *Pool) useAll() error {
	now := p.labels.now.Load()
	total := now.Segments()
	var spans []label.Span
	for i := range p.seg.where.Load().groups {
		units := int64(raid.MaxUnits)
		for _, m := range p.members() {
			if m.group == i { // of one that was never found nothing is known, so that nothing changes
				units = min(units, (m.size.Load()-label.HeadBytes-label.TailBytes)/p.unitBytes(i))
			}
		}
		more := min(units-int64(now.GroupSegments(i)), int64(label.MaxSegments-total))
		if more <= 0 {
			continue
		}
		spans = append(spans, label.Span{Group: i, Segments: uint32(more)})
		total += uint64(more)
	}
	if len(spans) == 0 {
		return nil
	}
	grow := func(l *label.Label) bool {
		for _, sp := range spans {
			if last := &l.Spans[len(l.Spans)-1]; last.Group == sp.Group {
				last.Segments += sp.Segments
			} else {
				l.Spans = append(l.Spans, sp)
			}
		}
		return true
	}
	next := now.Clone()
	grow(next)
	if _, err := own(next, p.members()[0].guid, p.members()[0].size.Load()).Encode(); err != nil {
		return err
	}
	done, err := p.mayBecome(next)
	if err != nil {
		return err
	}
	defer done()
	for _, sp := range spans {
		if err := p.seg.where.Load().groups[sp.Group].SetUnits(int(now.GroupSegments(sp.Group)) + int(sp.Segments)); err != nil {
			return err
		}
	}
	if err := p.relabel(grow); err != nil {
		return p.fail(err)
	}
	p.enlarge(spans)
	return nil
}

// SetReadOnlyPercent changes Options.ReadOnlyPercent.
func (p *Pool) SetReadOnlyPercent(n int) {
	if n <= 0 || n > 100 {
		n = 100
	}
	p.idx.mu.Lock()
	p.opt.ReadOnlyPercent = n
	p.idx.mu.Unlock()
}

// takeRoom ends an Expand that was interrupted, and takes the room of devices that replaced smaller ones. upkeep.change
// is held.
func (p *Pool) takeRoom() {
	if err := p.useAll(); err != nil && p.opt.Log != nil {
		p.opt.Log.Warn("pool cannot take the room of its devices", "pool", p.cfg.Name, "err", err)
	}
}
