package pool

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// space says which raid group every segment is on. It is replaced as a whole when the pool grows; what a span or a
// group knows of free segments is guarded by segments.mu.
type space struct {
	groups   []*groupState
	spans    []span
	of       []uint8 // span of each segment
	dataSegs int     // segments that are not on cache groups
	maxRow   uint32  // blocks
}

// span is a run of segments on one group.
type span struct {
	group *groupState
	first uint32 // segment
	count uint32
	unit  uint32 // of the group where first is
	hint  uint32 // no free segment of the span is below
}

// groupState is a raid group of the pool.
type groupState struct {
	*raid.Group
	index int
	cache bool
	row   uint32      // blocks of data in a row
	dirty atomic.Bool // has writes that no flush has covered
	_     [60]byte    // writers of different groups must not share a cache line
	free  int         // segments
	all   int
}

// newSpace returns the space that the spans of a label make on the groups.
func newSpace(groups []*groupState, spans []label.Span) *space {
	w := &space{groups: groups}
	units := make([]uint32, len(groups))
	for i, sp := range spans {
		g := groups[sp.Group]
		first := uint32(len(w.of))
		w.spans = append(w.spans, span{group: g, first: first, count: sp.Segments, unit: units[sp.Group], hint: first})
		units[sp.Group] += sp.Segments
		g.all += int(sp.Segments)
		if !g.cache {
			w.dataSegs += int(sp.Segments)
		}
		w.maxRow = max(w.maxRow, g.row)
		for range sp.Segments {
			w.of = append(w.of, uint8(i))
		}
	}
	return w
}

func (w *space) count() int { return len(w.of) }

func (w *space) span(seg uint32) *span { return &w.spans[w.of[seg]] }

// segment returns the segment that a unit of a group is; false while the group grows and it is none yet.
func (w *space) segment(group, unit int) (seg uint32, ok bool) {
	for i := range w.spans {
		sp := &w.spans[i]
		if sp.group.index == group && uint32(unit) >= sp.unit && uint32(unit) < sp.unit+sp.count {
			return sp.first + uint32(unit) - sp.unit, true
		}
	}
	return 0, false
}

// cacheKeep is the number of segments of cache groups that stay free while there is room elsewhere.
func (w *space) cacheKeep() int { return (w.count() - w.dataSegs + 15) / 16 }

// pick returns a group, for the cache or for data, that has free segments: from turn on the first that has nearly the
// largest share of them, and moves turn behind it.
func (w *space) pick(cache bool, turn *int) *groupState {
	share := func(g *groupState) int {
		if g.cache != cache || g.free == 0 {
			return 0
		}
		return 1 + g.free*256/g.all
	}
	best := 0
	for _, g := range w.groups {
		best = max(best, share(g))
	}
	n := len(w.groups)
	for i := range n {
		if k := (*turn + i) % n; best > 0 && share(w.groups[k]) >= best-best/8 {
			*turn = (k + 1) % n
			return w.groups[k]
		}
	}
	panic("no group has free segments")
}

// name says which group it is: "mirror group 2".
func (g *groupState) name() string {
	kind := g.Kind().String()
	if g.cache {
		kind = "write cache " + kind
	}
	return fmt.Sprintf("%s group %d", kind, g.index+1)
}

// place returns the device and the offset on it of the block at an offset in the group. For a mirror it names all of
// its devices.
func (g *groupState) place(off int64) (device string, at int64) {
	cols := g.Columns()
	row := off / int64(g.Row())
	shard := off % int64(g.Row()) / (int64(g.Row()) / int64(g.row))
	if g.row == 1 {
		var names []string
		for _, c := range cols {
			names = append(names, c.Devices[0].Name())
		}
		return strings.Join(names, ", "), label.HeadBytes + off
	}
	const blockSize = 4096
	col := (shard + row/raid.RotateRows) % int64(len(cols))
	return cols[col].Devices[0].Name(), label.HeadBytes + row*blockSize + off%blockSize
}
