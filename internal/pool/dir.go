package pool

import (
	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/pool/index"
)

const (
	dirShift = 7             // log2 of dirSpan
	dirSpan  = 1 << dirShift // chunks per directory block
)

// chunkRef is what memory knows about one chunk of a replica. page, id, data, count and tomb describe the state that is drained;
// heads and disc lead to the updates in the two tables; newest and bitmap describe the present.
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
	bitmap uint32        // in index.bitmaps: which blocks have data; 0: see full
	full   bool          // without bitmap: all blocks have data (true) or none (false)
	older  bool          // the page has or refers to older versions
	deep   bool          // it refers to history pages
}

func packPage(addr uint64, length int) uint64 {
	return addr/index.Granule<<16 | uint64(length/index.Granule)
}

func (d *chunkRef) pageAddr() uint64 { return d.page >> 16 * index.Granule }
func (d *chunkRef) pageLen() int     { return int(d.page&0xffff) * index.Granule }

// dirBlock is the directory of dirSpan consecutive chunks, the unit in which a checkpoint writes the directory.
type dirBlock struct {
	refs  [dirSpan]chunkRef
	addr  uint64 // where the newest checkpoint has it
	size  uint32 // bytes there; 0: nowhere
	sum   uint32
	dirty bool // differs from what is there
}

// chunk returns the reference of a chunk, nil if nothing was ever known about it. The index lock is held.
func (r *Replica) chunk(c uint64) *chunkRef {
	i := c >> dirShift
	if i >= uint64(len(r.dir)) || r.dir[i] == nil {
		return nil
	}
	return &r.dir[i].refs[c&(dirSpan-1)]
}

// touch returns the reference of a chunk for a change. The index lock is held for writing.
func (r *Replica) touch(c uint64) *chunkRef {
	i := c >> dirShift
	for uint64(len(r.dir)) <= i {
		r.dir = append(r.dir, nil)
	}
	if r.dir[i] == nil {
		r.dir[i] = new(dirBlock)
	}
	r.dir[i].dirty = true
	return &r.dir[i].refs[c&(dirSpan-1)]
}

// bitmaps holds the presence bitmaps of chunks that are neither full nor empty.
type bitmaps struct {
	all  []index.Bitmap // [0] is unused
	free []uint32
}

func (b *bitmaps) get() uint32 {
	if n := len(b.free); n > 0 {
		i := b.free[n-1]
		b.free = b.free[:n-1]
		b.all[i] = index.Bitmap{}
		return i
	}
	if len(b.all) == 0 {
		b.all = append(b.all, index.Bitmap{})
	}
	b.all = append(b.all, index.Bitmap{})
	return uint32(len(b.all) - 1)
}

// count returns the number of blocks of d that have data.
func (b *bitmaps) count(d *chunkRef) int {
	if d.bitmap != 0 {
		return b.all[d.bitmap].Count()
	}
	if d.full {
		return block.ChunkBlocks
	}
	return 0
}

// of returns which blocks of d have data.
func (b *bitmaps) of(d *chunkRef) index.Bitmap {
	if d.bitmap != 0 {
		return b.all[d.bitmap]
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
	if d.bitmap == 0 {
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
			b.all[d.bitmap], d.full = fullBitmap, false
		}
	}
	m := &b.all[d.bitmap]
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
		b.all[d.bitmap] = m
	}
}

func (b *bitmaps) drop(d *chunkRef, full bool) {
	if d.bitmap != 0 {
		b.free = append(b.free, d.bitmap)
	}
	d.bitmap, d.full = 0, full
}
