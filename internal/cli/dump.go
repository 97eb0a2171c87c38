package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cstor-go/cstor/internal/pool"
)

// Segments prints the segments of a pool; runs of free ones take one line.
func Segments(w io.Writer, all []pool.SegmentView) error {
	t := newTable(w, "SEGMENT", "KIND", "GROUP", "OFFSET", "LIVE", "PAGES", "DELTA", "NOTE")
	for i := 0; i < len(all); i++ {
		s := &all[i]
		if s.Kind == "free" {
			j := i
			for j+1 < len(all) && all[j+1].Kind == "free" && all[j+1].Group == s.Group {
				j++
			}
			t.row(run(s.Number, all[j].Number), s.Kind, s.Group, s.Offset, "", "", "", "")
			i = j
			continue
		}
		note := ""
		if s.Pinned {
			note = "a replay reads it"
		}
		t.row(s.Number, s.Kind, s.Group, s.Offset, Bytes(int64(s.Pages)+int64(s.Delta)), Bytes(int64(s.Pages)), Bytes(int64(s.Delta)), note)
	}
	return t.t.Flush()
}

func run(a, b uint32) string {
	if a == b {
		return fmt.Sprint(a)
	}
	return fmt.Sprintf("%d-%d", a, b)
}

// Checkpoint prints the newest checkpoint.
func Checkpoint(w io.Writer, c *pool.CheckpointDump) error {
	fmt.Fprintf(w, "checkpoint:    %d\n", c.Generation)
	fmt.Fprintf(w, "replay begins: segment %d block %d, batch %d, incarnation %s\n", c.Segment, c.Block, c.Batch, c.Incarnation)
	fmt.Fprintf(w, "log:           stable to batch %d then, %d blocks appended; to batch %d now\n\nroot:\n", c.Appended, c.Clock, c.Last)
	t := newTable(w, "ADDRESS", "LENGTH", "SUM", "SEGMENT", "DEVICE", "OFFSET")
	for _, x := range c.Root {
		t.row(fmt.Sprintf("%#x", x.Address), x.Length, x.Sum, x.Segment, x.Device, x.Offset)
	}
	t.t.Flush()
	fmt.Fprintln(w, "\ndevices:")
	t = newTable(w, "GUID", "STALE UNITS")
	for _, m := range c.Members {
		t.row(m.GUID, m.Stale)
	}
	t.t.Flush()
	s := &c.Scrub
	fmt.Fprintf(w, "\nscrub: %s", cmp.Or(strings.ToLower(s.State), "none yet"))
	if s.Total > 0 {
		fmt.Fprintf(w, ", %s of %s, to go on at segment %d, %d repaired, %d errors", Bytes(s.Done), Bytes(s.Total), s.Next, s.Repaired, s.Errors)
	}
	if s.Rate > 0 {
		fmt.Fprintf(w, ", at most %s/s", Bytes(s.Rate))
	}
	if !s.Ended.IsZero() {
		fmt.Fprintf(w, ", ended %s", s.Ended.UTC().Format(time.RFC3339))
	}
	fmt.Fprintln(w, "\n\nreplicas:")
	t = newTable(w, "SLOT", "NAME", "GUID", "SIZE", "APPLIED", "STATE", "DATA", "OLDER", "INDEX", "PAGES", "DIRECTORY BLOCKS", "SNAPSHOTS", "NOTE")
	for _, r := range c.Replicas {
		var notes []string
		if r.Dying {
			notes = append(notes, "destroyed")
		}
		if r.Origin != "" {
			notes = append(notes, "clone of slot "+r.Origin)
		}
		if r.Purge {
			notes = append(notes, "versions of deleted snapshots are to be given back")
		}
		t.row(r.Slot, r.Name, r.GUID, Bytes(r.Size), r.Applied, Bytes(int64(r.State)), Bytes(r.Data), Bytes(r.Held), Bytes(r.Meta), r.Pages, r.Dirs, strings.Join(r.Snaps, " "), strings.Join(notes, "; "))
	}
	t.t.Flush()
	fmt.Fprintln(w, "\nsegments with live bytes:")
	t = newTable(w, "KIND", "SEGMENTS", "LIVE")
	for _, k := range []string{"log", "index", "warm", "cold"} {
		if u := c.Segments[k]; u.Segments > 0 {
			t.row(k, u.Segments, Bytes(u.Live))
		}
	}
	return t.t.Flush()
}

