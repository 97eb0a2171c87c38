package pool

import (
	"testing"

	"github.com/cstor-go/cstor/internal/pool/label"
)

// TestHiddenIsNotHealed resilvers a device while nobody there can say where some data is, which is on a device that is away:
// the first one may lack it. When the other one is there again, that is made up for.
func TestHiddenIsNotHealed(t *testing.T) {
	for name, at := range map[string]func(r *Replica) uint64{ // address of what is damaged
		"page":            func(r *Replica) uint64 { d := refOf(t, r, 0); return d.pageAddr() },
		"directory block": func(r *Replica) uint64 { return r.dir[0].node.slots[0].addr },
		"node":            func(r *Replica) uint64 { return r.dir[0].addr },
	} {
		t.Run(name, func(t *testing.T) {
			opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096}
			p, mems := newLayoutPool(t, layouts[3], 24<<20, opt)
			r, err := p.CreateReplica("v", 4<<20)
			must(t, err)
			mems[0].Disappear()
			must(t, r.Apply([]Op{write(0, 50, 1)}))
			must(t, p.cycle())
			_, off := p.seg.locate(at(r))
			must(t, p.Close())
			reopenAll(mems)
			mems[0].Reappear()
			mems[1].FlipBit(label.HeadBytes+off+50, 1)

			p = openIdle(t, devicesOf(mems[:2]), opt)
			p.resilver()
			must(t, p.cycle())
			must(t, closeIdle(p))
			reopenAll(mems)
			rep, err := Verify(devicesOf(mems), opt)
			must(t, err)
			for _, f := range rep.Findings {
				if f.Device == mems[0].Name() && f.What != FoundDevice {
					t.Errorf("it is called healed: %v", f)
				}
			}
			reopenAll(mems)
			p = openIdle(t, devicesOf(mems), opt)
			p.resilver()
			must(t, p.cycle())
			for _, m := range p.members() {
				if m.dev.Stale() {
					t.Errorf("device %s lacks something in %d units", m.dev.Name(), m.dev.StaleCount())
				}
			}
			must(t, closeIdle(p))
			reopenAll(mems)
			verified(devicesOf(mems), t.Errorf)
		})
	}
}
