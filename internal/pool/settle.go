package pool

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/index"
	"github.com/cstor-go/cstor/internal/pool/label"
	"github.com/cstor-go/cstor/internal/pool/raid"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// intactReaders is how many batches of groups without redundancy are read at a time.
const intactReaders = 4

// countIntact returns how many of the batches, from the first on, are intact.
func (p *Pool) countIntact(steps []step) (int, error) {
	readers := intactReaders
	for _, g := range p.seg.where.Load().groups {
		if g.Redundant() { // batches behind the end of the log are left alone
			readers = 1
		}
	}
	var mu sync.Mutex
	next, end := 0, len(steps)
	var failed error // of the batch at end
	var wg sync.WaitGroup
	if p.opt.Manual {
		l := p.newLogReader()
		defer l.release()
		for i := range steps {
			if ok, err := p.intact(l, steps[i].before); !ok {
				return i, err
			}
		}
		return len(steps), nil
	}
	for range min(readers, len(steps)) {
		wg.Go(func() {
			l := p.newLogReader()
			defer l.release()
			for {
				mu.Lock()
				i := next
				next++
				over := i >= end
				mu.Unlock()
				if over {
					return
				}
				ok, err := p.intact(l, steps[i].before)
				mu.Lock()
				if !ok && i < end {
					end, failed = i, err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return end, failed
}

// intact reports whether all of the batch at pos can be had, which power loss may have torn. On a group with redundancy
// all devices have the same when it returns true: what is taken for written now must not depend on which of them is
// asked later.
func (p *Pool) intact(l *logReader, pos logPos) (bool, error) {
	h, b, err := l.wanted(pos.seg, pos.block, pos.follows)
	if err != nil {
		return false, err
	}
	start := uint64(pos.seg)<<p.seg.shift + uint64(pos.block)<<block.Shift
	g, off := p.seg.locate(start)
	if g.Redundant() {
		n := int64(padded(&h, g.row)) << block.Shift
		_, err := g.Settle(off, n, func(data []byte) []int { return badBlocks(&h, b, data) })
		if errors.Is(err, raid.ErrUnrecoverable) {
			return false, nil
		}
		return err == nil, err // of a device that lacks it and cannot be spared: one that can is out, which is no error
	}
	if h.DataBlocks == 0 { // a link in the last row of the last segment has no address behind it
		return true, nil
	}
	if cap(l.data) < h.DataBlocks*block.Size {
		l.data = disk.Buffer(h.DataBlocks * block.Size)
	}
	data := l.data[:h.DataBlocks*block.Size]
	if err := p.seg.readAt(data, start+uint64(h.HeaderBlocks)<<block.Shift); err != nil {
		return false, err
	}
	return len(badData(nil, 0, &h, b, data)) == 0, nil
}

// badBlocks returns which blocks of a batch, read as data, are not what its header, h and b, says. What pads the batch
// to whole rows does not matter.
func badBlocks(h *wal.Header, b, data []byte) (bad []int) {
	if x, err := wal.Decode(data); err != nil || x.Sum != h.Sum {
		for i := range h.HeaderBlocks {
			bad = append(bad, i)
		}
	}
	return badData(bad, h.HeaderBlocks, h, b, data[h.HeaderBlocks*block.Size:])
}

// badData appends the numbers, counted from first, of the data blocks that do not have what their records say. Of a
// compressed block that is damaged it cannot tell in which of the blocks that it touches.
func badData(bad []int, first int, h *wal.Header, b, data []byte) []int {
	area := wal.MakeArea(0, h.RawBlocks)
	content := make([]byte, block.Size)
	note := func(at, n uint64) {
		for k := first + int(at/block.Size); k <= first+int((at+n-1)/block.Size); k++ {
			if len(bad) == 0 || bad[len(bad)-1] != k {
				bad = append(bad, k)
			}
		}
	}
	var it wal.Records
	var r wal.Record
	for it.Reset(b, h); it.Next(&r); {
		if r.Kind == wal.State {
			if n := uint64(r.Count); n > 0 && block.Sum(data[area.Raw:area.Raw+n]) != r.Sums[0] {
				note(area.Raw, n)
			}
			area.Skip(r.Kind, r.Count, r.Lens)
			continue
		}
		for i, sum := range r.Sums {
			length := r.Granules(i)
			at, n := area.Next(length), uint64(length)*wal.Granule
			x := place{loc: index.MakeLoc(at, int(n)), sum: sum}
			if n > 0 && !x.content(content, data[at:at+n]) {
				note(at, n)
			}
		}
	}
	return bad
}

// replayedStable makes the part of the log that is replayed stable before anybody sees it, and the checkpoint in front
// of it known to every device: the one that has announced it alone may go, when what older ones need is in use again.
func (p *Pool) replayedStable() error {
	p.generation++
	if err := p.writeRing(&label.Ring{Pool: p.cfg.GUID, Generation: p.generation, Root: p.root}); err != nil {
		return fmt.Errorf("before the log is replayed: %w", err)
	}
	for _, g := range p.seg.where.Load().groups {
		g.dirty.Store(true)
	}
	if err := p.flushDevices(); err != nil {
		return fmt.Errorf("before the log is replayed: %w", err)
	}
	for seg := range p.returned.segments { // for devices that failed in the flush
		p.distrust(seg)
	}
	return nil
}
