package pool

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

var rewriteImage = flag.String("rewrite", "", "make this image of a pool of the current format anew (before that format is released only)")

// Images of pools are kept in testdata: a .zst with the blocks of the devices that are not zero, and a .txt with what
// has to be read from them for ever.
var images = map[string]struct {
	make  func(t *testing.T) (mems []*disk.Mem, text string)
	has   func(t *testing.T, mems []*disk.Mem) // fails the test unless what the image is there for is in it
	spare []int                                // devices that can be missing
	stale int                                  // devices that are not up to date
}{
	imageName(2, ""):      {makeImage, func(*testing.T, []*disk.Mem) {}, []int{0, 3}, 0},
	imageName(2, "-aged"): {makeAged, isAged, []int{1, 7}, 1},
}

func imageName(format int, kind string) string { return fmt.Sprintf("pool-format-%d%s", format, kind) }

// packDevices returns devices as: number, then for each size, number of blocks, and number and content of each block.
func packDevices(t *testing.T, mems []*disk.Mem) []byte {
	t.Helper()
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(mems)))
	for _, m := range mems {
		var blocks []byte
		n, buf := uint32(0), make([]byte, block.Size)
		for i := range m.Size() / block.Size {
			must(t, m.ReadAt(buf, i*block.Size))
			if !allZeroes(buf) {
				blocks = append(le.AppendUint32(blocks, uint32(i)), buf...)
				n++
			}
		}
		b = append(le.AppendUint32(le.AppendUint64(b, uint64(m.Size())), n), blocks...)
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20))
	must(t, err)
	return w.EncodeAll(b, nil)
}

func allZeroes(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func unpackDevices(t *testing.T, packed []byte) (mems []*disk.Mem) {
	t.Helper()
	r, err := zstd.NewReader(nil)
	must(t, err)
	defer r.Close()
	b, err := r.DecodeAll(packed, nil)
	must(t, err)
	le := binary.LittleEndian
	count := le.Uint32(b)
	b = b[4:]
	for i := range count {
		m := disk.NewMem(fmt.Sprint("mem", i), int64(le.Uint64(b)))
		n := le.Uint32(b[8:])
		b = b[12:]
		for range n {
			must(t, m.WritevAt([][]byte{b[4 : 4+block.Size]}, int64(le.Uint32(b))*block.Size))
			b = b[4+block.Size:]
		}
		must(t, m.Flush())
		mems = append(mems, m)
	}
	return mems
}

// imageText is all that can be read from a pool.
func imageText(t *testing.T, p *Pool) string {
	t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, "pool %s %v of %s\n", p.cfg.Name, p.cfg.GUID, p.cfg.Owner)
	for _, d := range p.Devices() {
		fmt.Fprintf(&s, "device %v group %d (%s, cache %t) column %d\n", d.GUID, d.Group, d.Kind, d.Cache, d.Column)
	}
	rs := p.Replicas()
	slices.SortFunc(rs, func(a, b *Replica) int { return strings.Compare(a.Name(), b.Name()) })
	v := new(chunkView)
	for _, r := range rs {
		if origin, of := r.Origin(); origin != "" {
			fmt.Fprintf(&s, "clone of %s@%s: ", origin, of)
		}
		fmt.Fprintf(&s, "replica %s %v: %d bytes, applied %v, state %q, used %d\n", r.Name(), r.GUID(), r.Size(), r.Applied(), r.State(), r.Stats().Used)
		b := make([]byte, block.ChunkBlocks*block.Size)
		for c := range r.chunks() {
			n := min(int64(len(b)), int64(r.blocks()-c*block.ChunkBlocks)*block.Size)
			must(t, r.Read(c*block.ChunkBlocks, b[:n], nil))
			ticket := p.read.enter()
			err := r.list(v, c)
			p.read.leave(ticket)
			must(t, err)
			var versions []byte
			for i, x := range v.page.Ver {
				versions = fmt.Appendf(versions, "%v %t\n", x, v.page.Stored.Has(i))
			}
			fmt.Fprintf(&s, "  chunk %d: %d blocks, content %x, versions %x\n", c, v.page.Stored.Count(), sha256.Sum256(b[:n]), sha256.Sum256(versions))
		}
		for _, x := range r.Snapshots() {
			content := make([]byte, int64(blocksOf(x.Size))*block.Size)
			must(t, r.ReadSnapshot(x.Name, 0, content, nil))
			unique, err := r.SnapshotUnique(x.Name)
			must(t, err)
			fmt.Fprintf(&s, "  snapshot %s %v: %d bytes, referenced %d, unique %d, clones %v, content %x\n", x.Name, x.Version, x.Size, x.Referenced, unique, x.Clones, sha256.Sum256(content))
		}
	}
	return s.String()
}

