package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of Open.
type Options struct {
	// Direct bypasses the page cache (O_DIRECT). Buffers that are not aligned in memory are copied. By default I/O is
	// buffered and made stable by Flush.
	Direct bool
	// ReadOnly opens for reading only, without locking: for Probe of devices that others may hold.
	ReadOnly bool
	// Shared, with ReadOnly, takes a lock that others who look may share, but nobody who writes: it wraps ErrBusy when a
	// pool's process holds the device, and keeps one from starting. A block device is held alone.
	Shared bool
}

// file is a regular file or a block device.
type file struct {
	f      *os.File
	fd     int
	name   string
	size   atomic.Int64
	block  bool // block device
	direct bool
	rdonly bool

	mu     sync.RWMutex // held shared during every call, so that Close cannot pull the descriptor away
	closed bool

	cached  atomic.Int64 // bytes written into the page cache since the kernel was last told to write them out
	writing atomic.Bool  // it is being told
	run     atomic.Pointer[func(work func())]
}

// cachedMost is how much is left in the page cache before the kernel is told to write it out. It would wait for many
// seconds, or for a flush, and others who use the device meanwhile would wait for all of it at once.
const cachedMost = 8 << 20

// Open opens the regular file or block device at path for exclusive use. It wraps ErrBusy when somebody else holds it.
func Open(path string, opt Options) (Device, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	isBlock := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !isBlock && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("device %s: %w", path, ErrNotStorage)
	}
	flags := os.O_RDWR
	if opt.ReadOnly {
		flags = os.O_RDONLY
	}
	if isBlock && (!opt.ReadOnly || opt.Shared) {
		flags |= unix.O_EXCL // on a block device: refuse when mounted or held by anyone else
	}
	if opt.Direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		err = ErrBusy
	}
	if err != nil {
		return nil, fmt.Errorf("device %s: open: %w", path, err)
	}
	d := &file{f: f, fd: int(f.Fd()), name: path, block: isBlock, direct: opt.Direct, rdonly: opt.ReadOnly}
	lock := unix.LOCK_EX
	if opt.ReadOnly {
		if lock = 0; opt.Shared {
			lock = unix.LOCK_SH
		}
	}
	if err := d.prepare(lock); err != nil {
		f.Close()
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	return d, nil
}

func (d *file) prepare(lock int) error {
	if lock != 0 {
		if err := unix.Flock(d.fd, lock|unix.LOCK_NB); err != nil {
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrBusy
			}
			return fmt.Errorf("lock: %w", err)
		}
	}
	n, err := d.measure()
	d.size.Store(n)
	return err
}

// measure asks the system how large the device is.
func (d *file) measure() (int64, error) {
	var n uint64
	if d.block {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n))); e != 0 {
			return 0, fmt.Errorf("size: %w", e)
		}
	} else {
		st, err := d.f.Stat()
		if err != nil {
			return 0, fmt.Errorf("size: %w", err)
		}
		n = uint64(st.Size())
	}
	return int64(n - n%Align), nil
}

// Refresh implements Refresher.
func (d *file) Refresh() error {
	if err := d.enter("size", 0, 0); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	n, err := d.measure()
	if err != nil {
		return fmt.Errorf("device %s: %w", d.name, err)
	}
	d.size.Store(n)
	return nil
}

func (d *file) Name() string { return d.name }
func (d *file) Size() int64  { return d.size.Load() }

func (d *file) enter(op string, off, length int64) error {
	d.mu.RLock()
	if d.closed {
		d.mu.RUnlock()
		return &RequestError{Device: d.name, Op: op, Err: os.ErrClosed}
	}
	if err := check(d.name, off, length, d.size.Load()); err != nil {
		d.mu.RUnlock()
		return err
	}
	return nil
}

