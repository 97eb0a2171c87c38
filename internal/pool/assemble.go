package pool

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// found is a device that was given to Open and what is on it.
type found struct {
	dev   disk.Device
	label *label.Label
	err   error // why it cannot be used
}

// assembly is a pool found on devices.
type assembly struct {
	label   *label.Label // the newest
	members []*found     // in the order of the labels' list; nil: missing
	unused  []*found     // given, but neither usable nor a reason to refuse the pool
	// torn are groups of which too many devices are said to have missed writes, while all of them are there: each has
	// what another one lacks.
	torn []bool
}

var errNoAnswer = errors.New("device does not answer")

// probeAll reads the labels of all devices at once. It does not wait for those that hang for longer than patience once
// enough have answered.
func probeAll(devs []disk.Device, deadline time.Duration) []*found {
	type answer struct {
		i int
		f *found
	}
	answers := make(chan answer, len(devs))
	all := make([]*found, len(devs))
	for i, d := range devs {
		all[i] = &found{dev: d, err: fmt.Errorf("device %s: %w", d.Name(), errNoAnswer)}
		go func() {
			l, err := label.Probe(d)
			answers <- answer{i, &found{d, l, err}}
		}()
	}
	tick := time.NewTicker(deadline)
	defer tick.Stop()
	left, ticks := len(devs), 0
	for left > 0 && ticks < hardDeadlines {
		select {
		case a := <-answers:
			all[a.i] = a.f
			left--
		case <-tick.C:
			if _, err := judge(all); ticks > 0 && err == nil {
				return all
			}
			ticks++
		}
	}
	return all
}

// assemble reads the labels and finds the pool that the devices make together.
func assemble(devs []disk.Device, opt Options) (*assembly, error) {
	if len(devs) == 0 {
		return nil, errors.New("no devices")
	}
	if opt.Manual {
		var all []*found
		for _, d := range devs {
			l, err := label.Probe(d)
			all = append(all, &found{d, l, err})
		}
		return judge(all)
	}
	return judge(probeAll(devs, opt.Deadline))
}

// judge decides whether what was found is a pool that can be opened: all devices belong to it, and those that are there
// and up to date hold everything.
func judge(all []*found) (*assembly, error) {
	a := &assembly{}
	var usable []*found
	for _, f := range all {
		var foreign *ErrForeign
		switch {
		case f.err == nil:
			usable = append(usable, f)
			if f.label.Generation > 0 && (a.label == nil || f.label.Generation > a.label.Generation) {
				a.label = f.label
			}
		case errors.As(f.err, &foreign), errors.Is(f.err, ErrNewerFormat), errors.Is(f.err, ErrOldFormat):
			return nil, f.err
		default: // blank, unreadable, its labels damaged: what it was may be made up for by others
			a.unused = append(a.unused, f)
		}
	}
	if len(usable) == 0 {
		return nil, a.unused[0].err
	}
	l := a.label
	if l == nil {
		return nil, fmt.Errorf("device %s was about to be added to pool %s: give the devices of that pool too", usable[0].dev.Name(), usable[0].label.Name)
	}
	a.members = make([]*found, len(l.Members))
	for _, f := range usable {
		i := l.Index(f.label.Device)
		switch {
		case f.label.Pool == l.Pool && i < 0 && f.label.Generation == 0:
			f.err = fmt.Errorf("device %s was about to be added to pool %s, and was not; add it again or wipe it", f.dev.Name(), l.Name)
			a.unused = append(a.unused, f)
			continue
		case f.label.Pool != l.Pool:
			return nil, fmt.Errorf("devices of two pools: %s belongs to %s (%v), another one to %s (%v)", f.dev.Name(), f.label.Name, f.label.Pool, l.Name, l.Pool)
		case i < 0:
			return nil, fmt.Errorf("device %s (%v) is not a member of pool %s any more; wipe it if it may be used", f.dev.Name(), f.label.Device, l.Name)
		case a.members[i] != nil:
			return nil, fmt.Errorf("devices %s and %s are the same member %d of pool %s: one is a copy", a.members[i].dev.Name(), f.dev.Name(), i+1, l.Name)
		}
		a.members[i] = f
	}
	if err := a.halves(); err != nil {
		return nil, err
	}
	return a, a.complete()
}

// halves refuses devices that were used without each other: each lacks what the other has. Labels that call each other
// out need not mean that: when one device knows what the labels of the other say, it has only had worse luck later.
func (a *assembly) halves() error {
	calls := func(f, g *found) (m label.Member, out bool) {
		i := f.label.Index(g.label.Device)
		if i < 0 {
			return m, false
		}
		m = f.label.Members[i]
		return m, m.Out && !m.Left
	}
	for i, f := range a.members {
		for _, g := range a.members[:i] {
			if f == nil || g == nil {
				continue
			}
			fg, one := calls(f, g)
			gf, other := calls(g, f)
			if !one || !other || fg.Last == g.label.Change || fg.Try == g.label.Change || gf.Last == f.label.Change || gf.Try == f.label.Change {
				continue
			}
			return fmt.Errorf("pool %s was used in two halves: device %s without %s, and %s without %s; each has changes that the other lacks; wipe the one whose changes are not wanted, then open the pool again",
				a.label.Name, f.dev.Name(), g.dev.Name(), g.dev.Name(), f.dev.Name())
		}
	}
	return nil
}

