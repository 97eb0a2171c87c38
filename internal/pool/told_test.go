package pool

import (
	"fmt"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// opensAt fails the test unless a pool opens and is as of a version.
func opensAt(t *testing.T, what string, m *disk.Mem, want block.Version) {
	t.Helper()
	p, err := Open([]disk.Device{m}, Options{})
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if v := p.Replica("v").Applied(); v != want {
		t.Errorf("%s: %v, want %v", what, v, want)
	}
	must(t, p.Check())
	must(t, p.Close())
}

// flipped returns a copy of a device with one bit of a header inverted.
func flipped(m *disk.Mem, off int64) *disk.Mem {
	m = m.Clone()
	m.FlipBit(off+33, 1)
	return m
}

// nextBatch returns where on its device the next batch of a pool with one device will be.
func nextBatch(p *Pool) int64 {
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	_, off := p.where(uint64(p.log.pos.seg)<<p.seg.shift + uint64(p.log.pos.block)<<block.Shift)
	return off
}

// TestFlushedEndOfLog damages what was flushed last, after the pool has come to rest and was killed: Open must refuse rather
// than forget it. What was not flushed may be torn, and what says how far the log is stable may be lost.
func TestFlushedEndOfLog(t *testing.T) {
	for name, c := range map[string]struct {
		batches int
		full    bool // until the segment is
	}{"one batch": {batches: 1}, "several batches": {batches: 5}, "segments of batches": {batches: 200}, "a full segment": {full: true}} {
		t.Run(name, func(t *testing.T) {
			p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 256 << 10, Manual: true})
			r, err := p.CreateReplica("v", 8<<20)
			must(t, err)
			var at []int64
			n := uint64(0)
			apply := func() {
				n++
				at = append(at, nextBatch(p))
				must(t, r.Apply([]Op{discard(n, 1, n)})) // a block of the log
			}
			for range c.batches {
				apply()
			}
			for c.full && p.room() > 0 {
				apply()
			}
			if p.tellStable() {
				t.Error("it was told that something is stable which was not flushed")
			}
			must(t, p.Sync())
			mark := nextBatch(p)
			if !p.tellStable() || p.tellStable() {
				t.Error("it was not told once that all is stable")
			}
			for _, i := range []int{0, len(at) / 2, len(at) - 1} {
				missed(t, fmt.Sprintf("batch %d of %d", i+1, len(at)), flipped(m, at[i]))
			}
			opensAt(t, "nothing damaged", m.Clone(), ver(n))
			opensAt(t, "the mark damaged", flipped(m, mark), ver(n))
			flushed := len(at)
			apply()
			opensAt(t, "what was not flushed damaged", flipped(m, at[flushed]), ver(n-1))
			opensAt(t, "power lost", m.PowerCut(disk.Lost, testRand(t)), ver(n-1))
		})
	}
}

// TestRestIsTold: a pool at rest writes down that its log is stable, and nothing else.
func TestRestIsTold(t *testing.T) {
	for _, manual := range []bool{true, false} {
		t.Run(fmt.Sprint("manual=", manual), func(t *testing.T) {
			t.Parallel()
			p, m := newMemPool(t, 64<<20, Options{Manual: manual})
			r, err := p.CreateReplica("v", 1<<20)
			must(t, err)
			at, writes := nextBatch(p), 0
			told, resume := m.HangIf(func(op string, _, _ int64) bool {
				if op == "write" {
					writes++
				}
				return !manual && writes == 2
			})
			must(t, r.SetState([]byte("a promise"), ver(1)))
			if manual {
				for p.Work(true) {
				}
			} else {
				<-told
				resume()
				nextBatch(p) // when it is written
			}
			if writes != 2 {
				t.Errorf("%d writes, of which one is the state record", writes)
			}
			missed(t, "state", flipped(m, at))
		})
	}
}
