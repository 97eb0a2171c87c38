package pool

import (
	"sync/atomic"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

// The directory of a replica says where the page of each chunk is. It is a tree: directory blocks of dirSpan chunks,
// nodes of nodeSpan directory blocks, and an array of nodes, which is all of it that is always in memory and part of
// the checkpoint's root. Blocks and nodes are read when somebody looks for a chunk and leave memory again, see
// dircache.go. What is not drained yet is kept beside it, for each chunk that has something in the tables, see live.go.
const (
	dirShift  = 5 // log2 of dirSpan
	dirSpan   = 1 << dirShift
	nodeShift = 8 // log2 of nodeSpan
	nodeSpan  = 1 << nodeShift
)

// chunkRef is what memory knows about one chunk of a replica. page, id, data, count and tomb describe the state that is
// drained; heads and disc lead to the updates in the two tables; newest and bitmap describe the present.
type chunkRef struct {
	page   uint64        // address of the index page / 64 << 16 | length / 64; 0: no page
	id     uint64        // of the page
	newest block.Version // of all blocks
	tomb   block.Version // without a page: the version at which all blocks were discarded; zero: never written
	heads  [2]uint32     // newest first entry of the chunk in each table; 0: none
	disc   [2]uint32     // entry of the discard of the whole chunk in each table; 0: none
	data   uint32        // bytes of the data that the page refers to
	count  uint16        // blocks that have data there
	fresh  uint16        // blocks that have data where the tables say
	bitmap *index.Bitmap // which blocks have data; nil: see full
	full   bool          // without bitmap: all blocks have data (true) or none (false)
	older  bool          // the page has or refers to older versions
	deep   bool          // it refers to history pages
}

func packPage(addr uint64, length int) uint64 {
	return addr/index.Granule<<16 | uint64(length/index.Granule)
}

func (d *chunkRef) pageAddr() uint64 { return d.page >> 16 * index.Granule }
func (d *chunkRef) pageLen() int     { return int(d.page&0xffff) * index.Granule }

// known reports whether anything was ever known about the chunk.
func (d *chunkRef) known() bool {
	return d.page != 0 || !d.tomb.IsZero() || !d.newest.IsZero() || d.bitmap != nil || d.full || d.heads != [2]uint32{}
}

// dirSlot says where a directory block or node is, and what there is to know about its chunks without reading it. What
// it says is as of the time when it was written.
type dirSlot struct {
	addr   uint64
	size   uint32 // 0: nowhere
	sum    uint32
	newest block.Version // of all chunks
	stored uint32        // blocks with data
	older  bool          // some chunk has older versions
}

// dirItem is a directory block or node in memory. The index lock guards it; only the holder of drain.mu changes what
// is to be written.
type dirItem struct {
	r      *Replica
	number uint64 // of the block, or of the node
	node   bool
	dirty  bool // differs from what is on the devices
	gone   bool // not part of the directory any more
	pins   int  // it stays in memory
	at     int  // place in the ring of the cache
	hot    atomic.Bool
}

// dirBlock is the directory of dirSpan consecutive chunks. Its references have nothing of the tables.
type dirBlock struct {
	dirItem
	refs [dirSpan]chunkRef
}

// dirNode says where nodeSpan consecutive directory blocks are.
type dirNode struct {
	dirItem
	slots     [nodeSpan]dirSlot
	blocks    [nodeSpan]*dirBlock // those in memory
	loaded    int                 // number of them
	unwritten int                 // number of those that are to be written
}

// dirRoot is what is always in memory for the chunks of a node.
type dirRoot struct {
	dirSlot
	node  *dirNode         // nil: not in memory
	lives *[nodeSpan]uint8 // by directory block, how many chunks are in Replica.live
	live  int              // sum of lives
}

// nodeOf returns the number of the node of directory block i and the place in it.
func nodeOf(i uint64) (node uint64, place int) { return i >> nodeShift, int(i & (nodeSpan - 1)) }

// loaded returns a directory block that is in memory, nil if it is not; cold: it is on the devices. The index lock is
// held.
func (r *Replica) loaded(i uint64) (b *dirBlock, cold bool) {
	n, j := nodeOf(i)
	if n >= uint64(len(r.dir)) {
		return nil, false
	}
	x := &r.dir[n]
	if x.node == nil {
		return nil, x.size > 0
	}
	if b = x.node.blocks[j]; b == nil {
		return nil, x.node.slots[j].size > 0
	}
	if !b.hot.Load() {
		b.hot.Store(true)
	}
	return b, false
}

// chunk returns the reference of a chunk, nil if nothing was ever known about it; cold: what is known about it is to be
// read first, see warm. The index lock is held.
func (r *Replica) chunk(c uint64) (d *chunkRef, cold bool) {
	if x := r.live[c]; x != nil {
		return &x.chunkRef, false
	}
	b, cold := r.loaded(c >> dirShift)
	if b == nil {
		return nil, cold
	}
	return &b.refs[c&(dirSpan-1)], false
}

// rlock takes the index lock for reading, with what is known about a chunk in memory, and returns its reference, nil:
// nothing. After an error the lock is not held. The caller holds no lock behind drain.mu but may hold the log's.
func (r *Replica) rlock(c uint64) (*chunkRef, error) {
	for {
		r.p.idx.mu.RLock()
		d, cold := r.chunk(c)
		if !cold {
			return d, nil
		}
		r.p.idx.mu.RUnlock()
		if err := r.warm(c >> dirShift); err != nil {
			if r.p.closed.Load() {
				err = ErrClosed
			}
			return nil, err
		}
	}
}

// bitmaps counts and recycles the presence bitmaps of chunks that are neither full nor empty.
type bitmaps struct {
	free []*index.Bitmap
}

const spareBitmaps = 4096

func (b *bitmaps) get() *index.Bitmap {
	if n := len(b.free); n > 0 {
		m := b.free[n-1]
		b.free = b.free[:n-1]
		*m = index.Bitmap{}
		return m
	}
	return new(index.Bitmap)
}

func (b *bitmaps) put(m *index.Bitmap) {
	if m != nil && len(b.free) < spareBitmaps {
		b.free = append(b.free, m)
	}
}

// count returns the number of blocks of d that have data.
func (b *bitmaps) count(d *chunkRef) int {
	if d.bitmap != nil {
		return d.bitmap.Count()
	}
	if d.full {
		return block.ChunkBlocks
	}
	return 0
}

// has reports whether block i of d has data.
func (b *bitmaps) has(d *chunkRef, i int) bool {
	if d.bitmap != nil {
		return d.bitmap.Has(i)
	}
	return d.full
}

// of returns which blocks of d have data.
func (b *bitmaps) of(d *chunkRef) index.Bitmap {
	if d.bitmap != nil {
		return *d.bitmap
	}
	if d.full {
		return fullBitmap
	}
	return index.Bitmap{}
}

var fullBitmap = func() (m index.Bitmap) {
	for i := range m {
		m[i] = ^uint64(0)
	}
	return m
}()

// set marks n blocks from i on as stored or not and returns by how many the number of stored blocks changed.
func (b *bitmaps) set(d *chunkRef, i, n int, stored bool) (change int) {
	if d.bitmap == nil {
		if d.full == stored {
			return 0
		}
		if n == block.ChunkBlocks {
			d.full = stored
			if stored {
				return n
			}
			return -n
		}
		d.bitmap = b.get()
		if d.full {
			*d.bitmap, d.full = fullBitmap, false
		}
	}
	m := d.bitmap
	for ; n > 0; i, n = i+1, n-1 {
		switch {
		case stored && !m.Has(i):
			m.Set(i)
			change++
		case !stored && m.Has(i):
			m.Unset(i)
			change--
		}
	}
	if change != 0 && (*m == fullBitmap || *m == index.Bitmap{}) {
		b.drop(d, *m == fullBitmap)
	}
	return change
}

// load sets the presence of d to m.
func (b *bitmaps) load(d *chunkRef, m index.Bitmap) {
	b.drop(d, m == fullBitmap)
	if m != fullBitmap && m != (index.Bitmap{}) {
		d.bitmap = b.get()
		*d.bitmap = m
	}
}

func (b *bitmaps) drop(d *chunkRef, full bool) {
	b.put(d.bitmap)
	d.bitmap, d.full = nil, full
}