// Directory prints the directory of a replica.
func Directory(w io.Writer, d *pool.DirectoryView) error {
	fmt.Fprintf(w, "replica %s: directory blocks\n", d.Replica)
	t := newTable(w, "ADDRESS", "LENGTH", "SUM", "SEGMENT", "DEVICE", "OFFSET")
	for _, x := range d.Blocks {
		t.row(fmt.Sprintf("%#x", x.Address), x.Length, x.Sum, x.Segment, x.Device, x.Offset)
	}
	t.t.Flush()
	fmt.Fprintf(w, "\nreplica %s: chunks\n", d.Replica)
	t = newTable(w, "CHUNK", "NEWEST", "BLOCKS", "DELTA", "PAGE", "LENGTH", "ID", "DEVICE", "OFFSET", "DATA", "DISCARDED")
	for i := range d.Chunks {
		c := &d.Chunks[i]
		tomb := ""
		if c.Tomb != nil {
			tomb = c.Tomb.String()
		}
		if p := c.Page; p != nil {
			t.row(c.Chunk, c.Newest, c.Stored, c.Delta, fmt.Sprintf("%#x", p.Address), p.Length, c.PageID, p.Device, p.Offset, Bytes(int64(c.Data)), tomb)
		} else {
			t.row(c.Chunk, c.Newest, c.Stored, c.Delta, "", "", "", "", "", "", tomb)
		}
	}
	return t.t.Flush()
}

// Page prints what the index has of a chunk. Blocks that follow each other and are stored as they are take one line.
func Page(w io.Writer, d *pool.PageDump) error {
	fmt.Fprintf(w, "replica %s chunk %d: newest %v, %d blocks have data\n", d.Replica, d.Chunk, d.Newest, d.Stored)
	if p := d.Page; p != nil {
		fmt.Fprintf(w, "page %s: %d bytes at %#x (device %s offset %d); %d blocks in %s\n", d.PageID, p.Length, p.Address, p.Device, p.Offset, d.Blocks, Bytes(int64(d.Data)))
	}
	fmt.Fprintln(w)
	t := newTable(w, "BLOCK", "VERSION", "IN", "STATE", "STORED", "SUM", "ADDRESS", "DEVICE", "OFFSET")
	for _, b := range d.Content {
		if b.State != "data" {
			t.row(b.Block, b.Version, b.From, b.State, "", "", "", "", "")
			continue
		}
		t.row(b.Block, b.Version, b.From, b.State, b.Stored, b.Sum, fmt.Sprintf("%#x", b.Address), b.Device, b.Offset)
	}
	return t.t.Flush()
}

// Batch prints a batch of the log.
func Batch(w io.Writer, b *pool.BatchView) error {
	fmt.Fprintf(w, "batch %d: segment %d block %d (device %s offset %d), %d blocks, %d of data; stable %d, incarnation %s", b.Number, b.Segment, b.Block, b.Device, b.Offset, b.Blocks, b.Data, b.Stable, b.Incarnation)
	if b.Before != "" {
		fmt.Fprintf(w, " after %s", b.Before)
	}
	fmt.Fprintf(w, ", header %s after %s", b.Header, b.Previous)
	switch {
	case b.Link != "" && b.Next != b.Incarnation:
		fmt.Fprintf(w, "; goes on at %s, where a mount begins as incarnation %s", b.Link, b.Next)
	case b.Link != "":
		fmt.Fprintf(w, "; goes on at %s", b.Link)
	case b.Flags != "":
		fmt.Fprintf(w, "; the unit goes on")
	}
	if b.Tail {
		fmt.Fprintf(w, "; not known to be stable")
	}
	fmt.Fprintln(w)
	if len(b.Records) == 0 {
		return nil
	}
	t := newTable(w, "KIND", "REPLICA", "BLOCK", "COUNT", "VERSION", "STORED")
	for _, r := range b.Records {
		t.row(r.Kind, r.Replica, r.Block, r.Count, r.Version, Bytes(int64(r.Stored)))
	}
	return t.t.Flush()
}
