package block

import (
	"errors"
	"sync"
	"sync/atomic"
)

// Op is the kind of a Request.
type Op uint8

const (
	Read Op = iota + 1
	Write
	Flush       // everything completed before it was submitted becomes stable
	Discard     // whole blocks inside the range read as zeroes afterwards and give their space back
	WriteZeroes // the range reads as zeroes afterwards, to the byte
)

func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Flush:
		return "flush"
	case Discard:
		return "discard"
	case WriteZeroes:
		return "write-zeroes"
	}
	return "op?"
}

var (
	// ErrNoSpace completes a write for which some replica's pool has no room.
	ErrNoSpace = errors.New("no space left in pool")
	// ErrRetry completes a request that could not be served within the hold limit; the initiator may try again.
	ErrRetry = errors.New("volume has no quorum, try again")
	// ErrSuperseded completes a request that another target may have been asked for in the meantime, and may have served
	// other requests since. It may have taken effect, but will not after the volume serves again. Whether it is still wanted
	// only the initiator knows: the front end ends the session, without an answer, so that it logs in again and repeats what
	// it has not had answered.
	ErrSuperseded = errors.New("another target has served the volume")
	// ErrLost completes a flush of a volume of which what was written before, and not flushed, may be lost. Until somebody has
	// been told, see Request.Told, every flush ends so.
	ErrLost = errors.New("what was written before and not flushed may be lost")
	// ErrMedium completes a read whose data is damaged on every replica that may serve it.
	ErrMedium = errors.New("data is damaged on every replica in sync")
)

// Device is a volume as a front end sees it.
type Device interface {
	// Size returns the number of bytes; a multiple of SectorSize.
	Size() int64
	// Submit starts the requests in the order given and never blocks. Each Request, with its Data and Buf, belongs to
	// the device until it is handed back through its Client. The slice itself stays the caller's.
	Submit(batch []*Request)
}

// Client is the part of a front end that submitted a request. Complete may be called from any goroutine, several at
// a time; it must not block on anything that needs a further completion. It is called once per batch of completions,
// so that a front end can answer them with one system call. The slice is valid during the call only.
type Client interface {
	Complete(batch []*Request)
}

// Request is one I/O of a front end.
type Request struct {
	Op     Op
	FUA    bool  // Write, WriteZeroes: complete only when stable
	Offset int64 // bytes, multiple of SectorSize
	Length int64 // bytes, multiple of SectorSize; within the device
	// Data is the payload, Length bytes: given with a Write, set by the device when a Read completes without error.
	Data []byte
	// Buf owns Data's memory. The side that holds the request holds one reference: for a Write the device releases it,
	// for a Read the client does after it has sent Data. Nil when Data needs no release.
	Buf *Buffer
	Err error // set at completion
	// Told is set at completion with ErrLost: the client calls it when it knows that the error has reached whoever it acts for.
	Told   func()
	Client Client
	Tag    any // the client's own
}

// Buffer is reference-counted memory from a BufferPool. Many requests may refer to parts of one Buffer.
type Buffer struct {
	B    []byte
	refs atomic.Int32
	pool *BufferPool
}

// Retain adds a reference.
func (b *Buffer) Retain() {
	if b != nil {
		b.refs.Add(1)
	}
}

// Release drops a reference; the last one gives the memory back to its pool. Release of a nil Buffer does nothing.
func (b *Buffer) Release() {
	if b == nil {
		return
	}
	switch n := b.refs.Add(-1); {
	case n == 0:
		if b.pool != nil {
			b.pool.put(b)
		}
	case n < 0:
		panic("block: Buffer released twice")
	}
}

// BufferPool recycles buffers of one size.
type BufferPool struct {
	size int
	pool sync.Pool
}

// NewBufferPool returns a pool of buffers of size bytes.
func NewBufferPool(size int) *BufferPool { return &BufferPool{size: size} }

// Get returns a Buffer with one reference. Its contents are arbitrary.
func (p *BufferPool) Get() *Buffer {
	b, _ := p.pool.Get().(*Buffer)
	if b == nil {
		b = &Buffer{B: make([]byte, p.size), pool: p}
	}
	b.refs.Store(1)
	return b
}

func (p *BufferPool) put(b *Buffer) { p.pool.Put(b) }

// WrapBuffer returns a Buffer with one reference over memory that the garbage collector reclaims.
func WrapBuffer(b []byte) *Buffer {
	buf := &Buffer{B: b}
	buf.refs.Store(1)
	return buf
}