func (d *file) ReadAt(b []byte, off int64) error {
	if err := d.enter("read", off, int64(len(b))); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	dst := b
	if d.direct && !aligned(b) {
		dst = alignedBytes(len(b))
	}
	for done := 0; done < len(dst); {
		n, err := unix.Pread(d.fd, dst[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return &RequestError{Device: d.name, Op: "read", Off: off, Len: int64(len(b)), Err: err}
		}
		done += n
	}
	if len(b) > 0 && &dst[0] != &b[0] {
		copy(b, dst)
	}
	return nil
}

// iovMax is the number of buffers of one pwritev (IOV_MAX of Linux).
const iovMax = 1024

// iovecs recycles the vectors of WritevAt.
var iovecs = sync.Pool{New: func() any { return new([iovMax]unix.Iovec) }}

func (d *file) WritevAt(bufs [][]byte, off int64) error {
	var total int64
	copying := false
	for _, b := range bufs {
		total += int64(len(b))
		copying = copying || d.direct && !aligned(b)
	}
	if err := d.enter("write", off, total); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if copying {
		flat := alignedBytes(int(total))
		at := 0
		for _, b := range bufs {
			at += copy(flat[at:], b)
		}
		bufs = [][]byte{flat}
	}
	if err := d.writev(bufs, off); err != nil {
		return &RequestError{Device: d.name, Op: "write", Off: off, Len: total, Err: d.advise(err)}
	}
	if !d.direct && d.cached.Add(total) >= cachedMost && d.writing.CompareAndSwap(false, true) {
		d.cached.Store(0)
		if run := d.run.Load(); run != nil {
			(*run)(d.writeOut)
		} else {
			go d.writeOut()
		}
	}
	return nil
}

// RunWith implements Worker.
func (d *file) RunWith(run func(work func())) { d.run.Store(&run) }

// writeOut begins to write what is in the page cache. It makes nothing stable; errors are for the next Flush to report.
func (d *file) writeOut() {
	defer d.writing.Store(false)
	if d.enter("write out", 0, 0) == nil {
		defer d.mu.RUnlock()
		_ = unix.SyncFileRange(d.fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// writev writes all of bufs, in as few system calls as the kernel accepts.
func (d *file) writev(bufs [][]byte, off int64) error {
	iov := iovecs.Get().(*[iovMax]unix.Iovec)
	defer iovecs.Put(iov)
	defer clear(iov[:min(len(bufs), iovMax)]) // the vectors must not keep the caller's memory alive
	skip := 0                                 // bytes of bufs[0] that are written
	for {
		for len(bufs) > 0 && skip == len(bufs[0]) {
			bufs, skip = bufs[1:], 0
		}
		if len(bufs) == 0 {
			return nil
		}
		n := 0
		for _, b := range bufs {
			if n == iovMax {
				break
			}
			if n == 0 {
				b = b[skip:]
			}
			if len(b) == 0 {
				continue
			}
			iov[n].Base = &b[0]
			iov[n].SetLen(len(b))
			n++
		}
		wrote, _, e := unix.Syscall6(unix.SYS_PWRITEV, uintptr(d.fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(n), uintptr(off), 0, 0)
		switch {
		case e == unix.EINTR:
			continue
		case e != 0:
			return e
		case wrote == 0:
			return io.ErrShortWrite
		}
		off += int64(wrote)
		for left := int(wrote); left > 0; {
			rest := len(bufs[0]) - skip
			if left < rest {
				skip += left
				break
			}
			left -= rest
			bufs, skip = bufs[1:], 0
		}
	}
}

func (d *file) Flush() error {
	if err := d.enter("flush", 0, 0); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	for {
		err := unix.Fdatasync(d.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &RequestError{Device: d.name, Op: "flush", Err: d.advise(err)}
		}
		return nil
	}
}

// advise adds what to do to an error of a device that has got less space than its size says: a sparse file, or one of a
// storage that is filled as it is written.
func (d *file) advise(err error) error {
	switch {
	case errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: raise the quota of who owns the file", err)
	case errors.Is(err, unix.EFBIG):
		return fmt.Errorf("%w: raise the limit of the process or of the file system", err)
	case !errors.Is(err, unix.ENOSPC):
		return err
	case d.block:
		return fmt.Errorf("%w: the storage behind the device is full, make room there", err)
	}
	return fmt.Errorf("%w: the file system that the file is on is full, make room there", err)
}

func (d *file) Discard(off, length int64) error {
	if err := d.enter("discard", off, length); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if length == 0 {
		return nil
	}
	var err error
	if d.block {
		r := [2]uint64{uint64(off), uint64(length)}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r))); e != 0 {
			err = e
		}
	} else {
		err = unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
	}
	switch {
	case err == nil, errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.ENOTTY):
		return nil
	default:
		return &RequestError{Device: d.name, Op: "discard", Off: off, Len: length, Err: err}
	}
}

func (d *file) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if err := d.f.Close(); err != nil {
		return fmt.Errorf("device %s: close: %w", d.name, err)
	}
	return nil
}

func aligned(b []byte) bool {
	return len(b) == 0 || uintptr(unsafe.Pointer(&b[0]))%Align == 0 && len(b)%Align == 0
}

// alignedBytes returns n bytes that start at a page boundary.
func alignedBytes(n int) []byte {
	b := make([]byte, n+Align)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (Align - 1)
	return b[skip : skip+n : skip+n]
}

// Buffer returns n bytes of memory that O_DIRECT accepts without a copy.
func Buffer(n int) []byte { return alignedBytes(n) }
