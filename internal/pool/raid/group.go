package raid

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

const (
	// RotateRows is how many rows the columns keep their roles before these move on by one column.
	RotateRows = 64
	// DefaultDeadline is how long a device may take to answer while others have.
	DefaultDeadline = 2 * time.Second

	blockSize = block.Size

	// A request is looked at in ticks of a quarter of the deadline, so that a pause of the whole process counts as one
	// tick whatever its length.
	ticksPerDeadline = 4
	lateTicks        = ticksPerDeadline      // reads and writes
	lateFlushTicks   = 5 * ticksPerDeadline  // flushes, which may have much to write back
	hardTicks        = 15 * ticksPerDeadline // anything, whatever it costs
)

var (
	// ErrLost is wrapped when more columns are gone than the parity makes up for.
	ErrLost = errors.New("too many devices of the raid group are gone")
	// ErrUnrecoverable is wrapped when no copy and no parity gives the content that was asked for.
	ErrUnrecoverable = errors.New("no copy and no parity gives the right content")
	// ErrRange is wrapped when a request is unaligned or outside the group.
	ErrRange = errors.New("request is unaligned or outside the raid group")
)

// Column is a place in a group.
type Column struct {
	// Devices holds the current device and, while it is being replaced, the new one. Both are written; the second is read
	// where the first cannot be and the unit is not stale.
	Devices []*Device
}

// Config of New.
type Config struct {
	Kind      Kind
	Columns   []Column
	Base      int64         // bytes on each device before unit 0
	UnitBytes int64         // bytes of a unit on each device
	Units     int           // units of the group
	Deadline  time.Duration // see DefaultDeadline, which zero means
	Log       *slog.Logger  // may be nil
	// ReadOnly makes everything that repairs leave the devices as they are: what is wrong is made good in memory only.
	ReadOnly bool
	// Inline makes requests one after the other in the caller's goroutine, and waits for each as long as it takes.
	Inline bool
	// Changed is called, from any goroutine and without locks held, after a device went out or came back. May be nil.
	Changed func()
}

// Group is a raid group. All methods may be called concurrently, except that a row must not be read or healed while it
// is written.
type Group struct {
	kind         Kind
	data, parity int
	base         int64
	unitBytes    int64
	unitRows     int64
	units        atomic.Int64
	tick         time.Duration
	code         *coder // nil when data == 1
	readOnly     bool
	inline       bool
	log          *slog.Logger
	onChange     func()

	forfeit atomic.Bool // a device went out, whatever that cost, that had unflushed rows which no other has; in a stripe, any

	layout atomic.Pointer[layout]
	mu     sync.Mutex // guards changes of layout, and devices going out
	ops    sync.Pool
}

// layout is immutable.
type layout struct{ cols []Column }

func (l *layout) devices(f func(c int, d *Device)) {
	for c := range l.cols {
		for _, d := range l.cols[c].Devices {
			f(c, d)
		}
	}
}

// has reports whether a device of a column is in use.
func (l *layout) has(c int, d *Device) bool {
	return d.online() && slices.Contains(l.cols[c].Devices, d)
}

