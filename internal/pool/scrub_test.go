package pool

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// flip inverts a bit of a share of the blocks of a device between two offsets.
func (s *sweep) flip(m *disk.Mem, from, to int64, oneIn int) (n int) {
	for off := from; off < to; off += block.Size {
		if s.rng.IntN(oneIn) == 0 {
			m.FlipBit(off+int64(s.rng.IntN(block.Size)), uint(s.rng.IntN(8)))
			n++
		}
	}
	return n
}

// TestScrubRepairs: bits flip anywhere on as many devices of each group as may lie, while the pool is used. A scrub
// makes everything right, on all devices.
func TestScrubRepairs(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		for _, oneIn := range []int{1, 3, 40} {
			s := newHealTest(t, l, 24<<20)
			s.churn(30)
			must(t, s.p.cycle())
			s.churn(2)
			flipped := 0
			for _, v := range l.victims() {
				m := s.mems[v]
				flipped += s.flip(m, label.HeadBytes, m.Size()-label.TailBytes, oneIn)
				s.flip(m, 0, label.HeadBytes, 4*oneIn) // ring and copies of labels
			}
			must(t, s.p.Scrub(ScrubOptions{}))
			s.churn(3)
			s.p.rest()
			x := s.p.Activity().Scrub
			found := x.Repaired
			if l.groups[len(l.groups)-1].cache { // what the cleaner moves off it meanwhile is repaired where it is read
				found = int64(s.p.Stats().BlocksRepaired)
			}
			if x.State != ActivityDone || found == 0 || x.Errors != 0 || x.Repaired > int64(flipped) {
				t.Fatalf("%d flipped: %+v %v", flipped, x, s.p.Damage())
			}
			blamed, wrongly := uint64(0), uint64(0)
			for i, d := range s.p.Devices() {
				if blamed += d.ChecksumErrors; !slices.Contains(l.victims(), i) { // for what nobody needs any more
					wrongly += d.ChecksumErrors
				}
			}
			if oneIn == 1 && wrongly > blamed/4 {
				t.Fatalf("%+v", s.p.Devices())
			}
			if n := s.p.Stats().BlocksRepaired; n < uint64(x.Repaired) || blamed < uint64(x.Repaired) {
				t.Fatal(n, blamed, x.Repaired)
			}
			s.whole()
			for _, v := range l.victims() { // labels and ring, too
				for _, off := range []int64{0, 64 << 10, s.mems[v].Size() - label.TailBytes, s.mems[v].Size() - label.TailBytes + 64<<10} {
					b := make([]byte, block.Size)
					must(t, s.mems[v].ReadAt(b, off))
					if _, err := label.Decode(b); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.othersGo()
			must(t, s.p.Close())
		}
	})
}

