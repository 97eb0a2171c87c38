package pool

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// spy is a device that complains when anything but a read reaches it.
type spy struct {
	*disk.Mem
	t testing.TB
}

func (s spy) WritevAt([][]byte, int64) error { s.t.Error("a write reached a device"); return nil }
func (s spy) Flush() error                   { s.t.Error("a flush reached a device"); return nil }
func (s spy) Discard(int64, int64) error     { s.t.Error("a discard reached a device"); return nil }

func spies(t testing.TB, mems []*disk.Mem) (devs []disk.Device) {
	for _, m := range mems {
		devs = append(devs, spy{m.Clone(), t})
	}
	return devs
}

// usedPool returns the devices of a pool that was killed in the middle of work: data in pages and in the log, raw and
// compressed, discards, a state, a replica that was destroyed.
func usedPool(t *testing.T, l layout) []*disk.Mem {
	t.Helper()
	p, mems := newLayoutPool(t, l, 24<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	w, err := p.CreateReplica("w", 8<<20)
	must(t, err)
	_, err = p.CreateReplica("gone", 8<<20)
	must(t, err)
	must(t, r.Apply([]Op{{Kind: OpWrite, Block: 0, Count: 300, Version: ver(1), Data: noise(300, 1)}}))
	must(t, w.Apply([]Op{write(7, 200, 1)}))
	must(t, p.Replica("gone").Apply([]Op{write(0, 40, 1)}))
	must(t, r.Apply([]Op{{Kind: OpWrite, Block: 512, Count: 100, Version: ver(2), Data: half(100, 2)}}))
	must(t, p.DestroyReplica("gone"))
	must(t, p.cycle())
	must(t, r.Apply([]Op{{Kind: OpWrite, Block: 10, Count: 20, Version: ver(3), Data: noise(20, 3)}, discard(100, 50, 4)}))
	must(t, r.SetState([]byte("state"), ver(5)))
	must(t, w.Apply([]Op{{Kind: OpWrite, Block: 500, Count: 30, Version: ver(2), Data: half(30, 4)}})) // not flushed
	for i := range mems {
		mems[i] = mems[i].Kill()
	}
	return mems
}

// TestOpenReadOnly looks at pools in all ways there are; nothing but reads reaches the devices, and what is seen is
// what Open makes of them.
func TestOpenReadOnly(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		mems := usedPool(t, l)
		p, err := OpenReadOnly(spies(t, mems), Options{})
		must(t, err)
		must(t, p.Check())
		content := func(p *Pool) (s string) {
			for _, name := range []string{"v", "w"} {
				r := p.Replica(name)
				b := make([]byte, r.Size())
				must(t, r.Read(0, b, nil))
				s += fmt.Sprintln(name, r.GUID(), r.Size(), r.Applied(), string(r.State()), r.Stats().Used, block.Sum(b))
			}
			return s
		}
		seen := content(p)
		r := p.Replica("v")
		_, err = p.CreateReplica("x", 1<<20)
		for what, err := range map[string]error{
			"apply": r.Apply([]Op{write(0, 1, 9)}), "sync": p.Sync(), "state": r.SetState(nil, ver(9)), "destroy": p.DestroyReplica("v"), "create": err,
		} {
			if !errors.Is(err, ErrOffline) {
				t.Error(what, err)
			}
		}
		must(t, p.Close())
		rep, err := Verify(spies(t, mems), Options{})
		must(t, err)
		if rep.Damage > 0 || rep.Blocks == 0 || rep.Pages == 0 || rep.Headers == 0 || rep.Rows == 0 || rep.Replayed == 0 {
			t.Errorf("%+v", rep)
		}
		var devs []disk.Device
		for _, m := range mems {
			devs = append(devs, m)
		}
		p, err = Open(devs, Options{DeltaEntries: 4096})
		must(t, err)
		defer p.Close()
		if now := content(p); now != seen {
			t.Errorf("opened: %s\nlooked at: %s", now, seen)
		}
	})
}

// stored returns where a block of a replica is.
func stored(t *testing.T, devs []disk.Device, name string, b uint64) (device string, off int64, loc index.Loc) {
	t.Helper()
	p, err := OpenReadOnly(keepOpen(devs), Options{})
	must(t, err)
	defer p.Close()
	var s readScratch
	must(t, p.Replica(name).find(&s, b, 1))
	device, off = p.where(s.places[0].loc.Addr())
	return device, off, s.places[0].loc
}

