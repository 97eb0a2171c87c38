package pool

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// View is what a pool at rest looks like.
type View struct {
	Name   string     `json:"name"`
	GUID   block.GUID `json:"guid"`
	Owner  string     `json:"owner,omitempty"`
	Format int        `json:"format"`
	// Error says why the pool cannot be opened. Then only its labels are known.
	Error  string `json:"error,omitempty"`
	Health string `json:"health,omitempty"`
	Why    string `json:"why,omitempty"`

	Devices    []DeviceView    `json:"devices"`
	Groups     []GroupView     `json:"groups,omitempty"`
	Spans      []SpanView      `json:"spans,omitempty"`
	Checkpoint *CheckpointView `json:"checkpoint,omitempty"`
	Space      *SpaceView      `json:"space,omitempty"`
	Replicas   []ReplicaView   `json:"replicas,omitempty"`
}

// DeviceView is a device and what its labels say.
type DeviceView struct {
	Name      string      `json:"name"`
	GUID      block.GUID  `json:"guid,omitzero"`
	Group     int         `json:"group"`  // from 1; 0: in none
	Column    int         `json:"column"` // from 1
	Size      int64       `json:"size"`
	State     string      `json:"state"`
	Out       bool        `json:"out"` // the newest labels say that it missed writes
	Replacing bool        `json:"replacing"`
	Units     int         `json:"units"`
	Stale     int         `json:"stale"`
	Found     string      `json:"found,omitempty"` // what is there, if not a label of the pool
	Labels    []LabelView `json:"labels,omitempty"`
	Ring      RingView    `json:"ring"`
}

// LabelView is one copy of a label.
type LabelView struct {
	Offset     int64  `json:"offset"`
	Generation uint64 `json:"generation"`
	Change     uint64 `json:"change"`
	Error      string `json:"error,omitempty"`
}

// RingView is what a device announces.
type RingView struct {
	Newest  uint64 `json:"newest"`  // generation
	Slots   int    `json:"slots"`   // that announce something, of 64
	Damaged int    `json:"damaged"` // that do not decode
}

// GroupView is a raid group.
type GroupView struct {
	Kind     string `json:"kind"`
	Cache    bool   `json:"cache"`
	Columns  int    `json:"columns"`
	Data     int    `json:"data"` // columns of data in a row
	State    string `json:"state"`
	Segments int    `json:"segments"`
	Free     int    `json:"free"`
}

// SpanView is a run of segments on one group.
type SpanView struct {
	Group int    `json:"group"` // from 1
	First uint32 `json:"first"`
	Count uint32 `json:"count"`
	Unit  uint32 `json:"unit"`
}

// CheckpointView is the newest checkpoint, and what was replayed on top of it.
type CheckpointView struct {
	Generation  uint64      `json:"generation"`
	Root        []PieceView `json:"root"`
	Segment     uint32      `json:"segment"` // where replay begins
	Block       uint32      `json:"block"`
	Batch       uint64      `json:"batch"`
	Incarnation string      `json:"incarnation"`
	Stable      uint64      `json:"stable"` // batch
	Last        uint64      `json:"last"`   // batch of the log
	Replayed    int         `json:"replayed"`
	Chain       []uint32    `json:"chain"` // segments of the log
	Replicas    int         `json:"replicas"`
}

// PieceView is a range of bytes in the pool.
type PieceView struct {
	Address uint64 `json:"address"`
	Length  uint32 `json:"length"`
	Sum     string `json:"sum"`
	Segment uint32 `json:"segment"`
	Device  string `json:"device"`
	Offset  int64  `json:"offset"`
}

// SpaceView is what a pool's space is used for. Sizes are bytes.
type SpaceView struct {
	Capacity     int64          `json:"capacity"`
	Allocated    int64          `json:"allocated"`
	Free         int64          `json:"free"`
	SegmentBytes int64          `json:"segmentBytes"`
	Segments     map[string]int `json:"segments"` // by kind
}

// ReplicaView is a replica.
type ReplicaView struct {
	Name      string        `json:"name"`
	GUID      block.GUID    `json:"guid"`
	Slot      uint32        `json:"slot"`
	Size      int64         `json:"size"`
	Used      int64         `json:"used"`
	Allocated int64         `json:"allocated"`
	Pages     int64         `json:"pages"`
	State     int           `json:"state"` // bytes of its record
	Applied   block.Version `json:"applied"`
	Destroyed bool          `json:"destroyed,omitempty"`

	Origin    string         `json:"origin,omitempty"` // of a clone: replica@snapshot
	Snapshots []SnapshotView `json:"snapshots,omitempty"`
}

// SnapshotView is a snapshot. Sizes are bytes.
type SnapshotView struct {
	Name       string        `json:"name"`
	Version    block.Version `json:"version"`
	Size       int64         `json:"size"`       // of the replica then
	Referenced int64         `json:"referenced"` // of the blocks that it shows
	Unique     int64         `json:"unique"`     // that only it holds; -1: what says so is damaged
	Clones     []string      `json:"clones,omitempty"`
}

// Inspect describes a pool whose devices nobody else uses, and writes nothing. When the pool cannot be opened it
// describes the labels and says why; the error says that there is no pool to be seen at all. The devices stay the
// caller's.
func Inspect(devs []disk.Device, opt Options) (*View, error) {
	ours, _ := apart(devs)
	p, err := openOffline(keepOpen(ours), opt)
	if err == nil {
		defer p.Close()
		return p.view(devs), nil
	}
	v := &View{Error: err.Error(), Format: label.Format}
	for _, d := range devs {
		l, e := label.Probe(disk.ReadOnly(d))
		x := DeviceView{Name: d.Name(), Size: d.Size(), State: "-"}
		if e != nil {
			x.Found = e.Error()
		} else {
			m := l.Members[l.Index(l.Device)]
			v.Name, v.GUID, v.Owner = l.Name, l.Pool, l.Owner
			x.GUID, x.Group, x.Column, x.Replacing, x.Out = l.Device, m.Group+1, m.Column+1, m.Replacing, m.Out
			x.look(d, l.Size, l.Pool)
		}
		v.Devices = append(v.Devices, x)
	}
	if v.GUID.IsZero() {
		return nil, err
	}
	return v, nil
}

