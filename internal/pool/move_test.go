package pool

import (
	"errors"
	"math/rand/v2"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/disk"
)

// moveSome has the cleaner copy what is live in a few segments, whether that is worth it or not; the next drain puts
// the new places into pages.
func (p *Pool) moveSome(rng *rand.Rand) error {
	p.drain.cycle.Lock()
	defer p.drain.cycle.Unlock()
	for range 3 {
		var segs []uint32
		p.idx.mu.RLock()
		p.seg.mu.Lock()
		for i, k := range p.seg.kind {
			if k != segFree && k != segIndex && !p.seg.pinned[i] && p.seg.pageLive[i] > 0 && p.seg.deltaLive[i] == 0 {
				segs = append(segs, uint32(i))
			}
		}
		p.seg.mu.Unlock()
		p.idx.mu.RUnlock()
		if len(segs) == 0 {
			return nil
		}
		if err := p.moveSegment(segs[rng.IntN(len(segs))]); err != nil {
			return err
		}
	}
	return nil
}

// moveSegment has the cleaner copy what is live in one segment. drain.cycle is held.
func (p *Pool) moveSegment(seg uint32) error {
	c := &p.cleaner
	if c.headers == nil {
		c.headers = p.newLogReader()
		c.window, c.content = disk.Buffer(cleanWindow), make([]byte, block.Size)
	}
	err := c.some(&cleanPlan{victims: []victim{{seg: seg, live: p.seg.pageLive[seg]}}})
	if err != nil && !errors.Is(err, errNoRoom) && !errors.Is(err, errHurried) {
		return err
	}
	return c.flush()
}