// New returns a group over devices that belong to no other.
func New(cfg Config) (*Group, error) {
	data, parity, err := cfg.Kind.Shape(len(cfg.Columns))
	if err != nil {
		return nil, err
	}
	if cfg.UnitBytes <= 0 || cfg.UnitBytes%blockSize != 0 || cfg.Base < 0 || cfg.Base%blockSize != 0 || cfg.Units < 0 || cfg.Units > MaxUnits {
		return nil, fmt.Errorf("raid group of %d units of %d bytes at %d: %w", cfg.Units, cfg.UnitBytes, cfg.Base, ErrRange)
	}
	if cfg.Deadline <= 0 {
		cfg.Deadline = DefaultDeadline
	}
	g := &Group{
		kind: cfg.Kind, data: data, parity: parity, base: cfg.Base, unitBytes: cfg.UnitBytes, unitRows: cfg.UnitBytes / blockSize,
		tick: max(cfg.Deadline/ticksPerDeadline, 1), log: cfg.Log, onChange: cfg.Changed, readOnly: cfg.ReadOnly, inline: cfg.Inline,
	}
	g.units.Store(int64(cfg.Units))
	g.ops.New = func() any { return newOp(g) }
	if data > 1 {
		if g.code, err = newCoder(data, parity); err != nil {
			return nil, err
		}
	}
	l := &layout{}
	for i, c := range cfg.Columns {
		if n := len(c.Devices); n != 1 && n != 2 {
			return nil, fmt.Errorf("column %d of the raid group has %d devices: want one, or two while it is replaced", i, n)
		}
		l.cols = append(l.cols, Column{Devices: slices.Clone(c.Devices)})
	}
	g.layout.Store(l)
	l.devices(func(_ int, d *Device) {
		if err == nil {
			err = g.adopt(d)
		}
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// adopt makes d a device of the group.
func (g *Group) adopt(d *Device) error {
	if dev := d.Disk(); dev != nil {
		if err := g.fits(dev); err != nil {
			return err
		}
	}
	if !d.group.CompareAndSwap(nil, g) {
		return fmt.Errorf("device %s is in a raid group already", d.Name())
	}
	d.spreadStale(int(g.units.Load()))
	return nil
}

// fits reports an error when dev is too small.
func (g *Group) fits(dev disk.Device) error {
	if need := g.base + g.units.Load()*g.unitBytes; dev.Size() < need {
		return fmt.Errorf("device %s has %d bytes, the raid group needs %d", dev.Name(), dev.Size(), need)
	}
	return nil
}

// Kind returns the layout.
func (g *Group) Kind() Kind { return g.kind }

// Row returns the bytes of data in a row, the unit of writes.
func (g *Group) Row() int { return g.data * blockSize }

// Parity returns how many columns the group can lose.
func (g *Group) Parity() int { return g.parity }

// Redundant reports whether there may be more than one way to obtain a block: from parity, from copies, or from the
// device that takes the place of another.
func (g *Group) Redundant() bool {
	return g.parity > 0 || slices.ContainsFunc(g.layout.Load().cols, func(c Column) bool { return len(c.Devices) > 1 })
}

// Size returns the bytes of data that the group holds.
func (g *Group) Size() int64 { return g.units.Load() * g.unitBytes * int64(g.data) }

// Columns returns the columns as they are now.
func (g *Group) Columns() []Column {
	var cols []Column
	for _, c := range g.layout.Load().cols {
		cols = append(cols, Column{Devices: slices.Clone(c.Devices)})
	}
	return cols
}

// SetUnits makes the group larger, or smaller where nothing is in use.
func (g *Group) SetUnits(units int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if units < 0 || units > MaxUnits {
		return fmt.Errorf("raid group of %d units: %w", units, ErrRange)
	}
	old := g.units.Swap(int64(units))
	var err error
	g.layout.Load().devices(func(_ int, d *Device) {
		if dev := d.Disk(); dev != nil && d.online() && err == nil {
			err = g.fits(dev)
		}
	})
	if err != nil {
		g.units.Store(old)
	}
	return err
}

// Replace puts dev, all of it stale, beside the device of a column. From now on it is written too; when Heal has been
// over everything it is complete, and Promote makes it the column's only device.
func (g *Group) Replace(column int, dev *Device) error {
	return g.change(column, func(c Column) ([]*Device, error) {
		if len(c.Devices) != 1 {
			return nil, fmt.Errorf("column %d is being replaced already by device %s", column, c.Devices[1].Name())
		}
		dev.SetAllStale()
		return []*Device{c.Devices[0], dev}, g.adopt(dev)
	})
}

// Promote ends a Replace: the old device, which is returned, leaves the group. It refuses while the new one is stale.
func (g *Group) Promote(column int) (old *Device, err error) {
	err = g.change(column, func(c Column) ([]*Device, error) {
		if len(c.Devices) != 2 {
			return nil, fmt.Errorf("column %d is not being replaced", column)
		}
		old = c.Devices[0]
		if dev := c.Devices[1]; !dev.online() || dev.Stale() {
			return nil, fmt.Errorf("device %s (%s, %d stale units) cannot take the place of %s yet", dev.Name(), dev.State(), dev.StaleCount(), old.Name())
		}
		return c.Devices[1:], nil
	})
	if err == nil {
		old.group.Store(nil)
	}
	return old, err
}

// CancelReplace ends a Replace: the new device leaves the group.
func (g *Group) CancelReplace(column int) (dev *Device, err error) {
	err = g.change(column, func(c Column) ([]*Device, error) {
		if len(c.Devices) != 2 {
			return nil, fmt.Errorf("column %d is not being replaced", column)
		}
		dev = c.Devices[1]
		return c.Devices[:1], nil
	})
	if err == nil {
		dev.group.Store(nil)
	}
	return dev, err
}

func (g *Group) change(column int, f func(Column) ([]*Device, error)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.layout.Load()
	if column < 0 || column >= len(old.cols) {
		return fmt.Errorf("the raid group has no column %d", column)
	}
	devs, err := f(old.cols[column])
	if err != nil {
		return err
	}
	l := &layout{cols: slices.Clone(old.cols)}
	l.cols[column] = Column{Devices: slices.Clone(devs)}
	g.layout.Store(l)
	return nil
}

// Fresh says that nothing in the unit will be read before it is written again, so that it is not stale on any device
// that is online. No write to the unit may be under way.
func (g *Group) Fresh(unit int) {
	g.layout.Load().devices(func(_ int, d *Device) {
		if d.online() {
			d.stale.remove(unit)
		}
	})
}

// Health is the state of a group.
type Health uint8

const (
	Healthy  Health = iota + 1
	Degraded        // some device is out, missing, stale or being replaced with its column gone
	Faulted         // more columns are gone than the parity makes up for, or what was not flushed went with one of them
)

func (h Health) String() string {
	switch h {
	case Healthy:
		return "ONLINE"
	case Degraded:
		return "DEGRADED"
	case Faulted:
		return "FAULTED"
	}
	return "health?"
}

// State returns the health of the group.
func (g *Group) State() Health {
	whole, there := 0, 0
	for _, c := range g.layout.Load().cols {
		w, t := false, false
		for _, d := range c.Devices {
			on := d.online()
			t = t || on
			w = w || on && !d.Stale()
		}
		if w {
			whole++
		}
		if t {
			there++
		}
	}
	switch n := g.data + g.parity; {
	case there < g.data || g.forfeit.Load():
		return Faulted
	case whole < n:
		return Degraded
	default:
		return Healthy
	}
}

// canLose reports whether whatever can be had now can be had without d.
func (g *Group) canLose(d *Device) bool {
	stale := false
	g.layout.Load().devices(func(_ int, o *Device) { stale = stale || o != d && o.online() && o.Stale() })
	if !stale {
		return g.goodWithout(d, 0, -1) >= g.data
	}
	for u := range int(g.units.Load()) {
		if !d.stale.has(u) && g.goodWithout(d, u, u) < g.data {
			return false
		}
	}
	return true
}

// goodWithout counts the columns of which the units can be had from a device other than lost.
func (g *Group) goodWithout(lost *Device, first, last int) (n int) {
	for _, c := range g.layout.Load().cols {
		for _, d := range c.Devices {
			if d != lost && d.online() && !d.isStale(first, last) {
				n++
				break
			}
		}
	}
	return n
}

// changed reports a change of a device's state.
func (g *Group) changed(d *Device, what string) {
	if g.log != nil {
		if cause := d.Cause(); cause != nil {
			g.log.Warn(what, "device", d.Name(), "state", d.State().String(), "group", g.State().String(), "err", cause)
		} else {
			g.log.Info(what, "device", d.Name(), "state", d.State().String(), "group", g.State().String())
		}
	}
	if g.onChange != nil {
		g.onChange()
	}
}
