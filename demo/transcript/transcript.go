// Package transcript keeps what a run has shown in a form that can be compared with another run: the order of steps and
// commands, the columns and rows of tables, the events; not ages, random names, sizes that depend on timing, addresses.
package transcript

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
)

// Transcript collects a run. The zero Transcript is ready for use; it is not safe for concurrent use.
type Transcript struct {
	names map[string]string
	lines []string
}

// Name makes every occurrence of a name that is different in each run read as the given one.
func (t *Transcript) Name(name, as string) {
	if t.names == nil {
		t.names = map[string]string{}
	}
	t.names[name] = as
}

// Line adds a line of text.
func (t *Transcript) Line(text string) {
	t.lines = append(t.lines, strings.TrimRight(t.mask(text), " "))
}

// Command adds a command and what it printed. Of a table the columns are kept and the rows are sorted, since their
// order follows random names.
func (t *Transcript) Command(command, output string) {
	t.Line("$ " + command)
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if !isHeader(lines[i]) {
			t.Line(lines[i])
			continue
		}
		end := i
		for end < len(lines) && lines[end] != "" {
			end++
		}
		t.table(lines[i:end])
		i = end - 1
	}
	t.Line("")
}

// String returns the transcript as text.
func (t *Transcript) String() string {
	return strings.TrimRight(strings.Join(t.lines, "\n"), "\n") + "\n"
}

// Diff returns the differences between two transcripts in the unified format; empty if there are none.
func Diff(expected, got string) string {
	d, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: difflib.SplitLines(expected), B: difflib.SplitLines(got),
		FromFile: "expected", ToFile: "this run", Context: 3,
	})
	if err != nil {
		panic(err) // writing to memory does not fail
	}
	return d
}

var (
	header = regexp.MustCompile(`^ *(NAME|LAST SEEN|NAMESPACE|Type) .*(AGE|Age|MESSAGE|Message)\b`)
	gap    = regexp.MustCompile(`  +`)
	masks  = []struct {
		what *regexp.Regexp
		as   string
	}{
		{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uuid>"},
		{regexp.MustCompile(`\b127(\.\d+){3}\b`), "<ip>"},
		{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "<time>"},
		{regexp.MustCompile(`(resourceVersion): "\d+"`), `$1: "<n>"`},
		{regexp.MustCompile(`-[bcdfghjklmnpqrstvwxz2456789]{6,10}-[bcdfghjklmnpqrstvwxz2456789]{5}\b`), "-<pod>"},
	}
)

func isHeader(line string) bool { return header.MatchString(line) }

// columns whose cells depend on timing, and what stands for them.
var varying = map[string]string{
	"AGE": "<age>", "Age": "<age>", "LAST SEEN": "<age>",
	"ALLOCATED": "<size>", "FREE": "<size>", "USED": "<size>",
	"PROGRESS": "<n>", "RATE": "<n>", "ETA": "<n>", "WAITING FOR": "<n>", "RESTARTS": "<n>",
}

// late are columns that are filled a moment after the one before them, or not always.
var late = []string{"RATE", "ETA", "WAITING FOR"}

func (t *Transcript) mask(text string) string {
	// Longer names first, since one may begin with another.
	names := slices.SortedFunc(maps.Keys(t.names), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	for _, n := range names {
		text = strings.ReplaceAll(text, n, t.names[n])
	}
	for _, m := range masks {
		text = m.what.ReplaceAllString(text, m.as)
	}
	return text
}

// table adds a table whose first line is its header. Cells begin where their column's header begins.
func (t *Transcript) table(lines []string) {
	starts := []int{len(lines[0]) - len(strings.TrimLeft(lines[0], " "))}
	for _, g := range gap.FindAllStringIndex(lines[0], -1) {
		if g[0] > 0 && g[1] < len(lines[0]) {
			starts = append(starts, g[1])
		}
	}
	var rows [][]string
	for i, line := range lines {
		row := cells(line, starts)
		for j := range row {
			if i > 0 && j > 0 && row[j] == "" && row[j-1] != "" && slices.Contains(late, cellAt(rows, 0, j)) {
				row[j] = "?"
			}
			if as, ok := varying[cellAt(rows, 0, j)]; i > 0 && ok && row[j] != "" && strings.Trim(row[j], "-") != "" {
				row[j] = as
			}
			row[j] = t.mask(row[j])
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows[1:], slices.Compare[[]string])
	widths := make([]int, len(starts))
	for _, row := range rows {
		for j, c := range row {
			widths[j] = max(widths[j], len(c))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for j, c := range row {
			b.WriteString(c + strings.Repeat(" ", widths[j]-len(c)+3))
		}
		t.lines = append(t.lines, strings.TrimRight(b.String(), " "))
	}
}

func cellAt(rows [][]string, i, j int) string {
	if i < len(rows) && j < len(rows[i]) {
		return rows[i][j]
	}
	return ""
}

func cells(line string, starts []int) []string {
	row := make([]string, len(starts))
	for j, from := range starts {
		to := len(line)
		if j+1 < len(starts) {
			to = min(to, starts[j+1])
		}
		if from < to {
			row[j] = strings.TrimSpace(line[from:to])
		}
	}
	return row
}
