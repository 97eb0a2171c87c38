package pool

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// TestFlushFailureIsFinal: after a failed flush nothing is written or called stable any more, and everything can be
// read.
func TestFlushFailureIsFinal(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	m.Inject(disk.Faults{FailFlush: true})
	if err := p.Sync(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	m.Inject(disk.Faults{}) // the next fsync would succeed, and mean nothing
	if err := p.Sync(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	if err := r.Apply([]Op{write(0, 1, 2)}); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	if s := p.Stats(); s.Health != "FAULTED" || !strings.Contains(s.Failure, "flush") {
		t.Fatal(s.Health, s.Failure)
	}
	got := make([]byte, 4096)
	must(t, r.Read(0, got, nil))
	if !bytes.Equal(got, fill(1, 1)) {
		t.Fatal("read after failure")
	}
	if err := p.Close(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
}

// TestWriteFailureIsFinal: a write that fails is not applied; the pool can be opened again.
func TestWriteFailureIsFinal(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	m.Inject(disk.Faults{FailOp: 1})
	if err := r.Apply([]Op{write(0, 1, 1)}); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "mem0") {
		t.Fatal(err)
	}
	if r.Applied() != (block.Version{}) {
		t.Fatal("applied")
	}
	k := m.Kill()
	q, err := Open([]disk.Device{k}, Options{})
	must(t, err)
	must(t, q.Close())
}

// TestBitFlipsAreFound: a read of damaged data or of a damaged page says where it is, and the rest can be read.
func TestBitFlipsAreFound(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 1 << 20})
	r, err := p.CreateReplica("v", 16<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(700, 4, 1)}))
	must(t, p.cycle())
	loc := func(b uint64) int64 {
		var s readScratch
		must(t, r.find(&s, b, 1))
		_, off := p.where(s.places[0].loc.Addr())
		return off
	}
	m.FlipBit(loc(702)+100, 3)
	dst := make([]byte, 4*4096)
	err = r.Read(700, dst, nil)
	var ce *ChecksumError
	if !errors.As(err, &ce) || !errors.Is(err, ErrChecksum) || ce.Block != 702 || ce.Device != "mem0" || ce.Offset != loc(702) || ce.What != "data" {
		t.Fatalf("%v", err)
	}
	must(t, r.Read(700, dst[:2*4096], nil))
	if err := r.ReadChunk(1, nil, new(Chunk)); !errors.As(err, &ce) || ce.Block != 702 {
		t.Fatal(err)
	}
	d := refOf(t, r, 1)
	p.cache.drop(d.id)
	_, off := p.where(d.pageAddr())
	m.FlipBit(off+70, 0)
	if err := r.Read(700, dst, nil); !errors.As(err, &ce) || ce.What != "index page" || ce.Offset != off {
		t.Fatal(err)
	}
	if p.Stats().ChecksumErrors < 3 {
		t.Fatal("not counted")
	}
}

// TestBitFlipInCompressedBlock flips a bit of a compressed block that is part of its content as it is: what it unpacks to
// is well formed and wrong.
func TestBitFlipInCompressedBlock(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 1 << 20, Compression: compress.LZ4})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	data := half(1, 1)
	must(t, r.Apply([]Op{{Kind: OpWrite, Block: 0, Count: 1, Version: ver(1), Data: data}}))
	var s readScratch
	must(t, r.find(&s, 0, 1))
	const mask = disk.Align - 1
	loc := s.places[0].loc
	_, from := p.where(loc.Addr() &^ mask)
	stored := make([]byte, (loc.End()+mask)&^mask-loc.Addr()&^mask)
	must(t, m.ReadAt(stored, from))
	noise := int64(bytes.Index(stored, data[300:400]))
	if loc.Raw() || noise < 0 {
		t.Fatal("not compressed, or not with its noise as it is")
	}
	m.FlipBit(from+noise+50, 3)
	if err := r.Read(0, make([]byte, block.Size), nil); !errors.Is(err, ErrChecksum) {
		t.Fatalf("%v", err)
	}
}

// TestDamagedLogIsNotItsEnd flips a bit in a header that later batches say was stable: Open must refuse rather than
// forget what was flushed.
func TestDamagedLogIsNotItsEnd(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 1 << 20})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	p.log.mu.Lock()
	at := p.log.pos
	p.log.mu.Unlock()
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	must(t, p.Sync())
	must(t, r.Apply([]Op{write(1, 1, 2)}))
	k := m.Kill()
	_, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
	k.FlipBit(off+200, 1)
	if _, err := Open([]disk.Device{k}, Options{}); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
}