// TestVerifyNames damages pools in one place and looks for the sentence.
func TestVerifyNames(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		mems := usedPool(t, l)
		verify := func(t *testing.T, mems []*disk.Mem) *Report {
			t.Helper()
			rep, err := Verify(spies(t, mems), Options{})
			must(t, err)
			return rep
		}
		expect := func(t *testing.T, rep *Report, want ...string) {
			t.Helper()
			for _, f := range rep.Findings {
				ok := true
				for _, w := range want {
					ok = ok && strings.Contains(f.String(), w)
				}
				if ok {
					return
				}
			}
			t.Errorf("%q is not among %v", want, rep.Findings)
		}
		clone := func() (c []*disk.Mem) {
			for _, m := range mems {
				c = append(c, m.Clone())
			}
			return c
		}
		redundant := l.parity(0) > 0
		flip := func(t *testing.T, c []*disk.Mem, device string, off int64) string {
			t.Helper()
			for i := range c {
				if name := c[i].Name(); strings.HasPrefix(device, name) {
					c[i].FlipBit(off, 3)
					return name
				}
			}
			t.Fatal("no device", device)
			return ""
		}
		for name, b := range map[string]uint64{"v": 3, "w": 12} { // as it is, compressed
			t.Run("data of "+name, func(t *testing.T) {
				c := clone()
				device, off, _ := stored(t, spies(t, c), name, b)
				device = flip(t, c, device, off+5)
				rep := verify(t, c)
				expect(t, rep, "device "+device+" offset", fmt.Sprintf("replica %s block", name))
				if rep.Findings[0].Lost == redundant || rep.Damage > 64 {
					t.Error(rep.Findings)
				}
			})
		}
		t.Run("page", func(t *testing.T) {
			c := clone()
			p, err := OpenReadOnly(spies(t, c), Options{})
			must(t, err)
			device, off := p.where(refAddr(t, p.Replica("v"), 0))
			p.Close()
			device = flip(t, c, device, off+70)
			rep := verify(t, c)
			if redundant {
				expect(t, rep, "device "+device, "index page of chunk 0")
			} else {
				expect(t, rep, "device "+device, "index page: replica v block 0")
			}
		})
		t.Run("directory", func(t *testing.T) {
			c := clone()
			var devs []disk.Device
			for _, m := range c {
				devs = append(devs, m)
			}
			p, err := Open(devs, Options{DeltaEntries: 4096}) // a replay needs the directory
			must(t, err)
			must(t, p.Close())
			for _, m := range c {
				m.Reopen()
			}
			p, err = OpenReadOnly(spies(t, c), Options{})
			must(t, err)
			dirOf(t, p.Replica("v"), 0)
			device, off := p.where(p.Replica("v").dir[0].node.slots[0].addr)
			must(t, p.Close())
			device = flip(t, c, device, off+20)
			rep := verify(t, c)
			if redundant {
				expect(t, rep, "device "+device, "part of the directory from chunk 0 on")
			} else {
				expect(t, rep, fmt.Sprintf("device %s offset %d: directory block: replica v block 0 ", device, off), "the directory from chunk 0 on is damaged")
			}
			if rep.Damage != 1 || rep.Findings[0].Lost == redundant {
				t.Error(rep.Findings)
			}
		})
		t.Run("label", func(t *testing.T) {
			c := clone()
			c[0].FlipBit(64<<10+20, 1)
			c[0].FlipBit(c[0].Size()-1<<20+300, 1)
			rep := verify(t, c)
			expect(t, rep, "device mem0 offset 65536: label: copy 2 of 4", "2 copies are intact")
			expect(t, rep, "label: copy 3 of 4", "2 copies are intact")
			if rep.Damage != 2 {
				t.Error(rep.Findings)
			}
		})
		t.Run("ring", func(t *testing.T) {
			c := clone()
			c[0].FlipBit(128<<10+4096+20, 1) // slot 1
			expect(t, verify(t, c), "device mem0 offset 135168: ring: slot 1")
		})
		t.Run("end of ring", func(t *testing.T) {
			for end, off := range map[string]int64{"head": 128 << 10, "tail": mems[0].Size() - 1<<20 + 128<<10} {
				for _, garbage := range []byte{0, 0xa5} {
					c := clone()
					must(t, c[0].WritevAt([][]byte{bytes.Repeat([]byte{garbage}, 128<<10)}, off))
					rep := verify(t, c)
					if end == "tail" && garbage == 0 { // as when the device has just become larger
						if rep.Damage != 0 || len(rep.Notes) != 1 || !strings.Contains(rep.Notes[0], fmt.Sprintf("device mem0 offset %d: the ring at the tail", off)) {
							t.Error(rep.Findings, rep.Notes)
						}
						continue
					}
					expect(t, rep, fmt.Sprintf("device mem0 offset %d", off), "ring at the "+end+" of the device announces nothing")
					if rep.Damage != 1 || len(rep.Notes) > 0 {
						t.Error(rep.Findings, rep.Notes)
					}
				}
			}
		})
		t.Run("header", func(t *testing.T) {
			c := clone()
			_, _, loc := stored(t, spies(t, c), "v", 3)
			p, err := OpenReadOnly(spies(t, c), Options{})
			must(t, err)
			l := p.newLogReader()
			var at uint64
			for b := uint32(0); b < p.seg.blocks(); b += p.seg.row(p.seg.of(loc)) {
				h, _, err := l.header(p.seg.of(loc), b)
				if start := uint64(p.seg.of(loc))<<p.seg.shift + uint64(b)<<block.Shift; err == nil && start < loc.Addr() && loc.Addr() < start+uint64(padded(&h, 1))<<block.Shift {
					at = start
				}
			}
			device, off := p.where(at)
			p.Close()
			device = flip(t, c, device, off+200)
			rep := verify(t, c)
			if redundant {
				expect(t, rep, "device "+device, "header of batch")
			} else {
				expect(t, rep, "device "+device, "batch header: no intact header")
			}
		})
		if !redundant {
			return
		}
		t.Run("missing", func(t *testing.T) {
			expect(t, verify(t, clone()[1:]), "is missing in")
		})
		t.Run("stale", func(t *testing.T) {
			if l.groups[len(l.groups)-1].cache { // which takes it all
				t.Skip()
			}
			c := clone()
			var devs []disk.Device
			for _, m := range c[1:] {
				devs = append(devs, m)
			}
			p, err := Open(devs, Options{DeltaEntries: 4096})
			must(t, err)
			must(t, p.Replica("w").Apply([]Op{write(0, 5, 7)}))
			must(t, p.Close())
			for _, m := range c {
				m.Reopen()
			}
			expect(t, verify(t, c), "device mem0: device: missed writes")
		})
		t.Run("parity", func(t *testing.T) {
			c := clone()
			device, off, _ := stored(t, spies(t, c), "v", 3)
			n := 0
			for _, m := range c { // every other column of the row
				g, _ := l.of(n)
				if x, _ := l.of(indexOf(c, device)); g == x && !strings.HasPrefix(device, m.Name()) {
					d := clones(c)
					d[n].FlipBit(off, 1)
					rep := verify(t, d)
					expect(t, rep, "device "+d[n].Name(), fmt.Sprint("offset ", off&^4095))
					if f := rep.Findings[0]; f.What == FoundParity && !strings.Contains(f.Text, "parity is wrong; all data of the row is intact") {
						t.Error(f)
					}
					if rep.Damage != 1 {
						t.Error(rep.Findings)
					}
				}
				n++
			}
		})
	})
}

