package raid

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// State says whether a device takes part in I/O.
type State uint8

const (
	Online  State = iota + 1
	Out           // failed or hung; gets no I/O until Return
	Missing       // was never there
)

func (s State) String() string {
	switch s {
	case Online:
		return "ONLINE"
	case Out:
		return "FAULTED"
	case Missing:
		return "UNAVAIL"
	}
	return "state?"
}

var (
	// ErrStuck is wrapped when a device cannot come back because requests that it never answered may still change it.
	ErrStuck = errors.New("requests are stuck in the device")
	// ErrHung is the cause of a device that did not answer in time.
	ErrHung = errors.New("no answer in time")
	errGone = errors.New("not found")
)

// Device is a disk in a group, and its health. All methods may be called concurrently.
type Device struct {
	guid  block.GUID
	disk  atomic.Pointer[diskRef]
	state atomic.Uint32
	cause atomic.Pointer[error]
	group atomic.Pointer[Group]

	inflight atomic.Int32 // requests under way, and what the disk does by itself
	watch    watch
	took     [requestKinds]atomic.Int64 // nanoseconds, the last of each kind
	reads    atomic.Uint64
	writes   atomic.Uint64
	sums     atomic.Uint64
	score    atomic.Int32 // of recent read errors, see readFailed

	moment atomic.Uint64 // grows whenever the device comes, goes, or misses a write

	stale    unitSet     // units that missed writes
	allStale atomic.Bool // all units are; set before the device is in a group, which knows how many they are
	dirty    unitSet     // units written since the last flush began
	flushing unitSet     // units that the flush under way covers
	flushMu  sync.Mutex  // held by that flush
	mu       sync.Mutex  // guards changes of state
}

type diskRef struct{ d disk.Device }

// NewDevice returns an Online device without stale units; dev nil: a Missing one.
func NewDevice(guid block.GUID, dev disk.Device) *Device {
	d := &Device{guid: guid}
	d.setDisk(dev)
	return d
}

func (d *Device) setDisk(dev disk.Device) {
	if dev == nil {
		d.cause.Store(&errGone)
		d.state.Store(uint32(Missing))
		return
	}
	if w, ok := dev.(disk.Worker); ok {
		w.RunWith(d.run)
	}
	d.disk.Store(&diskRef{dev})
	d.cause.Store(nil)
	d.score.Store(0)
	d.moment.Add(1)
	d.state.Store(uint32(Online))
}

// GUID returns what identifies the device.
func (d *Device) GUID() block.GUID { return d.guid }

// Name returns the name of the disk, or of the GUID when there is none.
func (d *Device) Name() string {
	if r := d.disk.Load(); r != nil {
		return r.d.Name()
	}
	return "with GUID " + d.guid.String()
}

// Disk returns the disk, nil if the device is missing. It stays the same while the device is Out.
func (d *Device) Disk() disk.Device {
	if r := d.disk.Load(); r != nil {
		return r.d
	}
	return nil
}

// State returns whether the device takes part in I/O.
func (d *Device) State() State { return State(d.state.Load()) }

func (d *Device) online() bool { return d.state.Load() == uint32(Online) }

// Cause returns why the device is not Online, nil if it is.
func (d *Device) Cause() error {
	if e := d.cause.Load(); e != nil {
		return *e
	}
	return nil
}

// Errors returns how many reads and writes (flushes included) failed, and how many blocks were read that turned out to
// be wrong, since the process started.
func (d *Device) Errors() (reads, writes, checksums uint64) {
	return d.reads.Load(), d.writes.Load(), d.sums.Load()
}

// Stuck returns the number of requests that the device has not answered.
func (d *Device) Stuck() int { return int(d.inflight.Load()) }

// Fail takes the device out whatever the redundancy left.
func (d *Device) Fail(cause error) { d.takeOut(cause, true) }

// FailSpared takes the device out if its group has without it all that it has with it. It returns whether the device is
// out.
func (d *Device) FailSpared(cause error) bool { return d.takeOut(cause, false) }

// Return puts a device that is Out or Missing back into service on dev, which may be the disk it had. Its stale units
// stay stale until they are healed. It wraps ErrStuck while the old disk still holds requests.
func (d *Device) Return(dev disk.Device) error {
	if dev == nil {
		return fmt.Errorf("device %s: return: no disk given", d.Name())
	}
	g := d.group.Load()
	d.mu.Lock()
	if d.online() {
		d.mu.Unlock()
		return fmt.Errorf("device %s: return: it is online", d.Name())
	}
	if n := d.inflight.Load(); n > 0 {
		d.mu.Unlock()
		return fmt.Errorf("device %s: return: %w (%d)", d.Name(), ErrStuck, n)
	}
	if g != nil {
		if err := g.fits(dev); err != nil {
			d.mu.Unlock()
			return err
		}
	}
	d.setDisk(dev)
	d.mu.Unlock()
	if g != nil {
		g.changed(d, "device is back")
	}
	return nil
}

// Stale reports whether any unit is stale.
func (d *Device) Stale() bool { return d.allStale.Load() || d.stale.n.Load() > 0 }

// StaleCount returns the number of stale units of a device that is in a group.
func (d *Device) StaleCount() int { return int(d.stale.n.Load()) }