// TestLogGoesOnElsewhere damages a header, or a link, whose batch was called stable only in a later segment than the one in
// which the log seems to end then.
func TestLogGoesOnElsewhere(t *testing.T) {
	for _, link := range []bool{false, true} {
		p, m := newMemPool(t, 256<<20, Options{SegmentBytes: 1 << 20, FlushBytes: 1 << 30})
		r, err := p.CreateReplica("v", 64<<20)
		must(t, err)
		must(t, p.Sync())
		var at logPos
		for n := range uint64(160) { // 5 segments and more without a flush
			p.log.mu.Lock()
			if n == 16 || link && p.log.pos.seg == at.seg && n > 16 {
				at = p.log.pos
			}
			p.log.mu.Unlock()
			must(t, r.Apply([]Op{write(n*8, 8, n+1)}))
		}
		must(t, p.Sync())
		must(t, r.Apply([]Op{write(1, 1, 161)}))
		if link { // behind the last batch of the segment
			l := p.newLogReader()
			h, _, err := l.header(at.seg, at.block)
			must(t, err)
			if at.advance(&h, p.seg.row(at.seg)); h.Flags&wal.FlagLink != 0 {
				t.Fatal("the place is that of a link")
			}
			h, _, err = l.header(at.seg, at.block)
			if must(t, err); h.Flags&wal.FlagLink == 0 {
				t.Fatal("no link behind the last batch")
			}
		}
		_, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
		k := m.Kill()
		k.FlipBit(off+33, 1)
		if p, err := Open([]disk.Device{k}, Options{}); !errors.Is(err, ErrDamaged) {
			t.Errorf("link %v: %v, %v", link, err, p.Replica("v").Applied())
		}
	}
}

