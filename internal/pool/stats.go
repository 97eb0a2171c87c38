package pool

import (
	"math"
	"time"
)

// capacity returns the bytes that data and index can take.
func (p *Pool) capacity() int64 { return int64(p.seg.dataCount()-p.seg.reserve()) << p.seg.shift }

// allocated returns the bytes of live data and metadata. The index lock is held.
func (p *Pool) allocated() int64 {
	n := p.metaLive
	for _, r := range p.idx.bySlot {
		if r != nil && (!r.destroyed || r.stuck) {
			n += r.allocated()
		}
	}
	return n
}

// belowLimit returns how many bytes may come before the pool is above its limit, which is a share of what can be used: of
// Allocated and Free in Stats. The index lock is held.
func (p *Pool) belowLimit() int64 {
	if p.opt.ReadOnlyPercent >= 100 {
		return math.MaxInt64
	}
	return (p.capacity()-p.spare(0))/100*int64(p.opt.ReadOnlyPercent) - p.allocated()
}

// readOnly reports whether the pool is above its limit. The index lock is held.
func (p *Pool) readOnly() bool { return p.belowLimit() <= 0 }

// mayAdd returns ErrReadOnly when the pool is above its limit and nothing may be added that can wait.
func (p *Pool) mayAdd() error {
	p.idx.mu.RLock()
	defer p.idx.mu.RUnlock()
	if p.readOnly() {
		return ErrReadOnly
	}
	return nil
}

// Stats returns the pool's counters.
func (p *Pool) Stats() Stats {
	c := &p.count
	s := Stats{
		Capacity: p.capacity(), Segments: p.seg.count(), FreeSegments: p.seg.freeCount(), SegmentBytes: p.seg.bytes(),
		BlocksWritten: c.blocksWritten.Load(), BlocksPacked: c.blocksPacked.Load(), BlocksZero: c.blocksZero.Load(),
		BlocksRead: c.blocksRead.Load(), LogBytes: c.logBytes.Load(), IndexBytes: c.indexBytes.Load(),
		Batches: c.batches.Load(), Flushes: c.flushes.Load(), Drains: c.drains.Load(), PagesWritten: c.pagesWritten.Load(),
		Checkpoints: c.checkpoints.Load(), ChecksumErrors: c.sumErrors.Load(), SegmentsFreed: c.segsFreed.Load(),
		BlocksMoved: c.moved.Load(), MovedBytes: c.coldBytes.Load(), WritesPaced: c.paced.Load(), WritesStalled: c.reclaims.Load(), BlocksRepaired: c.repaired.Load(),
		Replayed: c.replayed, OpenTime: time.Duration(c.openNanos),
	}
	p.cache.mu.Lock()
	s.CacheHits, s.CacheMisses, s.CacheBytes = p.cache.hits, p.cache.misses, p.cache.used
	p.cache.mu.Unlock()
	p.idx.mu.RLock()
	s.DirectoryBytes, s.DirectoryReads, s.LiveChunks = p.idx.dirs.used, p.idx.dirs.reads, p.idx.live
	s.CacheBytes += s.DirectoryBytes
	s.Allocated, s.Replicas = p.allocated(), len(p.idx.byName)
	s.BelowLimit, s.ReadOnly = p.belowLimit(), p.readOnly()
	s.Free = max(0, s.Capacity-s.Allocated-p.spare(0))
	p.idx.mu.RUnlock()
	free, _ := p.seg.cacheCount()
	s.FreeSegments += free
	s.Health, s.Failure = p.health()
	return s
}
