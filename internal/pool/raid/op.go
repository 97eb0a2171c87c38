package raid

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/pool/disk"
)

type requestKind uint8

const (
	doRead requestKind = iota
	doWrite
	doFlush
	doDiscard
	requestKinds
)

func (k requestKind) String() string {
	return [...]string{doRead: "read", doWrite: "write", doFlush: "flush", doDiscard: "discard"}[k]
}

// request is one call of one device. It runs in a goroutine of its own, so that who waits can give up on it. Everything
// that it touches belongs to its op, which lives until the call is back.
type request struct {
	op          *op
	kind        requestKind
	col         int
	dev         *Device
	disk        disk.Device
	off, length int64
	buf         []byte   // read into
	bufs        [][]byte // written
	first, last int      // units
	good        bool     // the units are not stale on the device
	err         error
	done        atomic.Bool
	run         func()
}

// op is a set of requests that belong together, with the memory that they use.
type op struct {
	g       *Group
	reqs    []*request // in use
	spare   []*request
	left    atomic.Int32 // requests under way
	refs    atomic.Int32 // requests under way, and the owner
	eager   atomic.Bool  // wake the owner after every request
	wake    chan struct{}
	timer   *time.Timer
	ticks   int
	scratch []byte     // see memory
	iov     [][]byte   // lists of what is written
	iovs    [][][]byte // per column a part of iov
	shards  [][]byte
	skipped []*Device
}

