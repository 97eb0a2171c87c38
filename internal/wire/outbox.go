package wire

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/block"
)

// ErrOverflow is the end of a connection whose peer takes data more slowly than it is produced.
var ErrOverflow = errors.New("peer does not keep up")

// Ref is a counted reference to memory, a *block.Buffer for example.
type Ref interface{ Release() }

// Outbox is the sending side of a connection. Append and its relatives put bytes into an ordered queue and never block;
// Flush writes what is queued with as few system calls as possible, in the calling goroutine as long as the socket takes
// it, and leaves the rest to a writer goroutine. So a batch costs one system call, and a peer that does not read stops
// nobody. All methods may be called concurrently; order between concurrent Appends is the callers' business.
type Outbox struct {
	conn  *net.TCPConn
	raw   syscall.RawConn
	limit int
	try   func(fd uintptr) bool // writes what it can
	wait  func(fd uintptr) bool // the same, and has the runtime wait when it could write nothing

	mu      sync.Mutex
	drained sync.Cond
	queue   []segment
	arena   *block.Buffer // small frames are copied here
	used    int           // of arena
	bytes   int           // queued or being written
	waiters int           // in Wait
	writing bool          // somebody is between taking from queue and having written it
	stuck   bool          // and it is the writer goroutine's turn to go on with that
	err     error         // why nothing is sent any more
	wake    chan struct{} // the writer goroutine's

	// The rest belongs to whoever set writing.
	batch []segment
	iov   []unix.Iovec
	sent  int // bytes of the last system call
	errno syscall.Errno
}

type segment struct {
	b     []byte
	owner Ref
}

const (
	arenaSize = 32 << 10
	maxIov    = 1024    // UIO_MAXIOV
	maxWrite  = 4 << 20 // bytes for one system call
	ownTurns  = 4       // batches that Flush writes itself
)

var arenas = block.NewBufferPool(arenaSize)

// NewOutbox returns the outbox of conn and starts its writer goroutine, which Close ends. When more than limit bytes are
// queued the connection is closed with ErrOverflow.
func NewOutbox(conn *net.TCPConn, limit int) (*Outbox, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	o := &Outbox{conn: conn, raw: raw, limit: limit, wake: make(chan struct{}, 1), iov: make([]unix.Iovec, 0, maxIov)}
	o.drained.L = &o.mu
	o.try = func(fd uintptr) bool { o.writev(fd); return true }
	o.wait = func(fd uintptr) bool { o.writev(fd); return o.errno != syscall.EAGAIN }
	go o.writer()
	return o, nil
}

// Append queues b, which must not change until owner is released; the outbox takes over one reference. A nil owner is
// for memory that is left to the garbage collector.
func (o *Outbox) Append(b []byte, owner Ref) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		if owner != nil {
			owner.Release()
		}
		return
	}
	o.queue = append(o.queue, segment{b, owner})
	o.grow(len(b))
	o.mu.Unlock()
}

// AppendTwo queues a and b, one after the other, which owner both keeps alive.
func (o *Outbox) AppendTwo(a, b []byte, owner Ref) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		owner.Release()
		return
	}
	o.queue = append(o.queue, segment{a, nil}, segment{b, owner})
	o.grow(len(a) + len(b))
	o.mu.Unlock()
}

// AppendCopy queues a copy of b, a small frame.
func (o *Outbox) AppendCopy(b []byte) {
	if len(b) > arenaSize/4 {
		o.Append(append([]byte(nil), b...), nil)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		copy(o.small(len(b)), b)
		o.grow(len(b))
	}
}

// AppendHeader queues a frame without payload.
func (o *Outbox) AppendHeader(h Header) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		h.Put(o.small(HeaderSize))
		o.grow(HeaderSize)
	}
}

// small queues n bytes of the arena and returns them to be filled. o.mu is held.
func (o *Outbox) small(n int) []byte {
	if o.arena == nil || o.used+n > arenaSize {
		if o.arena != nil {
			o.arena.Release()
		}
		o.arena, o.used = arenas.Get(), 0
	}
	start := o.used
	o.used += n
	b := o.arena.B[start:o.used]
	if last := len(o.queue) - 1; last >= 0 && o.queue[last].owner == Ref(o.arena) {
		s := &o.queue[last] // it ends where b starts
		s.b = o.arena.B[start-len(s.b) : o.used]
	} else {
		o.arena.Retain()
		o.queue = append(o.queue, segment{b, o.arena})
	}
	return b
}

// grow counts bytes queued. o.mu is held.
func (o *Outbox) grow(n int) {
	o.bytes += n
	if o.bytes > o.limit {
		o.fail(fmt.Errorf("%w: %d bytes are waiting to be sent", ErrOverflow, o.bytes))
	}
}

