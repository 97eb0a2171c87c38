package pdu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cstor-go/cstor/internal/block"
)

// ErrHeaderDigest and ErrDataDigest are digest mismatches. After a header digest error nothing that follows can be
// trusted.
var (
	ErrHeaderDigest = errors.New("header digest mismatch")
	ErrDataDigest   = errors.New("data digest mismatch")
)

const (
	chunkSize = 512 << 10
	minRoom   = 32 << 10 // a read gets at least this much room
)

var chunks = block.NewBufferPool(chunkSize)

// Reader takes PDUs from a stream. It reads into reference-counted chunks and hands out sub-slices; only the part of
// a PDU that a chunk has no room for is copied to the next one. It belongs to one goroutine.
type Reader struct {
	// Header and Data are the PDU that Next found. Data is valid until the next call of Fill unless the chunk was lent.
	Header Header
	Data   []byte
	// Placed says that Data is the memory that Place returned.
	Placed bool
	// Place may return the memory, as long as the data segment, for a PDU whose data has not all arrived; it is then
	// received there. The header is valid, Data is not.
	Place func(h *Header) []byte

	src          io.Reader
	header, data bool // digests in use
	limit        int
	chunk        *block.Buffer
	r, w         int // unread part of the chunk
	lent         bool
	need         int // length of the PDU that begins at r, as far as known
	checked      bool
	direct       []byte // placed memory being filled
	got          int
}

// NewReader returns a Reader of a connection with the parameters p.
func NewReader(src io.Reader, p *Params) *Reader {
	return &Reader{src: src, header: p.HeaderDigest, data: p.DataDigest, limit: min(p.MaxRecv, MaxSegment), chunk: chunks.Get()}
}

// Close gives the chunk back.
func (r *Reader) Close() {
	r.chunk.Release()
	r.chunk, r.Data, r.direct = nil, nil, nil
	r.r, r.w = 0, 0
}

// Lend returns the buffer that Data lies in with a reference for the caller. Data then stays valid until that is released.
func (r *Reader) Lend() *block.Buffer {
	r.lent = true
	r.chunk.Retain()
	return r.chunk
}

// Next makes the next PDU that is complete available in Header and Data. It returns false when there is none: the
// input is used up, and the caller does what it has collected before it calls Fill.
func (r *Reader) Next() (bool, error) {
	if r.direct != nil {
		return r.nextPlaced()
	}
	b := r.chunk.B[r.r:r.w]
	if len(b) < HeaderSize {
		r.need = HeaderSize
		return false, nil
	}
	if !r.checked {
		copy(r.Header[:], b)
	}
	n, head := r.Header.DataLen(), HeaderSize+r.Header.AHSLen()
	if n > r.limit {
		return false, fmt.Errorf("data segment of %d bytes: at most %d were agreed", n, r.limit)
	}
	if r.header {
		head += 4
	}
	total := head + r.tail(n)
	r.need = total
	if len(b) < head {
		return false, nil
	}
	if r.header && !r.checked && digest(b[:head-4]) != binary.LittleEndian.Uint32(b[head-4:]) {
		return false, ErrHeaderDigest
	}
	if len(b) < total {
		if !r.checked {
			r.checked = true
			r.place(b[head:], n, head)
		}
		if r.direct != nil {
			return r.nextPlaced()
		}
		return false, nil
	}
	r.checked, r.Placed = false, false
	r.Data = b[head : head+n : head+n]
	r.r += total
	return true, r.check(b[head+n : total])
}

// tail is the number of bytes of a data segment of n bytes with padding and digest.
func (r *Reader) tail(n int) int {
	if n == 0 {
		return 0
	}
	n += padding(n)
	if r.data {
		n += 4
	}
	return n
}

// place asks for memory for the data of a PDU of which only part has arrived.
func (r *Reader) place(have []byte, n, head int) {
	if r.Place == nil || n == 0 {
		return
	}
	if r.direct = r.Place(&r.Header); r.direct != nil {
		r.got = copy(r.direct, have)
		r.r += head + r.got
	}
}

// nextPlaced ends a PDU whose data is received where Place said.
func (r *Reader) nextPlaced() (bool, error) {
	rest := r.tail(len(r.direct)) - len(r.direct)
	if r.got < len(r.direct) || r.w-r.r < rest {
		r.need = rest
		return false, nil
	}
	r.Data, r.direct, r.Placed, r.checked = r.direct, nil, true, false
	trailer := r.chunk.B[r.r : r.r+rest]
	r.r += rest
	return true, r.check(trailer)
}

// check verifies the data digest at the end of the trailer, which is padding and digest.
func (r *Reader) check(trailer []byte) error {
	if !r.data || len(r.Data) == 0 {
		return nil
	}
	pad := len(trailer) - 4
	if block.UpdateSum(digest(r.Data), trailer[:pad]) != binary.LittleEndian.Uint32(trailer[pad:]) {
		return ErrDataDigest
	}
	return nil
}

// Fill reads once from the stream.
func (r *Reader) Fill() error {
	if r.direct != nil && r.got < len(r.direct) {
		n, err := r.src.Read(r.direct[r.got:])
		r.got += n
		return got(n, err)
	}
	r.room()
	n, err := r.src.Read(r.chunk.B[r.w:])
	r.w += n
	return got(n, err)
}

// room makes place in the chunk for the PDU that is next.
func (r *Reader) room() {
	if r.r == r.w && !r.lent {
		r.r, r.w = 0, 0
	}
	if len(r.chunk.B)-r.r >= max(r.need, minRoom) {
		return
	}
	if !r.lent {
		r.w = copy(r.chunk.B, r.chunk.B[r.r:r.w])
		r.r = 0
		return
	}
	next := chunks.Get()
	r.w = copy(next.B, r.chunk.B[r.r:r.w])
	r.r, r.lent = 0, false
	r.chunk.Release()
	r.chunk = next
}

func got(n int, err error) error {
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}
