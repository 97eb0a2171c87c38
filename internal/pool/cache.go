package pool

import (
	"sync"

	"github.com/cstor-go/cstor/internal/pool/index"
)

// pageCache holds encoded index pages by their id, which is never used twice, within a bound of bytes. Pages that
// somebody uses stay in memory until released. Buffers and entries are recycled, so that a steady state allocates
// nothing. Eviction is by CLOCK.
type pageCache struct {
	mu    sync.Mutex
	limit int64
	used  int64
	taken int64 // of the limit, by others
	byID  map[uint64]*cachedPage
	ring  []*cachedPage
	hand  int
	spare [bufferClasses][]*cachedPage

	hits, misses uint64
}

const (
	bufferStep    = 2048
	bufferClasses = (index.MaxPage + bufferStep - 1) / bufferStep
	maxSpare      = 32
)

// cachedPage is a page in memory. b is immutable while anybody holds a reference.
type cachedPage struct {
	id   uint64
	b    []byte
	refs int
	at   int // place in the ring, -1: not in the cache
	hot  bool
}

func newPageCache(limit int64) *pageCache {
	return &pageCache{limit: limit, byID: map[uint64]*cachedPage{}}
}

// get returns the page with a reference, nil when it is not cached.
func (c *pageCache) get(id uint64) *cachedPage {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		c.misses++
		return nil
	}
	c.hits++
	e.refs++
	e.hot = true
	return e
}

// buffer returns an empty page of n bytes, owned by the caller until put or release.
func (c *pageCache) buffer(n int) *cachedPage {
	class := (n - 1) / bufferStep
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.spare[class]; len(s) > 0 {
		e := s[len(s)-1]
		c.spare[class] = s[:len(s)-1]
		e.b = e.b[:n]
		e.refs = 1
		return e
	}
	return &cachedPage{b: make([]byte, n, (class+1)*bufferStep), refs: 1, at: -1}
}

// put makes e, filled by its owner, known as the page id. The owner keeps its reference.
func (c *pageCache) put(e *cachedPage, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[id] != nil {
		return // somebody else read the same page; e goes with its last reference
	}
	size := int64(cap(e.b))
	if !c.makeRoom(size) {
		return
	}
	e.id, e.hot, e.at = id, false, len(c.ring)
	c.ring = append(c.ring, e)
	c.byID[id] = e
	c.used += size
}

// leave says how much of the limit others take.
func (c *pageCache) leave(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = n
	c.makeRoom(0)
}

// makeRoom evicts pages until there is room for size bytes, and returns false when those that are in use leave none.
func (c *pageCache) makeRoom(size int64) bool {
	limit := c.limit - c.taken
	for tries := 2 * len(c.ring); c.used+size > limit && tries > 0 && len(c.ring) > 0; tries-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		victim := c.ring[c.hand]
		if victim.hot || victim.refs > 0 {
			victim.hot = false
			c.hand++
			continue
		}
		c.remove(victim)
	}
	return c.used+size <= limit
}

func (c *pageCache) release(e *cachedPage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs == 0 && e.at < 0 {
		c.recycle(e)
	}
}

// keeps reports whether the successor of a page should be cached: if the page is, and was not fetched for its successor
// only, or if there is room.
func (c *pageCache) keeps(id uint64, fetched bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !fetched && c.byID[id] != nil || c.used+index.MaxHeads+bufferStep <= c.limit-c.taken
}

// add caches a copy of the page b.
func (c *pageCache) add(id uint64, b []byte) {
	e := c.buffer(len(b))
	copy(e.b, b)
	c.put(e, id)
	c.release(e)
}

// drop forgets a page that does not exist any more.
func (c *pageCache) drop(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byID[id]; e != nil {
		c.remove(e)
	}
}

func (c *pageCache) remove(e *cachedPage) {
	last := c.ring[len(c.ring)-1]
	c.ring[e.at], last.at = last, e.at
	c.ring = c.ring[:len(c.ring)-1]
	delete(c.byID, e.id)
	c.used -= int64(cap(e.b))
	e.at = -1
	if e.refs == 0 {
		c.recycle(e)
	}
}

func (c *pageCache) recycle(e *cachedPage) {
	class := cap(e.b)/bufferStep - 1
	if len(c.spare[class]) < maxSpare {
		c.spare[class] = append(c.spare[class], e)
	}
}
