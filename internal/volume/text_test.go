package volume

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
)

func (e *stage) describe(a *actor) {
	r := a.m.Report()
	s := r.State
	fmt.Fprintf(&e.out, "%s last=%v promised=%d complete=%v", a.name, r.Last, s.Promised.Epoch, s.Complete)
	if !s.Complete {
		fmt.Fprintf(&e.out, " completeAt=%v base=%v", s.CompleteAt, s.Base)
	}
	if s.Suspect {
		fmt.Fprintf(&e.out, " suspect")
	}
	fmt.Fprintf(&e.out, " history=%s", historyText(s.History, e.nonces))
	if s.Ambiguous {
		fmt.Fprintf(&e.out, " ambiguous")
	}
	if a.m.Spared() {
		fmt.Fprintf(&e.out, " spared")
	}
	if s.Told.Epoch > 0 {
		fmt.Fprintf(&e.out, " told=%d", s.Told.Epoch)
	}
	fmt.Fprintf(&e.out, " list=%s", listText(s.Committed))
	if s.Pending != nil {
		fmt.Fprintf(&e.out, " pending=%s", listText(*s.Pending))
	}
	for _, b := range slices.Sorted(maps.Keys(a.blocks)) {
		fmt.Fprintf(&e.out, " %d:%s", b, a.blocks[b].data)
	}
	fmt.Fprintln(&e.out)
}

func (e *stage) status() {
	st := e.core.Status()
	fmt.Fprintf(&e.out, "serving=%v epoch=%d last=%d list=%s", st.Serving, st.Epoch, st.Last, listText(st.Committed))
	if st.Pending != nil {
		fmt.Fprintf(&e.out, " pending=%s", listText(*st.Pending))
	}
	if st.StoodDown {
		fmt.Fprintf(&e.out, " stood down")
	}
	if st.Lossy > 0 {
		fmt.Fprintf(&e.out, " lossy=%d", st.Lossy)
	}
	fmt.Fprintf(&e.out, " factor=%d\n", st.Desired.Factor)
	if st.Holding != "" {
		fmt.Fprintf(&e.out, "holding: %s\n", st.Holding)
	}
	if st.Lacks != "" && e.core.witnessed() {
		fmt.Fprintf(&e.out, "not redundant: %s\n", st.Lacks)
	}
	if st.WentBack != "" {
		fmt.Fprintf(&e.out, "went back: %s; to accept: %v\n", st.WentBack, st.Accept)
	}
	if st.Removing != "" {
		fmt.Fprintf(&e.out, "removing: %s\n", st.Removing)
	}
	for _, r := range st.Replicas {
		mode := []string{"offline", "degraded", "rebuilding", "healthy"}[r.Mode]
		fmt.Fprintf(&e.out, "  %c member=%v %s applied=%d\n", r.GUID[0], r.Member, mode, r.Applied)
	}
}

func listText(l List) string {
	if len(l.Members) == 0 {
		return "none"
	}
	s := fmt.Sprintf("%d.%d{", l.Epoch, l.Generation)
	for _, g := range l.Members {
		s += string(g[0])
	}
	if l.Witness {
		s += "+"
	}
	return s + "}"
}

func historyText(h History, nonces bool) string {
	var s []string
	if n := len(h); n > 8 {
		s = []string{fmt.Sprintf("%d entries,", n), fmt.Sprintf("%d@%d", h[0].Epoch, h[0].First), "..."}
		h = h[n-2:]
	}
	for _, e := range h {
		t := fmt.Sprintf("%d@%d", e.Epoch, e.First)
		if nonces {
			t += fmt.Sprintf("/%d", e.Nonce)
		}
		if e.Lossy {
			t += " lossy"
		}
		s = append(s, t)
	}
	return "[" + strings.Join(s, " ") + "]"
}

func text(m Message) string {
	name := strings.TrimPrefix(fmt.Sprintf("%T", m), "volume.")
	switch m := m.(type) {
	case Claim:
		return fmt.Sprintf("%s epoch %d", name, m.Promise.Epoch)
	case Promised:
		r := m.Report
		t := fmt.Sprintf("%s epoch %d, key %v complete=%v", name, m.Promise.Epoch, r.Key(), r.State.Complete)
		if r.State.Suspect {
			t += " suspect"
		}
		return t
	case Refused:
		return fmt.Sprintf("%s, promised epoch %d", name, m.Promised.Epoch)
	case Join:
		return fmt.Sprintf("%s from %s", name, m.Source.Name)
	case Stage:
		return fmt.Sprintf("%s from %s, which has %v", name, m.Source.Name, m.From)
	case Staged:
		return fmt.Sprintf("%s at %v", name, m.Last)
	case StageFailed:
		return fmt.Sprintf("%s: %s, too much: %v", name, m.Reason, m.TooMuch)
	case Stream:
		return fmt.Sprintf("%s from %v", name, m.From)
	case SetList:
		t := name + " " + listsText(m.Committed, m.Pending) + notedText(m.Record)
		if m.Told.Epoch > 0 {
			t += fmt.Sprintf(" told of %d", m.Told.Epoch)
		}
		return t
	case ListSet:
		return name + " " + listsText(m.Committed, m.Pending) + notedText(m.Record)
	case Ping:
		if m.Lease > 0 {
			return name + " for a lease"
		}
	case Pong:
		if m.At > 0 {
			return name + " with a lease"
		}
	case Drop:
		if m.Spared {
			name += " and spare"
		}
		return name + ": " + m.Reason
	case JoinFailed:
		return name + ": " + m.Reason
	case Pace:
		if m.BytesPerSec > 0 {
			return fmt.Sprintf("%s of %d MiB/s for %s", name, m.BytesPerSec>>20, m.For)
		}
	}
	return name
}

func notedText(version uint64) string {
	if version == 0 {
		return ""
	}
	return fmt.Sprintf(" record %d", version)
}

func listsText(c List, p *List) string {
	if p == nil {
		return listText(c)
	}
	return listText(c) + " pending " + listText(*p)
}

func parseVersion(s string) (v block.Version) {
	fmt.Sscanf(s, "%d.%d", &v.Epoch, &v.N)
	return v
}

func parseHistory(s string) (h History) {
	for _, x := range strings.Split(s, ",") {
		var e EpochStart
		if n, _ := fmt.Sscanf(strings.TrimSpace(x), "%d@%d/%d", &e.Epoch, &e.First, &e.Nonce); n >= 2 {
			h = append(h, e)
		}
	}
	return h
}
