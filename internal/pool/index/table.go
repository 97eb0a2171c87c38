package index

import (
	"math/bits"

	"github.com/cstor-go/cstor/internal/block"
)

// EntryState says what an Entry knows about its block.
type EntryState uint8

const (
	Dead      EntryState = iota // nothing any more
	Stored                      // data at Loc
	Tombstone                   // discarded at Version
	None                        // never written (a rebuild removed it)
	Passed                      // what discards of the chunk before it have that is not older than Version is not for it
	Kept                        // of what is older only such versions of the block stay
)

// EntryFlags say what is special about an Entry.
type EntryFlags uint8

const (
	// Replaced marks a version that a newer one has replaced in this table and that a snapshot needs.
	Replaced EntryFlags = 1 << (3 + iota)
	// Under marks a version that was added below newer ones; unlike others it replaces nothing.
	Under
	// Whole marks an entry that holds for every block of its chunk.
	Whole
	// Cut marks a version that replaces whatever older tables and the page have of its block.
	Cut
)

// Entry is one update of one block. Next chains the entries of a chunk, by number, newest first; 0 ends the chain.
type Entry struct {
	key  uint64
	word uint64 // state and flags in the top byte, location below
	n    uint64
	ep   uint64
	Sum  uint32
	Next uint32
}

// Key identifies a block of a replica: 16 bits of slot, 38 bits of block, which is what the engine's limits allow.
func Key(slot uint32, b uint64) uint64 { return uint64(slot)<<40 | b }

// Block returns the block number within the replica.
func (e *Entry) Block() uint64 { return e.key & (1<<40 - 1) }

// State returns what the entry says about the block.
func (e *Entry) State() EntryState { return EntryState(e.word >> 56 & 7) }

// Flags returns what is special about the entry.
func (e *Entry) Flags() EntryFlags { return EntryFlags(e.word>>56) &^ 7 }

// Visible reports whether the entry is the newest version of its block.
func (e *Entry) Visible() bool {
	s := e.State()
	return e.Flags()&^Cut == 0 && s < Passed && s != Dead
}

// Copy makes e say what o says, flags included.
func (e *Entry) Copy(o *Entry) { e.word, e.Sum, e.ep, e.n = o.word, o.Sum, o.ep, o.n }

// Mark adds flags to the entry.
func (e *Entry) Mark(f EntryFlags) { e.word |= uint64(f) << 56 }

// Loc returns where the data is; valid for Stored.
func (e *Entry) Loc() Loc { return Loc(e.word) & MaxLoc }

// Version returns the version that wrote the block; zero for None.
func (e *Entry) Version() block.Version { return block.Version{Epoch: e.ep, N: e.n} }

// Set replaces what the entry says and removes its flags.
func (e *Entry) Set(s EntryState, loc Loc, sum uint32, v block.Version) {
	e.word, e.Sum, e.ep, e.n = uint64(s)<<56|uint64(loc), sum, v.Epoch, v.N
}

// Table is an open-addressing hash table of entries without pointers and of fixed capacity. Entries are numbered from
// 1 and stay until Reset.
type Table struct {
	slots  []uint64 // tag << 32 | entry number; 0: free
	ents   []Entry  // ents[0] is unused
	n      int
	shift  uint
	Chunks []uint64 // Key>>9 of every chunk that has entries, appended by the user
}

// NewTable returns a table for up to capacity entries.
func NewTable(capacity int) *Table {
	size := 1 << bits.Len(uint(capacity*3/2))
	return &Table{
		slots: make([]uint64, size), ents: make([]Entry, capacity+1), shift: uint(64 - bits.TrailingZeros(uint(size))),
		Chunks: make([]uint64, 0, capacity),
	}
}

// Len returns the number of entries, Cap how many there can be.
func (t *Table) Len() int { return t.n }
func (t *Table) Cap() int { return len(t.ents) - 1 }

func hash(key uint64) uint64 {
	key ^= key >> 29
	key *= 0x9e3779b97f4a7c15
	key ^= key >> 32
	return key * 0xd6e8feb86659fd93
}

// Find returns the entry of key, nil if there is none.
func (t *Table) Find(key uint64) *Entry {
	h := hash(key)
	tag := uint64(uint32(h))
	mask := uint64(len(t.slots) - 1)
	for i := h >> t.shift; ; i = (i + 1) & mask {
		s := t.slots[i]
		if s == 0 {
			return nil
		}
		if s>>32 == tag {
			if e := &t.ents[uint32(s)]; e.key == key {
				return e
			}
		}
	}
}

// Insert returns the entry of key, making it when there is none. number is set for a new entry only; its state is Dead
// and its chain empty until the caller sets them. The table must not be full.
func (t *Table) Insert(key uint64) (e *Entry, number uint32) {
	h := hash(key)
	tag := uint64(uint32(h))
	mask := uint64(len(t.slots) - 1)
	for i := h >> t.shift; ; i = (i + 1) & mask {
		s := t.slots[i]
		if s == 0 {
			e, number = t.add(key)
			t.slots[i] = tag<<32 | uint64(number)
			return e, number
		}
		if s>>32 == tag {
			if e := &t.ents[uint32(s)]; e.key == key {
				return e, 0
			}
		}
	}
}

// hidden marks the keys of entries that Find does not find.
const hidden = 1 << 63

// Add makes an entry that Find does not find.
func (t *Table) Add(key uint64) (*Entry, uint32) { return t.add(key | hidden) }

func (t *Table) add(key uint64) (*Entry, uint32) {
	t.n++
	e := &t.ents[t.n]
	*e = Entry{key: key}
	return e, uint32(t.n)
}

// Grow makes room for at least capacity entries in all. Pointers to entries are invalid afterwards, numbers stay.
func (t *Table) Grow(capacity int) {
	if capacity <= t.Cap() {
		return
	}
	n := NewTable(capacity)
	copy(n.ents, t.ents[:t.n+1])
	n.n, n.Chunks = t.n, append(n.Chunks, t.Chunks...)
	mask := uint64(len(n.slots) - 1)
	for number := 1; number <= n.n; number++ {
		if key := n.ents[number].key; key&hidden == 0 {
			h := hash(key)
			i := h >> n.shift
			for n.slots[i] != 0 {
				i = (i + 1) & mask
			}
			n.slots[i] = uint64(uint32(h))<<32 | uint64(number)
		}
	}
	*t = *n
}

// At returns the entry of that number.
func (t *Table) At(number uint32) *Entry { return &t.ents[number] }

// Reset empties the table.
func (t *Table) Reset() {
	clear(t.slots)
	t.n = 0
	t.Chunks = t.Chunks[:0]
}
