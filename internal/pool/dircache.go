package pool

import (
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// dirCache bounds the directory blocks and nodes in memory. Those that are as they are on the devices leave it again
// when there is no room, by CLOCK; a node only after its blocks. Those that were changed stay until they are written,
// which the drain sees to when they are too many. The index lock guards it.
type dirCache struct {
	limit   int64 // bytes
	used    int64
	ring    []*dirItem
	hand    int
	changed [2][]*dirItem // blocks, and nodes, that are to be written
	dirty   int64         // bytes of them
	reads   uint64
	pages   *pageCache // which has what is left of the memory
}

const (
	blockBytes = int64(unsafe.Sizeof(dirBlock{})) + dirSpan*int64(unsafe.Sizeof(index.Bitmap{}))
	nodeBytes  = int64(unsafe.Sizeof(dirNode{}))
)

func (it *dirItem) bytes() int64 {
	if it.node {
		return nodeBytes
	}
	return blockBytes
}

// change notes that an item differs from what is on the devices.
func (c *dirCache) change(it *dirItem) {
	if it.dirty {
		return
	}
	it.dirty = true
	c.dirty += it.bytes()
	level := 1
	if !it.node {
		level = 0
		n, _ := nodeOf(it.number)
		node := it.r.dir[n].node
		node.unwritten++
		c.change(&node.dirItem) // it will when the block is somewhere else
	}
	c.changed[level] = append(c.changed[level], it)
}

// written notes that an item is on the devices as it is in memory, or is not part of the directory any more.
func (c *dirCache) written(it *dirItem) {
	if !it.dirty {
		return
	}
	it.dirty = false
	c.dirty -= it.bytes()
	if !it.node {
		n, _ := nodeOf(it.number)
		it.r.dir[n].node.unwritten--
	}
}

// crowded reports whether changed items should be written now.
func (c *dirCache) crowded() bool { return c.dirty > c.limit/2 }

// add puts an item into the cache, after making room for it.
func (c *dirCache) add(it *dirItem) {
	for tries := 2 * len(c.ring); c.used+it.bytes() > c.limit && tries > 0 && len(c.ring) > 0; tries-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		if v := c.ring[c.hand]; v.hot.Swap(false) || v.dirty || v.pins > 0 || v.node && v.r.dir[v.number].node.loaded > 0 {
			c.hand++
		} else {
			c.remove(v)
		}
	}
	it.at = len(c.ring)
	it.hot.Store(true)
	c.ring = append(c.ring, it)
	c.used += it.bytes()
	c.pages.leave(c.used)
}

// remove takes an item out of memory.
func (c *dirCache) remove(it *dirItem) {
	last := c.ring[len(c.ring)-1]
	c.ring[it.at], last.at = last, it.at
	c.ring = c.ring[:len(c.ring)-1]
	c.used -= it.bytes()
	if it.node {
		it.r.dir[it.number].node = nil
		return
	}
	n, j := nodeOf(it.number)
	node := it.r.dir[n].node
	node.blocks[j] = nil // its bitmaps are not used again: somebody may have a copy of a reference
	node.loaded--
}

// discard takes an item that is not part of the directory any more out of memory.
func (c *dirCache) discard(it *dirItem) {
	c.written(it)
	it.gone = true
	c.remove(it)
	c.pages.leave(c.used)
}

// grow returns directory block i, made anew with its node where these are not on the devices; cold: one of the two is
// to be read first. The index lock is held for writing.
func (r *Replica) grow(i uint64) (b *dirBlock, cold bool) {
	n, j := nodeOf(i)
	for uint64(len(r.dir)) <= n {
		r.dir = append(r.dir, dirRoot{})
	}
	x := &r.dir[n]
	if x.node == nil {
		if x.size > 0 {
			return nil, true
		}
		x.node = &dirNode{dirItem: dirItem{r: r, number: n, node: true}}
		r.p.idx.dirs.add(&x.node.dirItem)
	}
	if b, cold = r.loaded(i); b == nil && !cold {
		b = r.insert(&dirBlock{dirItem: dirItem{r: r, number: i}}, x.node, j)
	}
	return b, cold
}

// insert puts a directory block into memory.
func (r *Replica) insert(b *dirBlock, node *dirNode, j int) *dirBlock {
	node.pins++ // making room must not take it
	r.p.idx.dirs.add(&b.dirItem)
	node.pins--
	node.blocks[j] = b
	node.loaded++
	return b
}

// pin returns directory block i, in memory until unpin. The holder of drain.mu uses it for what it changes.
func (r *Replica) pin(i uint64) (*dirBlock, error) {
	for {
		r.p.idx.mu.Lock()
		b, cold := r.grow(i)
		if !cold {
			b.pins++
		}
		r.p.idx.mu.Unlock()
		if !cold {
			return b, nil
		}
		if err := r.warm(i); err != nil {
			return nil, err
		}
	}
}

func (r *Replica) unpin(b *dirBlock) {
	r.p.idx.mu.Lock()
	b.pins--
	r.p.idx.mu.Unlock()
}

// warm reads directory block i, and its node before, if they are on the devices and not in memory. Others may take them
// out of memory again at once. No lock behind the log's is held.
func (r *Replica) warm(i uint64) error {
	p := r.p
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	for {
		p.idx.mu.RLock()
		s, node := r.missing(i)
		p.idx.mu.RUnlock()
		if s.size == 0 {
			return nil
		}
		if err := r.readDir(i, s, node); err != nil {
			return err
		}
	}
}