func clones(mems []*disk.Mem) (c []*disk.Mem) {
	for _, m := range mems {
		c = append(c, m.Clone())
	}
	return c
}

func indexOf(mems []*disk.Mem, device string) int {
	for i, m := range mems {
		if strings.HasPrefix(device, m.Name()) {
			return i
		}
	}
	return -1
}

// TestVerifyAccounts writes a checkpoint whose table of segments is wrong.
func TestVerifyAccounts(t *testing.T) {
	p, m := newMemPool(t, 32<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
	r, err := p.CreateReplica("v", 8<<20)
	must(t, err)
	must(t, r.Apply([]Op{{Kind: OpWrite, Block: 0, Count: 60, Version: ver(1), Data: noise(60, 1)}}))
	must(t, p.cycle())
	must(t, p.cycle())
	d := refOf(t, r, 0)
	page := uint32(d.pageAddr() >> p.seg.shift)
	saved := p.seg.pageLive[page]
	p.seg.pageLive[page] += 64
	root := p.encodeRoot()
	p.seg.pageLive[page] = saved
	extents, err := p.writeRoot(root)
	must(t, err)
	must(t, label.WriteRing(m, m.Size(), &label.Ring{Pool: p.cfg.GUID, Generation: p.generation + 1, Root: extents}))
	rep, err := Verify([]disk.Device{spy{m.Kill(), t}}, Options{})
	must(t, err)
	if rep.Damage == 0 || !strings.Contains(fmt.Sprint(rep.Findings), fmt.Sprintf("segment %d: live", page)) {
		t.Error(rep.Findings)
	}
}

// TestVerifyCannotLook tells damage from what is no pool, or not all of one.
func TestVerifyCannotLook(t *testing.T) {
	mems := closedPool(t, layouts[1])
	if _, err := Verify(spies(t, mems[1:]), Options{}); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Error(err)
	}
	if _, err := Verify([]disk.Device{disk.NewMem("blank", 32<<20)}, Options{}); !errors.Is(err, ErrBlank) {
		t.Error(err)
	}
	for slot := range int64(64) { // all rings gone
		for _, m := range mems {
			off := 128<<10 + slot%32*4096
			if slot >= 32 {
				off += m.Size() - 1<<20
			}
			must(t, m.WritevAt([][]byte{bytes.Repeat([]byte{1}, 4096)}, off))
		}
	}
	rep, err := Verify(spies(t, mems), Options{})
	must(t, err)
	if !strings.Contains(fmt.Sprint(rep.Findings), "no checkpoint on any device") {
		t.Error(rep.Findings)
	}
}

