package pool

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// Group is a raid group of a pool to be made: devices that share redundancy.
type Group struct {
	Kind    raid.Kind
	Cache   bool // a write cache: it takes the index and what is written first; data moves on to the other groups
	Devices []disk.Device
}

// Stripe returns the groups of a pool without redundancy, one for each device.
func Stripe(devs ...disk.Device) []Group {
	var groups []Group
	for _, d := range devs {
		groups = append(groups, Group{Kind: raid.Stripe, Devices: []disk.Device{d}})
	}
	return groups
}

// member is a device of the pool as it runs.
type member struct {
	guid  block.GUID
	group int
	size  atomic.Int64 // where its tail ends
	io    atomic.Int32 // labels that are being read or written
	last  uint64       // Change of the last label that is known to be on it
	dev   *raid.Device
	// known is how often units of it had become stale when the newest checkpoint was taken, which lists them.
	known atomic.Uint64
	// came is how often it came back into use, announced that number when a checkpoint was last announced on it.
	came, announced atomic.Uint64
}

// newMember returns member number i of a label.
func newMember(l *label.Label, i int, size int64, last uint64, d disk.Device) *member {
	x := l.Members[i]
	m := &member{guid: x.GUID, group: x.Group, last: last, dev: raid.NewDevice(x.GUID, d)}
	m.size.Store(size)
	return m
}

// online reports whether the device takes part in I/O.
func (m *member) online() bool { return m.dev.State() == raid.Online }

// busy reports whether requests to the device may be under way.
func (m *member) busy() bool { return m.dev.Stuck() > 0 || m.io.Load() > 0 }

// behind reports whether the device missed writes that the newest checkpoint does not know of, or may have missed that
// that one was announced: it came back since it was.
func (m *member) behind() bool {
	return !m.online() || m.dev.Missed() != m.known.Load() || m.announced.Load() != m.came.Load()
}

// minRows is the smallest number of rows in a segment.
const minRows = 16

// plan checks the groups of a new pool and returns its labels, all but the device's own fields, and the devices in the
// order of its members.
func plan(groups []Group, cfg Config, opt Options) (*label.Label, []disk.Device, error) {
	l := &label.Label{Pool: cfg.GUID, Name: cfg.Name, Owner: cfg.Owner, Generation: 1, Change: opt.Rand(), SegmentBytes: opt.SegmentBytes}
	var devs []disk.Device
	var total int64
	widest, data := 1, false
	smallest := make([]int64, len(groups)) // bytes that a group can use of each device
	shape := make([]int, len(groups))
	for i, g := range groups {
		d, _, err := g.Kind.Shape(len(g.Devices))
		if err != nil {
			return nil, nil, fmt.Errorf("raid group %d: %w", i+1, err)
		}
		for c, dev := range g.Devices {
			usable := dev.Size() - label.HeadBytes - label.TailBytes
			if smallest[i] == 0 || usable < smallest[i] {
				smallest[i] = usable
			}
			devs = append(devs, dev)
			l.Members = append(l.Members, label.Member{GUID: opt.newGUID(), Group: i, Column: c})
		}
		l.Groups = append(l.Groups, label.Group{Kind: uint8(g.Kind), Cache: g.Cache, Columns: len(g.Devices)})
		shape[i], widest, data = d, max(widest, d), data || !g.Cache
		total += smallest[i] * int64(d)
	}
	switch {
	case len(devs) == 0 || len(devs) > label.MaxDevices:
		return nil, nil, fmt.Errorf("%d devices, want 1 to %d", len(devs), label.MaxDevices)
	case !data:
		return nil, nil, errors.New("all raid groups are write caches, want one for data")
	case l.SegmentBytes == 0:
		l.SegmentBytes = segmentBytes(total, widest)
	}
	if n := l.SegmentBytes; n < 256<<10 || n > 64<<20 || n&(n-1) != 0 || n < int64(minRows*widest*block.Size) {
		return nil, nil, fmt.Errorf("segments of %d bytes, want a power of two from %d KiB to 64 MiB", n, max(256, minRows*widest*4))
	}
	segs := uint64(0)
	for i := range groups {
		n := smallest[i] / (l.SegmentBytes / int64(shape[i]))
		if n <= 0 {
			return nil, nil, fmt.Errorf("device %s: too small", groups[i].Devices[0].Name())
		}
		if !groups[i].Cache {
			segs += uint64(n)
		}
		l.Spans = append(l.Spans, label.Span{Group: i, Segments: uint32(min(n, label.MaxSegments))})
	}
	if n := l.Segments(); n > label.MaxSegments {
		return nil, nil, fmt.Errorf("%d segments of %d bytes, want at most %d: devices are too large", n, l.SegmentBytes, label.MaxSegments)
	}
	if n := fixedRoot(l); n > opt.restOfRoot() {
		return nil, nil, fmt.Errorf("%d segments of %d bytes on %d devices: checkpoints would take %d bytes of %d: %w", l.Segments(), l.SegmentBytes, len(devs), n, opt.restOfRoot(), ErrTooLarge)
	}
	if segs < minSegments {
		return nil, nil, fmt.Errorf("%d segments of %d bytes, want at least %d: devices are too small", segs, l.SegmentBytes, minSegments)
	}
	return l, devs, nil
}

