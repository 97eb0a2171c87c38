package pool

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// Verify proves that a pool whose devices nobody else uses is what the format says, and writes nothing: the labels and
// rings of all devices agree, the newest checkpoint decodes, the log can be replayed, every block of every replica,
// index page, directory block and header that is in use has its checksum on every device, copies and parity fit,
// nothing is in two places or in a free segment, and all accounts are exact. A device that holds something else is a
// finding, and left out. The error says that it could not look. The devices stay the caller's.
func Verify(devs []disk.Device, opt Options) (*Report, error) {
	devs, others := apart(devs)
	r := &Report{Devices: len(devs)}
	for _, o := range others {
		r.add(Finding{What: FoundDevice, Device: o.dev.Name(), Offset: -1, Block: -1, Text: "is not one of the pool: found " + o.err.Found})
	}
	p, err := openOffline(keepOpen(devs), opt)
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrChecksum) {
			return nil, fmt.Errorf("verify: %w", err)
		}
		for _, d := range devs { // their labels give the pool its name
			l, e := label.Probe(disk.ReadOnly(d))
			if e != nil {
				r.Pool = cmp.Or(r.Pool, nameOf(d))
				r.add(Finding{What: FoundLabel, Offset: -1, Block: -1, Lost: true, Text: e.Error()})
				continue
			}
			r.Pool = l.Name
			r.labels(disk.ReadOnly(d), l, l)
		}
		r.add(Finding{What: FoundCheckpoint, Offset: -1, Block: -1, Lost: true, Text: "the pool cannot be opened: " + err.Error()})
		return r, nil
	}
	defer p.Close()
	r.Pool, r.Replicas, r.Replayed = p.cfg.Name, len(p.idx.byName), len(p.offline.batches)
	newest := p.labels.now.Load()
	for _, m := range p.members() {
		if d := m.dev.Disk(); d != nil {
			r.member(p, m, d, newest)
		} else {
			r.add(Finding{What: FoundDevice, Device: m.dev.Name(), Offset: -1, Block: -1,
				Text: fmt.Sprintf("is missing in %s; what is on it was not looked at", p.seg.where.Load().groups[m.group].name())})
		}
	}
	p.audit(r)
	if broken := r.count(FoundPage, true) + r.count(FoundDirectory, true); broken > 0 {
		r.note("the accounts cannot be proved: %d parts of the index are damaged", broken)
	} else if err := p.Check(); err != nil {
		for _, e := range parts(err) {
			r.add(Finding{What: FoundAccounts, Offset: -1, Block: -1, Text: e.Error()})
		}
	}
	for _, m := range p.members() {
		if m.dev.State() == raid.Out {
			r.add(Finding{What: FoundDevice, Device: m.dev.Name(), Offset: -1, Block: -1, Text: fmt.Sprintf("was not looked at any more: %v", m.dev.Cause())})
		}
	}
	return r, nil
}

// nameOf returns the name of the pool that some copy of a device's label gives, "" if none does.
func nameOf(d disk.Device) string {
	for _, c := range label.Copies(disk.ReadOnly(d), d.Size()) {
		if c.Err == nil {
			return c.Label.Name
		}
	}
	return ""
}

// notClosed is a device that stays open.
type notClosed struct{ disk.Device }

func (notClosed) Close() error { return nil }

func keepOpen(devs []disk.Device) (kept []disk.Device) {
	for _, d := range devs {
		kept = append(kept, notClosed{d})
	}
	return kept
}

// parts returns the errors that were joined into err.
func parts(err error) []error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if j, ok := e.(interface{ Unwrap() []error }); ok {
			return j.Unwrap()
		}
	}
	return []error{err}
}

func (r *Report) count(what string, lost bool) (n int) {
	for i := range r.Findings {
		if r.Findings[i].What == what && r.Findings[i].Lost == lost {
			n++
		}
	}
	return n
}