// look reads the copies of the label and the ring of a device.
func (x *DeviceView) look(d disk.Device, size int64, pool block.GUID) {
	for _, c := range label.Copies(d, size) {
		l := LabelView{Offset: c.Off}
		if c.Err != nil {
			l.Error = c.Err.Error()
		} else {
			l.Generation, l.Change = c.Label.Generation, c.Label.Change
		}
		x.Labels = append(x.Labels, l)
	}
	for _, s := range label.Slots(d, size, pool) {
		switch {
		case s.Ring != nil:
			x.Ring.Slots++
			x.Ring.Newest = max(x.Ring.Newest, s.Ring.Generation)
		case !errors.Is(s.Err, ErrBlank):
			x.Ring.Damaged++
		}
	}
}

func (p *Pool) view(devs []disk.Device) *View {
	v := &View{Name: p.cfg.Name, GUID: p.cfg.GUID, Owner: p.cfg.Owner, Format: label.Format}
	v.Health, v.Why = p.health()
	l := p.labels.now.Load()
	seen := map[string]bool{}
	leaving := map[block.GUID]leaver{}
	for _, x := range p.upkeep.leave {
		leaving[x.guid] = x
	}
	for _, d := range p.Devices() {
		x := DeviceView{Name: d.Name, GUID: d.GUID, Group: d.Group + 1, Column: d.Column + 1, Size: d.Size, State: d.State.String(), Out: l.Members[l.Index(d.GUID)].Out,
			Replacing: d.Replacing, Units: d.Units, Stale: d.Stale}
		dev := leaving[d.GUID].disk
		if m := p.memberOf(d.GUID); m != nil {
			dev = m.dev.Disk()
		} else if dev != nil {
			x.Name, x.Size = dev.Name(), leaving[d.GUID].size
		}
		if dev != nil {
			seen[x.Name] = true
			x.look(dev, x.Size, l.Pool)
		}
		v.Devices = append(v.Devices, x)
	}
	for _, d := range devs {
		if !seen[d.Name()] {
			_, err := label.Probe(disk.ReadOnly(d))
			v.Devices = append(v.Devices, DeviceView{Name: d.Name(), Size: d.Size(), State: "-", Found: fmt.Sprint(err)})
		}
	}
	w := p.seg.where.Load()
	for _, g := range w.groups {
		v.Groups = append(v.Groups, GroupView{Kind: g.Kind().String(), Cache: g.cache, Columns: len(g.Columns()), Data: int(g.row), State: g.State().String(), Segments: g.all, Free: g.free})
	}
	for i := range w.spans {
		s := &w.spans[i]
		v.Spans = append(v.Spans, SpanView{Group: s.group.index + 1, First: s.first, Count: s.count, Unit: s.unit})
	}
	v.Checkpoint = p.checkpointView()
	s := p.Stats()
	v.Space = &SpaceView{Capacity: s.Capacity, Allocated: s.Allocated, Free: s.Free, SegmentBytes: s.SegmentBytes, Segments: map[string]int{}}
	for _, k := range p.seg.kind {
		v.Space.Segments[SegmentKind(k)]++
	}
	for _, r := range p.idx.bySlot {
		if r != nil {
			v.Replicas = append(v.Replicas, p.replicaView(r))
		}
	}
	slices.SortFunc(v.Replicas, func(a, b ReplicaView) int { return strings.Compare(a.Name, b.Name) })
	return v
}

func (p *Pool) replicaView(r *Replica) ReplicaView {
	s := r.Stats()
	v := ReplicaView{Name: r.name, GUID: r.guid, Slot: r.slot, Size: r.Size(), Used: s.Used, Allocated: s.Allocated, Pages: s.Chunks,
		State: len(r.state), Applied: r.applied, Destroyed: r.destroyed}
	if r.origin != nil && !r.destroyed {
		v.Origin = r.origin.name + "@" + r.from.name
	}
	for _, x := range r.Snapshots() {
		n, err := r.SnapshotUnique(x.Name)
		if err != nil {
			n = -1
		}
		v.Snapshots = append(v.Snapshots, SnapshotView{Name: x.Name, Version: x.Version, Size: x.Size, Referenced: x.Referenced, Unique: n, Clones: x.Clones})
	}
	return v
}

func (p *Pool) checkpointView() *CheckpointView {
	o := p.offline
	c := &CheckpointView{
		Generation: o.ring.Generation, Segment: o.root.from.seg, Block: o.root.from.block, Batch: o.root.from.seq,
		Incarnation: fmt.Sprintf("%016x", o.root.from.incarnation), Stable: o.stable, Last: p.log.pos.seq - 1,
		Replayed: len(o.batches), Chain: slices.Clone(p.log.chain), Replicas: len(o.root.replicas),
	}
	for _, e := range o.ring.Root {
		c.Root = append(c.Root, p.piece(e.Addr, e.Len, e.Sum))
	}
	return c
}

func (p *Pool) piece(addr uint64, n, sum uint32) PieceView {
	x := PieceView{Address: addr, Length: n, Sum: fmt.Sprintf("%08x", sum), Segment: uint32(addr >> p.seg.shift)}
	x.Device, x.Offset = p.where(addr)
	return x
}