// TestVerifyAfterPowerCut cuts the power of all devices at some moment of the same work; whatever becomes of what was
// not flushed, that is no damage.
func TestVerifyAfterPowerCut(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		for seed := range uint64(12) {
			p, mems := newLayoutPool(t, l, 24<<20, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
			r, err := p.CreateReplica("v", 8<<20)
			must(t, err)
			rng := rand.New(rand.NewPCG(seed, 7))
			for v := range uint64(3 + seed*2) {
				n := 1 + rng.IntN(60)
				must(t, r.Apply([]Op{{Kind: OpWrite, Block: uint64(rng.IntN(1900)), Count: uint32(n), Version: ver(v + 1), Data: mixed(rng, n)[:n*block.Size]}}))
				switch rng.IntN(6) {
				case 0:
					must(t, p.Sync())
				case 1:
					must(t, p.cycle())
				}
			}
			cut := make([]*disk.Mem, len(mems))
			for i, m := range mems {
				cut[i] = m.PowerCut([]disk.Fate{disk.Lost, disk.Kept, disk.Torn, disk.Prefix}[seed%4], rng)
			}
			rep, err := Verify(spies(t, cut), Options{})
			must(t, err)
			if rep.Damage > 0 {
				t.Errorf("seed %d: %v", seed, rep.Findings)
			}
		}
	})
}

// TestVerifyFirstAnnouncement leaves the head of one of two devices without any announcement: the first one on it may have
// been interrupted there, and been made again by Open, on the other device only or interrupted there as well. When another
// checkpoint was announced since, it was there.
func TestVerifyFirstAnnouncement(t *testing.T) {
	for _, x := range []struct {
		name   string
		cycles int
		first  bool // the tail has the first one only
	}{{"first", 0, true}, {"first, and again", 0, false}, {"one of another checkpoint since", 2, true}, {"several", 2, false}} {
		p, mems := stripeOf(t, 2, Options{SegmentBytes: 256 << 10, DeltaEntries: 4096})
		mems = disk.KillAll(mems)
		p.Close()
		p = openIdle(t, devicesOf(mems), Options{DeltaEntries: 4096}) // announces the same once more
		for range x.cycles {
			must(t, p.cycle())
		}
		mems = disk.KillAll(mems)
		_ = closeIdle(p)
		l, err := label.Probe(mems[0])
		must(t, err)
		blank, announced := [][]byte{make([]byte, block.Size)}, 0
		for i, s := range label.Slots(mems[0], l.Size, l.Pool) {
			switch {
			case i < label.RingSlots:
				must(t, mems[0].WritevAt(blank, s.Off))
			case s.Ring == nil:
			case x.first && announced == 1:
				must(t, mems[0].WritevAt(blank, s.Off))
			default:
				announced++
			}
		}
		rep, err := Verify(devicesOf(mems), Options{})
		must(t, err)
		notes := strings.Join(rep.Notes, "\n")
		harmless := x.cycles == 0
		if x.first != (announced == 1) || harmless != (rep.Damage == 0) || harmless != strings.Contains(notes, "the first announcement on it") {
			t.Errorf("%s, %d announcements: %v; %s", x.name, announced, rep.Findings, notes)
		}
	}
}
