package target

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// opState is an operation with what belongs to it: the front part of its frame, which is the same for all replicas, and
// the references that keep its data alive: one for the core, one for each outbox that has not sent it yet.
type opState struct {
	op      volume.Op
	refs    atomic.Int32
	write   *writeState // until completed
	head    []byte
	encoded block.Version // for which head was made
	sums    []uint32
}

var opStates = sync.Pool{New: func() any { return new(opState) }}

func (st *opState) retain() { st.refs.Add(1) }

// Release drops a reference; the last one gives the data back.
func (st *opState) Release() {
	if st.refs.Add(-1) > 0 {
		return
	}
	st.op.Buf.Release()
	st.op = volume.Op{}
	st.write = nil
	opStates.Put(st)
}

// encode makes the front part of the frame, once the core has given the operation its version. It gets another one if
// the core is replaced; outboxes may still refer to the old front part then.
func (st *opState) encode() {
	if st.encoded == st.op.Version {
		return
	}
	if !st.encoded.IsZero() {
		st.head = make([]byte, cap(st.head))
	}
	st.encoded = st.op.Version
	st.head = st.head[:wire.OpHeadSize(&st.op)]
	wire.PutOp(st.head, &st.op)
}

// newOp returns an operation of the core's; data has whole blocks, buf owns it and one reference goes to the operation.
func newOp(w *writeState, kind volume.OpKind, first uint64, count uint32, data []byte, buf *block.Buffer) *opState {
	st := opStates.Get().(*opState)
	st.refs.Store(1)
	st.write, st.encoded = w, block.Version{}
	st.sums = st.sums[:0]
	if kind == volume.OpWrite {
		st.sums = wire.Sums(st.sums, data)
	}
	st.op = volume.Op{
		Kind: kind, FUA: w.req.FUA, Block: first, Count: count, Data: data, Sums: st.sums, Buf: buf, Tag: st,
	}
	if need := wire.OpHeadSize(&st.op); cap(st.head) < need {
		st.head = make([]byte, need)
	}
	return st
}

// writeState is a Write, Discard or WriteZeroes on its way.
type writeState struct {
	req         *block.Request
	first, last uint64     // blocks touched, for the order among overlapping requests
	ops         []*opState // ready to be proposed
	head, tail  edge       // blocks written in part: read, merged, written
	reading     int        // edges that are being read
	pending     int        // operations that are not completed
	started     bool       // in Target.partial: its reads are under way
	err         error
}

// edge is a part of a block. The part is [from, to) in bytes; empty if the request has no such edge.
type edge struct {
	block    uint64
	from, to int
	data     []byte // nil: zeroes
}

func (e *edge) used() bool { return e.to > e.from }

var (
	writeStates = sync.Pool{New: func() any { return new(writeState) }}
	blocks      = block.NewBufferPool(block.Size)
)

// prepare cuts a request into operations. It runs without the mutex, which is where checksums belong.
func prepare(req *block.Request) *writeState {
	w := writeStates.Get().(*writeState)
	*w = writeState{req: req, ops: w.ops[:0]}
	if req.Length == 0 {
		return w
	}
	start, end := req.Offset, req.Offset+req.Length
	w.first, w.last = uint64(start)>>block.Shift, uint64(end-1)>>block.Shift
	data := req.Data
	if req.Op != block.Write {
		data = nil
	} else if req.Buf == nil {
		// Replicas may still need the data when the client has it back.
		data = append([]byte(nil), data[:req.Length]...)
	}
	at := func(from, to int64) []byte { // the data for a range of the volume
		if data == nil {
			return nil
		}
		return data[from-start : to-start : to-start]
	}
	first, last := (start+block.Size-1)>>block.Shift, end>>block.Shift // whole blocks: [first, last)
	if req.Op != block.Discard {
		if first > last { // within one block
			w.head = edge{block: uint64(last), from: int(start - last<<block.Shift), to: int(end - last<<block.Shift), data: at(start, end)}
			return w
		}
		if from := start & (block.Size - 1); from != 0 {
			w.head = edge{block: uint64(first - 1), from: int(from), to: block.Size, data: at(start, first<<block.Shift)}
		}
		if to := end & (block.Size - 1); to != 0 {
			w.tail = edge{block: uint64(last), to: int(to), data: at(last<<block.Shift, end)}
		}
	}
	kind, limit := volume.OpDiscard, int64(maxDiscardBlocks)
	if req.Op == block.Write {
		kind, limit = volume.OpWrite, maxOpBlocks
	}
	for b := first; b < last; {
		n := min(last-b, limit)
		var d []byte
		if kind == volume.OpWrite {
			d = at(b<<block.Shift, (b+n)<<block.Shift)
			req.Buf.Retain()
		}
		var buf *block.Buffer
		if kind == volume.OpWrite {
			buf = req.Buf
		}
		w.ops = append(w.ops, newOp(w, kind, uint64(b), uint32(n), d, buf))
		b += n
	}
	return w
}

