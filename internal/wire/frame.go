// Package wire is the one format in which targets and replicas talk: little-endian frames, each a header of fixed size
// and a payload whose length the header tells. Operations, acknowledgements, reads and pulls are binary, control messages
// are JSON. docs/wire.md describes it byte by byte.
//
// Nothing in here trusts what it reads: every length is bounded before it is used, the header, tables and control
// messages carry checksums of their own, and block data is covered by the per-block sums that travel beside it, which
// the receiver verifies.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cstor-go/cstor/internal/block"
)

const (
	// Version is the format's version, the first field of each frame.
	Version = 3
	// HeaderSize is the number of bytes of a frame's header.
	HeaderSize = 48
	// MaxBlocks is the number of blocks that one frame carries at most (4 MiB of data).
	MaxBlocks = 1024
	// MaxPayload bounds a frame's payload in bytes: data of MaxBlocks and the tables that go with it.
	MaxPayload = MaxBlocks*block.Size + 64<<10
	// MaxMessage bounds the payload of frames that carry JSON, in bytes.
	MaxMessage = 1 << 20
	// SumSize is the number of bytes of one entry of a sum table.
	SumSize = 4
)

// Type tells what a frame is. Types below 32 belong to sessions between target and replica, the others to pulls.
type Type uint8

const (
	TypeMessage   Type = iota + 1 // a volume.Message; Flags is its kind, the payload JSON
	TypeWrite                     // N, Epoch, Block, Count; payload: sums, data
	TypeDiscard                   // N, Epoch, Block, Count
	TypeOpen                      // N, Epoch; Block: nonce of the target
	TypeFlush                     // N: an Ack whose stable number is at least this is wanted
	TypeAck                       // N: applied; Epoch: stable (both are numbers)
	TypeRead                      // Tag, Block, Count
	TypeReadReply                 // Tag, Block, Count, Code; payload: sums, data (or the text of the error)

	TypeHello        Type = iota + 24 // payload: JSON of Hello
	TypeHelloReply                    // payload: JSON of HelloReply
	TypeChanged                       // N, Epoch: the version above which a chunk's newest version must be
	TypeChangedReply                  // Code; payload: table of 8-byte chunk numbers
	_                                 // versions of earlier programs: 36 and 37
	_
	TypeChunk      // Tag, Block = chunk, N, Epoch: base; payload: list of the versions above it that the asker has
	TypeChunkReply // Tag, Block = chunk, Code; payload: see ChunkReply
	TypeWorking    // the reply to the oldest request takes longer
	TypeStage      // N, Epoch: base, Count; payload: table of the blocks above it that the asker has
	TypeStageReply // N, Epoch: scan, Count, Block: how many come in later frames, Code; payload: see StageReply
)

var le = binary.LittleEndian

var typeNames = map[Type]string{
	TypeMessage: "message", TypeWrite: "write", TypeDiscard: "discard", TypeOpen: "open", TypeFlush: "flush",
	TypeAck: "ack", TypeRead: "read", TypeReadReply: "read-reply", TypeHello: "hello", TypeHelloReply: "hello-reply",
	TypeChanged: "changed", TypeChangedReply: "changed-reply", TypeChunk: "chunk", TypeChunkReply: "chunk-reply", TypeWorking: "working",
	TypeStage: "stage", TypeStageReply: "stage-reply",
}

func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Flags of operations.
const (
	FlagFUA   = 1 << 0 // write, discard: completed only when stable
	FlagLossy = 1 << 1 // open: without proof that nothing flushed was lost
)

// Code is the outcome that a reply carries in its Flags.
type Code = uint8

const (
	OK          Code = iota
	CodeError        // the payload's text says what happened
	CodeMedium       // data here is damaged; the payload's text says more
	CodeNotYet       // a pull: the source has not applied far enough, try again soon
	CodeTooMuch      // a stage: more blocks differ than are sent at once
)

// ErrFormat is wrapped by the errors for bytes that no peer of ours sends.
var ErrFormat = errors.New("wire: malformed frame")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Header is a frame's header. What the general fields mean depends on Type.
//
//	 0 u16 version    2 u8 type    3 u8 flags    4 u32 length
//	 8 u64 n         16 u64 epoch               24 u64 block
//	32 u32 count     36 u32 tag                 40 u32 table sum    44 u32 header sum
type Header struct {
	Type     Type
	Flags    uint8
	Length   uint32 // of the payload, bytes
	N        uint64
	Epoch    uint64
	Block    uint64
	Count    uint32 // blocks, or entries of a table
	Tag      uint32 // chosen by the asker, repeated in the reply
	TableSum uint32 // Sum of the payload less block data, where that is not covered by the block sums
}

// Put encodes h into b, which has room for HeaderSize bytes.
func (h *Header) Put(b []byte) {
	_ = b[HeaderSize-1]

	le.PutUint16(b[0:], Version)
	b[2], b[3] = byte(h.Type), h.Flags
	le.PutUint32(b[4:], h.Length)
	le.PutUint64(b[8:], h.N)
	le.PutUint64(b[16:], h.Epoch)
	le.PutUint64(b[24:], h.Block)
	le.PutUint32(b[32:], h.Count)
	le.PutUint32(b[36:], h.Tag)
	le.PutUint32(b[40:], h.TableSum)
	le.PutUint32(b[44:], block.Sum(b[:44]))
}

// ParseHeader decodes the header at the start of b, which holds at least HeaderSize bytes. Errors wrap ErrFormat.
func ParseHeader(b []byte) (h Header, err error) {
	_ = b[HeaderSize-1]

	if v := le.Uint16(b); v != Version {
		return h, malformed("the peer speaks version %d of the protocol, this program version %d: both have to be of one release", v, Version)
	}
	if sum := block.Sum(b[:44]); sum != le.Uint32(b[44:]) {
		return h, malformed("header checksum %08x, computed %08x", le.Uint32(b[44:]), sum)
	}
	h = Header{
		Type: Type(b[2]), Flags: b[3], Length: le.Uint32(b[4:]),
		N: le.Uint64(b[8:]), Epoch: le.Uint64(b[16:]), Block: le.Uint64(b[24:]),
		Count: le.Uint32(b[32:]), Tag: le.Uint32(b[36:]), TableSum: le.Uint32(b[40:]),
	}
	if limit := h.Type.limit(); h.Length > limit {
		return h, malformed("%v of %d bytes, at most %d", h.Type, h.Length, limit)
	}
	return h, nil
}

// limit is the longest payload that a type may have, in bytes; 0 for types that have none or are not known.
func (t Type) limit() uint32 {
	switch t {
	case TypeMessage, TypeHello, TypeHelloReply, TypeChanged:
		return MaxMessage
	case TypeWrite, TypeReadReply, TypeChangedReply, TypeChunk, TypeChunkReply, TypeStage, TypeStageReply:
		return MaxPayload
	}
	return 0
}

// Version returns the version that an operation's header, or a scan position, names.
func (h *Header) Version() block.Version { return block.Version{Epoch: h.Epoch, N: h.N} }

// Frame is a header with its payload. The payload is a part of the Reader's current chunk.
type Frame struct {
	Header
	Payload []byte
}
