package pool

import (
	"cmp"
	"math"
	"slices"

	"github.com/cstor-go/cstor/internal/block"
)

// victim is a segment to be cleaned.
type victim struct {
	seg   uint32
	live  uint32
	worth float64
}

// cleanPlan is what one cycle cleans.
type cleanPlan struct {
	victims []victim
	live    int64   // bytes to be moved
	done    float64 // bytes of them so far, of which half is to find them
	room    int64   // bytes that users may write meanwhile
	pace    bool    // users are to be held to that
}

// plan chooses the segments to clean. Each costs its live data to be moved and gives the rest; as many are taken as
// there are free segments, so that what is moved and what users write meanwhile fits for certain. The bigger the batch
// the less index is written per block.
//
// Best are segments with little live data (u: share of the segment) that have been old for long: the longer data has
// lived, the longer it will, so a young segment is worth waiting for, while an old one does not get emptier. The worth
// (1-u)/(u+0.2) x age^0.4 is that of cost-benefit cleaning (Rosenblum and Ousterhout) with age damped, which does not
// lose against choosing the emptiest when all data is alike, and halves the work when a tenth of the data gets nine
// tenths of the writes.
//
// Segments of write caches are emptied when these are half full, or when there is nothing else to do: nothing is gained
// on the groups for data, but writers have the cache to write to.
func (c *cleaner) plan(urgent bool) *cleanPlan {
	p := c.p
	l := &cleanPlan{}
	free := p.seg.freeCount()
	data, cache := c.candidates(urgent)
	most := int64(c.maxMoves()) * block.Size
	work := free - p.keep(forUser) - 2
	tight := work < 3
	if tight { // users wait: all that there is
		work = len(data)
		most = min(most, int64(free-p.keep(forCleaner)-2)*p.seg.bytes())
	}
	low := free < p.cleanStart() || urgent && free < p.seg.reserve()
	if low {
		n := 0
		for n < len(data) && n < work && (n == 0 || l.live+int64(data[n].live) <= most) {
			l.live += int64(data[n].live)
			n++
		}
		l.victims, l.pace = data[:n], n > 0
	}
	gain := int64(len(l.victims))*p.seg.bytes() - l.live
	if p.destageDue() && !tight {
		spare := gain
		if !low {
			spare = int64(free-p.cleanStart()) * p.seg.bytes()
		}
		for i := range cache {
			if n := int64(cache[i].live); n <= spare && l.live+n <= most {
				l.victims = append(l.victims, cache[i])
				l.live, spare = l.live+n, spare-n
			}
		}
		inCache, _ := p.seg.cacheCount()
		l.room = int64(inCache) * p.seg.bytes()
	}
	// Users get most of what the cycle gains, less while there are fewer free segments than a good batch takes.
	least, start := p.keep(forUser), p.cleanStart()
	share := 0.9
	if start > least {
		share = min(max(float64(free-least)/float64(start-least), 0.4), 0.9)
	}
	l.room += int64(float64(gain) * share)
	return l
}

// destageDue reports whether data is to be moved from write caches to the groups for data.
func (p *Pool) destageDue() bool {
	free, all := p.seg.cacheCount()
	return 2*free < all || p.idle.Load() && free < all
}

// candidates returns the segments that may be cleaned, best first: those on groups for data, and those on caches.
func (c *cleaner) candidates(urgent bool) (data, cache []victim) {
	p := c.p
	const step = 4096 // segments looked at in one critical section
	bytes := float64(p.seg.bytes())
	most := uint32(p.seg.bytes() / 64 * 60)
	if urgent {
		most = uint32(p.seg.bytes() / 64 * 61) // what little there is to gain can wait until somebody needs it
	}
	_, caches := p.seg.cacheCount()
	now := p.seg.clock.Load()
	for from := 0; from < p.seg.count(); from += step {
		p.idx.mu.RLock()
		p.seg.mu.Lock()
		for i := from; i < min(from+step, p.seg.count()); i++ {
			seg := uint32(i)
			k, n := p.seg.kind[i], p.seg.pageLive[i]
			if k == segFree || k == segIndex || p.seg.pinned[i] || n == 0 || p.seg.deltaLive[i] > 0 {
				continue
			}
			onCache := caches > 0 && p.seg.onCache(seg)
			if n > most && !onCache || uint64(n) <= c.damaged[seg] || c.lost.has(seg) {
				continue
			}
			u := float64(n) / bytes
			age := float64(now-min(now, p.seg.birth[i])) + float64(p.seg.blocks())
			v := victim{seg: seg, live: n, worth: (1.01 - u) / (u + 0.2) * math.Pow(age, 0.4)}
			if onCache {
				cache = append(cache, v)
			} else {
				data = append(data, v)
			}
		}
		p.seg.mu.Unlock()
		p.idx.mu.RUnlock()
	}
	better := func(a, b victim) int { return cmp.Or(cmp.Compare(b.worth, a.worth), cmp.Compare(a.seg, b.seg)) }
	slices.SortFunc(data, better)
	slices.SortFunc(cache, better)
	return data, cache
}