// TestScrubReports: without redundancy a scrub names everything that is damaged, and only that.
func TestScrubReports(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		if l.parity(0) > 0 {
			return
		}
		s := newHealTest(t, l, 24<<20)
		must(t, s.create("a", 1500))
		must(t, s.ops("a", Op{Kind: OpWrite, Block: 0, Count: 100}))
		must(t, s.ops("a", Op{Kind: OpWrite, Block: 600, Count: 1}))
		must(t, s.ops("a", Op{Kind: OpWrite, Block: 700, Count: 1}))
		must(t, s.ops("a", Op{Kind: OpWrite, Block: 600, Count: 1}))
		old := s.place(50)
		must(t, s.ops("a", Op{Kind: OpWrite, Block: 50, Count: 1}))
		must(t, s.p.cycle())
		must(t, s.ops("a", Op{Kind: OpWrite, Block: 1100, Count: 7}))
		var want []Damage
		hit := func(addr uint64, d Damage) {
			var name string
			name, d.Offset = s.p.where(addr)
			if d.Device = name; d.What != "" {
				want = append(want, d)
			}
			i := slices.IndexFunc(s.mems, func(m *disk.Mem) bool { return m.Name() == name })
			for {
				at, bit := d.Offset+int64(s.rng.IntN(40)), uint(s.rng.IntN(8))
				s.mems[i].FlipBit(at, bit)
				if d.What != "data" || !s.intact(d.Block) {
					return
				}
				s.mems[i].FlipBit(at, bit) // it makes no difference to what is compressed
			}
		}
		look := func() {
			t.Helper()
			s.p.cache = newPageCache(1 << 20)
			x := s.scrub()
			got := s.p.Damage()
			slices.SortFunc(got, func(a, b Damage) int { return cmp.Or(cmp.Compare(a.Block, b.Block), strings.Compare(a.What, b.What)) })
			slices.SortFunc(want, func(a, b Damage) int { return cmp.Or(cmp.Compare(a.Block, b.Block), strings.Compare(a.What, b.What)) })
			if !slices.Equal(got, want) || x.Errors != int64(len(want)) || x.Repaired != 0 {
				t.Fatalf("found %+v\nwant %+v\n%+v", got, want, x)
			}
		}
		look()
		hit(old, Damage{}) // not in use any more
		look()
		for _, b := range []uint64{3, 50, 99, 1103} { // the last one is not in a page yet
			hit(s.place(b), Damage{Replica: "a", Block: b, What: "data"})
		}
		look()
		var buf [block.Size]byte
		r := s.p.Replica("a")
		if err := r.Read(3, buf[:], nil); err == nil {
			t.Fatal("damaged block was read")
		}
		// A header. The blocks behind it are found through the index.
		hit(s.place(700)-block.Size, Damage{What: "batch header"})
		look()
		hit(s.place(700), Damage{Replica: "a", Block: 700, What: "data"})
		look()
		hit(r.dir[0].addr, Damage{Replica: "a", What: "directory block"})
		look()
		hit(refAddr(t, r, 2), Damage{Replica: "a", Block: 1024, What: "index page"})
		want = slices.DeleteFunc(want, func(d Damage) bool { return d.Block == 1103 }) // nobody knows where that is any more
		look()
	})
}

// place returns the address of a block of replica a.
func (s *sweep) place(b uint64) uint64 {
	s.t.Helper()
	var x readScratch
	must(s.t, s.p.Replica("a").find(&x, b, 1))
	return x.places[0].loc.Addr()
}

// intact reports whether what is stored of a block of replica a is what was written; there is no redundancy.
func (s *sweep) intact(b uint64) bool {
	s.t.Helper()
	var x readScratch
	must(s.t, s.p.Replica("a").find(&x, b, 1))
	stored := make([]byte, x.places[0].loc.Len())
	must(s.t, s.p.readPacked(stored, x.places[0].loc.Addr()))
	return x.places[0].content(make([]byte, block.Size), stored)
}

// TestScrubPauses: a scrub is paused, goes on where it was after the pool was opened again or killed, and stops.
func TestScrubPauses(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		s.opt.PageCacheBytes = 1 << 20
		s.churn(40)
		must(t, s.sync())
		if s.p.PauseScrub() == nil || s.p.ResumeScrub() == nil || s.p.StopScrub() == nil {
			t.Fatal("there is no scrub")
		}
		// One of the first steps hangs until the scrub is paused.
		stop := func(what func() error) Progress {
			waits := make(chan struct{})
			first := sync.OnceFunc(func() { close(waits) })
			var resume []func()
			for _, m := range s.mems {
				_, f := m.HangIf(func(op string, off, _ int64) bool {
					u := &s.p.upkeep
					u.mu.Lock()
					defer u.mu.Unlock()
					hang := op == "read" && off >= label.HeadBytes && u.scrub.state != ActivityDone && u.scrub.total > 0
					if hang {
						first()
					}
					return hang
				})
				resume = append(resume, f)
			}
			must(t, s.p.Scrub(ScrubOptions{}))
			<-waits
			must(t, what())
			for _, f := range resume {
				f()
			}
			s.p.rest()
			return s.p.Activity().Scrub
		}
		x := stop(s.p.PauseScrub)
		if x.State != ActivityPaused || x.Done >= x.Total {
			t.Fatalf("%+v", x)
		}
		must(t, s.p.Close())
		reopenAll(s.mems)
		s.open()
		s.p.rest()
		y := s.p.Activity().Scrub
		if y.State != ActivityPaused || y.Done != x.Done || y.Total != x.Total {
			t.Fatalf("%+v, was %+v", y, x)
		}
		must(t, s.p.ResumeScrub())
		s.p.rest()
		z := s.p.Activity().Scrub
		if z.State != ActivityDone || z.Done != z.Total || z.Errors != 0 {
			t.Fatalf("%+v", z)
		}
		if x := stop(s.p.StopScrub); x.State != ActivityStopped {
			t.Fatalf("%+v", x)
		}
		// Killed in the middle: it goes on by itself, from the position that a checkpoint knows.
		s.p.upkeep.mu.Lock()
		s.p.upkeep.scrub.state, s.p.upkeep.scrub.next, s.p.upkeep.scrub.done = ActivityRunning, 20, 12345
		s.p.upkeep.mu.Unlock()
		must(t, s.p.cycle())
		s.mems = disk.KillAll(s.mems)
		s.crash(true)
		s.p.rest()
		if z := s.p.Activity().Scrub; z.State != ActivityDone || z.Done <= 12345 {
			t.Fatalf("%+v", z)
		}
		s.same()
		must(t, s.p.Close())
	})
}

