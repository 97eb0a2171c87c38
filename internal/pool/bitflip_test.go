package pool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestBitFlipsAnywhere inverts bits wherever a device holds anything, labels and checkpoints included. Without
// redundancy the pool then refuses to open, or every block that it shows is what was written or an error, and nothing
// that was stable is gone. With redundancy nothing is to be noticed, whatever happens to as many devices of each group
// as may be lost.
func TestBitFlipsAnywhere(t *testing.T) {
	seed := seedOf(t)
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		cover := map[string]int{}
		for _, kill := range []bool{false, true} {
			flipBits(t, l, seed, kill, cover)
		}
		floors := map[string]int{"blocks with an error": 20, "opened without an error": 20}
		if l.parity(0) > 0 {
			floors = map[string]int{"opened without an error": 60}
			if l.data(0) > 1 { // a mirror may read from a device that is not hit
				floors["blocks repaired"] = 20
			}
		}
		demand(t, cover, floors)
	})
}

func flipBits(t *testing.T, l layout, seed uint64, kill bool, cover map[string]int) {
	mems := l.blank(8 << 20)
	opt := Options{DeltaEntries: 4096, SegmentBytes: 256 << 10, NoDiscard: true, Deadline: time.Minute}
	p, err := Create(l.arrange(mems), Config{Name: "flip"}, opt)
	must(t, err)
	a := newActor(t, seed, p)
	a.maxSize, a.maxCount = 600, 3
	for range 40 {
		a.step(faultyActs)
	}
	for len(a.now) < 2 {
		a.create()
	}
	for range 20 {
		a.apply()
	}
	stable := map[string]block.Version{}
	if kill {
		must(t, p.Sync())
		for name := range a.now {
			stable[name] = p.Replica(name).Applied()
		}
		for range 12 { // each of these says that it was stable
			a.apply()
		}
		mems = disk.KillAll(mems)
		p.Close()
	} else {
		must(t, p.Close())
		reopenAll(mems)
	}
	history := newHistoryOfBlocks(a.log)
	may := l.victims() // be damaged
	times, flips := 40, 200
	if l.parity(0) == 0 {
		times, flips = 100, 8
		for i := range mems {
			may = append(may, i)
		}
	}
	used, meta := map[int][]int64{}, map[int][]int64{}
	for _, d := range may {
		used[d], meta[d] = mems[d].Used(), metadata(t, mems[d])
	}
	for range times {
		var copies []*disk.Mem
		for _, m := range mems {
			copies = append(copies, m.Clone())
		}
		for range 1 + a.rng.IntN(flips) {
			d := may[a.rng.IntN(len(may))]
			at := used[d][a.rng.IntN(len(used[d]))]
			if a.rng.IntN(2) == 0 && len(meta[d]) > 0 {
				at = meta[d][a.rng.IntN(len(meta[d]))]
			}
			copies[d].FlipBit(at*disk.Align+a.rng.Int64N(disk.Align), uint(a.rng.IntN(8)))
		}
		q, err := Open(devicesOf(copies), opt)
		if l.parity(0) == 0 && (errors.Is(err, ErrDamaged) || errors.Is(err, ErrChecksum) || errors.Is(err, ErrNewerFormat)) {
			cover["refused to open"]++
			continue
		}
		if err != nil {
			a.fatalf("open: %v", err)
		}
		wrong := 0
		if l.parity(0) > 0 {
			seen, err := observe(q)
			must(t, err)
			if d := a.now.diff(seen); d != "" {
				a.fatalf("%s", d)
			}
			must(t, q.Check())
			cover["blocks repaired"] += int(q.Stats().BlocksRepaired)
		} else {
			wrong = history.look(t, q)
			for name, v := range stable {
				if r := q.Replica(name); r == nil || r.Applied().Less(v) {
					a.fatalf("replica %s was at %v on stable storage, and is not", name, v)
				}
			}
			if !kill {
				for name, r := range a.now { // a checkpoint has everything: nothing may be older than it was
					wrong += r.errors(t, q.Replica(name))
				}
			}
		}
		cover["blocks with an error"] += wrong
		if wrong == 0 {
			cover["opened without an error"]++
		}
		disk.StopAll(copies)
		q.Close()
	}
}

// metadata returns the blocks that begin with a magic number of ours or have an index page in them.
func metadata(t *testing.T, m *disk.Mem) (blocks []int64) {
	b := make([]byte, disk.Align)
	for _, n := range m.Used() {
		must(t, m.ReadAt(b, n*disk.Align))
		if bytes.HasPrefix(b, []byte("CGOL")) || bytes.HasPrefix(b, []byte("cStorGo")) || bytes.Contains(b, []byte("CGP2")) ||
			binary.LittleEndian.Uint64(b) == rootMagic {
			blocks = append(blocks, n)
		}
	}
	return blocks
}

// errors compares every block that can be read with the model and returns how many cannot.
func (r *refReplica) errors(t *testing.T, e *Replica) (n int) {
	t.Helper()
	if e == nil {
		t.Fatal("replica is missing")
	}
	dst := make([]byte, block.Size)
	var vers [block.ChunkBlocks]block.Version
	listed := false
	for b := range int(blocksOf(r.size)) {
		if b%block.ChunkBlocks == 0 {
			listed = e.Newer(uint64(b/block.ChunkBlocks), block.Version{}, &vers) == nil
		}
		if listed && vers[b%block.ChunkBlocks] != r.head(uint64(b)).ver {
			t.Fatalf("replica %s block %d: version %v, want %v", e.Name(), b, vers[b%block.ChunkBlocks], r.head(uint64(b)).ver)
		}
		if err := e.Read(uint64(b), dst, nil); errors.Is(err, ErrChecksum) {
			n++
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if block.Sum(dst) != r.head(uint64(b)).sum {
			t.Fatalf("replica %s block %d: wrong content", e.Name(), b)
		}
	}
	return n
}

// TestBitFlipsInPage inverts each bit of an index page: whatever it stands for, what is read is what was written, or an
// error.
func TestBitFlipsInPage(t *testing.T) {
	p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 1 << 20})
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 40, 1), write(20, 3, 2), discard(30, 2, 3)}))
	must(t, p.cycle())
	var want, got [block.ChunkBlocks]block.Version
	must(t, r.Newer(0, block.Version{}, &want))
	content, b := make([]byte, 1<<20), make([]byte, 1<<20)
	must(t, r.Read(0, content, nil))
	page := refOf(t, r, 0)
	_, off := p.where(page.pageAddr())
	for bit := range 8 * page.pageLen() {
		m.FlipBit(off+int64(bit/8), uint(bit%8))
		p.cache.drop(page.id)
		if r.Newer(0, block.Version{}, &got) == nil && got != want {
			t.Fatalf("bit %d of the page: other versions", bit)
		}
		if err := r.Read(0, b, nil); !errors.Is(err, ErrChecksum) && (err != nil || !bytes.Equal(b, content)) {
			t.Fatalf("bit %d of the page: other content, %v", bit, err)
		}
		m.FlipBit(off+int64(bit/8), uint(bit%8))
	}
}
