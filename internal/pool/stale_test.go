package pool

import (
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// TestStaleBatches puts a well-formed batch behind the end of the log that differs from a continuation in one respect
// only, as an earlier use of the segment may have left it. Only the true continuation may be replayed.
func TestStaleBatches(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(h *wal.Header)
		taken  bool
	}{
		{"continuation", func(h *wal.Header) {}, true},
		{"other mount", func(h *wal.Header) { h.Incarnation++ }, false},
		{"other predecessor", func(h *wal.Header) { h.Prev++ }, false},
		{"later number", func(h *wal.Header) { h.Seq++ }, false},
		{"earlier number", func(h *wal.Header) { h.Seq-- }, false},
		{"other segment", func(h *wal.Header) { h.Segment++ }, false},
		{"other place", func(h *wal.Header) { h.Block++ }, false},
		{"unit without end", func(h *wal.Header) { h.Flags = wal.FlagMore }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, m := newMemPool(t, 64<<20, Options{SegmentBytes: 1 << 20})
			r, err := p.CreateReplica("v", 1<<20)
			must(t, err)
			must(t, r.Apply([]Op{write(0, 1, 1)}))
			p.log.mu.Lock()
			at := p.log.pos
			p.log.mu.Unlock()
			k := m.Kill()
			h := wal.Header{Records: 1, Prev: at.prev, Incarnation: at.incarnation, Seq: at.seq, Segment: at.seg, Block: at.block}
			c.change(&h)
			b := wal.Append(make([]byte, wal.FixedLen, block.Size), &wal.Record{Kind: wal.Mark, Slot: r.slot, Version: ver(99)})
			b, _ = wal.Finish(b, &h)
			_, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
			must(t, k.WritevAt([][]byte{b}, off))
			for range 2 { // the second time, behind the link that the first one wrote
				p, err := Open([]disk.Device{k}, Options{})
				must(t, err)
				if taken := p.Replica("v").Applied() == ver(99); taken != c.taken {
					t.Fatalf("applied %v", p.Replica("v").Applied())
				}
				k = k.Kill()
				p.Close()
			}
		})
	}
}

// TestVerifyAfterLostBatch: of the last batch one device of a mirror has nothing, and in place of its header an older
// one, from an earlier use of the segment. The other one has it all, so it counts, and there is nothing to be found.
func TestVerifyAfterLostBatch(t *testing.T) {
	mems, groups := layouts[2].make(func() int64 { return 40 << 20 })
	p, err := Create(groups, Config{Name: "test"}, Options{SegmentBytes: 1 << 20})
	must(t, err)
	defer p.Close()
	r, err := p.CreateReplica("v", 1<<20)
	must(t, err)
	must(t, r.Apply([]Op{write(0, 4, 1)}))
	must(t, p.Sync())
	p.drain.cycle.Lock() // no checkpoint in between
	defer p.drain.cycle.Unlock()
	p.log.mu.Lock()
	at := p.log.pos
	p.log.mu.Unlock()
	lost := mems[0].Clone()
	must(t, r.Apply([]Op{write(8, 4, 2)}))

	b := wal.Append(make([]byte, wal.FixedLen, block.Size), &wal.Record{Kind: wal.Mark, Slot: r.slot, Version: ver(1)})
	b, _ = wal.Finish(b, &wal.Header{Records: 1, Prev: at.prev - 9, Incarnation: at.incarnation - 1, Seq: at.seq - 9, Segment: at.seg, Block: at.block})
	_, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
	must(t, lost.WritevAt([][]byte{b}, off))
	rep, err := Verify(devicesOf([]*disk.Mem{lost, mems[1].Clone()}), Options{})
	must(t, err)
	if len(rep.Findings) > 0 || rep.Replayed < 2 {
		t.Fatalf("%d batches replayed, found %v", rep.Replayed, rep.Findings)
	}
}
