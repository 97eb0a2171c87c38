package pool

import (
	"encoding/binary"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// memberImage is what a checkpoint says of a device: which units of it missed writes.
type memberImage struct {
	guid  block.GUID
	stale raid.Bitmap
}

// encodeMembers appends the devices and their stale units.
func (p *Pool) encodeMembers(b []byte) []byte {
	members := p.members()
	b = binary.AppendUvarint(b, uint64(len(members)))
	for _, m := range members {
		b = append(b, m.guid[:]...)
		b = appendUnits(b, m.dev.StaleUnits())
	}
	return b
}

// appendUnits appends a set of units as runs, or as a bitmap when that is shorter.
func appendUnits(b []byte, units raid.Bitmap) []byte {
	for len(units) > 0 && units[len(units)-1] == 0 {
		units = units[:len(units)-1]
	}
	count, end := 0, 0
	var runs []byte // of each the distance from the end of the one before, and its length
	for u := units.Next(0); u >= 0 && len(runs) <= 8*len(units); u = units.Next(end) {
		n := 1
		for units.Has(u + n) {
			n++
		}
		runs = binary.AppendUvarint(binary.AppendUvarint(runs, uint64(u-end)), uint64(n))
		count, end = count+1, u+n
	}
	if len(runs) <= 8*len(units) {
		return append(binary.AppendUvarint(b, uint64(count)), runs...)
	}
	b = binary.AppendUvarint(binary.AppendUvarint(b, manyRuns), uint64(len(units)))
	for _, w := range units {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// decodeMembers reads what encodeMembers wrote of devices with so many units at most.
func decodeMembers(r *rootReader, units uint64) (all []memberImage) {
	for n := r.uint(label.MaxDevices); n > 0 && !r.bad; n-- {
		var m memberImage
		copy(m.guid[:], r.bytes(16))
		m.stale = decodeUnits(r, units)
		all = append(all, m)
	}
	return all
}

// decodeUnits reads what appendUnits wrote of units below limit.
func decodeUnits(r *rootReader, limit uint64) (units raid.Bitmap) {
	k := r.uint(manyRuns)
	if k == manyRuns {
		words := r.bytes(8 * r.uint((limit+63)/64))
		for ; len(words) > 0; words = words[8:] {
			units = append(units, binary.LittleEndian.Uint64(words))
		}
		return units
	}
	end := uint64(0)
	for ; k > 0 && !r.bad; k-- {
		from := end + r.uint(limit)
		end = from + r.uint(limit)
		if end > limit {
			r.bad = true
			break
		}
		for len(units) < int(end+63)/64 {
			units = append(units, 0)
		}
		for u := from; u < end; u++ {
			units[u/64] |= 1 << (u % 64)
		}
	}
	return units
}

// mark is how often units of a device had become stale at some moment, to compare with later.
type mark struct {
	m *member
	n uint64
}

// missed returns the marks of all devices.
func (p *Pool) missed() (marks []mark) {
	for _, m := range p.members() {
		marks = append(marks, mark{m, m.dev.Missed()})
	}
	return marks
}

// committed notes that the newest checkpoint lists what was stale when marks were taken.
func (p *Pool) committed(marks []mark) error {
	for _, x := range marks {
		x.m.known.Store(x.n)
	}
	return p.recordIn()
}

// loadMembers takes over from the checkpoint which units are stale. A device that it does not know has nothing yet; in
// a group of which it knows none there was nothing either. What is called out is stale as a whole until the end of the
// replay, since it may have missed more.
func (p *Pool) loadMembers(images []memberImage) error {
	known, old := map[block.GUID]raid.Bitmap{}, map[int]bool{}
	for _, m := range images {
		known[m.guid] = m.stale
	}
	for _, m := range p.members() {
		if _, ok := known[m.guid]; ok {
			old[m.group] = true
		}
	}
	for _, m := range p.members() {
		stale, ok := known[m.guid]
		if !ok && old[m.group] {
			m.dev.SetAllStale()
			m.known.Store(m.dev.Missed())
			continue
		}
		units := p.labels.now.Load().GroupSegments(m.group)
		for u := stale.Next(0); u >= 0; u = stale.Next(u + 1) {
			if uint64(u) >= units {
				return fmt.Errorf("device %s: stale unit %d of %d: %w", m.dev.Name(), u, units, ErrDamaged)
			}
			m.dev.SetStale(u)
		}
		m.known.Store(m.dev.Missed()) // the checkpoint lists it; what else is stale the labels have said
		p.returned.keep(m, stale)
	}
	return nil
}

// returned is what is known of devices that were called out and are there again, until the replay is over: what they
// certainly have is what neither the checkpoint calls stale nor anything written since then refers to.
type returned struct {
	stale    map[*member]raid.Bitmap
	segments map[uint32]bool // written since the checkpoint, or by it
}

func (r *returned) keep(m *member, stale raid.Bitmap) {
	if r.stale == nil {
		r.stale = map[*member]raid.Bitmap{}
	}
	r.stale[m] = stale
}

// suspect says that what the pool consists of has parts in a segment that were written after the checkpoint was
// encoded. A replay calls it for every segment that it reads or refers to.
func (p *Pool) suspect(seg uint32) {
	if p.returned.segments == nil {
		p.returned.segments = map[uint32]bool{}
	}
	p.returned.segments[seg] = true
	p.distrust(seg)
}

// distrust marks a segment as stale on every device that is not online.
func (p *Pool) distrust(seg uint32) {
	sp := p.seg.where.Load().span(seg)
	for _, m := range p.members() {
		if m.group == sp.group.index && !m.online() {
			m.dev.SetStale(int(sp.unit + seg - sp.first))
		}
	}
}

// settleStale ends the replay's distrust of the devices that were called out.
func (p *Pool) settleStale() {
	for seg := range p.returned.segments { // once more: devices may have failed since
		p.distrust(seg)
	}
	w := p.seg.where.Load()
	again := false
	now := p.labels.now.Load()
	for _, m := range p.members() {
		m.known.Store(m.dev.Missed())
		x := now.Members[now.Index(m.guid)]
		stale, ok := p.returned.stale[m]
		if !x.Out || !m.online() || !ok {
			continue
		}
		again = true
		all := m.dev.StaleUnits()
		for u := all.Next(0); u >= 0; u = all.Next(u + 1) {
			if seg, _ := w.segment(m.group, u); !stale.Has(u) && !p.returned.segments[seg] {
				m.dev.ClearStale(u)
			}
		}
	}
	p.returned = returned{}
	if again { // a checkpoint that lists what is stale makes the labels trust them
		p.relabelDue.Store(true)
	}
}

// lacked reports whether a segment is stale on a device that is online.
func (p *Pool) lacked(seg uint32) bool {
	sp := p.seg.where.Load().span(seg)
	for _, m := range p.members() {
		if m.group == sp.group.index && m.online() && m.dev.IsStale(int(sp.unit+seg-sp.first)) {
			return true
		}
	}
	return false
}
