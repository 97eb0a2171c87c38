package pool

import (
	"fmt"
	"testing"
	"time"

	"github.com/cstor-go/cstor/internal/pool/compress"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// TestLastSegment has the log go to the last free segments of a pool, and beyond: what does not fit is refused as a
// whole, what gives space back is not, and what was there is still there after a kill.
func TestLastSegment(t *testing.T) {
	forLayouts(t, func(t *testing.T, l layout) {
		t.Parallel()
		for _, free := range []int{0, 1, 2} { // that are left for users
			t.Run(fmt.Sprint(free), func(t *testing.T) {
				mems := l.blank(10 << 20)
				opt := Options{SegmentBytes: 256 << 10, DeltaEntries: 4096, NoDiscard: true, Deadline: time.Minute, Compression: compress.Off}
				p, err := Create(l.arrange(mems), Config{Name: "last"}, opt)
				must(t, err)
				a := newActor(t, 1, p)
				a.createSized("r", 2500*4096)
				for {
					if _, ok := p.seg.alloc(nil, 1, segLog, p.keep(forUser)+free); !ok {
						break
					}
				}
				apply := func(ops ...Op) bool {
					return a.didParts("apply"+describe(ops), false, "r", a.parts("r", ops), func() error { return p.Replica("r").Apply(ops) }, ErrNoSpace)
				}
				n := uint64(0)
				for b := 0; apply(write(uint64(b), 10+b%7, n+1)); b += 10 + b%7 {
					n++
				}
				a.compare()
				a.check()
				full, row := n, int(p.seg.maxRow())
				for range int(p.seg.blocks())/row - 2 { // with the next one more than fits; they free nothing
					if n++; !apply(discard(2499, 1, n)) {
						t.Fatalf("a discard was refused, the %d-th", n-full)
					}
				}
				if o := discard(0, full, n+1); !apply(o) {
					t.Fatal("a discard was refused")
				}
				for i := uint64(2); i < 100; i++ { // records of state may use more, and are refused in the end
					a.setState("r", fmt.Sprint(i), ver(n+i))
				}
				a.compare()
				a.check()
				mems = disk.KillAll(mems)
				p.Close()
				if a.p, err = Open(devicesOf(mems), opt); err != nil {
					t.Fatal(err)
				}
				a.recover(true)
				if full < 2 || a.cover["refused: "+ErrNoSpace.Error()] == 0 {
					t.Fatal("never full", full)
				}
				must(t, a.p.Close())
			})
		}
	})
}
