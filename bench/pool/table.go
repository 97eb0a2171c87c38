package main

import (
	"fmt"
	"io"
	"math"
	"time"
)

// line is one line of the table. What was not measured is zero or "".
type line struct {
	row, what, mode  string
	ours, raw, files string  // figures with their unit
	rate             float64 // of ours, bytes per second
	ratio, toFiles   float64
	aim              string
	met              bool // says something when aim is set

	cpu, system, rawSystem time.Duration // per 4 KiB
	allocs                 float64       // per operation
	amp                    float64       // bytes that went to the devices per byte of data
	index                  float64       // bytes of index per 4 KiB
	requests               float64       // device writes (reads, for reads) per operation
	longest                time.Duration
	note                   string
}

type table struct {
	lines    []line
	progress io.Writer
}

// add adds a line, and says so at once, for whom the run does not come to its end.
func (t *table) add(l line) {
	t.lines = append(t.lines, l)
	fmt.Fprintf(t.progress, "= %s, %s, %s: %s, %s × raw; aim: %s\n", l.row, l.what, l.mode, l.ours, number(l.ratio, "%.2f"), l.judged())
}

// judged returns the aim and whether it is reached.
func (l *line) judged() string {
	switch {
	case l.aim == "":
		return ""
	case l.met:
		return l.aim + " ✓"
	}
	return l.aim + " ✗"
}

// summary says which aims are not reached.
func (t *table) summary(w io.Writer) {
	aims, missed := 0, 0
	for _, l := range t.lines {
		if l.aim == "" {
			continue
		}
		if aims++; !l.met {
			missed++
			fmt.Fprintf(w, "- not reached: %s, %s, %s: %s\n", l.row, l.what, l.mode, l.aim)
		}
	}
	fmt.Fprintf(w, "- %d of %d aims reached\n", aims-missed, aims)
}

func (t *table) print(w io.Writer) {
	fmt.Fprintln(w, "| row | what | mode | ours | raw device | files | ours/raw | ours/files | aim | CPU µs per 4 KiB | system µs | raw: system µs | allocs/op | device bytes per byte | index B per 4 KiB | requests/op | longest ms | |")
	fmt.Fprintln(w, "|---|---|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
	for _, l := range t.lines {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n",
			l.row, l.what, l.mode, l.ours, l.raw, l.files, number(l.ratio, "%.2f"), number(l.toFiles, "%.2f"), l.judged(),
			micros(l.cpu), micros(l.system), micros(l.rawSystem), number(l.allocs, "%.2f"), number(l.amp, "%.3f"), number(l.index, "%.0f"),
			number(l.requests, "%.2f"), number(float64(l.longest)/1e6, "%.1f"), l.note)
	}
}

func number(v float64, format string) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return ""
	}
	return fmt.Sprintf(format, v)
}

func micros(d time.Duration) string { return number(float64(d)/1e3, "%.2f") }

// iops and megabytes print a rate of operations and of bytes per second.
func iops(v float64) string { return number(v, "%.0f/s") }

func megabytes(v float64) string { return number(v/1e6, "%.0f MB/s") }
