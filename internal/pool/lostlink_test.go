package pool

import (
	"errors"
	"testing"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestLostLinkOfMount damages the link with which a mount begins, after what it wrote was flushed: Open must refuse rather
// than go back to what was there before the mount.
func TestLostLinkOfMount(t *testing.T) {
	opt := Options{SegmentBytes: 256 << 10, FlushBytes: 1 << 30}
	for name, c := range map[string]struct {
		full bool // the segment, so that the link leads to another one
		twin bool // a mount that wrote nothing but its link came between
	}{"link to the next row": {}, "link to another segment": {full: true}, "link to a mount without batches": {twin: true},
		"link to a mount without batches in another segment": {true, true}} {
		t.Run(name, func(t *testing.T) {
			p, m := newMemPool(t, 64<<20, opt)
			r, err := p.CreateReplica("v", 8<<20)
			must(t, err)
			n := uint64(0)
			apply := func(r *Replica) {
				n++
				must(t, r.Apply([]Op{discard(n, 1, n)})) // a block of the log
			}
			for apply(r); c.full && p.room() > 0; {
				apply(r)
			}
			must(t, p.Sync())
			at := p.log.pos
			m = m.Kill()
			if c.twin {
				openIdle(t, []disk.Device{m}, opt)
				m = m.Kill()
			}
			p = openIdle(t, []disk.Device{m}, opt)
			for range 3 {
				apply(p.Replica("v"))
				must(t, p.Sync())
			}
			if p.log.pos.seg == at.seg == c.full {
				t.Fatalf("the log went on at %+v behind %+v", p.log.pos, at)
			}
			_, off := p.where(uint64(at.seg)<<p.seg.shift + uint64(at.block)<<block.Shift)
			m = m.Kill()
			whole := m.Clone()
			m.FlipBit(off+33, 1)
			if p, err := Open([]disk.Device{m}, opt); !errors.Is(err, ErrDamaged) {
				t.Errorf("%v, back to %v of %v", err, p.Replica("v").Applied(), ver(n))
			}
			p, err = Open([]disk.Device{whole}, opt)
			must(t, err)
			if got := p.Replica("v").Applied(); got != ver(n) {
				t.Errorf("%v of %v", got, ver(n))
			}
			must(t, p.Close())
		})
	}
}
