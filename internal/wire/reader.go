package wire

import (
	"io"

	"github.com/cstor-go/cstor/internal/block"
)

// ChunkSize is the number of bytes of a Reader's ordinary chunks.
const ChunkSize = 1 << 20

var (
	chunks    = block.NewBufferPool(ChunkSize)
	bigChunks = block.NewBufferPool(MaxPayload + HeaderSize)
)

// Reader cuts a byte stream into frames. It reads as much as there is with each call into large pooled chunks, and hands
// out payloads in place. Not for concurrent use.
type Reader struct {
	r          io.Reader
	chunk      *block.Buffer
	start, end int  // what is read and not yet handed out
	shared     bool // somebody else may refer to the chunk
}

// NewReader returns a Reader of r. Close gives its memory back.
func NewReader(r io.Reader) *Reader { return &Reader{r: r, chunk: chunks.Get()} }

// Fill reads once. Payloads handed out before are invalid afterwards unless Retain was called since they were.
func (r *Reader) Fill() error {
	r.makeRoom()
	n, err := r.r.Read(r.chunk.B[r.end:])
	r.end += n
	if n > 0 {
		return nil // a sticky error comes again
	}
	if err == io.EOF && r.end > r.start {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// makeRoom sees to it that the frame which starts at start fits, and that there is room to read.
func (r *Reader) makeRoom() {
	if r.start == r.end && !r.shared {
		r.start, r.end = 0, 0
	}
	rest := r.chunk.B[r.start:r.end]
	need := len(rest) + 1
	if len(rest) >= HeaderSize {
		if h, err := ParseHeader(rest); err == nil {
			need = HeaderSize + int(h.Length)
		}
	} else {
		need = min(4<<10, len(r.chunk.B)) // so that the chunk's tail is not used up by tiny reads
	}
	if r.start+need <= len(r.chunk.B) {
		return
	}
	if need <= len(r.chunk.B) && !r.shared {
		r.start, r.end = 0, copy(r.chunk.B, rest)
		return
	}
	next := chunks
	if need > ChunkSize {
		next = bigChunks
	}
	c := next.Get()
	r.start, r.end = 0, copy(c.B, rest)
	r.chunk.Release()
	r.chunk, r.shared = c, false
}

// Next returns the next frame that is there completely; false when Fill must be called. Errors wrap ErrFormat and are
// final.
func (r *Reader) Next() (f Frame, ok bool, err error) {
	rest := r.chunk.B[r.start:r.end]
	if len(rest) < HeaderSize {
		return f, false, nil
	}
	if f.Header, err = ParseHeader(rest); err != nil {
		return f, false, err
	}
	size := HeaderSize + int(f.Length)
	if len(rest) < size {
		return f, false, nil
	}
	f.Payload = rest[HeaderSize:size:size]
	r.start += size
	return f, true, nil
}

// Retain returns the chunk that holds the frames handed out since the last Fill, with one more reference, which the
// caller releases.
func (r *Reader) Retain() *block.Buffer {
	r.shared = true
	r.chunk.Retain()
	return r.chunk
}

// Close gives the chunk back. Payloads that were not retained are invalid afterwards.
func (r *Reader) Close() {
	if r.chunk != nil {
		r.chunk.Release()
		r.chunk = nil
	}
}
