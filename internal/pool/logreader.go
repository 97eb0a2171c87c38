package pool

import (
	"fmt"
	"sync"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// logReader reads batch headers along the log, with a window so that small batches do not take a read each.
type logReader struct {
	p      *Pool
	buf    []byte
	seg    uint32
	from   uint32 // first block in buf
	n      uint32 // blocks in buf
	window uint32 // blocks to read
	end    uint32 // of the segment, where what is behind may be written meanwhile; zero: all of it may be read
	ahead  *ahead
	data   []byte // scratch of intact
}

const (
	logWindow    = 8  // blocks
	maxLogWindow = 64 // with ahead
)

// ahead is what a logReader guesses of batches that it will be asked for. In a log of batches that are larger than the
// window, that is where they begin if they are as long as the one before: these places are read together.
type ahead struct {
	stride uint32 // length of the last batch that was wanted, in blocks; links do not count
	blocks uint32 // length of its header
	slots  [aheadSlots]aheadSlot
}

type aheadSlot struct {
	seg, block, n uint32 // n is zero: nothing
	buf           []byte
}

const (
	aheadSlots  = 16
	aheadBlocks = 4 // in a slot
)

func (p *Pool) newLogReader() *logReader {
	return &logReader{p: p, window: logWindow, buf: *logBuffers.Get().(*[]byte)}
}

var logBuffers = sync.Pool{New: func() any { b := disk.Buffer((wal.MaxHeaderBlocks + maxLogWindow) * block.Size); return &b }}

// release gives the memory back. Nothing that l has returned is valid any more.
func (l *logReader) release() {
	b := l.buf
	l.buf = nil
	logBuffers.Put(&b)
}

// readAhead makes l read more than it is asked for. Nobody may write where it reads.
func (l *logReader) readAhead() *logReader {
	if l.p.opt.Manual {
		l.window = maxLogWindow
		return l
	}
	l.ahead = new(ahead)
	for i := range l.ahead.slots {
		l.ahead.slots[i].buf = disk.Buffer(aheadBlocks * block.Size)
	}
	return l
}

// header returns the header at a place and its bytes, valid until the next call. An error other than of the device
// means that there is none.
func (l *logReader) header(seg, blk uint32) (h wal.Header, b []byte, err error) {
	if b, err = l.read(seg, blk, 1); err != nil {
		return h, nil, err
	}
	n := wal.Size(b)
	if n == 0 || uint32(n) > l.blocks()-blk {
		return h, nil, wal.ErrDamaged
	}
	if b, err = l.read(seg, blk, uint32(n)); err != nil {
		return h, nil, err
	}
	if h, err = wal.Decode(b); err != nil {
		return h, nil, err
	}
	if !l.fits(&h, seg, blk) {
		return h, nil, fmt.Errorf("header of another place: %w", wal.ErrDamaged)
	}
	return h, b, nil
}

// fits reports whether h can be at a place.
func (l *logReader) fits(h *wal.Header, seg, blk uint32) bool {
	return h.Segment == seg && h.Block == blk && uint64(blk)+uint64(h.HeaderBlocks)+uint64(h.DataBlocks) <= uint64(l.p.seg.blocks())
}

// read returns n blocks, valid until the next call.
func (l *logReader) read(seg, blk, n uint32) ([]byte, error) {
	if l.seg != seg || blk < l.from || blk+n > l.from+l.n {
		if l.ahead != nil && l.guessed(seg, blk, n) {
			return l.buf[:n*block.Size], nil
		}
		l.seg, l.from, l.n = seg, blk, min(n+l.window-1, l.blocks()-blk)
		if err := l.p.seg.readAt(l.buf[:l.n*block.Size], l.addr(seg, blk)); err != nil {
			l.n = 0
			return nil, err
		}
	}
	at := (blk - l.from) * block.Size
	return l.buf[at : at+n*block.Size], nil
}

// blocks returns the number of blocks of a segment that may be read.
func (l *logReader) blocks() uint32 {
	if l.end > 0 {
		return l.end
	}
	return l.p.seg.blocks()
}

func (l *logReader) addr(seg, blk uint32) uint64 {
	return uint64(seg)<<l.p.seg.shift + uint64(blk)<<block.Shift
}

// guessed puts n blocks into buf that were read before they were asked for. When they were not, it sets the window, or
// reads them and what may be asked for next; false means that they are still to be read.
func (l *logReader) guessed(seg, blk, n uint32) bool {
	a := l.ahead
	if l.take(seg, blk, n) {
		return true
	}
	if a.stride < 2*logWindow { // small batches: the next ones are in the window, or right behind it
		l.window = min(2*l.window, maxLogWindow)
		return false
	}
	l.window = logWindow
	if n > a.blocks || a.blocks > aheadBlocks {
		return false
	}
	var wg sync.WaitGroup
	for i := range a.slots {
		s := &a.slots[i]
		s.n = 0
		at := uint64(blk) + uint64(i)*uint64(a.stride)
		if at+uint64(a.blocks) > uint64(l.p.seg.blocks()) {
			continue
		}
		wg.Go(func() {
			if l.p.seg.readAt(s.buf[:a.blocks*block.Size], l.addr(seg, uint32(at))) == nil {
				s.seg, s.block, s.n = seg, uint32(at), a.blocks
			}
		})
	}
	wg.Wait()
	return l.take(seg, blk, n)
}

// take takes n blocks out of the slots.
func (l *logReader) take(seg, blk, n uint32) bool {
	for i := range l.ahead.slots {
		if s := &l.ahead.slots[i]; s.seg == seg && s.block == blk && s.n >= n {
			l.seg, l.from, l.n = seg, blk, s.n
			copy(l.buf, s.buf[:s.n*block.Size])
			return true
		}
	}
	return false
}
