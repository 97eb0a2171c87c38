// Package label reads and writes what identifies a device of a pool: the labels, four copies of one block at the head
// and the tail of the device, and the ring that points at the newest checkpoint. It also recognises what others put on
// disks, so that a pool never takes a device that is not its own. It relies on a device that reads and writes aligned
// blocks; it promises that nothing but a blank device or a pool's own is ever reported as usable, and that decoding
// arbitrary bytes neither panics nor allocates more than the bytes' own size.
package label

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

const (
	// Format is the version of the on-disk format that this code writes, and the newest that it reads.
	Format = 2
	// HeadBytes and TailBytes are reserved at the two ends of a device for labels and ring.
	HeadBytes = 1 << 20
	TailBytes = 1 << 20
	// MaxDevices is the number of devices that a pool can have, MaxGroups that of its raid groups, MaxSpans that of the
	// pieces that its space is made of.
	MaxDevices = 64
	MaxGroups  = 64
	MaxSpans   = 128
	// MaxSegments is the number of segments that a pool can have: what a checkpoint says of each must fit into its root.
	MaxSegments = 1 << 21
	// MaxName is the length of the longest name and owner in bytes.
	MaxName = 255

	blockSize  = disk.Align
	secondCopy = 64 << 10 // offset of the second label in either area
	headerLen  = 96
	groupLen   = 4
	memberLen  = 36
	spanLen    = 5
)

var magic = [8]byte{'c', 'S', 't', 'o', 'r', 'G', 'o', 'L'}

var (
	// ErrBlank means that the device carries nothing at all.
	ErrBlank = errors.New("device is blank")
	// ErrDamaged means that there are labels or other structures of ours that do not decode.
	ErrDamaged = errors.New("damaged")
	// ErrNewerFormat means that a later release wrote this pool.
	ErrNewerFormat = errors.New("written in a newer format than this release reads")
	// ErrOldFormat means that a release that was never finished wrote this pool.
	ErrOldFormat = errors.New("made by a pre-release")
)

// ErrForeign says what somebody else's data on a device looks like.
type ErrForeign struct {
	Device string
	Found  string
}

func (e *ErrForeign) Error() string {
	return fmt.Sprintf("device %s is not blank: found %s; wipe it if it may be used", e.Device, e.Found)
}

// Group is a raid group: devices that share redundancy.
type Group struct {
	Kind    uint8 // raid.Kind
	Cache   bool  // takes index and log first; the data is moved to the other groups in time
	Columns int   // places for devices; a place has two while its device is being replaced
}

// Member is one device of a pool as the labels of all of them list it.
type Member struct {
	GUID   block.GUID
	Group  int
	Column int
	// Out says that the device missed writes that the newest checkpoint may not know of, or is missing.
	Out bool
	// Replacing says that the device is to take the place of the other one in its column.
	Replacing bool
	// Left says that another device has taken this one's place. It stays listed until its own labels are gone.
	Left bool
	// Last and Try are the Change of the last label that is known to be on the device, and of one that may be, as of when
	// it was put out. A device that is out and carries any other label was used without those that carry this one.
	Last, Try uint64
}

// Span is a piece of the pool's space: so many segments on one group. A group's spans follow each other on its devices.
type Span struct {
	Group    int
	Segments uint32
}

// Label is what each device says about its pool and itself.
type Label struct {
	Pool         block.GUID
	Device       block.GUID
	Name         string // of the pool
	Owner        string
	Generation   uint64 // grows with every change; the highest wins. 0: not a member yet unless others say so
	Change       uint64 // a random number for each change
	Size         int64  // bytes of the device that the pool knows of
	SegmentBytes int64
	Groups       []Group
	Members      []Member
	Spans        []Span
}

// Index returns the number of the member with that GUID in l, -1 if there is none.
func (l *Label) Index(device block.GUID) int {
	return slices.IndexFunc(l.Members, func(m Member) bool { return m.GUID == device })
}

// Clone returns a copy that shares nothing with l.
func (l *Label) Clone() *Label {
	c := *l
	c.Groups, c.Members, c.Spans = slices.Clone(l.Groups), slices.Clone(l.Members), slices.Clone(l.Spans)
	return &c
}