// Missed returns how often a unit that was not stale became so. A caller that reads it before StaleUnits knows later
// whether what it saw then is still all that the device lacks.
func (d *Device) Missed() uint64 { return d.stale.added.Load() }

// StaleUnits returns a copy of the set of stale units of a device that is in a group.
func (d *Device) StaleUnits() Bitmap { return d.stale.bitmap() }

// IsStale reports whether a unit is stale.
func (d *Device) IsStale(unit int) bool { return d.allStale.Load() || d.stale.has(unit) }

// SetStale marks a unit as stale: it is written but not read until ClearStale.
func (d *Device) SetStale(unit int) { d.stale.add(unit) }

// SetAllStale marks every unit as stale.
func (d *Device) SetAllStale() {
	d.allStale.Store(true)
	if g := d.group.Load(); g != nil {
		d.spreadStale(int(g.units.Load()))
	}
}

// spreadStale turns allStale into marks of single units.
func (d *Device) spreadStale(units int) {
	if d.allStale.Load() {
		d.stale.addRange(0, units-1)
		d.allStale.Store(false)
	}
}

// ClearStale says that all rows of the unit that hold live data have been healed on this device. A write that missed
// the device meanwhile sets the mark again, so who heals goes on until Stale is false.
func (d *Device) ClearStale(unit int) { d.stale.remove(unit) }

// Moment returns a number that changes whenever the device goes out, comes back or misses a write.
func (d *Device) Moment() uint64 { return d.moment.Load() }

// Healed is ClearStale for who has healed everything that was in the unit when Moment was the given one, while writes
// went on: it does nothing and returns false when the device is not online or may have missed any of those.
func (d *Device) Healed(unit int, moment uint64) bool {
	d.mu.Lock() // the device cannot go out meanwhile, and what it misses once it is out is marked later
	defer d.mu.Unlock()
	if !d.online() || d.moment.Load() != moment {
		return false
	}
	d.stale.remove(unit)
	if d.moment.Load() != moment { // it missed a write and stayed: whose mark may be the one that is gone now
		d.stale.add(unit)
		return false
	}
	return true
}

// miss marks units that a write did not reach.
func (d *Device) miss(first, last int) {
	d.moment.Add(1) // first, see Healed
	d.stale.addRange(first, last)
}

// begin counts a request in, unless the device gets none.
func (d *Device) begin() bool {
	d.inflight.Add(1) // before the look at the state: Return looks at the two the other way round
	if d.online() {
		return true
	}
	d.inflight.Add(-1)
	return false
}

func (d *Device) end() { d.inflight.Add(-1) }

// run lets the disk do something by itself, which counts as a request under way. It is not watched: nobody waits for it,
// a busy disk may take long for it, and one that hangs does so for others too.
func (d *Device) run(work func()) {
	d.inflight.Add(1)
	go func() {
		work()
		d.end()
	}()
}

// isStale reports whether any of the units is stale.
func (d *Device) isStale(first, last int) bool { return d.stale.any(first, last) }

// takeOut takes an Online device out. Without force it refuses, and returns false, when the group could not spare it.
// What it wrote since its last flush may be lost, so those units become stale.
func (d *Device) takeOut(cause error, force bool) bool {
	g := d.group.Load()
	done, gone := d.tryOut(g, cause, force)
	if done && g != nil {
		g.changed(d, "device is taken out")
	}
	return done || gone
}

// tryOut is takeOut without the message. gone means that the device was not Online to begin with.
func (d *Device) tryOut(g *Group, cause error, force bool) (done, gone bool) {
	if g != nil {
		g.mu.Lock() // one at a time: two devices must not each be spared because of the other
		defer g.mu.Unlock()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.online() {
		return false, true
	}
	if g != nil && !force && !g.canLose(d) {
		return false, false
	}
	if g != nil && force && g.parity == 0 && !g.canLose(d) {
		g.forfeit.Store(true)
	}
	d.cause.Store(&cause)
	d.moment.Add(1)
	d.state.Store(uint32(Out))
	d.unflushed()
	return true, false
}

// awaitOut returns when a device that is not Online has marked what it may lack: it does that when it gets no requests any
// more.
func (d *Device) awaitOut() {
	d.mu.Lock() // held from before it is Out until the marks are there
	d.mu.Unlock()
}

// unflushed marks the units as stale that no flush has covered, where the group has them elsewhere. Where it has not, what
// it says is written is nowhere.
func (d *Device) unflushed() {
	g := d.group.Load()
	mark := func(u int) {
		switch {
		case g == nil || d.IsStale(u): // nobody counts on it
		case g.goodWithout(d, u, u) >= g.data:
			d.stale.add(u)
		default:
			g.forfeit.Store(true)
		}
	}
	d.dirty.drain(mark)
	d.flushing.drain(mark)
}

const (
	scorePerError = 32
	scoreLimit    = 16 * scorePerError
)

// readFailed counts a read error and takes a device out that keeps failing: sixteen errors with fewer than 32 good
// requests per error between them.
func (d *Device) readFailed(err error) {
	d.reads.Add(1)
	if d.score.Add(scorePerError) >= scoreLimit {
		d.takeOut(fmt.Errorf("too many read errors, the last one: %w", err), false)
	}
}

// succeeded lets old read errors fade.
func (d *Device) succeeded() {
	if d.score.Load() > 0 {
		d.score.Add(-1)
	}
}
