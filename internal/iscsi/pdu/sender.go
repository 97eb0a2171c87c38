package pdu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cstor-go/cstor/internal/block"
)

// Sender collects PDUs and writes them with as few system calls as the load allows: whoever calls Flush while nobody
// is writing writes everything that is there, and what others append meanwhile goes out with the next write. Flush
// does not block: when the socket is full, one goroutine takes over until it has caught up.
//
// The embedded mutex also guards the owner's sequence numbers, so that they are given out in the order of sending.
type Sender struct {
	sync.Mutex
	drained sync.Cond // signalled when a write is done

	header, data bool // digests in use
	raw          syscall.RawConn
	pend, busy   batch
	writing      bool
	err          error

	// Belongs to whoever is writing.
	iov, rest []unix.Iovec
	wait      bool // block when the socket is full
	errno     syscall.Errno
	write     func(fd uintptr) bool
}

// batch is what one round of writing takes.
type batch struct {
	arena []byte // headers, small data, padding and digests
	parts []part
	bufs  []*block.Buffer // released when the batch is written
	size  int             // bytes
}

// part is the next n bytes of the arena, or data.
type part struct {
	data []byte
	n    int
}

const (
	smallData = 512      // data up to this many bytes is copied instead of referenced
	keepArena = 64 << 10 // a larger arena is not kept for the next round
	maxIovecs = 1024     // IOV_MAX
)

// ErrClosed is what a Sender fails with after Close.
var ErrClosed = errors.New("connection closed")

// NewSender returns a Sender for a connection with the parameters p. The connection must be a TCP or Unix one.
func NewSender(c net.Conn, p *Params) (*Sender, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Sender{header: p.HeaderDigest, data: p.DataDigest, raw: raw}
	s.drained.L = &s.Mutex
	s.write = s.writev
	return s, nil
}

// Append adds a PDU; its header's data length is set here. The data is not copied unless it is small, and must not
// change until it is sent; buf, if not nil, is released when all that was appended so far is sent. The lock must be held.
func (s *Sender) Append(h *Header, data []byte, buf *block.Buffer) {
	if s.err != nil {
		buf.Release()
		return
	}
	h.setDataLen(len(data))
	b := &s.pend
	start := len(b.arena)
	b.arena = append(b.arena, h[:]...)
	if s.header {
		b.arena = binary.LittleEndian.AppendUint32(b.arena, digest(b.arena[start:]))
	}
	if buf != nil {
		b.bufs = append(b.bufs, buf) // kept even when data is copied: PDUs before this one may refer to it
	}
	if len(data) == 0 {
		b.inArena(len(b.arena) - start)
		return
	}
	if len(data) <= smallData {
		b.arena = append(b.arena, data...)
	} else {
		b.inArena(len(b.arena) - start)
		b.parts = append(b.parts, part{data, len(data)})
		b.size += len(data)
		start = len(b.arena)
	}
	pad := zeroes[:padding(len(data))]
	b.arena = append(b.arena, pad...)
	if s.data {
		b.arena = binary.LittleEndian.AppendUint32(b.arena, block.UpdateSum(digest(data), pad))
	}
	b.inArena(len(b.arena) - start)
}

// inArena counts n more bytes of the arena into the parts.
func (b *batch) inArena(n int) {
	b.size += n
	if n == 0 {
		return
	}
	if k := len(b.parts) - 1; k >= 0 && b.parts[k].data == nil {
		b.parts[k].n += n
		return
	}
	b.parts = append(b.parts, part{n: n})
}

func (b *batch) reset() {
	for i, buf := range b.bufs {
		buf.Release()
		b.bufs[i] = nil
	}
	clear(b.parts)
	b.bufs, b.parts, b.arena, b.size = b.bufs[:0], b.parts[:0], b.arena[:0], 0
	if cap(b.arena) > keepArena {
		b.arena = nil
	}
}

// Queued returns the number of bytes that wait to be sent. The lock must be held.
func (s *Sender) Queued() int { return s.pend.size + s.busy.size }

// WaitBelow blocks until fewer than n bytes wait to be sent, or sending has failed.
func (s *Sender) WaitBelow(n int) {
	s.Lock()
	for s.err == nil && s.Queued() >= n {
		s.drained.Wait()
	}
	s.Unlock()
}

// UnlockAndFlush sends what was appended, as far as the socket takes it now. It is called with the lock held, and
// unlocks.
func (s *Sender) UnlockAndFlush() {
	if s.writing || s.pend.size == 0 || s.err != nil {
		s.Unlock()
		return
	}
	s.writing = true
	for s.next() {
		s.Unlock()
		if !s.round(false) {
			go s.drain()
			return
		}
		s.Lock()
	}
	s.Unlock()
}

// drain goes on writing after the socket was full, waiting for room, until there is nothing left.
func (s *Sender) drain() {
	for {
		s.round(true)
		s.Lock()
		if !s.next() {
			s.Unlock()
			return
		}
		s.Unlock()
	}
}

// next ends the round that was written and begins one with what was appended since. It returns false, and gives up
// being the writer, when there is nothing to write. The lock must be held.
func (s *Sender) next() bool {
	s.busy.reset()
	if s.errno != 0 && s.err == nil {
		s.err = s.errno
	}
	if s.err != nil {
		s.pend.reset()
	}
	s.drained.Broadcast()
	if s.pend.size == 0 {
		s.writing = false
		return false
	}
	s.busy, s.pend = s.pend, s.busy
	at := 0
	s.iov = s.iov[:0]
	for _, p := range s.busy.parts {
		b := p.data
		if b == nil {
			b = s.busy.arena[at : at+p.n]
			at += p.n
		}
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		s.iov = append(s.iov, v)
	}
	s.rest = s.iov
	return true
}

// round writes the batch; false means that the socket is full (never when it may wait).
func (s *Sender) round(wait bool) bool {
	s.wait = wait
	if err := s.raw.Write(s.write); err != nil && s.errno == 0 {
		s.errno = syscall.EPIPE // closed under us
	}
	if s.errno != 0 {
		s.rest = nil
	}
	done := len(s.rest) == 0
	if done {
		clear(s.iov)
	}
	return done
}

// writev is called with the descriptor of the socket; returning false makes the runtime wait until it is writable.
func (s *Sender) writev(fd uintptr) bool {
	for len(s.rest) > 0 {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.rest[0])), uintptr(min(len(s.rest), maxIovecs)))
		switch errno {
		case 0:
			s.advance(uint64(n))
		case unix.EINTR:
		case unix.EAGAIN:
			return !s.wait
		default:
			s.errno = errno
			return true
		}
	}
	return true
}

func (s *Sender) advance(n uint64) {
	for n > 0 {
		v := &s.rest[0]
		if n < uint64(v.Len) {
			v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
			v.SetLen(int(uint64(v.Len) - n))
			return
		}
		n -= uint64(v.Len)
		s.rest = s.rest[1:]
	}
}

// Fail makes everything that is queued or appended later go nowhere; its buffers are released. The connection must be
// closed by the caller, which also ends a write that is under way.
func (s *Sender) Fail(err error) {
	s.Lock()
	if s.err == nil {
		s.err = err
	}
	s.pend.reset()
	s.drained.Broadcast()
	s.Unlock()
}

// WaitIdle blocks until nobody is writing. After Fail and closing the connection this means that nothing refers to the
// appended data any more.
func (s *Sender) WaitIdle() {
	s.Lock()
	for s.writing {
		s.drained.Wait()
	}
	s.Unlock()
}
