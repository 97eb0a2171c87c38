package sim

import (
	"maps"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// cell is one block: what was written last, and when. A discard leaves a cell without content until it is collected.
type cell struct {
	version block.Version
	content uint64 // zero: discarded
}

// disk is what a replica's pool keeps for it. Nothing that was handed to it is ever lost.
type disk struct {
	report volume.Report
	cells  map[uint64]cell
	newest map[uint64]block.Version // of each chunk, whatever became of the block that had it
	live   map[uint64]block.Version // of each chunk: newest operation applied since the stream of a rebuild began
}

func newDisk(r volume.Report) *disk {
	return &disk{report: r, cells: map[uint64]cell{}, newest: map[uint64]block.Version{}, live: map[uint64]block.Version{}}
}

// apply executes one operation.
func (d *disk) apply(op *volume.Op) {
	if op.Kind == volume.OpOpen {
		return
	}
	for b := op.Block; b < op.Block+uint64(op.Count); b++ {
		c := cell{version: op.Version}
		if op.Kind == volume.OpWrite {
			c.content = op.Tag.(*request).id
		}
		d.cells[b] = c
		ch := b / chunkBlocks
		if d.newest[ch].Less(op.Version) {
			d.newest[ch] = op.Version
		}
		d.live[ch] = op.Version
	}
}

// collect forgets discarded blocks, as a cleaner does. A replica that is being rebuilt keeps them: they tell a live
// discard from a block that it never had.
func (d *disk) collect() {
	if d.report.State.Complete {
		maps.DeleteFunc(d.cells, func(_ uint64, c cell) bool { return c.content == 0 })
	}
}

// chunk is what a source lists of one chunk at scan.
type chunk struct {
	index  uint64
	scan   block.Version
	newest block.Version
	cells  map[uint64]cell
}

func (d *disk) list(i uint64) chunk {
	c := chunk{index: i, scan: d.report.Last, newest: d.newest[i], cells: map[uint64]cell{}}
	for b := i * chunkBlocks; b < (i+1)*chunkBlocks; b++ {
		if x, ok := d.cells[b]; ok {
			c.cells[b] = x
		}
	}
	return c
}

// changed returns the chunks with anything newer than base.
func (d *disk) changed(base block.Version) map[uint64]bool {
	m := map[uint64]bool{}
	for i, v := range d.newest {
		if base.Less(v) {
			m[i] = true
		}
	}
	return m
}

// merge makes a chunk equal to the source's, live operations aside (replication rules 31 and 32).
func (d *disk) merge(c chunk) {
	for b := c.index * chunkBlocks; b < (c.index+1)*chunkBlocks; b++ {
		switch theirs := c.cells[b]; block.Resolve(d.cells[b].version, theirs.version, c.scan) {
		case block.Take:
			d.cells[b] = theirs
		case block.Drop:
			delete(d.cells, b)
		}
	}
	d.newest[c.index] = c.newest
	if v := d.live[c.index]; c.newest.Less(v) {
		d.newest[c.index] = v
	}
}

// difference returns a block in which two disks differ, in content or in version, -1 if there is none. Discarded
// blocks may have been collected on one of them.
func (d *disk) difference(o *disk) int {
	for b := range uint64(blocks) {
		x, y := d.cells[b], o.cells[b]
		if x.content != y.content || x.content != 0 && x.version != y.version {
			return int(b)
		}
	}
	return -1
}