// Wait blocks while more than n bytes are queued and the outbox works. It calls moved, which must be quick, whenever some were
// written meanwhile.
func (o *Outbox) Wait(n int, moved func()) {
	o.mu.Lock()
	o.waiters++
	for o.bytes > n && o.err == nil {
		o.drained.Wait()
		moved()
	}
	o.waiters--
	o.mu.Unlock()
}

// Flush sees to it that what is queued gets sent.
func (o *Outbox) Flush() {
	for range ownTurns {
		if !o.take() {
			return
		}
		if !o.send(o.try) {
			break
		}
	}
	o.signal()
}

func (o *Outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take starts to write a batch; false if there is nothing to write or somebody else is at it. After true, send must be
// called.
func (o *Outbox) take() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writing || len(o.queue) == 0 || o.err != nil {
		return false
	}
	o.writing = true
	o.batch, o.queue = o.queue, o.batch[:0]
	return true
}

// send writes the batch with do; false when the socket took only a part, and the writer goroutine must go on.
func (o *Outbox) send(do func(uintptr) bool) bool {
	rest := o.batch
	for len(rest) > 0 {
		o.iov = o.iov[:0]
		size := 0
		for i := 0; i < len(rest) && i < maxIov && size < maxWrite; i++ {
			o.iov = append(o.iov, unix.Iovec{Base: unsafe.SliceData(rest[i].b), Len: uint64(len(rest[i].b))})
			size += len(rest[i].b)
		}
		o.sent, o.errno = 0, 0
		err := o.raw.Write(do)
		if err == nil && o.errno != 0 && o.errno != syscall.EAGAIN {
			err = fmt.Errorf("writev: %w", o.errno)
		}
		n := o.sent
		rest = advance(rest, n)
		o.mu.Lock()
		if o.bytes -= n; n > 0 && o.waiters > 0 {
			o.drained.Broadcast()
		}
		if err != nil {
			o.fail(err)
		}
		if o.err != nil {
			o.mu.Unlock()
			break
		}
		if n < size {
			o.batch, o.stuck = append(o.batch[:0], rest...), true
			o.mu.Unlock()
			return false
		}
		o.mu.Unlock()
	}
	release(rest)
	clear(o.iov)
	o.mu.Lock()
	o.batch = o.batch[:0]
	o.writing = false
	if o.err != nil {
		o.dispose()
	}
	o.mu.Unlock()
	return true
}

// writev writes o.iov as far as the socket takes it.
func (o *Outbox) writev(fd uintptr) {
	for {
		n, _, errno := syscall.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(o.iov))), uintptr(len(o.iov)))
		if errno == syscall.EINTR {
			continue
		}
		if o.errno = errno; errno == 0 {
			o.sent = int(n)
		}
		return
	}
}

// advance drops n bytes from the front of segs and releases those that are done.
func advance(segs []segment, n int) []segment {
	for len(segs) > 0 && n >= len(segs[0].b) {
		n -= len(segs[0].b)
		release(segs[:1])
		segs = segs[1:]
	}
	if n > 0 {
		segs[0].b = segs[0].b[n:]
	}
	return segs
}

func release(segs []segment) {
	for i := range segs {
		if segs[i].owner != nil {
			segs[i].owner.Release()
		}
		segs[i] = segment{}
	}
}

// writer takes over when the socket is full.
func (o *Outbox) writer() {
	for range o.wake {
		o.mu.Lock()
		stuck, end := o.stuck, o.err != nil
		o.stuck = false
		o.mu.Unlock()
		for stuck || o.take() {
			if stuck = !o.send(o.wait); stuck {
				o.mu.Lock()
				o.stuck = false
				o.mu.Unlock()
			}
		}
		if end {
			return
		}
	}
}

// fail ends the connection because of err. o.mu is held.
func (o *Outbox) fail(err error) {
	if o.err != nil {
		return
	}
	o.err = err
	o.conn.Close()
	if !o.writing {
		o.dispose()
	}
	o.drained.Broadcast()
	o.signal()
}

// dispose releases what will not be sent. o.mu is held, o.err set, and nobody writes.
func (o *Outbox) dispose() {
	release(o.queue)
	o.queue = o.queue[:0]
	if o.arena != nil {
		o.arena.Release()
		o.arena = nil
	}
}

// Close ends the connection; what is queued is not sent.
func (o *Outbox) Close() {
	o.mu.Lock()
	o.fail(net.ErrClosed)
	o.mu.Unlock()
}

// Err returns why the outbox sends nothing any more, nil while it does.
func (o *Outbox) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}