// Segments returns the number of segments of the pool, and of one group of it.
func (l *Label) Segments() (n uint64) {
	for _, s := range l.Spans {
		n += uint64(s.Segments)
	}
	return n
}

// GroupSegments returns the number of segments of a group.
func (l *Label) GroupSegments(group int) (n uint64) {
	for _, s := range l.Spans {
		if s.Group == group {
			n += uint64(s.Segments)
		}
	}
	return n
}

// offsets returns where the copies are on a device of that size.
func offsets(size int64) [4]int64 {
	return [4]int64{0, secondCopy, size - TailBytes, size - TailBytes + secondCopy}
}

// check reports what is wrong with l, apart from what only devices or raid kinds can tell.
func (l *Label) check() error {
	switch {
	case len(l.Name) > MaxName || len(l.Owner) > MaxName:
		return fmt.Errorf("name of %d bytes, owner of %d bytes", len(l.Name), len(l.Owner))
	case len(l.Members) == 0 || len(l.Members) > MaxDevices:
		return fmt.Errorf("%d devices", len(l.Members))
	case len(l.Groups) == 0 || len(l.Groups) > MaxGroups:
		return fmt.Errorf("%d raid groups", len(l.Groups))
	case len(l.Spans) == 0 || len(l.Spans) > MaxSpans:
		return fmt.Errorf("%d spans", len(l.Spans))
	case l.SegmentBytes < 256<<10 || l.SegmentBytes > 64<<20 || l.SegmentBytes&(l.SegmentBytes-1) != 0:
		return fmt.Errorf("segments of %d bytes", l.SegmentBytes)
	case l.Size < HeadBytes+TailBytes || l.Size%blockSize != 0:
		return fmt.Errorf("device of %d bytes", l.Size)
	case l.Index(l.Device) < 0:
		return fmt.Errorf("device %v is not its own member", l.Device)
	}
	for i, g := range l.Groups {
		if g.Kind == 0 || g.Columns == 0 || g.Columns > MaxDevices {
			return fmt.Errorf("raid group %d of kind %d with %d columns", i, g.Kind, g.Columns)
		}
		if l.GroupSegments(i) == 0 {
			return fmt.Errorf("raid group %d has no space", i)
		}
	}
	for _, s := range l.Spans {
		if s.Group < 0 || s.Group >= len(l.Groups) || s.Segments == 0 {
			return fmt.Errorf("span of %d segments on raid group %d", s.Segments, s.Group)
		}
	}
	if n := l.Segments(); n > MaxSegments {
		return fmt.Errorf("%d segments of %d bytes, want at most %d", n, l.SegmentBytes, MaxSegments)
	}
	type place struct {
		group, column int
		replacing     bool
	}
	taken, columns := map[place]bool{}, 0
	for i, m := range l.Members {
		at := place{m.Group, m.Column, m.Replacing}
		if m.Group < 0 || m.Group >= len(l.Groups) || m.Column < 0 || m.Column >= l.Groups[m.Group].Columns || taken[at] && !m.Left {
			return fmt.Errorf("member %v in column %d of raid group %d", m.GUID, m.Column, m.Group)
		}
		if l.Index(m.GUID) != i {
			return fmt.Errorf("member %v twice", m.GUID)
		}
		if m.Left {
			continue
		}
		taken[at] = true
		if !m.Replacing {
			columns++
		}
	}
	for _, g := range l.Groups {
		columns -= g.Columns
	}
	if columns != 0 {
		return errors.New("a raid group has too few or too many members")
	}
	return nil
}