// segmentBytes returns the default segment size for that many bytes of data in rows of that many blocks.
func segmentBytes(total int64, row int) int64 {
	n := int64(1 << 20)
	for n < 16<<20 && total/n > 1024 || n < 64<<20 && total/n > 1<<16 {
		n <<= 1
	}
	for n > 256<<10 && total/n < 64 {
		n >>= 1
	}
	return max(n, int64(minRows*row*block.Size))
}

// own returns the label of one member.
func own(l *label.Label, guid block.GUID, size int64) *label.Label {
	c := l.Clone()
	c.Device, c.Size = guid, size
	return c
}

// newGroups makes the raid groups that a label describes. devs has a device, or nil, for each member.
func (p *Pool) newGroups(l *label.Label, devs []*raid.Device) ([]*groupState, error) {
	var groups []*groupState
	for i, g := range l.Groups {
		kind := raid.Kind(g.Kind)
		data, _, err := kind.Shape(g.Columns)
		if err != nil {
			return nil, fmt.Errorf("raid group %d: %w: %w", i+1, err, ErrDamaged)
		}
		if l.SegmentBytes < int64(minRows*data*block.Size) {
			return nil, fmt.Errorf("raid group %d: segments of %d bytes are too small: %w", i+1, l.SegmentBytes, ErrDamaged)
		}
		cols := make([]raid.Column, g.Columns)
		for _, replacing := range []bool{false, true} {
			for m, x := range l.Members {
				if x.Group == i && x.Replacing == replacing && !x.Left {
					cols[x.Column].Devices = append(cols[x.Column].Devices, devs[m])
				}
			}
		}
		rg, err := raid.New(raid.Config{
			Kind: kind, Columns: cols, Base: label.HeadBytes, UnitBytes: l.SegmentBytes / int64(data), Units: int(l.GroupSegments(i)),
			Deadline: p.opt.Deadline, Log: p.opt.Log, Changed: p.deviceChanged, ReadOnly: p.offline != nil, Inline: p.opt.Manual,
		})
		if err != nil {
			return nil, fmt.Errorf("raid group %d: %w", i+1, err)
		}
		groups = append(groups, &groupState{Group: rg, index: i, cache: g.Cache, row: uint32(data)})
	}
	return groups, nil
}

// deviceChanged is called when a device went out or came back.
func (p *Pool) deviceChanged() {
	if err := p.lost(); err != nil {
		if errors.Is(err, raid.ErrHung) {
			err = fmt.Errorf("%w; see to the device and its connection, and open the pool again when it answers", err)
		}
		p.fail(err)
	}
	p.save()
	p.upkeep.wake()
}