// TestScrubSchedule: a scrub begins when the last one was long enough ago, also if the pool was closed meanwhile.
func TestScrubSchedule(t *testing.T) {
	l := layouts[2]
	s := newHealTest(t, l, 24<<20)
	s.churn(5)
	must(t, s.p.Close())
	reopenAll(s.mems)
	s.opt.ScrubEvery = 24 * time.Hour
	s.open()
	now := time.Now()
	advance := func(d time.Duration) {
		s.p.upkeep.mu.Lock()
		now = now.Add(d)
		at := now
		s.p.upkeep.now = func() time.Time { return at }
		s.p.upkeep.mu.Unlock()
		s.p.rest()
	}
	advance(23 * time.Hour)
	if x := s.p.Activity().Scrub; x.State != ActivityNone {
		t.Fatalf("%+v", x)
	}
	advance(2 * time.Hour)
	first := s.p.Activity().Scrub
	if first.State != ActivityDone || first.Ended.IsZero() {
		t.Fatalf("%+v", first)
	}
	must(t, s.p.Close())
	reopenAll(s.mems)
	s.open()
	advance(23 * time.Hour)
	if x := s.p.Activity().Scrub; x.Ended.Unix() != first.Ended.Unix() {
		t.Fatalf("%+v, was %+v", x, first)
	}
	advance(2 * time.Hour)
	if x := s.p.Activity().Scrub; !x.Ended.After(first.Ended) {
		t.Fatalf("%+v, was %+v", x, first)
	}
	first = s.p.Activity().Scrub
	s.p.SetScrub(0, 0)
	advance(1000 * time.Hour)
	if x := s.p.Activity().Scrub; x.Ended != first.Ended {
		t.Fatalf("%+v, was %+v", x, first)
	}
	s.p.SetScrub(2000*time.Hour, 0)
	advance(999 * time.Hour)
	if x := s.p.Activity().Scrub; x.Ended != first.Ended {
		t.Fatalf("%+v, was %+v", x, first)
	}
	advance(2 * time.Hour)
	if x := s.p.Activity().Scrub; !x.Ended.After(first.Ended) {
		t.Fatalf("%+v, was %+v", x, first)
	}
	must(t, s.p.Close())
}

// TestLyingDeviceIsNotBelieved: a device lost writes without a word, so that what it holds is old and intact. A scrub
// takes what the others have.
func TestLyingDeviceIsNotBelieved(t *testing.T) {
	redundant(t, func(t *testing.T, l layout) {
		t.Parallel()
		s := newHealTest(t, l, 24<<20)
		s.p.opt.NoDiscard = true
		s.churn(60) // segments are used more than once
		for _, v := range l.victims() {
			s.mems[v].Inject(disk.Faults{LoseWrite: true})
		}
		s.churn(40)
		for _, v := range l.victims() {
			s.mems[v].Inject(disk.Faults{})
		}
		if x := s.scrub(); x.Repaired == 0 || x.Errors != 0 {
			t.Fatalf("%+v %v", x, s.p.Damage())
		}
		s.whole()
		s.othersGo()
		must(t, s.p.Close())
	})
}

