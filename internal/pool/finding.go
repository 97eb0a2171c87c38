package pool

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
)

// What a Finding is about.
const (
	FoundLabel      = "label"
	FoundRing       = "ring"
	FoundCheckpoint = "checkpoint"
	FoundDirectory  = "directory block"
	FoundPage       = "index page"
	FoundData       = "data"
	FoundState      = "state record"
	FoundHeader     = "batch header"
	FoundCopy       = "copy"
	FoundParity     = "parity"
	FoundSpace      = "space"
	FoundAccounts   = "accounts"
	FoundDevice     = "device"
)

// Finding is something that is wrong with a pool.
type Finding struct {
	What    string         `json:"what"`
	Device  string         `json:"device,omitempty"`
	Offset  int64          `json:"offset"`           // on the device, in bytes; -1: nowhere in particular
	Length  int64          `json:"length,omitempty"` // from there on, where that is known
	Places  int            `json:"places"`           // blocks, pages, …: neighbours on a device are one finding
	Replica string         `json:"replica,omitempty"`
	Block   int64          `json:"block"`          // of the replica, the first of several; -1: none
	Last    int64          `json:"last,omitempty"` // of the replica, when there are several
	Version *block.Version `json:"version,omitempty"`
	Newest  *block.Version `json:"newest,omitempty"` // when there are several: Version is the oldest
	// Lost says that nothing that is there gives the right content. Otherwise the redundancy of the raid group does.
	Lost bool   `json:"lost"`
	Text string `json:"text"` // what was found

	several string // Text for neighbours of which this is true together; "": it is never joined with others
	blocks  int64  // of the replica that were counted
}

// String returns the finding as one line.
func (f Finding) String() string {
	var s strings.Builder
	if f.Device != "" {
		fmt.Fprintf(&s, "device %s", f.Device)
		if f.Offset >= 0 {
			fmt.Fprintf(&s, " offset %d", f.Offset)
			if f.Places > 1 {
				fmt.Fprintf(&s, "-%d (%d places)", f.Offset+f.Length-1, f.Places)
			}
		}
		s.WriteString(": ")
	}
	fmt.Fprintf(&s, "%s: ", f.What)
	if f.Replica != "" {
		fmt.Fprintf(&s, "replica %s ", f.Replica)
		switch {
		case f.Last > f.Block && f.Last-f.Block == f.blocks-1:
			fmt.Fprintf(&s, "blocks %d-%d ", f.Block, f.Last)
		case f.Last > f.Block:
			fmt.Fprintf(&s, "blocks between %d and %d ", f.Block, f.Last)
		case f.Block >= 0:
			fmt.Fprintf(&s, "block %d ", f.Block)
		}
	}
	s.WriteString(f.Text)
	return s.String()
}

// join makes f one finding with its neighbour behind it on the device, if the same is true of both.
func (f *Finding) join(g *Finding) bool {
	if f.Offset+f.Length != g.Offset || f.Replica != g.Replica && f.Replica != "" && g.Replica != "" {
		return false
	}
	f.Length, f.Places, f.Text = f.Length+g.Length, f.Places+1, f.several
	if g.Replica == "" {
		return true
	}
	if f.Replica == "" {
		f.Replica, f.Block, f.Last, f.Version, f.Newest, f.blocks = g.Replica, g.Block, g.Last, g.Version, g.Newest, g.blocks
		return true
	}
	f.addBlocks(g.Block, max(g.Block, g.Last), g.blocks)
	if v := g.Version; v != nil && f.Version != nil {
		lo, hi := *f.Version, *f.Version
		if f.Newest != nil {
			hi = *f.Newest
		}
		if v.Less(lo) {
			lo = *v
		}
		if hi.Less(*v) {
			hi = *v
		}
		if f.Version, f.Newest = &lo, nil; lo != hi {
			f.Newest = &hi
		}
	}
	return true
}

// addBlocks adds n blocks of the replica, from first to last.
func (f *Finding) addBlocks(first, last, n int64) {
	f.Block, f.Last, f.blocks = min(f.Block, first), max(f.Block, f.Last, last), f.blocks+n
}

// maxFindings is how many findings a report holds.
const maxFindings = 1000

// Report is what Verify found.
type Report struct {
	Pool     string    `json:"pool"`
	Damage   int       `json:"damage"` // number of places where something is wrong
	Lost     int       `json:"lost"`   // of them: what no redundancy makes good
	Findings []Finding `json:"findings"`
	Omitted  int       `json:"omitted,omitempty"` // places that are in none of the findings, since they are too many
	Totals   []Total   `json:"totals"`            // by device
	Notes    []string  `json:"notes"`             // what is unusual but as it should be
	// What was read and compared.
	Devices  int   `json:"devices"`
	Replicas int   `json:"replicas"`
	Blocks   int64 `json:"blocks"`   // of data of all replicas, every version once
	Bytes    int64 `json:"bytes"`    // that they take
	Pages    int64 `json:"pages"`    // index pages
	Headers  int64 `json:"headers"`  // batch headers
	Rows     int64 `json:"rows"`     // of raid groups, all columns of which were compared
	Replayed int   `json:"replayed"` // batches of the log

	last map[alike]int // index of the newest finding of its kind
}

// Total is what is wrong on a device, or on all that hold the same, in places and in bytes of those whose length is
// known.
type Total struct {
	Device    string `json:"device"` // "": on none in particular
	Places    int    `json:"places"`
	Bytes     int64  `json:"bytes"`
	Lost      int    `json:"lost"` // of Places: what no redundancy makes good
	LostBytes int64  `json:"lostBytes"`
}

// alike is what findings have in common that can be joined.
type alike struct {
	what, device, text string
	lost               bool
}

func (r *Report) add(f Finding) {
	r.Damage++
	i := slices.IndexFunc(r.Totals, func(t Total) bool { return t.Device == f.Device })
	if i < 0 {
		i = len(r.Totals)
		r.Totals = append(r.Totals, Total{Device: f.Device})
	}
	t := &r.Totals[i]
	t.Places, t.Bytes = t.Places+1, t.Bytes+f.Length
	if f.Lost {
		r.Lost++
		t.Lost, t.LostBytes = t.Lost+1, t.LostBytes+f.Length
	}
	f.Places, f.blocks = 1, max(f.blocks, 1)
	key := alike{f.What, f.Device, f.several, f.Lost}
	if last, ok := r.last[key]; ok && f.several != "" && r.Findings[last].join(&f) {
		return
	}
	if len(r.Findings) == maxFindings {
		r.Omitted++
		return
	}
	if r.last == nil {
		r.last = map[alike]int{}
	}
	r.last[key] = len(r.Findings)
	r.Findings = append(r.Findings, f)
}

func (r *Report) note(format string, a ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, a...)) }