// member verifies what a device of a pool says of itself.
func (r *Report) member(p *Pool, m *member, d disk.Device, newest *label.Label) {
	l, err := label.Probe(d)
	if err != nil {
		r.add(Finding{What: FoundLabel, Device: d.Name(), Offset: -1, Block: -1, Text: err.Error()})
		return
	}
	r.labels(d, l, newest)
	if n := m.dev.StaleCount(); n > 0 {
		units := p.seg.where.Load().groups[m.group].all
		r.add(Finding{What: FoundDevice, Device: d.Name(), Offset: -1, Block: -1,
			Text: fmt.Sprintf("missed writes: %d of its %d units are stale until they are resilvered, and were not looked at", n, units)})
	}
	r.ring(d, l, p.offline.ring, newest.Members[newest.Index(m.guid)].Out)
}

// labels verifies the copies of a device's label, the best of which is own.
func (r *Report) labels(d disk.Device, own, newest *label.Label) {
	copies := label.Copies(d, own.Size)
	longer := becameLonger(d, own)
	intact := 0
	for i := range copies {
		if copies[i].Err == nil {
			intact++
		}
	}
	for i := range copies {
		c := &copies[i]
		f := Finding{What: FoundLabel, Device: d.Name(), Offset: c.Off, Block: -1}
		switch l := c.Label; {
		case c.Err != nil && c.Torn(own):
			r.note("device %s: copy %d of the label was being written when the power went", d.Name(), i+1)
		case longer && i >= 2 && errors.Is(c.Err, ErrBlank):
			r.note("device %s: copy %d of the label is not there yet: its move to the end of a larger device was interrupted", d.Name(), i+1)
		case c.Err != nil:
			f.Text = fmt.Sprintf("copy %d of 4: %v; %d copies are intact", i+1, c.Err, intact)
			r.add(f)
		case l.Pool != own.Pool || l.Device != own.Device || l.Size != own.Size && l.Generation >= own.Generation:
			f.Text = fmt.Sprintf("copy %d of 4 is of device %v of pool %v", i+1, l.Device, l.Pool)
			r.add(f)
		case l.Generation < own.Generation:
			r.note("device %s: copy %d of the label is of generation %d, the newest is %d: a change of the labels was interrupted", d.Name(), i+1, l.Generation, own.Generation)
		case l.Change != own.Change:
			f.Text = fmt.Sprintf("copy %d of 4 has generation %d and says something else than another copy of it", i+1, l.Generation)
			r.add(f)
		}
	}
	switch {
	case own.Generation < newest.Generation && !newest.Members[max(newest.Index(own.Device), 0)].Out:
		r.note("device %s: its labels are of generation %d, the newest of the pool is %d: a change of the labels was interrupted", d.Name(), own.Generation, newest.Generation)
	case own.Generation == newest.Generation && own.Change != newest.Change:
		r.add(Finding{What: FoundLabel, Device: d.Name(), Offset: -1, Block: -1, Text: fmt.Sprintf("says something else than another device at the same generation %d", own.Generation)})
	}
}

// becameLonger reports whether a device has got labels for a larger size than before and no checkpoint since.
func becameLonger(d disk.Device, own *label.Label) bool {
	slots := label.Slots(d, own.Size, own.Pool)
	return allBlank(slots[label.RingSlots:]) && !allBlank(slots[:label.RingSlots])
}

func isBlank(s label.Slot) bool { return errors.Is(s.Err, ErrBlank) }

// allBlank reports whether no checkpoint was ever announced at an end of a device.
func allBlank(end []label.Slot) bool {
	return !slices.ContainsFunc(end, func(s label.Slot) bool { return !isBlank(s) })
}

// announcesOnly reports whether an end of a device announces the checkpoint that newest does, and no other: the device is new
// in the pool, and Open has announced that again, each time power was lost meanwhile. Another checkpoint is announced only
// after a flush of the device.
func announcesOnly(end []label.Slot, newest *label.Ring) bool {
	return !allBlank(end) && !slices.ContainsFunc(end, func(s label.Slot) bool {
		return !isBlank(s) && (s.Ring == nil || !slices.Equal(s.Ring.Root, newest.Root))
	})
}

