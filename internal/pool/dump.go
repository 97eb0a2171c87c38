package pool

import (
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// The functions of this file show the structures of a pool that OpenReadOnly opened.

// SegmentView is a segment. Sizes are bytes.
type SegmentView struct {
	Number uint32 `json:"number"`
	Kind   string `json:"kind"`
	Group  int    `json:"group"` // from 1
	Unit   uint32 `json:"unit"`  // of the group
	Offset int64  `json:"offset"`
	Pages  uint32 `json:"pages"` // live: what pages and directory refer to
	Delta  uint32 `json:"delta"` // live: what the log added since the checkpoint
	Pinned bool   `json:"pinned"`
	Birth  uint64 `json:"birth"` // age of the data, in blocks of the log
}

// DumpSegments returns all segments.
func (p *Pool) DumpSegments() (all []SegmentView) {
	w := p.seg.where.Load()
	for i, k := range p.seg.kind {
		sp := w.span(uint32(i))
		x := SegmentView{Number: uint32(i), Kind: SegmentKind(k), Group: sp.group.index + 1, Unit: sp.unit + uint32(i) - sp.first,
			Pages: p.seg.pageLive[i], Delta: p.seg.deltaLive[i], Pinned: p.seg.pinned[i], Birth: p.seg.birth[i]}
		_, x.Offset = p.where(uint64(i) << p.seg.shift)
		all = append(all, x)
	}
	return all
}

// CheckpointDump is all of the newest checkpoint's root but the segments.
type CheckpointDump struct {
	CheckpointView
	Clock    uint64          `json:"clock"`    // blocks ever appended to the log
	Appended uint64          `json:"appended"` // batch
	Members  []MemberDump    `json:"members"`
	Scrub    ScrubDump       `json:"scrub"`
	Replicas []RootReplica   `json:"rootReplicas"`
	Segments map[string]Used `json:"segments"` // by kind
}

// MemberDump is what a root says of a device.
type MemberDump struct {
	GUID  block.GUID `json:"guid"`
	Stale int        `json:"stale"` // units
}

// ScrubDump is what a root says of scrubs. Sizes are bytes of stored data.
type ScrubDump struct {
	State    string    `json:"state"`
	Next     uint32    `json:"next"` // segment from which on there is something to do
	Rate     int64     `json:"rate"` // per second, 0: no limit
	Done     int64     `json:"done"`
	Total    int64     `json:"total"`
	Repaired int64     `json:"repaired"`
	Errors   int64     `json:"errors"`
	Ended    time.Time `json:"ended,omitzero"`
	Base     time.Time `json:"base,omitzero"` // from which on the time to the next one counts
}

// RootReplica is what a root says of a replica.
type RootReplica struct {
	Slot    uint32        `json:"slot"`
	GUID    block.GUID    `json:"guid"`
	Name    string        `json:"name"`
	Size    int64         `json:"size"`
	Applied block.Version `json:"applied"`
	State   int           `json:"state"` // bytes
	Dying   bool          `json:"dying"`
	Data    int64         `json:"data"`    // bytes that pages refer to, newest versions
	Held    int64         `json:"held"`    // the same, versions that only snapshots show
	Meta    int64         `json:"meta"`    // bytes of pages, history pages and directory
	History int64         `json:"history"` // of them: history pages
	Pages   int64         `json:"pages"`
	Snaps   []string      `json:"snapshots,omitempty"`
	Origin  string        `json:"origin,omitempty"` // of a clone: slot@snapshot
	Purge   bool          `json:"purge,omitempty"`  // versions of deleted snapshots are to be given back
	Dirs    int           `json:"dirs"`             // directory blocks and nodes
}

// Used counts segments and their live bytes.
type Used struct {
	Segments int   `json:"segments"`
	Live     int64 `json:"live"`
}

// DumpCheckpoint returns the newest checkpoint, as it is on the devices.
func (p *Pool) DumpCheckpoint() CheckpointDump {
	m := p.offline.root
	d := CheckpointDump{CheckpointView: *p.checkpointView(), Clock: m.clock, Appended: m.appended, Segments: map[string]Used{}}
	t := &m.scrub
	d.Scrub = ScrubDump{State: t.state, Next: t.next, Rate: t.rate, Done: t.done, Total: t.total, Repaired: t.repaired, Errors: t.errors, Ended: t.ended, Base: t.base}
	for i := range m.members {
		d.Members = append(d.Members, MemberDump{GUID: m.members[i].guid, Stale: m.members[i].stale.Count()})
	}
	for i := range m.replicas {
		x := &m.replicas[i]
		y := RootReplica{Slot: x.slot, GUID: x.guid, Name: x.name, Size: x.size, Applied: x.applied, State: len(x.state), Dying: x.dying,
			Data: x.data, Held: x.held, Meta: x.meta, History: x.history, Pages: x.pages, Dirs: int(x.blocks), Purge: x.purge.wanted}
		for k := range x.snaps {
			y.Snaps = append(y.Snaps, x.snaps[k].name)
		}
		if x.clone {
			y.Origin = fmt.Sprintf("%d@%s", x.origin, x.from)
		}
		d.Replicas = append(d.Replicas, y)
	}
	for i, k := range m.kind {
		if m.live[i] > 0 {
			u := d.Segments[SegmentKind(k)]
			d.Segments[SegmentKind(k)] = Used{u.Segments + 1, u.Live + int64(m.live[i])}
		}
	}
	return d
}

// ChunkView is a chunk as the directory in memory lists it, with what was replayed.
type ChunkView struct {
	Replica string         `json:"replica"`
	Chunk   uint64         `json:"chunk"`
	Newest  block.Version  `json:"newest"`
	Stored  int            `json:"stored"`         // blocks with data
	Page    *PieceView     `json:"page,omitempty"` // Sum is unused
	PageID  string         `json:"pageID,omitempty"`
	Blocks  int            `json:"blocks"`         // that have data in the page
	Data    uint32         `json:"data"`           // bytes that these take
	Tomb    *block.Version `json:"tomb,omitempty"` // without a page: when all of it was discarded
	Delta   int            `json:"delta"`          // updates that are not in a page
}

// DirectoryView is the directory of a replica.
type DirectoryView struct {
	Replica string      `json:"replica"`
	Blocks  []PieceView `json:"blocks"` // directory blocks
	Chunks  []ChunkView `json:"chunks"`
}

// DumpDirectory returns the directory of a replica.
func (p *Pool) DumpDirectory(r *Replica) (v DirectoryView, err error) {
	v.Replica = r.name
	err = p.eachDir(r, func(s *dirSlot, _ uint64) {
		v.Blocks = append(v.Blocks, p.piece(s.addr, s.size, s.sum))
	})
	var d chunkRef
	for n := uint64(0); err == nil; {
		var c uint64
		var ok bool
		if c, n, ok, err = r.next(n, nil, &d); !ok {
			break
		}
		v.Chunks = append(v.Chunks, p.chunkLine(r, c, &d))
	}
	return v, err
}

func (p *Pool) chunkLine(r *Replica, chunk uint64, d *chunkRef) ChunkView {
	c := ChunkView{Replica: r.name, Chunk: chunk, Newest: d.newest, Stored: p.idx.bitmaps.count(d), Blocks: int(d.count), Data: d.data}
	if d.page != 0 {
		x := p.piece(d.pageAddr(), uint32(d.pageLen()), 0)
		x.Sum = ""
		c.Page, c.PageID = &x, fmt.Sprintf("%016x", d.id)
	} else if !d.tomb.IsZero() {
		c.Tomb = &d.tomb
	}
	for t := range p.idx.tables {
		for n := d.heads[t]; n != 0; n = p.idx.tables[t].At(n).Next {
			c.Delta++
		}
	}
	return c
}

// BlockView is a version of a block.
type BlockView struct {
	Block   uint64        `json:"block"` // of the replica
	Version block.Version `json:"version"`
	From    string        `json:"from"`   // page, older (versions that snapshots show), or delta
	State   string        `json:"state"`  // data, tombstone, …
	Stored  uint32        `json:"stored"` // bytes
	Sum     string        `json:"sum,omitempty"`
	Address uint64        `json:"address,omitempty"`
	Device  string        `json:"device,omitempty"`
	Offset  int64         `json:"offset,omitempty"`
}

// PageDump is an index page, and what the log added to its chunk.
type PageDump struct {
	ChunkView
	Content []BlockView `json:"content"`
}

// DumpPage returns what the index has of a chunk: its page, and the updates that are not in it.
func (p *Pool) DumpPage(r *Replica, chunk uint64) (*PageDump, error) {
	var ref chunkRef
	if x, err := r.rlock(chunk); err != nil {
		return nil, err
	} else if x != nil {
		ref = *x
	}
	p.idx.mu.RUnlock()
	d := &ref
	if !d.known() {
		return nil, fmt.Errorf("replica %s has no chunk %d", r.name, chunk)
	}
	v := &PageDump{ChunkView: p.chunkLine(r, chunk, d)}
	data := func(x BlockView, loc index.Loc, sum uint32) BlockView {
		x.State, x.Stored, x.Sum, x.Address = "data", uint32(loc.Len()), fmt.Sprintf("%08x", sum), loc.Addr()
		x.Device, x.Offset = p.where(loc.Addr())
		return x
	}
	if d.page != 0 {
		var view index.View
		e, err := p.loadPage(r, chunk, d, &view)
		if err != nil {
			return nil, err
		}
		defer p.cache.release(e)
		for i := range block.ChunkBlocks {
			x := BlockView{Block: chunk*block.ChunkBlocks + uint64(i), From: "page", Version: view.Version(i), State: "tombstone"}
			if loc, sum, ok := view.Data(i); ok {
				x = data(x, loc, sum)
			} else if x.Version.IsZero() {
				continue
			}
			v.Content = append(v.Content, x)
		}
		old, err := p.olderVersions(r, chunk, d, &view)
		if err != nil {
			return nil, err
		}
		for i := range old {
			o := &old[i]
			x := BlockView{Block: chunk*block.ChunkBlocks + uint64(o.Block), From: "older", Version: o.Ver, State: "tombstone"}
			if o.Stored {
				x = data(x, o.Loc, o.Sum)
			}
			v.Content = append(v.Content, x)
		}
	}
	for t := range p.idx.tables {
		for n := d.heads[t]; n != 0; n = p.idx.tables[t].At(n).Next {
			e := p.idx.tables[t].At(n)
			x := BlockView{Block: e.Block(), From: "delta", Version: e.Version()}
			switch {
			case n == d.disc[t]:
				x.State = "chunk discarded"
			case e.State() == index.Stored:
				x = data(x, e.Loc(), e.Sum)
			case e.State() == index.Tombstone:
				x.State = "tombstone"
			default:
				x.State = "never written"
			}
			v.Content = append(v.Content, x)
		}
	}
	return v, nil
}

// BatchView is a batch of the log.
type BatchView struct {
	Number      uint64       `json:"number"`
	Segment     uint32       `json:"segment"`
	Block       uint32       `json:"block"`
	Blocks      uint32       `json:"blocks"` // with header and padding
	Data        int          `json:"data"`   // blocks
	Stable      uint64       `json:"stable"`
	Incarnation string       `json:"incarnation"`
	Before      string       `json:"before,omitempty"` // the incarnation before that, if it is known
	Header      string       `json:"header"`           // its checksum
	Previous    string       `json:"previous"`         // that of the header before
	Flags       string       `json:"flags,omitempty"`
	Tail        bool         `json:"tail,omitempty"` // nothing says that it was on stable storage
	Device      string       `json:"device"`
	Offset      int64        `json:"offset"`
	Link        string       `json:"link,omitempty"`
	Next        string       `json:"next,omitempty"` // incarnation of what a link leads to: another one where a mount began
	Records     []RecordView `json:"records"`
}

// RecordView is a record of a batch.
type RecordView struct {
	Kind    string        `json:"kind"`
	Slot    uint32        `json:"slot"`
	Replica string        `json:"replica,omitempty"`
	Block   uint64        `json:"block"`
	Count   uint32        `json:"count"`
	Version block.Version `json:"version"`
	Stored  int           `json:"stored"` // bytes
}

// DumpLog calls f for every batch of the log that a replay reads.
func (p *Pool) DumpLog(f func(b BatchView) error) error {
	l := p.newLogReader()
	for i := range p.offline.batches {
		at := &p.offline.batches[i]
		h, raw, err := l.wanted(at.seg, at.block, func(h *wal.Header) bool { return h.Seq == at.seq })
		if err != nil {
			return fmt.Errorf("batch %d in segment %d block %d: %w", at.seq, at.seg, at.block, err)
		}
		v := BatchView{Number: h.Seq, Segment: at.seg, Block: at.block, Blocks: at.blocks, Data: h.DataBlocks, Stable: h.Stable,
			Incarnation: fmt.Sprintf("%016x", h.Incarnation), Header: fmt.Sprintf("%08x", h.Sum), Previous: fmt.Sprintf("%08x", h.Prev), Tail: h.Seq > p.offline.stable}
		v.Device, v.Offset = p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
		if h.Before != 0 {
			v.Before = fmt.Sprintf("%016x", h.Before)
		}
		if h.Flags&wal.FlagMore != 0 {
			v.Flags = "more"
		}
		if h.Flags&wal.FlagLink != 0 {
			v.Flags, v.Link = "link", fmt.Sprintf("segment %d block %d", h.NextSegment, h.NextBlock)
			v.Next = fmt.Sprintf("%016x", h.NextIncarnation)
		}
		var it wal.Records
		var rec wal.Record
		for it.Reset(raw, &h); it.Next(&rec); {
			x := RecordView{Kind: rec.Kind.String(), Slot: rec.Slot, Block: rec.Block, Count: rec.Count, Version: rec.Version, Replica: rec.Name}
			if x.Replica == "" && int(rec.Slot) < len(p.idx.bySlot) && p.idx.bySlot[rec.Slot] != nil {
				x.Replica = p.idx.bySlot[rec.Slot].name
			}
			blocks, packed := wal.DataLen(rec.Kind, rec.Count, rec.Lens)
			x.Stored = blocks*block.Size + packed
			v.Records = append(v.Records, x)
		}
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}