// TestForeignDevicesAreRefused: a device with data of somebody else is refused, and what is on it is named.
func TestForeignDevicesAreRefused(t *testing.T) {
	put := func(off int64, b string) func(m *disk.Mem) {
		return func(m *disk.Mem) {
			buf := make([]byte, min(8192, int(m.Size()-off&^4095)))
			base := off &^ 4095
			must(t, m.ReadAt(buf, base))
			copy(buf[off-base:], b)
			must(t, m.WritevAt([][]byte{buf}, base))
		}
	}
	ext := "\x00\x10\x00\x00\x00\x40\x00\x00" // inodes, blocks
	for _, c := range []struct {
		want string
		put  []func(*disk.Mem)
	}{
		{"ext4", []func(*disk.Mem){put(1024, ext), put(1024+24, "\x02"), put(0x438, "\x53\xef")}},
		{"xfs", []func(*disk.Mem){put(0, "XFSB")}},
		{"LUKS", []func(*disk.Mem){put(0, "LUKS\xba\xbe")}},
		{"LVM", []func(*disk.Mem){put(512, "LABELONE")}},
		{"GPT partition", []func(*disk.Mem){put(510, "\x55\xaaEFI PART")}},
		{"GPT partition table (backup)", []func(*disk.Mem){put(40<<20-512, "EFI PART")}},
		{"MBR", []func(*disk.Mem){put(510, "\x55\xaa")}},
		{"zfs_member", []func(*disk.Mem){put(128<<10, "\x0c\xb1\xba\x00\x00\x00\x00\x00")}},
		{"btrfs", []func(*disk.Mem){put(0x10040, "_BHRfS_M")}},
		{"swap", []func(*disk.Mem){put(4086, "SWAPSPACE2")}},
		{"RAID", []func(*disk.Mem){put(4096, "\xfc\x4e\x2b\xa9")}},
		{"unknown data at offset 77824: 68 65", []func(*disk.Mem){put(77824, "he")}},
		{"unknown data at offset from the last MiB", []func(*disk.Mem){put(40<<20-100000, "x")}},
	} {
		m := disk.NewMem("dev", 40<<20)
		for _, f := range c.put {
			f(m)
		}
		_, err := Create(Stripe(m), Config{Name: "p"}, Options{})
		var fe *ErrForeign
		if !errors.As(err, &fe) || fe.Device != "dev" || !strings.Contains(fe.Found, c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
		if _, err := Probe(m); !errors.As(err, &fe) {
			t.Errorf("%s: probe: %v", c.want, err)
		}
		if _, err := Open([]disk.Device{m}, Options{}); !errors.As(err, &fe) {
			t.Errorf("%s: open: %v", c.want, err)
		}
	}
	m := disk.NewMem("dev", 40<<20)
	if _, err := Probe(m); !errors.Is(err, ErrBlank) {
		t.Error(err)
	}
	p, err := Create(Stripe(m), Config{Name: "mine", Owner: "me"}, Options{})
	must(t, err)
	must(t, p.Close())
	m.Reopen()
	var fe *ErrForeign
	if _, err := Create(Stripe(m), Config{Name: "other"}, Options{}); !errors.As(err, &fe) || !strings.Contains(fe.Found, "mine") {
		t.Error(err)
	}
	l, err := Probe(m)
	if err != nil || l.Name != "mine" || l.Owner != "me" || l.Pool != p.Config().GUID {
		t.Error(l, err)
	}
	put(0, "XFSB")(m) // somebody ran mkfs over it: the labels at the tail must not hide that
	clear64 := make([]byte, 4096)
	must(t, m.WritevAt([][]byte{clear64}, 64<<10))
	if _, err := Probe(m); !errors.As(err, &fe) || fe.Found != "xfs filesystem" {
		t.Error(err)
	}
}

// TestOpenNamesWhatIsWrong: Open says which device is missing, there twice, blank or of another pool.
func TestOpenNamesWhatIsWrong(t *testing.T) {
	make3 := func() []disk.Device {
		return []disk.Device{disk.NewMem("d0", 40<<20), disk.NewMem("d1", 60<<20), disk.NewMem("d2", 40<<20)}
	}
	devs := make3()
	p, err := Create(Stripe(devs...), Config{Name: "three"}, Options{SegmentBytes: 1 << 20})
	must(t, err)
	must(t, p.Close())
	for _, d := range devs {
		d.(*disk.Mem).Reopen()
	}
	if _, err := Open([]disk.Device{devs[2], devs[0]}, Options{}); err == nil || !strings.Contains(err.Error(), "device 2 of 3") {
		t.Error(err)
	}
	if _, err := Open([]disk.Device{devs[2], devs[0], devs[1], devs[1]}, Options{}); err == nil || !strings.Contains(err.Error(), "d1") {
		t.Error(err)
	}
	blank := disk.NewMem("empty", 40<<20)
	if _, err := Open([]disk.Device{devs[2], devs[0], blank}, Options{}); !errors.Is(err, ErrBlank) || !strings.Contains(err.Error(), "empty") {
		t.Error(err)
	}
	p, err = Open([]disk.Device{devs[2], devs[0], devs[1]}, Options{})
	must(t, err)
	must(t, p.Close())
	for _, d := range devs {
		m := d.(*disk.Mem)
		m.Reopen()
		for _, off := range []int64{0, 64 << 10, m.Size() - 1<<20, m.Size() - 1<<20 + 64<<10} {
			m.FlipBit(off+50, 0)
		}
	}
	if _, err := Open(devs, Options{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "d0") {
		t.Error(err)
	}
}

// TestInterruptedCreate cuts the power at every operation of Create: afterwards the same Create works, or there is a
// pool.
func TestInterruptedCreate(t *testing.T) {
	guid := block.NewGUID()
	for n := int64(1); ; n++ {
		m := disk.NewMem("d", 40<<20)
		m.Inject(disk.Faults{FailFrom: n})
		p, err := Create(Stripe(m), Config{Name: "p", GUID: guid}, Options{})
		if err == nil {
			m.Inject(disk.Faults{})
			must(t, p.Close())
			return
		}
		k := m.Kill()
		p, err = Create(Stripe(k), Config{Name: "p", GUID: guid}, Options{})
		var fe *ErrForeign
		if errors.As(err, &fe) && strings.Contains(fe.Found, "cStor pool p") {
			p, err = Open([]disk.Device{k}, Options{})
		}
		if err != nil {
			t.Fatalf("operation %d: %v", n, err)
		}
		must(t, p.Close())
	}
}

// TestHungDeviceDoesNotHoldStats: statistics answer while a device does not.
func TestHungDeviceDoesNotHoldStats(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 1, 1)}))
	waits, resume := m.Hang()
	defer resume()
	done := make(chan error, 1)
	go func() { done <- r.Apply([]Op{write(1, 1, 2)}) }()
	<-waits
	if p.Stats().Health != "ONLINE" || r.Applied() != ver(1) || len(p.Replicas()) != 1 {
		t.Fatal("state")
	}
	resume()
	must(t, <-done)
}
