package pool

import (
	"errors"
	"fmt"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// ErrOffline is returned for changes of a pool that was opened for looking only.
var ErrOffline = errors.New("pool is open for looking only")

// offlineDeadline is how long a device may take to answer somebody who only looks, and whom nobody waits for.
const offlineDeadline = 60 * time.Second

// offline is what is remembered of opening a pool for looking only.
type offline struct {
	ring    *label.Ring
	root    *rootImage
	stable  uint64 // the newest batch that was on stable storage for certain
	batches []replayedBatch
}

// replayedBatch is a batch of the log that a replay reads.
type replayedBatch struct {
	seg, block     uint32
	header, blocks uint32 // blocks of its header, and of all of it with padding
	seq            uint64
}

// OpenReadOnly opens a pool for looking only: it loads the newest checkpoint and replays the log in memory. It never
// writes to a device: nothing is repaired, no label changes, the log does not go on, nothing runs in the background.
// Everything that reads works, everything else returns ErrOffline. What is replayed must fit in memory: about 60 bytes
// for each block written since the last checkpoint. Devices that hold something else are left out;
// the others are the pool's until Close, as with Open.
func OpenReadOnly(devs []disk.Device, opt Options) (*Pool, error) {
	ours, _ := apart(devs)
	p, err := openOffline(ours, opt)
	if err != nil {
		return nil, fmt.Errorf("open pool for looking: %w", err)
	}
	return p, nil
}

// foreign is a device that is not one of a pool's.
type foreign struct {
	dev disk.Device
	err *ErrForeign
}

// apart tells the devices that may be a pool's from those that hold something else. If all do, what opens them says so.
func apart(devs []disk.Device) (ours []disk.Device, others []foreign) {
	for _, d := range devs {
		var not *ErrForeign
		if _, err := label.Probe(disk.ReadOnly(d)); errors.As(err, &not) {
			others = append(others, foreign{d, not})
		} else {
			ours = append(ours, d)
		}
	}
	if len(ours) == 0 {
		return devs, nil
	}
	return ours, others
}

func openOffline(devs []disk.Device, opt Options) (*Pool, error) {
	if opt.Deadline <= 0 {
		opt.Deadline = offlineDeadline
	}
	if opt.DeltaEntries == 0 {
		opt.DeltaEntries = 4096 // grows with what is replayed
	}
	guarded := make([]disk.Device, len(devs))
	for i, d := range devs {
		guarded[i] = disk.ReadOnly(d)
	}
	return openFor(guarded, opt, &offline{})
}

// noteBatch remembers a batch that was replayed.
func (o *offline) noteBatch(h *wal.Header, at batchAt, row uint32) {
	o.batches = append(o.batches, replayedBatch{seg: at.seg, block: at.block, header: uint32(h.HeaderBlocks), blocks: padded(h, row), seq: h.Seq})
}

// tail reports whether any of a range of addresses belongs to a batch that was not on stable storage for certain:
// power loss may have left it on some devices only.
func (o *offline) tail(from, to uint64, shift uint) bool {
	for i := len(o.batches) - 1; i >= 0 && o.batches[i].seq > o.stable; i-- {
		b := &o.batches[i]
		start := uint64(b.seg)<<shift + uint64(b.block)<<block.Shift
		if start < to && from < start+uint64(b.blocks)<<block.Shift {
			return true
		}
	}
	return false
}