func newOp(g *Group) *op {
	n := g.data + g.parity
	o := &op{g: g, wake: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	o.timer.Stop()
	o.shards, o.iovs = make([][]byte, n), make([][][]byte, n)
	return o
}

// begin returns an op for the caller, who releases it.
func (g *Group) begin() *op {
	o := g.ops.Get().(*op)
	o.refs.Store(1)
	o.ticks = 0
	return o
}

// maxScratch is the largest memory that an unused op keeps.
const maxScratch = 8 << 20

// release drops a reference; the last one makes the op available again.
func (o *op) release() {
	if o.refs.Add(-1) > 0 {
		return
	}
	for _, r := range o.reqs {
		r.dev, r.disk, r.buf, r.bufs, r.err = nil, nil, nil, nil, nil
		r.done.Store(false)
	}
	o.spare = append(o.spare, o.reqs...)
	o.reqs = o.reqs[:0]
	clear(o.iov[:cap(o.iov)])
	o.iov = o.iov[:0]
	clear(o.iovs)
	clear(o.shards)
	clear(o.skipped)
	o.skipped = o.skipped[:0]
	o.eager.Store(false)
	select {
	case <-o.wake:
	default:
	}
	if len(o.scratch) > maxScratch {
		o.scratch = nil
	}
	o.g.ops.Put(o)
}

// memory returns n bytes that stay the op's until it is released. A second call takes the first one's back.
func (o *op) memory(n int) []byte {
	if len(o.scratch) < n {
		o.scratch = disk.Buffer(n)
	}
	return o.scratch[:n]
}

// add prepares a request of a device that begin has let in.
func (o *op) add(kind requestKind, col int, d *Device) *request {
	var r *request
	if n := len(o.spare); n > 0 {
		r, o.spare = o.spare[n-1], o.spare[:n-1]
	} else {
		r = &request{op: o}
		r.run = r.exec
	}
	r.kind, r.col, r.dev, r.disk = kind, col, d, d.disk.Load().d
	o.reqs = append(o.reqs, r)
	return r
}

// cancel drops the requests, none of which was started.
func (o *op) cancel() {
	for _, r := range o.reqs {
		r.dev.end()
	}
	o.spare = append(o.spare, o.reqs...)
	o.reqs = o.reqs[:0]
}

// start starts requests of o. Others may be under way.
func (o *op) start(reqs []*request) {
	n := int32(len(reqs))
	o.refs.Add(n)
	o.left.Add(n)
	for _, r := range reqs {
		if o.g.inline {
			r.run()
		} else {
			go r.run()
		}
	}
}

func (r *request) exec() {
	d, o := r.dev, r.op
	alone := o.g.parity == 0 // others who ask the device for something ought to know when it does not answer
	var x watched
	if alone {
		x = d.start(r.kind)
	}
	switch r.kind {
	case doRead:
		r.err = r.disk.ReadAt(r.buf, r.off)
	case doWrite:
		r.err = r.disk.WritevAt(r.bufs, r.off)
		// A flush may have taken the marks while the write was under way, and missed it; a device that went out meanwhile
		// has its marks turned into stale units, and these may have come too late for that.
		d.dirty.addRange(r.first, r.last)
		if !d.online() {
			d.unflushed()
		}
	case doFlush:
		r.err = d.flush(r.disk)
	case doDiscard:
		r.err = r.disk.Discard(r.off, r.length)
	}
	if alone {
		d.stop(x)
	}
	if r.err == nil {
		d.succeeded()
	}
	d.end()
	r.done.Store(true)
	if o.left.Add(-1) == 0 || o.eager.Load() {
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
	o.release()
}

// flush makes stable what was written before. Writes that it covers are no longer dirty.
func (d *Device) flush(dev disk.Device) error {
	d.flushMu.Lock()
	defer d.flushMu.Unlock()
	d.dirty.drain(d.flushing.add)
	if !d.online() { // went out while the marks were between the two sets
		d.unflushed()
		return d.Cause()
	}
	if err := dev.Flush(); err != nil {
		d.flushing.drain(d.dirty.add)
		if !d.online() {
			d.unflushed()
		}
		return err
	}
	d.flushing.drain(func(int) {})
	return nil
}

// wait returns true when every request from index from on is done. It returns false when some are late: need columns
// have answered, for late ticks already, and the group can spare the others. The time counts from then, since as long
// as too few have answered it may be that everything is slow. With need zero it counts from the start. After the hard
// limit it returns false in any case, and in a group without redundancy when the devices have gone out meanwhile.
func (o *op) wait(from, late, need int) bool {
	if o.ended(from) {
		return true
	}
	o.timer.Reset(o.g.tick)
	defer o.timer.Stop()
	since := o.ticks
	for {
		select {
		case <-o.wake:
		case <-o.timer.C:
			o.ticks++
			o.timer.Reset(o.g.tick)
			if need > 0 && !o.spares(need) {
				since = o.ticks
			}
		}
		if o.ended(from) {
			return true
		}
		if o.ticks >= hardTicks || o.ticks-since >= late || o.g.parity == 0 && o.inVain() {
			return false
		}
	}
}

// inVain reports whether all requests under way are of devices that have gone out.
func (o *op) inVain() bool {
	for _, r := range o.reqs {
		if !r.done.Load() && r.dev.online() {
			return false
		}
	}
	return true
}

// ended reports whether the requests from index from on are done.
func (o *op) ended(from int) bool {
	if o.left.Load() == 0 {
		return true
	}
	if from == 0 {
		return false
	}
	for _, r := range o.reqs[from:] {
		if !r.done.Load() {
			return false
		}
	}
	return true
}

// spares reports whether need columns have answered well and the group can lose the devices that have not answered.
func (o *op) spares(need int) bool {
	for _, r := range o.reqs {
		if !r.done.Load() && !o.g.canLose(r.dev) {
			return false
		}
	}
	return o.columns() >= need
}

// columns counts the columns of which a device that is not stale there has answered without error.
func (o *op) columns() (n int) {
	var seen uint64
	for _, r := range o.reqs {
		if r.done.Load() && r.err == nil && r.good && seen>>r.col&1 == 0 {
			seen |= 1 << r.col
			n++
		}
	}
	return n
}

// leave takes the devices out that have not answered. One that cannot be spared has until the hard limit, and goes then:
// what is under way in it may land later over what is written meanwhile, which must not be on a device in use.
func (o *op) leave() {
	for {
		refused := false
		for _, r := range o.reqs {
			refused = !r.done.Load() && !r.hung(o.ticks >= hardTicks) || refused
		}
		if !refused {
			return
		}
		o.wait(0, hardTicks, 0)
	}
}

// hung takes the device of a request out that has not answered, and returns whether it is out.
func (r *request) hung(force bool) bool {
	return r.dev.takeOut(fmt.Errorf("device %s: %s of %d bytes at %d: %w (%v)", r.dev.Name(), r.kind, r.length, r.off, ErrHung,
		time.Duration(r.op.ticks)*r.op.g.tick), force)
}
