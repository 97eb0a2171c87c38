package pool

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/cstor-go/cstor/internal/pool/disk"
	"github.com/cstor-go/cstor/internal/pool/label"
)

// refusing is a device of which so many writes to segments fail.
type refusing struct {
	disk.Device
	left int
}

func (d *refusing) WritevAt(bufs [][]byte, off int64) error {
	if d.left > 0 && off >= label.HeadBytes && off < d.Size()-label.TailBytes {
		d.left--
		return syscall.EIO
	}
	return d.Device.WritevAt(bufs, off)
}

// TestUnsettledIsRefused: power loss has left the end of the log only on a device that lacks other things. As long as the one
// that lacks nothing does not take it, Open fails rather than rely on the other one.
func TestUnsettledIsRefused(t *testing.T) {
	for fail := 1; fail <= 4; fail++ { // repairs of the header before, the batch, what comes after
		p, mems := returnedPool(t, layouts[2])
		opt := Options{DeltaEntries: 4096}
		must(t, p.Replica("v").Apply([]Op{write(300, 5, 2)}))
		mems = disk.PowerCutAll(mems, func(dev int) disk.Fate { return []disk.Fate{disk.Kept, disk.Lost}[dev] }, rand.New(rand.NewPCG(1, 1)))
		_ = closeIdle(p)
		p, err := open([]disk.Device{mems[0], &refusing{Device: mems[1], left: fail}}, opt)
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%d writes fail: %v", fail, err)
			}
			reopenAll(mems)
			p = openIdle(t, devicesOf(mems), opt)
		}
		if v := p.Replica("v").Applied(); v != ver(2) {
			t.Errorf("%d writes fail: %v", fail, v)
		}
		must(t, closeIdle(p))
		reopenAll(mems)
		verified(devicesOf(mems), t.Errorf)
	}
}
