package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/cstor-go/cstor/internal/pool"
)

// table writes aligned columns.
type table struct{ t *tabwriter.Writer }

func newTable(w io.Writer, head ...any) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(head...)
	return t
}

func (t table) row(cells ...any) {
	s := make([]string, len(cells))
	for i, c := range cells {
		if s[i] = fmt.Sprint(c); s[i] == "" {
			s[i] = "-"
		}
	}
	fmt.Fprintf(t.t, "  %s\n", strings.Join(s, "\t"))
}

// Bytes returns a size in the largest unit that leaves it above one.
func Bytes(n int64) string {
	units := "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.95 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + units[u:u+1]
}

// PoolView prints what a pool at rest looks like.
func PoolView(w io.Writer, v *pool.View) error {
	fmt.Fprintf(w, "pool:    %s\nguid:    %v\n", v.Name, v.GUID)
	if v.Owner != "" {
		fmt.Fprintf(w, "owner:   %s\n", v.Owner)
	}
	fmt.Fprintf(w, "format:  %d\n", v.Format)
	if v.Error != "" {
		fmt.Fprintf(w, "state:   cannot be opened\n         %s\n", v.Error)
	} else {
		fmt.Fprintf(w, "state:   %s\n", v.Health)
		if v.Why != "" {
			fmt.Fprintf(w, "         %s\n", v.Why)
		}
	}
	fmt.Fprintln(w, "\ndevices:")
	t := newTable(w, "DEVICE", "GUID", "GROUP", "COLUMN", "STATE", "SIZE", "STALE", "LABELS", "RING", "NOTE")
	for _, d := range v.Devices {
		name, guid, size := d.Name, d.GUID.String(), Bytes(d.Size)
		group, column, labels, ring := "-", "-", "-", "-"
		if name == "" {
			name = "(missing)"
		}
		if d.GUID.IsZero() {
			guid = "-"
		}
		if d.Size == 0 {
			size = "-"
		}
		if d.Group > 0 {
			group, column = fmt.Sprint(d.Group), fmt.Sprint(d.Column)
		}
		var notes []string
		if len(d.Labels) > 0 {
			intact, gen := 0, uint64(0)
			for i, l := range d.Labels {
				if l.Error != "" {
					notes = append(notes, fmt.Sprintf("label %d: %s", i+1, l.Error))
					continue
				}
				intact++
				gen = max(gen, l.Generation)
			}
			labels = fmt.Sprintf("%d/4 gen %d", intact, gen)
			ring = fmt.Sprintf("gen %d", d.Ring.Newest)
		}
		if d.Ring.Damaged > 0 {
			notes = append(notes, fmt.Sprintf("%d ring slots are damaged", d.Ring.Damaged))
		}
		if d.Out {
			notes = append(notes, "missed writes")
		}
		if d.Replacing {
			notes = append(notes, "takes the place of the other device of its column")
		}
		if d.Found != "" {
			notes = append(notes, d.Found)
		}
		stale := "-"
		if d.Units > 0 {
			stale = fmt.Sprintf("%d/%d", d.Stale, d.Units)
		}
		t.row(name, guid, group, column, d.State, size, stale, labels, ring, strings.Join(notes, "; "))
	}
	t.t.Flush()
	if v.Error != "" {
		return nil
	}
	fmt.Fprintln(w, "\nraid groups:")
	t = newTable(w, "GROUP", "KIND", "DEVICES", "DATA", "STATE", "SEGMENTS", "FREE", "FOR")
	for i, g := range v.Groups {
		use := "data"
		if g.Cache {
			use = "write cache"
		}
		t.row(i+1, g.Kind, g.Columns, g.Data, g.State, g.Segments, g.Free, use)
	}
	t.t.Flush()
	fmt.Fprintln(w, "\nspans:")
	t = newTable(w, "SEGMENTS", "GROUP", "UNITS")
	for _, s := range v.Spans {
		t.row(fmt.Sprintf("%d-%d", s.First, s.First+s.Count-1), s.Group, fmt.Sprintf("%d-%d", s.Unit, s.Unit+s.Count-1))
	}
	t.t.Flush()
	c := v.Checkpoint
	fmt.Fprintf(w, "\ncheckpoint %d: replay begins at batch %d (segment %d block %d); %d batches replayed, to batch %d, stable to %d; log in segments %v\n",
		c.Generation, c.Batch, c.Segment, c.Block, c.Replayed, c.Last, c.Stable, c.Chain)
	s := v.Space
	fmt.Fprintf(w, "\nspace: %s allocated, %s free of %s; segments of %s: %s\n", Bytes(s.Allocated), Bytes(s.Free), Bytes(s.Capacity), Bytes(s.SegmentBytes), kinds(s.Segments))
	fmt.Fprintln(w, "\nreplicas:")
	if len(v.Replicas) == 0 {
		fmt.Fprintln(w, "  none")
		return nil
	}
	snapshots := 0
	t = newTable(w, "NAME", "GUID", "SIZE", "USED", "ALLOCATED", "APPLIED", "PAGES", "STATE", "NOTE")
	for _, r := range v.Replicas {
		note := ""
		if r.Destroyed {
			note = "destroyed, its space is being given back"
		} else if r.Origin != "" {
			note = "clone of " + r.Origin
		}
		snapshots += len(r.Snapshots)
		t.row(r.Name, r.GUID, Bytes(r.Size), Bytes(r.Used), Bytes(r.Allocated), r.Applied, r.Pages, Bytes(int64(r.State)), note)
	}
	t.t.Flush()
	if snapshots == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nsnapshots:")
	t = newTable(w, "NAME", "VERSION", "SIZE", "REFERENCED", "UNIQUE", "CLONES")
	for _, r := range v.Replicas {
		for _, s := range r.Snapshots {
			unique := "?"
			if s.Unique >= 0 {
				unique = Bytes(s.Unique)
			}
			t.row(r.Name+"@"+s.Name, s.Version, Bytes(s.Size), Bytes(s.Referenced), unique, strings.Join(s.Clones, " "))
		}
	}
	return t.t.Flush()
}

