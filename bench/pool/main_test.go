package main

import (
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if child() {
		return
	}
	os.Exit(m.Run())
}

// TestQuick measures everything once, too short to mean anything: every row has to come to an end.
func TestQuick(t *testing.T) {
	c, err := flags([]string{"-quick", "-dir", t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	c.out, c.progress = &out, io.Discard
	if err := run(c); err != nil {
		t.Fatal(err)
	}
	for _, name := range rowNames() {
		if !strings.Contains(out.String(), "\n| "+name+" | ") {
			t.Errorf("no row %s in\n%s", name, &out)
		}
	}
}

func TestUnknownRow(t *testing.T) {
	if _, err := flags([]string{"-run", "seq,nonsense"}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
}

// TestAnalytic compares the formula with a simulation of the cleaner that it describes.
func TestAnalytic(t *testing.T) {
	for _, utilization := range []float64{0.5, 0.8, 0.9} {
		if got, want := simulate(utilization), analytic(utilization); math.Abs(got/want-1) > 0.04 {
			t.Errorf("utilization %v: simulated %.3f, formula %.3f", utilization, got, want)
		}
	}
}

// TestThin writes and reads a device that drops what it recognises.
func TestThin(t *testing.T) {
	d, err := newThin(t.TempDir()+"/thin", 4<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := make([]byte, 1<<20)
	copy(want[8192:], patternData[:5*4096])
	copy(want[8192+4096:], "not a pattern")
	for _, bufs := range [][][]byte{{want}, {want[:100], want[100:]}, {want[:4096], want[4096:]}} {
		if err := d.WritevAt(bufs, 4096); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := d.ReadAt(got, 4096); err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Fatal("content differs")
		}
		copy(want[64<<10:], want[4096:40<<10])
		copy(want[8192:], want[12288:16384])
	}
}

// simulate returns how many blocks are written for each that the user writes, when the emptiest segment is cleaned.
func simulate(utilization float64) float64 {
	const segments, per = 256, 256
	live := int(utilization * (segments - 1) * per) // one segment is free while it is being cleaned into
	where := make([]int, live)
	for i := range where {
		where[i] = -1
	}
	content := make([][]int, segments)
	count := make([]int, segments)
	var free []int
	for s := range segments {
		free = append(free, s)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	open := 0
	free = free[1:]
	written := 0
	var put func(b int)
	put = func(b int) {
		if len(content[open]) == per {
			open, free = free[0], free[1:]
		}
		if where[b] >= 0 {
			count[where[b]]--
		}
		where[b] = open
		count[open]++
		content[open] = append(content[open], b)
		written++
	}
	clean := func() {
		for len(free) < 1 {
			victim := -1
			for s := range segments {
				if s != open && (victim < 0 || count[s] < count[victim]) {
					victim = s
				}
			}
			old := content[victim]
			content[victim] = nil
			for _, b := range old {
				if where[b] == victim {
					where[b] = -1
					keep = append(keep, b)
				}
			}
			count[victim] = 0
			free = append(free, victim)
			for _, b := range keep {
				put(b)
			}
			keep = keep[:0]
		}
	}
	for b := range live {
		put(b)
		clean()
	}
	const passes = 12
	for range passes * live {
		put(rng.IntN(live))
		clean()
	}
	before := written
	for range passes * live {
		put(rng.IntN(live))
		clean()
	}
	return float64(written-before) / float64(passes*live)
}

var keep []int