// Encode returns the label as one block.
func (l *Label) Encode() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("label of pool %s: out of limits: %w", l.Name, err)
	}
	b := make([]byte, blockSize)
	le := binary.LittleEndian
	copy(b, magic[:])
	le.PutUint32(b[8:], Format)
	// b[12:16] is the checksum
	copy(b[16:], l.Pool[:])
	copy(b[32:], l.Device[:])
	le.PutUint64(b[48:], l.Generation)
	le.PutUint64(b[56:], uint64(l.Size))
	le.PutUint64(b[64:], uint64(l.SegmentBytes))
	le.PutUint64(b[72:], l.Change)
	b[80], b[81], b[82] = byte(len(l.Groups)), byte(len(l.Members)), byte(len(l.Spans))
	b[83], b[84] = byte(len(l.Name)), byte(len(l.Owner))
	at := headerLen
	for _, g := range l.Groups {
		b[at], b[at+1], b[at+2] = g.Kind, flag(g.Cache, 1), byte(g.Columns)
		at += groupLen
	}
	for _, m := range l.Members {
		copy(b[at:], m.GUID[:])
		b[at+16], b[at+17], b[at+18] = byte(m.Group), byte(m.Column), flag(m.Out, 1)|flag(m.Replacing, 2)|flag(m.Left, 4)
		le.PutUint64(b[at+20:], m.Last)
		le.PutUint64(b[at+28:], m.Try)
		at += memberLen
	}
	for _, s := range l.Spans {
		b[at] = byte(s.Group)
		le.PutUint32(b[at+1:], s.Segments)
		at += spanLen
	}
	at += copy(b[at:], l.Name)
	copy(b[at:], l.Owner)
	le.PutUint32(b[12:], checksum(b))
	return b, nil
}

func flag(on bool, bit byte) byte {
	if on {
		return bit
	}
	return 0
}

// checksum covers the block with the checksum field as zero.
func checksum(b []byte) uint32 {
	var zero [4]byte
	s := block.UpdateSum(block.Sum(b[:12]), zero[:])
	return block.UpdateSum(s, b[16:])
}

// Decode reads a block that Encode made. It returns ErrBlank for zeroes, ErrNewerFormat, ErrOldFormat and ErrDamaged,
// or an error of its own when there is no label of ours at all.
func Decode(b []byte) (*Label, error) {
	if len(b) != blockSize {
		return nil, fmt.Errorf("label of %d bytes: %w", len(b), ErrDamaged)
	}
	if [8]byte(b[:8]) != magic {
		return nil, errNoLabel
	}
	le := binary.LittleEndian
	if le.Uint32(b[12:]) != checksum(b) {
		return nil, fmt.Errorf("label: checksum: %w", ErrDamaged)
	}
	switch f := le.Uint32(b[8:]); {
	case f > Format:
		return nil, fmt.Errorf("label: format %d: %w", f, ErrNewerFormat)
	case f < Format:
		return nil, fmt.Errorf("label: %w, format %d: move the data with that release, wipe the device and create the pool again", ErrOldFormat, f)
	}
	l := &Label{
		Pool: block.GUID(b[16:32]), Device: block.GUID(b[32:48]), Generation: le.Uint64(b[48:]),
		Size: int64(le.Uint64(b[56:])), SegmentBytes: int64(le.Uint64(b[64:])), Change: le.Uint64(b[72:]),
	}
	groups, members, spans, name, owner := int(b[80]), int(b[81]), int(b[82]), int(b[83]), int(b[84])
	if headerLen+groups*groupLen+members*memberLen+spans*spanLen+name+owner > blockSize {
		return nil, fmt.Errorf("label: values out of limits: %w", ErrDamaged)
	}
	at := headerLen
	for range groups {
		l.Groups = append(l.Groups, Group{Kind: b[at], Cache: b[at+1]&1 != 0, Columns: int(b[at+2])})
		at += groupLen
	}
	for range members {
		l.Members = append(l.Members, Member{
			GUID: block.GUID(b[at : at+16]), Group: int(b[at+16]), Column: int(b[at+17]), Out: b[at+18]&1 != 0, Replacing: b[at+18]&2 != 0, Left: b[at+18]&4 != 0,
			Last: le.Uint64(b[at+20:]), Try: le.Uint64(b[at+28:]),
		})
		at += memberLen
	}
	for range spans {
		l.Spans = append(l.Spans, Span{Group: int(b[at]), Segments: le.Uint32(b[at+1:])})
		at += spanLen
	}
	l.Name, l.Owner = string(b[at:at+name]), string(b[at+name:at+name+owner])
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("label: %w: %w", err, ErrDamaged)
	}
	return l, nil
}

var errNoLabel = errors.New("no label")

// Write puts all copies of l on dev and makes them stable, first one of each end, then the others, so that power loss
// at any moment leaves intact labels.
func Write(dev disk.Device, l *Label) error {
	b, err := l.Encode()
	if err != nil {
		return err
	}
	at := offsets(l.Size)
	for _, pair := range [][2]int64{{at[0], at[2]}, {at[1], at[3]}} {
		for _, off := range pair {
			if err := dev.WritevAt([][]byte{b}, off); err != nil {
				return fmt.Errorf("label: %w", err)
			}
		}
		if err := dev.Flush(); err != nil {
			return fmt.Errorf("label: %w", err)
		}
	}
	return nil
}