// missing says where the part of the directory is that is to be read next so that block i is in memory; nowhere: none.
func (r *Replica) missing(i uint64) (s dirSlot, node bool) {
	n, j := nodeOf(i)
	switch {
	case n >= uint64(len(r.dir)):
		return s, false
	case r.dir[n].node == nil:
		return r.dir[n].dirSlot, true
	case r.dir[n].node.blocks[j] == nil:
		return r.dir[n].node.slots[j], false
	}
	return s, false
}

// warmNode reads node n, if it is on the devices and not in memory.
func (r *Replica) warmNode(n uint64) error {
	p := r.p
	ticket := p.read.enter()
	defer p.read.leave(ticket)
	p.idx.mu.RLock()
	s, node := r.missing(n << nodeShift)
	p.idx.mu.RUnlock()
	if !node || s.size == 0 {
		return nil
	}
	return r.readDir(n<<nodeShift, s, true)
}

// readDir reads the node of directory block i, or the block, from s, and puts it into memory if that is still where it
// is. The caller is entered as a reader.
func (r *Replica) readDir(i uint64, s dirSlot, node bool) error {
	p := r.p
	buf := dirBuffers.Get().(*[]byte)
	defer dirBuffers.Put(buf)
	b := (*buf)[:s.size]
	n, j := nodeOf(i)
	var nd *dirNode
	var refs []decodedRef
	err := p.readSummed(b, s.addr, s.sum)
	summed := errors.Is(err, ErrDamaged)
	switch {
	case err != nil:
	case node:
		nd = &dirNode{dirItem: dirItem{r: r, number: n, node: true}}
		err = decodeNode(b, r.slot, n, p.seg.limit(), &nd.slots)
	default:
		refs, err = decodeDir(b, r.slot, i, p.seg.limit(), p.seg.shift)
	}
	if err != nil {
		first, chunks := i<<dirShift, uint64(dirSpan)
		if node {
			first, chunks = n<<(nodeShift+dirShift), dirSpan<<nodeShift
		}
		if isDamage(err) {
			device, off := p.where(s.addr)
			if summed { // which says where
				err = ErrDamaged
			}
			err = fmt.Errorf("%w: %w", &ChecksumError{Replica: r.name, Block: first * block.ChunkBlocks, Device: device, Offset: off, What: "directory"}, err)
		}
		return fmt.Errorf("directory of chunks %d to %d: %w", first, first+chunks-1, err)
	}
	p.idx.mu.Lock()
	defer p.idx.mu.Unlock()
	if now, level := r.missing(i); now != s || level != node {
		return nil
	}
	p.idx.dirs.reads++
	if node {
		p.idx.dirs.add(&nd.dirItem)
		r.dir[n].node = nd
		return nil
	}
	x := &dirBlock{dirItem: dirItem{r: r, number: i}}
	for k := range refs {
		d := &x.refs[refs[k].i]
		*d = refs[k].ref
		p.idx.bitmaps.load(d, refs[k].bitmap)
	}
	r.insert(x, r.dir[n].node, j)
	return nil
}

// dirBuffers recycles memory for directory blocks and nodes as they are on the devices.
var dirBuffers = sync.Pool{New: func() any { b := make([]byte, maxDir); return &b }}

// next returns a copy of the reference of the first chunk from number from on about which anything is known, other than
// in directory blocks, and nodes, for which want, if not nil, is false. With an error chunk is where the part of the
// directory begins that cannot be read, and end where to go on behind it.
func (r *Replica) next(from uint64, want func(s *dirSlot) bool, ref *chunkRef) (chunk, end uint64, ok bool, err error) {
	for {
		i, node, ok := r.nextDir(from>>dirShift, want)
		if !ok {
			return 0, 0, false, nil
		}
		from = max(from, i<<dirShift)
		if node {
			n, _ := nodeOf(i)
			if err := r.warmNode(n); err != nil {
				return from, (n + 1) << (nodeShift + dirShift), false, err
			}
			continue
		}
		r.walkAhead(i, want)
		for ; from>>dirShift == i; from++ {
			d, err := r.rlock(from)
			if err != nil {
				return from, (i + 1) << dirShift, false, err
			}
			if d != nil && d.known() {
				*ref = *d
				r.p.idx.mu.RUnlock()
				return from, from + 1, true, nil
			}
			r.p.idx.mu.RUnlock()
		}
	}
}

// nextDir returns the first directory block from i on that is not empty, and of which want, if not nil, is true or
// which has changed since it was written; node: its node is to be read first.
func (r *Replica) nextDir(i uint64, want func(s *dirSlot) bool) (block uint64, node, ok bool) {
	wanted := func(s *dirSlot) bool { return s.size > 0 && (want == nil || want(s)) }
	const step = 4096 // directory blocks looked at in one critical section
	for {
		r.p.idx.mu.RLock()
		for left := step; left > 0; left-- {
			n, j := nodeOf(i)
			if n >= uint64(len(r.dir)) {
				r.p.idx.mu.RUnlock()
				return 0, false, false
			}
			x := &r.dir[n]
			switch {
			case x.live > 0 && x.lives[j] > 0:
				ok = true
			case x.node == nil:
				node = wanted(&x.dirSlot)
				ok = node
				if !ok && x.live == 0 {
					i = (n+1)<<nodeShift - 1
				}
			default:
				b := x.node.blocks[j]
				ok = wanted(&x.node.slots[j]) || b != nil && b.dirty
			}
			if ok {
				r.p.idx.mu.RUnlock()
				return i, node, true
			}
			i++
		}
		r.p.idx.mu.RUnlock()
	}
}
