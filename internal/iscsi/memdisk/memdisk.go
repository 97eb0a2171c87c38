// Package memdisk is a sparse block.Device in memory, for the tests and benchmarks of the front ends. It executes
// requests in the order of submission, either inside Submit or on a goroutine of its own, and can be told to hold
// requests or to fail them.
package memdisk

import (
	"sync"

	"github.com/cstor-go/cstor/internal/block"
)

const (
	pageSize   = 1 << 20
	readBuffer = 64 << 10 // reads up to this size use a pool
)

// Disk is the device. Its methods may be called concurrently.
type Disk struct {
	mu     sync.Mutex
	cond   sync.Cond
	size   int64
	pages  []*[pageSize]byte
	async  bool
	closed bool
	held   bool
	queue  []*block.Request
	work   []*block.Request
	stats  Stats
	// Fault, if set before use, is asked for the error of every request; nil lets it be executed.
	Fault func(r *block.Request) error
	pool  *block.BufferPool
}

// Stats counts requests by kind.
type Stats struct{ Reads, Writes, FUA, Flushes, Discards, Zeroes int }

// New returns a disk that executes requests inside Submit.
func New(size int64) *Disk {
	d := &Disk{size: size, pages: make([]*[pageSize]byte, (size+pageSize-1)/pageSize), pool: block.NewBufferPool(readBuffer)}
	d.cond.L = &d.mu
	return d
}

// NewAsync returns a disk that executes requests on a goroutine of its own until Close.
func NewAsync(size int64) *Disk {
	d := New(size)
	d.async = true
	go d.run()
	return d
}

// Close ends the goroutine of an asynchronous disk after the last request.
func (d *Disk) Close() {
	d.mu.Lock()
	d.closed, d.held = true, false
	d.cond.Broadcast()
	d.mu.Unlock()
}

// Hold keeps requests of an asynchronous disk from being executed until Resume.
func (d *Disk) Hold() { d.set(true) }

// Resume ends a Hold.
func (d *Disk) Resume() { d.set(false) }

func (d *Disk) set(held bool) {
	d.mu.Lock()
	d.held = held
	d.cond.Broadcast()
	d.mu.Unlock()
}

// Waiting returns the number of requests that wait to be executed.
func (d *Disk) Waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queue)
}

// Stats returns what was executed so far.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stats
}

// Size implements block.Device.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
}

// Grow makes the disk larger.
func (d *Disk) Grow(size int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pages = append(d.pages, make([]*[pageSize]byte, (size+pageSize-1)/pageSize-int64(len(d.pages)))...)
	d.size = size
}

// Submit implements block.Device.
func (d *Disk) Submit(batch []*block.Request) {
	d.mu.Lock()
	if d.async {
		d.queue = append(d.queue, batch...)
		d.cond.Signal()
		d.mu.Unlock()
		return
	}
	for _, r := range batch {
		d.execute(r)
	}
	d.mu.Unlock()
	complete(batch)
}

func (d *Disk) run() {
	for {
		d.mu.Lock()
		for d.held || len(d.queue) == 0 {
			if d.closed && len(d.queue) == 0 {
				d.mu.Unlock()
				return
			}
			d.cond.Wait()
		}
		d.work, d.queue = d.queue, d.work[:0]
		for _, r := range d.work {
			d.execute(r)
		}
		d.mu.Unlock()
		complete(d.work)
		clear(d.work)
	}
}

// complete hands requests back, those of one client together as they come.
func complete(batch []*block.Request) {
	for len(batch) > 0 {
		c, n := batch[0].Client, 1
		for n < len(batch) && batch[n].Client == c {
			n++
		}
		c.Complete(batch[:n])
		batch = batch[n:]
	}
}

// execute carries a request out; the lock is held.
func (d *Disk) execute(r *block.Request) {
	r.Err = nil
	if d.Fault != nil {
		r.Err = d.Fault(r)
	}
	if r.Err == nil && (r.Offset < 0 || r.Length < 0 || r.Offset+r.Length > d.size) {
		panic("memdisk: request outside of the device")
	}
	switch r.Op {
	case block.Read:
		d.stats.Reads++
		if r.Err == nil {
			d.read(r)
		}
	case block.Write:
		d.stats.Writes++
		if r.FUA {
			d.stats.FUA++
		}
		if r.Err == nil {
			d.each(r.Offset, r.Length, true, func(at int64, p []byte) { copy(p, r.Data[at:]) })
		}
		r.Buf.Release()
		r.Data, r.Buf = nil, nil
	case block.Flush:
		d.stats.Flushes++
	case block.Discard:
		d.stats.Discards++
		start := (r.Offset + block.Size - 1) &^ (block.Size - 1)
		end := (r.Offset + r.Length) &^ (block.Size - 1)
		if r.Err == nil && start < end {
			d.each(start, end-start, false, func(_ int64, p []byte) { clear(p) })
		}
	case block.WriteZeroes:
		d.stats.Zeroes++
		if r.Err == nil {
			d.each(r.Offset, r.Length, false, func(_ int64, p []byte) { clear(p) })
		}
	}
}

func (d *Disk) read(r *block.Request) {
	if r.Length <= readBuffer {
		r.Buf = d.pool.Get()
	} else {
		r.Buf = block.WrapBuffer(make([]byte, r.Length))
	}
	r.Data = r.Buf.B[:r.Length]
	for at := int64(0); at < r.Length; {
		page, off := (r.Offset+at)/pageSize, (r.Offset+at)%pageSize
		n := min(pageSize-off, r.Length-at)
		if p := d.pages[page]; p != nil {
			copy(r.Data[at:at+n], p[off:])
		} else {
			clear(r.Data[at : at+n])
		}
		at += n
	}
}

// each calls f for the parts of a range; pages that are not there are made, or else left out.
func (d *Disk) each(offset, length int64, make bool, f func(at int64, p []byte)) {
	for at := int64(0); at < length; {
		page, off := (offset+at)/pageSize, (offset+at)%pageSize
		n := min(pageSize-off, length-at)
		if d.pages[page] == nil && make {
			d.pages[page] = new([pageSize]byte)
		}
		if p := d.pages[page]; p != nil {
			f(at, p[off:off+n])
		}
		at += n
	}
}
