package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// patterned returns n blocks of content that depends on seed and takes little room in an image.
func patterned(n int, seed uint64) (b []byte) {
	for i := range n {
		line := fmt.Sprintf("%-32s", fmt.Sprint("block ", i, " of ", seed))
		b = append(b, strings.Repeat(line, block.Size/len(line))...)
	}
	return b
}

// makeAged makes a raidz2 pool that has been used for long: its cleaner has moved data for the first time and again, a
// raid group was added, all devices have grown, it was killed and opened, and a device went away. It is killed with
// a log to be replayed.
func makeAged(t *testing.T) ([]*disk.Mem, string) {
	l := layout{"aged", []shape{{raid.RAIDZ2, 6, false}}}
	mems, groups := l.make(func() int64 { return 10 << 20 })
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, inlineBytes: 256, historyBytes: 1024}
	p, err := Create(groups, Config{Name: "cstor-aged", Owner: "an owner"}, opt)
	must(t, err)
	defer func() { p.Close() }()
	const blocks = 600
	n := uint64(0)
	_, err = p.CreateReplica("aged", blocks*block.Size)
	must(t, err)
	write := func(b uint64, count int) {
		t.Helper()
		p.SetCompression([]compress.Algorithm{compress.Off, compress.LZ4, compress.Zstd}[n%3])
		n++
		must(t, p.Replica("aged").Apply([]Op{{Kind: OpWrite, Block: b, Count: uint32(count), Version: ver(n), Data: patterned(count, n)}}))
	}
	rng := testRand(t)
	churn := func(writes int) {
		t.Helper()
		for range writes {
			write(rng.Uint64N(blocks-8), 1+rng.IntN(8))
		}
	}
	for b := uint64(0); b < blocks; b += 60 {
		write(b, 60)
	}
	n++
	must(t, p.Replica("aged").Apply([]Op{snap("first", n)}))
	c, err := p.Clone("clone", "aged", "first")
	must(t, err)
	must(t, c.Apply([]Op{{Kind: OpWrite, Block: 500, Count: 5, Version: ver(n + 1), Data: patterned(5, 1)}, discard(520, 9, n+2)}))
	moved := func() bool { // for the first time and again
		k := map[string]uint32{}
		for _, s := range p.DumpSegments() {
			k[s.Kind] += s.Pages
		}
		return k["warm"] > 0 && k["cold"] > 0
	}
	for !moved() {
		churn(60)
		must(t, p.cycle())
	}
	more := []*disk.Mem{disk.NewMem("more0", 3<<20), disk.NewMem("more1", 3<<20)}
	must(t, p.AddGroups([]Group{{Kind: raid.Mirror, Devices: devicesOf(more)}}))
	for _, m := range append(mems, more...) {
		m.Grow(m.Size() + 2<<20)
	}
	must(t, p.Expand())
	mems = append(mems, more...)
	for i := range 3 {
		churn(40)
		n++
		must(t, p.Replica("aged").Apply([]Op{snap(fmt.Sprint("later", i), n)}))
		must(t, p.cycle())
	}
	mems = disk.KillAll(mems)
	p.Close()
	p, err = Open(devicesOf(mems), opt)
	must(t, err)
	mems[4].Disappear()
	for p.Stats().Health == HealthOnline {
		churn(20)
		must(t, p.cycle())
	}
	churn(20)
	must(t, p.cycle())
	must(t, p.cycle())
	p.drain.cycle.Lock() // from here on there is only the log
	defer p.drain.cycle.Unlock()
	churn(3)
	must(t, p.Sync())
	churn(1)
	text := imageText(t, p)
	return disk.KillAll(mems), text
}

// isAged fails the test unless the devices have what the image is there for.
func isAged(t *testing.T, mems []*disk.Mem) {
	t.Helper()
	has := map[string]bool{}
	v, err := Inspect(spies(t, mems), Options{})
	must(t, err)
	for _, d := range v.Devices {
		has["stale units"] = has["stale units"] || d.Stale > 0 && d.Stale < d.Units && d.Out
	}
	has["raidz2"] = v.Groups[0].Kind == "raidz2" && v.Groups[0].Columns == 6
	for _, r := range v.Replicas {
		has["snapshots"] = has["snapshots"] || len(r.Snapshots) > 3
		has["a clone"] = has["a clone"] || r.Origin != ""
	}

	p, err := OpenReadOnly(spies(t, mems), Options{})
	must(t, err)
	defer p.Close()
	segs := p.DumpSegments()
	for _, s := range segs {
		i := slices.IndexFunc(v.Spans, func(x SpanView) bool { return x.First <= s.Number && s.Number < x.First+x.Count })
		switch span := v.Spans[i]; {
		case s.Pages > 0 && span.Unit > 0:
			has["data where devices have grown"] = true
		case s.Pages > 0 && span.Group > 1:
			has["data in a group that was added"] = true
		}
	}
	must(t, p.DumpLog(func(b BatchView) error {
		has["the incarnation before"] = has["the incarnation before"] || b.Before != "" && len(b.Records) > 0
		has["batches that may be torn"] = has["batches that may be torn"] || b.Tail
		return nil
	}))
	for _, r := range p.Replicas() {
		dir, err := p.DumpDirectory(r)
		must(t, err)
		for _, c := range dir.Chunks {
			d, err := p.DumpPage(r, c.Chunk)
			must(t, err)
			for _, b := range d.Content {
				if b.State == "data" {
					stored := "compressed"
					if b.Stored == block.Size {
						stored = "as it is"
					}
					has[fmt.Sprint(segs[b.Address>>p.seg.shift].Kind, ", ", stored, ", ", b.From)] = true
				}
			}
		}
	}
	for _, what := range []string{
		"raidz2", "stale units", "data in a group that was added", "data where devices have grown",
		"the incarnation before", "batches that may be torn", "snapshots", "a clone",
		"warm, as it is, page", "warm, compressed, page", "cold, as it is, page", "cold, compressed, page", "log, as it is, page", "log, compressed, page",
		"warm, compressed, older", "cold, as it is, older", "log, as it is, delta", "log, compressed, delta",
	} {
		if !has[what] {
			t.Errorf("the image lacks: %s; it has %v", what, has)
		}
	}
}
