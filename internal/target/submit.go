package target

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
)

// Counters counts what front ends asked for and got. They only grow.
type Counters struct {
	Reads, Writes, Flushes atomic.Uint64 // requests completed; Writes includes Discard and WriteZeroes
	ReadBytes, WriteBytes  atomic.Uint64
	Merges                 atomic.Uint64 // blocks written in part
}

// submission is the scratch memory of one Submit.
type submission struct{ writes []*writeState }

var submissions = sync.Pool{New: func() any { return new(submission) }}

// Submit implements block.Device.
func (t *Target) Submit(batch []*block.Request) {
	sub := submissions.Get().(*submission)
	for _, r := range batch {
		var w *writeState
		if r.Err = t.check(r); r.Err == nil && (r.Op == block.Write || r.Op == block.Discard || r.Op == block.WriteZeroes) {
			w = prepare(r)
		}
		sub.writes = append(sub.writes, w)
	}
	now := t.enter()
	for i, r := range batch {
		w := sub.writes[i]
		switch {
		case r.Err != nil:
			if r.Op == block.Write {
				r.Buf.Release()
			}
			t.finish(r, r.Err)
		case t.fences > 0 && w != nil:
			w.err = block.ErrSuperseded
			t.propose(now, w)
		case t.fences > 0:
			t.finish(r, block.ErrSuperseded)
		case w != nil:
			t.startWrite(now, w)
		case r.Op == block.Read:
			t.startRead(now, r)
		default:
			t.Counters.Flushes.Add(1)
			t.core.Flush(now, r)
		}
	}
	t.leave()
	clear(sub.writes)
	sub.writes = sub.writes[:0]
	submissions.Put(sub)
}

// check refuses what no front end should ask for.
func (t *Target) check(r *block.Request) error {
	switch {
	case r.Op == block.Flush:
		return nil
	case r.Op < block.Read || r.Op > block.WriteZeroes:
		return fmt.Errorf("request of unknown kind %d", r.Op)
	case (r.Offset|r.Length)&(block.SectorSize-1) != 0 || r.Offset < 0 || r.Length < 0 || r.Offset > t.cfg.Size-r.Length:
		return fmt.Errorf("%v of %d bytes at %d is unaligned or outside of the volume", r.Op, r.Length, r.Offset)
	case r.Op == block.Write && int64(len(r.Data)) != r.Length:
		return fmt.Errorf("write of %d bytes with %d bytes of data", r.Length, len(r.Data))
	}
	return nil
}
