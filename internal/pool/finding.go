package pool

import (
	"fmt"
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
	Offset  int64          `json:"offset"` // on the device, in bytes; -1: nowhere in particular
	Replica string         `json:"replica,omitempty"`
	Block   int64          `json:"block"` // of the replica, the first of several; -1: none
	Version *block.Version `json:"version,omitempty"`
	// Lost says that nothing that is there gives the right content. Otherwise the redundancy of the raid group does.
	Lost bool   `json:"lost"`
	Text string `json:"text"` // what was found
}

// String returns the finding as one line.
func (f Finding) String() string {
	var s strings.Builder
	if f.Device != "" {
		fmt.Fprintf(&s, "device %s", f.Device)
		if f.Offset >= 0 {
			fmt.Fprintf(&s, " offset %d", f.Offset)
		}
		s.WriteString(": ")
	}
	fmt.Fprintf(&s, "%s: ", f.What)
	if f.Replica != "" {
		fmt.Fprintf(&s, "replica %s ", f.Replica)
		if f.Block >= 0 {
			fmt.Fprintf(&s, "block %d ", f.Block)
		}
	}
	s.WriteString(f.Text)
	return s.String()
}

// maxFindings is how many findings a report holds.
const maxFindings = 1000

// Report is what Verify found.
type Report struct {
	Pool     string    `json:"pool"`
	Damage   int       `json:"damage"`   // number of findings
	Findings []Finding `json:"findings"` // the first of them
	Notes    []string  `json:"notes"`    // what is unusual but as it should be
	// What was read and compared.
	Devices  int   `json:"devices"`
	Replicas int   `json:"replicas"`
	Blocks   int64 `json:"blocks"`   // of data of all replicas, every version once
	Bytes    int64 `json:"bytes"`    // that they take
	Pages    int64 `json:"pages"`    // index pages
	Headers  int64 `json:"headers"`  // batch headers
	Rows     int64 `json:"rows"`     // of raid groups, all columns of which were compared
	Replayed int   `json:"replayed"` // batches of the log
}

func (r *Report) add(f Finding) {
	if r.Damage++; len(r.Findings) < maxFindings {
		r.Findings = append(r.Findings, f)
	}
}

func (r *Report) note(format string, a ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, a...)) }