// plural returns a number of things.
func plural(n int64, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case strings.HasSuffix(thing, "ch"):
		return fmt.Sprintf("%d %ses", n, thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func kinds(m map[string]int) string {
	var s []string
	for k, n := range m {
		s = append(s, fmt.Sprintf("%d %s", n, k))
	}
	slices.SortFunc(s, func(a, b string) int { return strings.Compare(a[strings.Index(a, " "):], b[strings.Index(b, " "):]) })
	return strings.Join(s, ", ")
}

// PoolReport prints what Verify found.
func PoolReport(w io.Writer, r *pool.Report) {
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s\n", f)
	}
	if r.Omitted > 0 {
		fmt.Fprintf(w, "and %s more\n", plural(int64(r.Omitted), "place"))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if len(r.Findings)+len(r.Notes) > 0 {
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%s: %s, %s; read %s of data (%s), %s, %s, %s on all devices; replayed %s\n",
		strings.TrimSpace("pool "+r.Pool), plural(int64(r.Devices), "device"), plural(int64(r.Replicas), "replica"), plural(r.Blocks, "block"), Bytes(r.Bytes), plural(r.Pages, "index page"),
		plural(r.Headers, "batch header"), plural(r.Rows, "row"), plural(int64(r.Replayed), "batch"))
	if r.Damage == 0 {
		fmt.Fprintln(w, "no damage found")
		return
	}
	fmt.Fprintln(w)
	t := newTable(w, "DEVICE", "PLACES", "MADE GOOD", "LOST")
	for _, d := range r.Totals {
		t.row(d.Device, d.Places, places(d.Places-d.Lost, d.Bytes-d.LostBytes), places(d.Lost, d.LostBytes))
	}
	t.t.Flush()
	fmt.Fprintf(w, "\n%s: redundancy makes good for %d, not for %d\n", plural(int64(r.Damage), "place"), r.Damage-r.Lost, r.Lost)
}

// places returns a number of places and how many bytes these are.
func places(n int, bytes int64) string {
	if bytes == 0 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d (%s)", n, Bytes(bytes))
}