// ring verifies the announcements of checkpoints on a device. out says that it may lack some.
func (r *Report) ring(d disk.Device, l *label.Label, newest *label.Ring, out bool) {
	slots := label.Slots(d, l.Size, l.Pool)
	head, tail := slots[:label.RingSlots], slots[label.RingSlots:]
	if allBlank(head) && announcesOnly(tail, newest) {
		r.note("device %s offset %d: the ring at the head of the device is blank: the first announcement on it was interrupted", d.Name(), head[0].Off)
	} else {
		r.ringEnd(d, "head", head, tail, newest, out)
	}
	if becameLonger(d, l) { // or was added; power may have been lost before the next checkpoint
		if c := label.Copies(d, l.Size); !errors.Is(c[2].Err, ErrBlank) || !errors.Is(c[3].Err, ErrBlank) { // else labels tells
			r.note("device %s offset %d: the ring at the tail of the device is blank: only its other end and other devices announce checkpoint %d; the next one is announced here too",
				d.Name(), tail[0].Off, newest.Generation)
		}
		return
	}
	r.ringEnd(d, "tail", tail, head, newest, out)
}

// ringEnd verifies the announcements at one end of a device. What is at the other one has been written here too, and
// was on stable storage before the next checkpoint was announced.
func (r *Report) ringEnd(d disk.Device, end string, slots, other []label.Slot, newest *label.Ring, out bool) {
	nothing := !slices.ContainsFunc(slots, func(s label.Slot) bool { return s.Ring != nil })
	var gone []Finding
	var torn []string
	for i := range slots {
		s, o := &slots[i], other[i].Ring
		n := uint64(i)
		f := Finding{What: FoundRing, Device: d.Name(), Offset: s.Off, Block: -1}
		current := n == newest.Generation%label.RingSlots
		missed := nothing && o != nil && o.Generation < newest.Generation
		switch {
		case s.Ring != nil && s.Ring.Generation > newest.Generation:
			if !out {
				f.Text = fmt.Sprintf("announces checkpoint %d, but the pool's newest is %d", s.Ring.Generation, newest.Generation)
				r.add(f)
			}
		case s.Ring != nil && s.Ring.Generation == newest.Generation:
			if fmt.Sprint(s.Ring.Root) != fmt.Sprint(newest.Root) {
				f.Text = fmt.Sprintf("checkpoint %d is somewhere else than another announcement of it says", newest.Generation)
				r.add(f)
			}
		case s.Err != nil && !errors.Is(s.Err, ErrBlank):
			if n == (newest.Generation+1)%label.RingSlots && errors.Is(s.Err, ErrDamaged) {
				torn = append(torn, fmt.Sprintf("device %s offset %d: the announcement of checkpoint %d was being written when the power went", d.Name(), s.Off, newest.Generation+1))
				continue
			}
			f.Text = fmt.Sprintf("slot %d: %v", n, s.Err)
			gone = append(gone, f)
		case missed && !out:
			f.Text = fmt.Sprintf("slot %d: checkpoint %d, which the other end announces, is not announced here", n, o.Generation)
			gone = append(gone, f)
		case current && !out:
			torn = append(torn, fmt.Sprintf("device %s offset %d: checkpoint %d is not announced here: its announcement was interrupted", d.Name(), s.Off, newest.Generation))
		}
	}
	if len(gone) == 0 || len(gone) == 1 && !nothing {
		for _, f := range gone {
			r.add(f)
		}
		r.Notes = append(r.Notes, torn...)
		return
	}
	f := gone[0]
	f.Length = gone[len(gone)-1].Offset + block.Size - f.Offset
	f.Text = fmt.Sprintf("the ring at the %s of the device has lost %d of its %d slots up to offset %d: only its other end and other devices announce what these did", end, len(gone), label.RingSlots, f.Offset+f.Length)
	if nothing {
		f.Offset, f.Length = slots[0].Off, label.RingSlots*block.Size
		f.Text = fmt.Sprintf("the ring at the %s of the device announces nothing: only its other end and other devices announce checkpoint %d", end, newest.Generation)
	}
	r.add(f)
}