// Probe reads what dev carries: the newest of its intact labels, or ErrBlank, *ErrForeign, ErrDamaged, ErrNewerFormat.
func Probe(dev disk.Device) (*Label, error) {
	if dev.Size() < HeadBytes+TailBytes {
		return nil, fmt.Errorf("device %s: %d bytes is too small for a pool", dev.Name(), dev.Size())
	}
	var best *Label
	var bad, newer error
	look := func(area int64) (intact bool) {
		b := disk.Buffer(blockSize)
		for _, off := range []int64{area, area + secondCopy} {
			if dev.ReadAt(b, off) != nil {
				continue
			}
			l, err := Decode(b)
			switch {
			case errors.Is(err, ErrNewerFormat):
				newer = err
			case err == nil:
				intact = true
				if best == nil || l.Generation > best.Generation {
					best = l
				}
			case errors.Is(err, ErrDamaged), errors.Is(err, ErrOldFormat):
				if bad == nil || errors.Is(err, ErrOldFormat) {
					bad = err
				}
			}
		}
		return intact
	}
	headIntact := look(0)
	look(dev.Size() - TailBytes)
	if best != nil && best.Size < dev.Size() { // it became longer: a change may have reached the old end only
		old := *best
		look(old.Size - TailBytes)
		if best.Pool != old.Pool || best.Device != old.Device || best.Size != old.Size {
			best = &old // what is there is no label of this one
		}
	}
	var found string
	var unread error
	if !headIntact { // whose is it?
		head, tail := areas.Get().(*[HeadBytes]byte), areas.Get().(*[HeadBytes]byte)
		headErr, tailErr := readArea(dev, head[:], 0), readArea(dev, tail[:], dev.Size()-TailBytes)
		found, unread = recognise(head[:], tail[:]), errors.Join(headErr, tailErr)
		areas.Put(head)
		areas.Put(tail)
	}
	switch {
	case newer != nil:
		return nil, fmt.Errorf("device %s: %w", dev.Name(), newer)
	case best != nil && found != "" && !strings.HasPrefix(found, unknownData):
		// somebody formatted the device; what is left of our labels at the tail does not make it ours
		return nil, &ErrForeign{Device: dev.Name(), Found: found}
	case best != nil:
		if best.Size > dev.Size() {
			return nil, fmt.Errorf("device %s: %d bytes, but its label says %d: %w", dev.Name(), dev.Size(), best.Size, ErrDamaged)
		}
		return best, nil
	case unread != nil: // what cannot be read may say anything
		return nil, fmt.Errorf("probe: %w", unread)
	case bad != nil:
		return nil, fmt.Errorf("device %s: %w", dev.Name(), bad)
	case found != "":
		return nil, &ErrForeign{Device: dev.Name(), Found: found}
	default:
		return nil, fmt.Errorf("device %s: %w", dev.Name(), ErrBlank)
	}
}

// areas recycles memory for label areas; those at both ends have the same size.
var areas = sync.Pool{New: func() any { return (*[HeadBytes]byte)(disk.Buffer(HeadBytes)) }}

// readArea reads the label area at off into b. When parts of it are unreadable it has labels and ring there, with zeroes for
// what of them is unreadable too, and returns why.
func readArea(dev disk.Device, b []byte, off int64) error {
	err := dev.ReadAt(b, off)
	if err != nil {
		clear(b)
		for _, at := range []int{0, secondCopy} {
			readBlocks(dev, b[at:at+blockSize], off+int64(at))
		}
		readBlocks(dev, b[ringOffset:ringOffset+ringSlots*blockSize], off+ringOffset)
	}
	return err
}

// readBlocks fills b from off on. When not all of that is readable it returns the rest, with zeroes for it, and why.
func readBlocks(dev disk.Device, b []byte, off int64) error {
	err := dev.ReadAt(b, off)
	for at := 0; err != nil && at < len(b); at += blockSize {
		if one := b[at : at+blockSize]; dev.ReadAt(one, off+int64(at)) != nil {
			clear(one)
		}
	}
	return err
}
