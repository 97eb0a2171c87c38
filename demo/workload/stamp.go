package workload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/cstor-go/cstor/internal/block"
)

// A block starts with a header: magic, the application's nonce, the block's address, the number of the operation that
// wrote it, and the checksum of everything else; the rest is filler that no compression makes smaller.
const (
	headerBytes = 40
	fillerBytes = 1 << 20
	magic       = "cStorApp"
)

var zeroes = make([]byte, block.Size)

// stamper makes and recognises stamped blocks. It is read-only after it was made.
type stamper struct {
	nonce  uint64
	filler []byte
}

func newStamper(seed uint64) *stamper {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	random := rand.NewChaCha8(key)
	s := &stamper{nonce: random.Uint64(), filler: make([]byte, fillerBytes)}
	_, _ = random.Read(s.filler) // never fails
	return s
}

// stamp fills b, one block, as the content that operation id writes to block address.
func (s *stamper) stamp(b []byte, address uint64, id uint32) {
	from := (address*0x9e3779b97f4a7c15 ^ uint64(id)*0xff51afd7ed558ccd) % (fillerBytes - block.Size)
	copy(b[headerBytes:], s.filler[from:])
	copy(b, magic)
	binary.LittleEndian.PutUint64(b[8:], s.nonce)
	binary.LittleEndian.PutUint64(b[16:], address)
	binary.LittleEndian.PutUint64(b[24:], uint64(id))
	binary.LittleEndian.PutUint64(b[32:], uint64(sum(b)))
}

// sum covers the block except the place of the sum itself.
func sum(b []byte) uint32 { return block.UpdateSum(block.Sum(b[:32]), b[headerBytes:]) }

// content is what a block was found to hold.
type content struct {
	zero  bool
	id    uint32 // the operation that wrote it, unless zero
	fault string // what is wrong with the block by itself, empty if nothing
}

func (c content) String() string {
	switch {
	case c.fault != "":
		return c.fault
	case c.zero:
		return "zeroes"
	}
	return fmt.Sprintf("the content of operation %d", c.id)
}

// inspect reads a block that was expected at address.
func (s *stamper) inspect(b []byte, address uint64) content {
	if b[0] == 0 && bytes.Equal(b, zeroes) {
		return content{zero: true}
	}
	if string(b[:8]) != magic {
		return content{fault: fmt.Sprintf("a block that the application never wrote (it starts with %x)", b[:16])}
	}
	id := binary.LittleEndian.Uint64(b[24:])
	at := binary.LittleEndian.Uint64(b[16:])
	switch {
	case binary.LittleEndian.Uint64(b[32:]) != uint64(sum(b)):
		return content{fault: fmt.Sprintf("a torn or damaged block: the header is that of operation %d for block %d, its checksum does not match", id, at)}
	case binary.LittleEndian.Uint64(b[8:]) != s.nonce:
		return content{fault: "a block of another application"}
	case at != address:
		return content{fault: fmt.Sprintf("a misdirected block: operation %d wrote it to block %d", id, at)}
	}
	return content{id: uint32(id)}
}
