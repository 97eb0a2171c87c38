package pool

import (
	"errors"
	"strings"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/wal"
)

// tailOf says what a pool that has just been opened found where its log ends, which is where it put a link. before are
// the devices as they were before, by name.
func tailOf(p *Pool, before map[string]*disk.Mem) string {
	p.log.mu.Lock()
	at := p.log.pos
	p.log.mu.Unlock()
	row := p.seg.row(at.seg)
	if at.block < row {
		return "the log went on in another segment"
	}
	device, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block-row)<<block.Shift)
	n := int(min(wal.MaxHeaderBlocks, p.seg.blocks()-at.block+row))
	if row > 1 {
		n = 1 // the others are on other devices
	}
	now, old := make([]byte, n*block.Size), make([]byte, n*block.Size)
	for _, m := range p.members() {
		if d := m.dev.Disk(); d != nil && d.Name() == device && (d.ReadAt(now, off) != nil || before[device] == nil || before[device].ReadAt(old, off) != nil) {
			return "unreadable end of the log"
		}
	}
	link, err := wal.Decode(now)
	if err != nil || link.Flags&wal.FlagLink == 0 {
		return "the log went on already"
	}
	h, err := wal.Decode(old)
	switch {
	case wal.Size(old) == 0:
		return "nothing at the end of the log"
	case wal.Size(old) > n:
		return "long header at the end of the log"
	case errors.Is(err, wal.ErrDamaged):
		return "torn header at the end of the log"
	case h.Seq != link.Seq || h.Prev != link.Prev || h.Incarnation != link.Incarnation:
		return "old batch at the end of the log"
	case h.Flags&wal.FlagMore != 0:
		return "unfinished unit at the end of the log"
	default:
		return "torn data at the end of the log"
	}
}

// count counts what was found at the end of a log.
func count(cover map[string]int, tail string) {
	if cover[tail]++; strings.HasPrefix(tail, "torn") {
		cover["torn headers and data at the end of the log"]++
	}
}