// TestRepairIsFlushed: what a read has repaired is made stable by the next flush of the devices, so that the copy which it was
// made from may go then.
func TestRepairIsFlushed(t *testing.T) {
	rng := testRand(t)
	p, mems := newLayoutPool(t, layouts[slices.IndexFunc(layouts, func(l layout) bool { return l.name == "mirror-2" })], 64<<20, Options{SegmentBytes: 256 << 10, Compression: compress.Off})
	v, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	must(t, v.Apply([]Op{write(0, 1, 1)}))
	must(t, p.Close())
	reopenAll(mems)
	_, off, _ := stored(t, devicesOf(mems), "v", 0)
	want := make([]byte, block.Size)
	must(t, mems[0].ReadAt(want, off))
	repaired := 0
	for liar := range mems { // the one that is read repairs
		c := clones(mems)
		c[liar].Corrupt(off, block.Size, rng)
		p := openIdle(t, devicesOf(c), Options{})
		must(t, p.flushDevices())
		must(t, p.Replica("v").Read(0, make([]byte, block.Size), nil))
		if p.Stats().BlocksRepaired > 0 {
			repaired++
			must(t, p.flushDevices())
			got := make([]byte, block.Size)
			must(t, c[liar].PowerCut(disk.Lost, rng).ReadAt(got, off))
			if !bytes.Equal(got, want) {
				t.Error("the repair is undone by a power cut after a flush")
			}
		}
		closeIdle(p)
	}
	if repaired != 1 {
		t.Error("repaired", repaired)
	}
}

// TestLeftoversOfALieBlameNobody: two devices of a mirror lie about a block that several compressed blocks share, and reading
// those that are left repairs these. Verify names no device, above all not the third, which has never lied.
func TestLeftoversOfALieBlameNobody(t *testing.T) {
	l, rng := layouts[slices.IndexFunc(layouts, func(l layout) bool { return l.name == "mirror-3" })], testRand(t)
	opt := Options{Compression: compress.LZ4, SegmentBytes: 256 << 10}
	p, mems := newLayoutPool(t, l, 64<<20, opt)
	v, err := p.CreateReplica("v", 4<<20)
	must(t, err)
	data := make([]byte, 40*block.Size)
	for b := range 40 {
		copy(data[b*block.Size:], noise(1, uint64(b))[:1000])
	}
	must(t, v.Apply([]Op{writeData(0, data, 1)}))
	for b := uint64(1); b < 40; b += 2 {
		must(t, v.Apply([]Op{writeData(b, noise(1, b), 1+b)}))
	}
	must(t, p.Close())
	reopenAll(mems)
	_, off, loc := stored(t, devicesOf(mems), "v", 20)
	if loc.Len() > block.Size/2 {
		t.Fatal("the block shares its place with no other")
	}
	repaired := 0
	for honest := range mems { // one of them is read, and lies in two cases of three
		c := clones(mems)
		for i := range c {
			if i != honest {
				c[i].Corrupt(off&^(block.Size-1), block.Size, rng)
			}
		}
		p, err := Open(devicesOf(c), opt)
		must(t, err)
		for b := uint64(0); b < 40; b += 2 {
			must(t, p.Replica("v").Read(b, make([]byte, block.Size), nil))
		}
		n := p.Stats().BlocksRepaired
		must(t, p.Close())
		if n == 0 {
			continue
		}
		repaired++
		reopenAll(c)
		rep, err := Verify(spies(t, c), Options{})
		must(t, err)
		if len(rep.Findings) > 0 {
			t.Errorf("only device %d has never lied: %v", honest, rep.Findings)
		}
	}
	if repaired != 2 {
		t.Error("repaired", repaired)
	}
}