// overlaps reports whether two requests touch a common block.
func (w *writeState) overlaps(x *writeState) bool { return w.first <= x.last && x.first <= w.last }

// startWrite proposes a request, or lines it up behind those that read before they write.
func (t *Target) startWrite(now time.Duration, w *writeState) {
	partial := w.head.used() || w.tail.used()
	if len(t.partial) == 0 && !partial {
		t.propose(now, w)
		return
	}
	t.partial = append(t.partial, w)
	t.advancePartial(now)
}

// advancePartial starts what nothing earlier stands in the way of.
func (t *Target) advancePartial(now time.Duration) {
	kept := t.partial[:0]
	for _, w := range t.partial {
		if !w.started {
			free := true
			for _, earlier := range kept {
				if earlier.overlaps(w) {
					free = false
					break
				}
			}
			if free && !w.head.used() && !w.tail.used() {
				t.propose(now, w)
				continue
			}
			if free {
				w.started = true
				t.readEdge(now, w, &w.head)
				t.readEdge(now, w, &w.tail)
			}
		}
		kept = append(kept, w)
	}
	clear(t.partial[len(kept):])
	t.partial = kept
}

// readEdge reads the block that an edge is a part of.
func (t *Target) readEdge(now time.Duration, w *writeState, e *edge) {
	if !e.used() {
		return
	}
	w.reading++
	t.Counters.Merges.Add(1)
	r := newRead(nil, e.block, 1)
	r.edge, r.write = e, w
	t.core.Read(now, &r.op)
}

// edgeRead merges an edge; with the last one the request is proposed and what waited behind it goes on.
func (t *Target) edgeRead(r *readState) {
	w, e := r.write, r.edge
	if r.op.Err != nil {
		w.err = r.op.Err
	} else {
		buf := blocks.Get()
		copy(buf.B, r.data)
		if e.data != nil {
			copy(buf.B[e.from:e.to], e.data)
		} else {
			clear(buf.B[e.from:e.to])
		}
		w.ops = append(w.ops, newOp(w, volume.OpWrite, e.block, 1, buf.B, buf))
	}
	if w.reading--; w.reading > 0 {
		return
	}
	for i, x := range t.partial {
		if x == w {
			copy(t.partial[i:], t.partial[i+1:])
			t.partial[len(t.partial)-1] = nil
			t.partial = t.partial[:len(t.partial)-1]
			break
		}
	}
	now := t.clock.now()
	t.propose(now, w)
	t.advancePartial(now)
}

// propose hands a request's operations to the core. After an error of an edge nothing is written.
func (t *Target) propose(now time.Duration, w *writeState) {
	if w.err != nil || len(w.ops) == 0 {
		for _, st := range w.ops {
			st.Release()
		}
		t.endWrite(w)
		return
	}
	w.pending = len(w.ops)
	for _, st := range w.ops {
		t.core.Propose(now, &st.op)
	}
	clear(w.ops)
	w.ops = w.ops[:0]
}

// wrote tells that one operation of a request is completed.
func (t *Target) wrote(w *writeState, err error) {
	if err != nil {
		w.err = err
	}
	if w.pending--; w.pending == 0 {
		t.endWrite(w)
	}
}

func (t *Target) endWrite(w *writeState) {
	req := w.req
	if req.Op == block.Write {
		req.Buf.Release() // operations hold references of their own
		t.Counters.WriteBytes.Add(uint64(req.Length))
	}
	t.Counters.Writes.Add(1)
	t.finish(req, w.err)
	ops := w.ops[:0]
	*w = writeState{ops: ops}
	writeStates.Put(w)
}
