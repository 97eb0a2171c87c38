package target

import (
	"sync"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
	"github.com/cstor-go/cstor/internal/wire"
)

// readState is one read of the core's with what belongs to it.
type readState struct {
	op      volume.ReadOp
	session *session // which it was sent to last
	tag     uint32   // its slot there
	data    []byte   // the reply's, verified
	buf     *block.Buffer

	parent *readRequest // it is a part of a request,
	write  *writeState  // or of the merging of
	edge   *edge        // this edge
}

// readRequest is a front end's read on its way.
type readRequest struct {
	req     *block.Request
	pending int
	out     []byte // where the parts are put together, nil when there is one part
	err     error
}

var (
	readStates   = sync.Pool{New: func() any { return new(readState) }}
	readRequests = sync.Pool{New: func() any { return new(readRequest) }}
)

func newRead(parent *readRequest, first uint64, count uint32) *readState {
	r := readStates.Get().(*readState)
	*r = readState{parent: parent}
	r.op = volume.ReadOp{Block: first, Count: count, Tag: r}
	return r
}

// startRead hands the parts of a read to the core.
func (t *Target) startRead(now time.Duration, req *block.Request) {
	if req.Length == 0 {
		t.finish(req, nil)
		return
	}
	first := uint64(req.Offset) >> block.Shift
	end := uint64(req.Offset+req.Length+block.Size-1) >> block.Shift
	p := readRequests.Get().(*readRequest)
	*p = readRequest{req: req}
	if n := end - first; n > maxOpBlocks {
		p.out = make([]byte, req.Length)
		req.Data, req.Buf = p.out, nil
	}
	p.pending = int((end - first + maxOpBlocks - 1) / maxOpBlocks)
	for b := first; b < end; b += maxOpBlocks {
		t.core.Read(now, &newRead(p, b, uint32(min(end-b, maxOpBlocks))).op)
	}
}

// sendRead sends a read to a replica; the core may do that again, with another replica.
func (t *Target) sendRead(id volume.SessionID, op *volume.ReadOp) {
	r := op.Tag.(*readState)
	r.forget()
	s := t.sessions[id]
	if s == nil {
		return // the core will hear of that
	}
	r.session = s
	r.tag = s.addRead(r)
	s.out.AppendHeader(wire.Read(r.tag, op.Block, op.Count))
	t.send(s)
}

// forget makes a reply that may still come be ignored, and drops what has come.
func (r *readState) forget() {
	if r.session != nil {
		r.session.dropRead(r.tag)
		r.session = nil
	}
	r.buf.Release()
	r.buf, r.data = nil, nil
}

// readDone takes a read that the core says may be shown, or that failed.
func (t *Target) readDone(r *readState) {
	if r.op.Err == nil && r.data == nil {
		r.op.Err = errNoData
	}
	switch {
	case r.edge != nil:
		t.edgeRead(r)
	default:
		t.partRead(r)
	}
	r.forget()
	*r = readState{}
	readStates.Put(r)
}

// partRead puts a part of a request where it belongs; the last one completes the request.
func (t *Target) partRead(r *readState) {
	p := r.parent
	req := p.req
	switch {
	case r.op.Err != nil:
		p.err = r.op.Err
	case p.out == nil:
		skip := req.Offset - int64(r.op.Block)<<block.Shift
		req.Data, req.Buf = r.data[skip:skip+req.Length], r.buf
		r.buf = nil // the reference goes to the client
	default:
		at := int64(r.op.Block)<<block.Shift - req.Offset // of the part within the request
		if at >= 0 {
			copy(p.out[at:], r.data)
		} else {
			copy(p.out, r.data[-at:])
		}
	}
	if p.pending--; p.pending > 0 {
		return
	}
	if p.err != nil {
		req.Data = nil
		req.Buf.Release()
		req.Buf = nil
	} else {
		t.Counters.ReadBytes.Add(uint64(req.Length))
	}
	t.Counters.Reads.Add(1)
	t.finish(req, p.err)
	*p = readRequest{}
	readRequests.Put(p)
}