// TestScrubCutShort: the power fails while a scrub repairs what a device lies about, in use or not, and tears what the scrub
// has written. A raid group that can lose two devices goes on to do without another one.
func TestScrubCutShort(t *testing.T) {
	t.Parallel()
	const chunks, dense = 100, 200
	l, rng := layouts[6], testRand(t)
	liar, gone := l.victims()[1], l.victims()[0]
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, PageCacheBytes: 64 << 10}
	p, mems := newLayoutPool(t, l, 64<<20, opt)
	v, err := p.CreateReplica("v", chunks*block.ChunkBlocks*block.Size)
	must(t, err)
	n := uint64(0)
	write := func(b uint64, count int) {
		n++
		must(t, v.Apply([]Op{{Kind: OpWrite, Block: b, Count: uint32(count), Data: bytes.Repeat([]byte{byte(b / block.ChunkBlocks)}, count*block.Size), Version: ver(n)}}))
	}
	for c := range uint64(chunks) {
		write(c*block.ChunkBlocks, dense)
	}
	for range 8 { // of the pages that are written together others are in use, and some rows have blocks that nobody needs
		for range chunks / 4 {
			write(uint64(rng.IntN(chunks)*block.ChunkBlocks+rng.IntN(dense)), 1)
		}
		must(t, p.cycle())
	}
	must(t, p.Close())
	reopenAll(mems)
	mems[liar].Corrupt(label.HeadBytes, mems[liar].Size()-label.HeadBytes-label.TailBytes, rng)
	rec := disk.Record(mems...)
	p, err = Open(devicesOf(mems), opt)
	must(t, err)
	must(t, p.Scrub(ScrubOptions{}))
	p.rest()
	must(t, p.Close())
	for r := rec.Replay(); r.Next(); {
		if rng.IntN(4) > 0 {
			continue
		}
		cut := r.Cut(rng, func(int) disk.Fate { return disk.Torn })
		p, err := Open(without(cut, gone), opt)
		if err != nil {
			t.Fatalf("after %d of %d operations: %v", r.At(), rec.Len(), err)
		}
		b := make([]byte, block.Size)
		for c := range uint64(chunks) {
			if err := p.Replica("v").Read(c*block.ChunkBlocks, b, nil); err != nil || b[0] != byte(c) {
				t.Fatalf("after %d of %d operations: chunk %d: %v", r.At(), rec.Len(), c, err)
			}
		}
		disk.StopAll(cut)
		p.Close()
	}
}

// TestScrubLeavesTheLogAlone: a scrub reads headers where the log is being written, and a device cannot read the block that
// comes next. What the scrub makes of that must not come over the batch that is written there meanwhile.
func TestScrubLeavesTheLogAlone(t *testing.T) {
	for bad := range 2 { // one of them is read
		p, mems := newLayoutPool(t, layouts[2], 24<<20, Options{SegmentBytes: 256 << 10})
		r, err := p.CreateReplica("v", 1<<20)
		must(t, err)
		must(t, r.Apply([]Op{write(0, 1, 1)}))
		next := nextBatch(p)
		mems[bad].BadSectors(next, block.Size)
		writes := 0
		waits, resume := mems[bad].HangIf(func(op string, off, n int64) bool {
			if op != "write" || next < off || next >= off+n {
				return false
			}
			writes++
			return writes == 1
		})
		must(t, p.Scrub(ScrubOptions{}))
		done := make(chan bool)
		go func() {
			p.rest()
			close(done)
		}()
		select {
		case <-waits:
			must(t, r.Apply([]Op{write(1, 1, 2)}))
			resume()
			<-done
		case <-done:
			resume()
			must(t, r.Apply([]Op{write(1, 1, 2)}))
		}
		var b [2][block.Size]byte
		for i, m := range mems {
			must(t, m.ReadAt(b[i][:], next))
		}
		if b[0] != b[1] {
			t.Errorf("device %d has something else than the other one", bad)
		}
	}
}