// makeImage makes a pool with something of everything that the format has, killed with a log to be replayed.
func makeImage(t *testing.T) ([]*disk.Mem, string) {
	l := layout{"image", []shape{{raid.Mirror, 2, false}, {raid.RAIDZ, 3, false}, {raid.Stripe, 1, true}}}
	mems, groups := l.make(func() int64 { return 12 << 20 })
	opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, inlineBytes: 256, historyBytes: 1024}
	p, err := Create(groups, Config{Name: "cstor-image", Owner: "an owner"}, opt)
	must(t, err)
	r, err := p.CreateReplica("raw", 8<<20)
	must(t, err)
	w, err := p.CreateReplica("packed", 5<<20-1536)
	must(t, err)
	_, err = p.CreateReplica("gone", 1<<20)
	must(t, err)
	for i := range uint64(6) {
		must(t, r.Apply([]Op{{Kind: OpWrite, Block: i * 50, Count: 4, Version: ver(i + 1), Data: noise(4, i)}}))
		must(t, w.Apply([]Op{{Kind: OpWrite, Block: i * 200, Count: 60, Version: ver(i + 1), Data: bytes.Repeat(half(1, i), 60)}}))
		if i == 2 {
			must(t, p.cycle())
			p.SetCompression(compress.Zstd)
		}
	}
	for i := range uint64(4) { // versions that snapshots show, so many that they spill into history pages
		must(t, w.Apply([]Op{snap(fmt.Sprint("s", i), 60+2*i), {Kind: OpWrite, Block: 1000, Count: 40, Version: ver(61 + 2*i), Data: bytes.Repeat(half(1, 90+i), 40)}}))
		if i == 1 {
			must(t, p.cycle())
		}
	}
	c, err := p.Clone("clone", "packed", "s1")
	must(t, err)
	must(t, c.Apply([]Op{{Kind: OpWrite, Block: 1000, Count: 2, Version: ver(80), Data: noise(2, 80)}, discard(400, 5, 81)}))
	must(t, p.cycle())
	if !refOf(t, w, 1).deep {
		t.Fatal("no history pages")
	}
	must(t, w.Apply([]Op{unsnap("s2", 69)}))
	must(t, w.Apply([]Op{discard(0, 30, 70), discard(512, 512, 71), {Kind: OpWrite, Block: 600, Count: 8, Version: block.Version{Epoch: 2, N: 1}, Data: make([]byte, 8*block.Size)}}))
	must(t, r.SetState([]byte("what the replica knows of its volume"), ver(7)))
	must(t, p.DestroyReplica("gone"))
	must(t, p.cycle())
	must(t, p.cycle())
	p.drain.cycle.Lock() // from here on there is only the log
	defer p.drain.cycle.Unlock()
	_, err = p.CreateReplica("late", 2<<20)
	must(t, err)
	must(t, w.Apply([]Op{{Kind: OpWrite, Block: 3, Count: 9, Version: block.Version{Epoch: 2, N: 2}, Data: noise(9, 77)}, {Kind: OpDiscard, Block: 200, Count: 3, Version: block.Version{Epoch: 2, N: 3}}}))
	must(t, p.Sync())
	text := imageText(t, p)
	for i := range mems {
		mems[i] = mems[i].Kill()
	}
	return mems, text
}

// TestImages opens the pools of all formats that were ever released, and of the current one, and goes on with them.
func TestImages(t *testing.T) {
	if name := *rewriteImage; name != "" {
		mems, text := images[name].make(t)
		images[name].has(t, mems)
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(filepath.Join("testdata", name+".zst"), packDevices(t, mems), 0o644))
		must(t, os.WriteFile(filepath.Join("testdata", name+".txt"), []byte(text), 0o644))
	}
	if _, ok := images[imageName(label.Format, "")]; !ok {
		t.Errorf("no image of format %d: make one with -args -rewrite", label.Format)
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			packed, err := os.ReadFile(filepath.Join("testdata", name+".zst"))
			must(t, err)
			if len(packed) > 200<<10 {
				t.Errorf("%d bytes", len(packed))
			}
			want, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
			must(t, err)
			mems := unpackDevices(t, packed)
			compare := func(p *Pool) {
				t.Helper()
				if got := imageText(t, p); got != string(want) {
					t.Errorf("read:\n%s\nwant:\n%s", got, want)
				}
				must(t, p.Check())
			}
			open := func() *Pool {
				t.Helper()
				reopenAll(mems)
				p, err := Open(devicesOf(mems), Options{DeltaEntries: 4096})
				must(t, err)
				compare(p)
				return p
			}
			verify := func(stale int, replayed bool) {
				t.Helper()
				rep, err := Verify(spies(t, mems), Options{})
				must(t, err)
				late := 0
				for _, f := range rep.Findings {
					if f.What == "device" && strings.Contains(f.Text, "missed writes") {
						late++
					}
				}
				if rep.Damage != stale || late != stale || replayed && rep.Replayed == 0 {
					t.Error(rep.Findings, rep.Replayed)
				}
			}
			image.has(t, mems)
			verify(image.stale, true)
			p, err := OpenReadOnly(spies(t, mems), Options{})
			must(t, err)
			compare(p)
			must(t, p.Close())
			p, err = OpenReadOnly(without(clones(mems), image.spare...), Options{})
			must(t, err)
			compare(p)
			must(t, p.Close())
			must(t, open().Close())
			p = open()
			p.rest()
			if st := p.Stats(); st.Health != HealthOnline {
				t.Errorf("pool is %s: %s", st.Health, st.Failure)
			}
			for i, r := range p.Replicas() {
				v := r.Applied()
				v.Epoch++
				must(t, r.Apply([]Op{{Kind: OpWrite, Block: 5, Count: 90, Version: v, Data: mixed(testRand(t), 90)}, {Kind: OpSnapshot, Name: fmt.Sprint("new", i), Version: v}}))
			}
			must(t, p.Sync())
			want = []byte(imageText(t, p))
			mems = disk.KillAll(mems)
			p.Close()
			verify(0, true)
			must(t, open().Close())
			reopenAll(mems)
			verify(0, false)
		})
	}
}
