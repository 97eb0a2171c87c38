package pool

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
)

// ringAt is where the ring is in a label area.
const ringAt = 128 << 10

// ringAreas reads both rings of a device.
func ringAreas(t *testing.T, m *disk.Mem) (areas [2][]byte) {
	for i, off := range ringOffsets(m) {
		areas[i] = make([]byte, label.RingSlots*block.Size)
		must(t, m.ReadAt(areas[i], off))
	}
	return areas
}

func ringOffsets(m *disk.Mem) [2]int64 {
	return [2]int64{ringAt, m.Size() - label.TailBytes + ringAt}
}

// TestCheckpointOnOneDevice loses power when a checkpoint has been announced on one device only, goes on from it, into
// segments that the one before needs, and then loses that device.
func TestCheckpointOnOneDevice(t *testing.T) {
	for _, moved := range []bool{false, true} {
		t.Run(fmt.Sprint("moved=", moved), func(t *testing.T) {
			mems := []*disk.Mem{disk.NewMem("mem0", 18<<20), disk.NewMem("mem1", 18<<20), disk.NewMem("mem2", 18<<20)}
			opt := Options{
				SegmentBytes: 256 << 10, Compression: compress.Off, DeltaEntries: 1 << 16, Deadline: time.Minute,
				NoDiscard: true, CheckpointBytes: 1 << 40, FlushBytes: 1 << 40,
			}
			p, err := Create([]Group{{Kind: raid.RAIDZ, Devices: devicesOf(mems)}}, Config{Name: "test"}, opt)
			must(t, err)
			atRest := func(p *Pool) { // cycles are the test's
				close(p.quit)
				<-p.stopped
				<-p.upkeep.stopped
			}
			atRest(p)
			const blocks = 2048
			r, err := p.CreateReplica("v", blocks*block.Size)
			must(t, err)
			n := uint64(0)
			fillUp := func(r *Replica, to, step uint64) {
				for b := uint64(0); b < to; b += 32 * step {
					n++
					must(t, r.Apply([]Op{write(b, 32, n)}))
				}
			}
			fillUp(r, blocks, 1)
			must(t, p.cycle())
			fillUp(r, blocks, 2)
			must(t, p.cycle())
			must(t, p.cycle())
			var rings [][2][]byte
			for _, m := range mems {
				rings = append(rings, ringAreas(t, m))
			}
			if moved {
				rng := rand.New(rand.NewPCG(1, 1))
				for range 8 {
					must(t, p.moveSome(rng))
				}
			} else {
				fillUp(r, blocks, 1)
			}
			must(t, p.cycle())
			mems = disk.KillAll(mems)
			for _, i := range []int{0, 2} {
				for k, off := range ringOffsets(mems[i]) {
					must(t, mems[i].WritevAt([][]byte{rings[i][k]}, off))
				}
				must(t, mems[i].Flush())
			}
			p, err = Open(devicesOf(mems), opt)
			must(t, err)
			atRest(p)
			r = p.Replica("v")
			fillUp(r, blocks/2, 1)
			want, got := make([]byte, blocks*block.Size), make([]byte, blocks*block.Size)
			must(t, r.Read(0, want, nil))
			must(t, p.Sync())
			mems = disk.KillAll(mems)
			p, err = Open([]disk.Device{mems[0], mems[2]}, opt)
			must(t, err)
			defer p.Close()
			must(t, p.Replica("v").Read(0, got, nil))
			if !bytes.Equal(got, want) {
				t.Fatal("content differs without the device that had the checkpoint")
			}
			must(t, p.Check())
		})
	}
}

// TestLabelsOnOneDevice loses power when the labels of a pool that has grown are on one device only, uses the new space,
// and then loses that device.
func TestLabelsOnOneDevice(t *testing.T) {
	mems := []*disk.Mem{disk.NewMem("mem0", 18<<20), disk.NewMem("mem1", 18<<20)}
	opt := Options{SegmentBytes: 256 << 10, Compression: compress.Off, Deadline: time.Minute}
	p, err := Create([]Group{{Kind: raid.Mirror, Devices: devicesOf(mems)}}, Config{Name: "test"}, opt)
	must(t, err)
	const blocks = 5000
	_, err = p.CreateReplica("v", blocks*block.Size)
	must(t, err)
	before := p.labels.now.Load().Clone()
	for _, m := range mems {
		m.Grow(34 << 20)
	}
	must(t, p.Expand())
	must(t, p.Close())
	old, err := label.Probe(mems[1].Clone())
	must(t, err)
	old.Spans, old.Generation, old.Change = before.Spans, old.Generation-1, old.Change+1
	reopenAll(mems)
	must(t, label.Write(mems[1], old))
	p, err = Open(devicesOf(mems), opt)
	must(t, err)
	r := p.Replica("v")
	for b := uint64(0); b+32 <= blocks; b += 32 {
		must(t, r.Apply([]Op{write(b, 32, b+1)}))
	}
	want, got := make([]byte, blocks*block.Size), make([]byte, blocks*block.Size)
	must(t, r.Read(0, want, nil))
	must(t, p.Close())
	reopenAll(mems)
	p, err = Open([]disk.Device{mems[1]}, opt)
	must(t, err)
	defer p.Close()
	must(t, p.Replica("v").Read(0, got, nil))
	if !bytes.Equal(got, want) {
		t.Fatal("content differs without the device that had the labels")
	}
}

// TestCloseDuringCycles closes a pool while others run cycles, at any time: these end with ErrClosed, and nothing is
// written to devices that are closed.
func TestCloseDuringCycles(t *testing.T) {
	for range 20 {
		mems := []*disk.Mem{disk.NewMem("mem0", 16<<20), disk.NewMem("mem1", 16<<20)}
		opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, Deadline: time.Minute}
		p, err := Create([]Group{{Kind: raid.Mirror, Devices: devicesOf(mems)}}, Config{Name: "test"}, opt)
		must(t, err)
		ended := make(chan error)
		for k := range 3 {
			r, err := p.CreateReplica(fmt.Sprint("v", k), 1000*block.Size)
			must(t, err)
			must(t, r.Apply([]Op{write(0, 32, 1), write(600, 32, 2)}))
			go func() {
				for n := 0; ; n++ {
					if _, err := r.SetSnapshots([]Snapshot{{Name: fmt.Sprint("s", n), Version: ver(1), Size: 1000 * block.Size}}); err != nil {
						ended <- err
						return
					}
				}
			}()
		}
		for p.hurry.Load() < 3 {
			runtime.Gosched()
		}
		must(t, p.Close())
		if err := p.cycle(); !errors.Is(err, ErrClosed) { // somebody who has waited for the last one
			t.Fatal(err)
		}
		for range 3 {
			if err := <-ended; !errors.Is(err, ErrClosed) {
				t.Fatal(err)
			}
		}
		reopenAll(mems)
		for _, m := range mems {
			l, err := label.Probe(m.Clone())
			must(t, err)
			if slices.ContainsFunc(l.Members, func(x label.Member) bool { return x.Out }) {
				t.Fatal("a device is out")
			}
		}
		q, err := Open(devicesOf(mems), opt)
		must(t, err)
		must(t, q.Close())
	}
}