// complete reports which devices are missing when the others do not hold everything.
func (a *assembly) complete() error {
	l := a.label
	a.torn = make([]bool, len(l.Groups))
	for i, g := range l.Groups {
		kind := raid.Kind(g.Kind)
		data, _, err := kind.Shape(g.Columns)
		if err != nil {
			return fmt.Errorf("pool %s: raid group %d: %w: %w", l.Name, i+1, err, ErrDamaged)
		}
		there, good := make([]bool, g.Columns), make([]bool, g.Columns)
		var missing []string
		complete := make([]bool, g.Columns) // or about to be: a device that replaces another one may have everything
		for m, x := range l.Members {
			switch {
			case x.Group != i || x.Left:
			case x.Replacing:
				complete[x.Column] = complete[x.Column] || a.members[m] != nil && !x.Out
			case a.members[m] == nil:
				missing = append(missing, fmt.Sprintf("device %d of %d (%v)", x.Column+1, g.Columns, x.GUID))
			case x.Out:
				there[x.Column] = true
			default:
				there[x.Column], good[x.Column], complete[x.Column] = true, true, true
			}
		}
		count := func(b []bool) (n int) {
			for _, x := range b {
				if x {
					n++
				}
			}
			return n
		}
		if count(good) >= data || count(complete) >= data {
			continue
		}
		if count(there) == g.Columns && len(missing) == 0 {
			a.torn[i] = true
			continue
		}
		return a.incomplete(i, data, missing)
	}
	return nil
}

// incomplete says what a group lacks.
func (a *assembly) incomplete(group, data int, missing []string) error {
	l := a.label
	kind := raid.Kind(l.Groups[group].Kind)
	where := fmt.Sprintf("%s group %d", kind, group+1)
	if kind == raid.Stripe { // one device per group: count them through
		where = "the pool"
		for i, m := range l.Members {
			if a.members[i] == nil && m.Group == group && !m.Left && !m.Replacing {
				missing = []string{fmt.Sprintf("device %d of %d (%v)", i+1, len(l.Members), m.GUID)}
			}
		}
	}
	var s strings.Builder
	fmt.Fprintf(&s, "pool %s: %s needs %d of its devices up to date; missing: %s", l.Name, where, data, strings.Join(missing, ", "))
	if kind == raid.Stripe {
		s.Reset()
		fmt.Fprintf(&s, "pool %s: %s is missing, and no other has what is on it", l.Name, missing[0])
	}
	for i, m := range l.Members {
		if f := a.members[i]; f != nil && m.Group == group && m.Out {
			fmt.Fprintf(&s, "; device %s is there but missed writes", f.dev.Name())
		}
	}
	var causes []error
	for _, f := range a.unused {
		causes = append(causes, f.err)
	}
	if len(causes) > 0 {
		return fmt.Errorf("%s; not usable: %w", s.String(), errors.Join(causes...))
	}
	return errors.New(s.String())
}

// devices returns the pool's devices as a raid group wants to see them, with nil for one that left. All units of those
// that are called out are stale until it is known which are not.
func (a *assembly) devices() (members []*member, devs []*raid.Device) {
	for i, x := range a.label.Members {
		if x.Left {
			devs = append(devs, nil)
			continue
		}
		var m *member
		if f := a.members[i]; f != nil {
			m = newMember(a.label, i, f.label.Size, f.label.Change, f.dev)
			if x.Out && !a.torn[x.Group] {
				m.dev.SetAllStale()
			}
		} else {
			m = newMember(a.label, i, 0, x.Last, nil)
		}
		members, devs = append(members, m), append(devs, m.dev)
	}
	return members, devs
}

// readRing returns the newest announcement of a checkpoint on devices that missed nothing, and the highest generation that
// any device announces: none is used twice.
func (p *Pool) readRing(a *assembly) (best *label.Ring, highest uint64, err error) {
	var mu sync.Mutex
	var sources []*member
	counts := map[*member]bool{}
	for _, m := range p.members() {
		if x := a.label.Members[a.label.Index(m.guid)]; m.online() {
			sources, counts[m] = append(sources, m), !x.Out || a.torn[x.Group]
		}
	}
	p.onDevices("ring", sources, func(m *member) error {
		r, e := label.ReadRing(m.dev.Disk(), m.size.Load(), a.label.Pool)
		mu.Lock()
		defer mu.Unlock()
		if e != nil && counts[m] {
			err = e
		}
		if r == nil {
			return nil
		}
		highest = max(highest, r.Generation)
		if counts[m] && (best == nil || r.Generation > best.Generation) {
			best = r
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	if best == nil && err == nil {
		err = fmt.Errorf("no checkpoint on any device; its creation was interrupted: %w", ErrDamaged)
	}
	return best, highest, err
}
