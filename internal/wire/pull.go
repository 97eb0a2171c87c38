package wire

import (
	"math"
	"math/bits"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// Hello is the first frame of a connection to a replica's pull address: who asks which replica for what.
type Hello struct {
	Replica string         `json:"replica"`           // the replica's name in its pool
	GUID    block.GUID     `json:"guid,omitzero"`     // which it must have, zero: any
	By      string         `json:"by,omitempty"`      // for the log: who asks
	Promise volume.Promise `json:"promise,omitzero"`  // a pull: the target under which the replica must be admitted
	From    block.Version  `json:"from,omitzero"`     // a pull: what the replica must have applied
	Attempt uint64         `json:"attempt,omitempty"` // a pull: the joiner's attempt
	Inspect bool           `json:"inspect,omitempty"` // no pull: look at what is there, whoever serves the volume
}

// HelloReply answers Hello.
type HelloReply struct {
	Code    Code          `json:"code"`
	Error   string        `json:"error,omitempty"` // when Code is not OK
	GUID    block.GUID    `json:"guid,omitzero"`
	Size    int64         `json:"size"` // bytes
	Applied block.Version `json:"applied"`
}

// AppendHello appends h's frame.
func AppendHello(b []byte, h Hello) ([]byte, error) { return appendJSON(b, Header{Type: TypeHello}, h) }

// Hello decodes a Hello. Errors wrap ErrFormat.
func (f *Frame) Hello() (h Hello, err error) {
	if f.Type != TypeHello {
		return h, malformed("%v instead of hello", f.Type)
	}
	return h, f.json(&h)
}

// AppendHelloReply appends h's frame.
func AppendHelloReply(b []byte, h HelloReply) ([]byte, error) {
	h.Error = clip(h.Error)
	return appendJSON(b, Header{Type: TypeHelloReply}, h)
}

// HelloReply decodes the answer to a Hello; a Code in it becomes a RemoteError. Other errors wrap ErrFormat.
func (f *Frame) HelloReply() (h HelloReply, err error) {
	if f.Type != TypeHelloReply {
		return h, malformed("%v instead of hello-reply", f.Type)
	}
	if err = f.json(&h); err == nil && h.Code != OK {
		err = &RemoteError{Code: h.Code, Text: h.Error}
	}
	return h, err
}

// AllListed is the position of a Changed reply after which there is nothing more.
const AllListed = math.MaxUint64

// MaxChanged is the number of chunks that one reply to Changed lists at most.
const MaxChanged = 64 << 10

// AppendChanged asks for the chunks from number from on whose newest version is above base.
func AppendChanged(b []byte, base block.Version, from uint64) []byte {
	h := Header{Type: TypeChanged, N: base.N, Epoch: base.Epoch, Block: from}
	return h.append(b)
}

// AppendChangedReply lists chunks in ascending order; the next request starts from next, which may be AllListed.
func AppendChangedReply(b []byte, chunks []uint64, next uint64) []byte {
	table := make([]byte, 0, len(chunks)*8)
	for _, c := range chunks {
		table = le.AppendUint64(table, c)
	}
	return appendPayload(b, Header{Type: TypeChangedReply, Block: next, Count: uint32(len(chunks))}, table)
}

// ChangedReply appends the chunks listed to dst and returns where to go on. Errors wrap ErrFormat or are a RemoteError.
func (f *Frame) ChangedReply(dst []uint64) (chunks []uint64, next uint64, err error) {
	if f.Type != TypeChangedReply {
		return dst, 0, malformed("%v instead of changed-reply", f.Type)
	}
	if f.Flags != OK {
		return dst, 0, f.remoteError()
	}
	if len(f.Payload) != int(f.Count)*8 || f.Count > MaxChanged {
		return dst, 0, malformed("%d bytes for %d chunks", len(f.Payload), f.Count)
	}
	if err := f.checkTable(f.Payload); err != nil {
		return dst, 0, err
	}
	for p := f.Payload; len(p) > 0; p = p[8:] {
		dst = append(dst, le.Uint64(p))
	}
	return dst, f.Block, nil
}

// AppendError appends a reply of type t to tag that says what went wrong.
func AppendError(b []byte, t Type, tag uint32, code Code, reason string) []byte {
	return appendPayload(b, Header{Type: t, Flags: code, Tag: tag}, []byte(clip(reason)))
}

// AppendChunkRequest asks for what is newer than base in chunk index, here or there: the versions of these blocks, and the
// data of those whose version differs from have, which has the asker's versions that are newer than base, and zeroes.
func AppendChunkRequest(b []byte, tag uint32, index uint64, base block.Version, have *[block.ChunkBlocks]block.Version) []byte {
	return appendPayload(b, Header{Type: TypeChunk, Tag: tag, Block: index, N: base.N, Epoch: base.Epoch}, appendRuns(nil, have))
}

// ChunkRequest decodes what a TypeChunk frame asks for into have; its Version is the base. Errors wrap ErrFormat.
func (f *Frame) ChunkRequest(have *[block.ChunkBlocks]block.Version) (index uint64, err error) {
	if err := f.checkTable(f.Payload); err != nil {
		return 0, err
	}
	rest, err := parseRuns(f.Payload, have)
	if err == nil && len(rest) != 0 {
		err = malformed("%d bytes behind a list of versions", len(rest))
	}
	return f.Block, err
}

// AppendWorking appends what is said while a reply takes longer.
func AppendWorking(b []byte) []byte {
	h := Header{Type: TypeWorking}
	return h.append(b)
}

// runSize is the number of bytes of one run of equal versions: u16 count, u64 epoch, u64 n.
const runSize = 18

func appendRuns(b []byte, versions *[block.ChunkBlocks]block.Version) []byte {
	for i := 0; i < len(versions); {
		n := 1
		for i+n < len(versions) && versions[i+n] == versions[i] {
			n++
		}
		b = le.AppendUint16(b, uint16(n))
		b = le.AppendUint64(b, versions[i].Epoch)
		b = le.AppendUint64(b, versions[i].N)
		i += n
	}
	return b
}

func parseRuns(b []byte, versions *[block.ChunkBlocks]block.Version) (rest []byte, err error) {
	for i := 0; i < len(versions); b = b[runSize:] {
		if len(b) < runSize {
			return nil, malformed("list of versions ends after %d blocks", i)
		}
		n := int(le.Uint16(b))
		if n == 0 || i+n > len(versions) {
			return nil, malformed("run of %d versions at block %d", n, i)
		}
		v := block.Version{Epoch: le.Uint64(b[2:]), N: le.Uint64(b[10:])}
		for ; n > 0; n-- {
			versions[i] = v
			i++
		}
	}
	return b, nil
}

// bitmap is one bit for each block of a chunk, block 0 in the lowest bit of the first byte.
type bitmap [block.ChunkBlocks / 8]byte

func (m *bitmap) set(i int)      { m[i/8] |= 1 << (i % 8) }
func (m *bitmap) has(i int) bool { return m[i/8]&(1<<(i%8)) != 0 }
func (m *bitmap) count() (n int) {
	for _, b := range m {
		n += bits.OnesCount8(b)
	}
	return n
}

// Chunk is a chunk's listing, and the data that the asker lacked; the fields are those of pool.Chunk. What is unlisted is
// not stored, and has the zero version.
type Chunk struct {
	Index    uint64
	Scan     block.Version
	Versions *[block.ChunkBlocks]block.Version
	Sums     *[block.ChunkBlocks]uint32
	Stored   *[block.ChunkBlocks]bool
	Unlisted *[block.ChunkBlocks]bool
	DataOf   []uint16
	Data     []byte
}

// AppendChunkReplyHead appends the reply to a chunk request less c.Data, which follows it on the wire.
func AppendChunkReplyHead(b []byte, tag uint32, c *Chunk) []byte {
	h := Header{
		Type: TypeChunkReply, Tag: tag, Block: c.Index, N: c.Scan.N, Epoch: c.Scan.Epoch, Count: uint32(len(c.DataOf)),
	}
	at := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = appendRuns(b, c.Versions)
	var listed, stored, data bitmap
	for i, s := range c.Stored {
		if !c.Unlisted[i] {
			listed.set(i)
		}
		if s {
			stored.set(i)
		}
	}
	for _, i := range c.DataOf {
		data.set(int(i))
	}
	b = append(append(append(b, listed[:]...), stored[:]...), data[:]...)
	for i, s := range c.Stored {
		if s {
			b = le.AppendUint32(b, c.Sums[i])
		}
	}
	table := b[at+HeaderSize:]
	h.Length, h.TableSum = uint32(len(table)+len(c.DataOf)*block.Size), block.Sum(table)
	h.Put(b[at:])
	return b
}

// ChunkReply decodes a chunk into the arrays that c refers to; c.DataOf is reused, c.Data is a part of the payload and
// verified against the sums. Errors wrap ErrFormat or are a RemoteError.
func (f *Frame) ChunkReply(c *Chunk) error {
	if f.Type != TypeChunkReply {
		return malformed("%v instead of chunk-reply", f.Type)
	}
	if f.Flags != OK {
		return f.remoteError()
	}
	size := int(f.Count) * block.Size
	if f.Count > block.ChunkBlocks || size > len(f.Payload) {
		return malformed("chunk of %d blocks in %d bytes", f.Count, len(f.Payload))
	}
	table := f.Payload[:len(f.Payload)-size]
	if err := f.checkTable(table); err != nil {
		return err
	}
	rest, err := parseRuns(table, c.Versions)
	if err != nil {
		return err
	}
	var listed, stored, data bitmap
	if len(rest) < 3*len(stored) {
		return malformed("chunk without bitmaps")
	}
	rest = rest[copy(listed[:], rest):]
	rest = rest[copy(stored[:], rest):]
	rest = rest[copy(data[:], rest):]
	if len(rest) != stored.count()*SumSize || data.count() != int(f.Count) {
		return malformed("chunk with %d bytes of sums for %d blocks, %d blocks of data", len(rest), stored.count(), f.Count)
	}
	c.Index, c.Scan, c.Data, c.DataOf = f.Block, f.Version(), f.Payload[len(table):], c.DataOf[:0]
	for i := range c.Stored {
		c.Unlisted[i] = !listed.has(i)
		if c.Unlisted[i] && (stored.has(i) || !c.Versions[i].IsZero()) {
			return malformed("chunk with version %v of block %d, which is not listed", c.Versions[i], i)
		}
		if c.Stored[i] = stored.has(i); c.Stored[i] {
			c.Sums[i] = le.Uint32(rest)
			rest = rest[SumSize:]
		} else {
			c.Sums[i] = block.ZeroSum
		}
		if !data.has(i) {
			continue
		}
		if !c.Stored[i] {
			return malformed("chunk with data of block %d, which is not stored", i)
		}
		d := c.Data[len(c.DataOf)*block.Size:][:block.Size]
		if sum := block.Sum(d); sum != c.Sums[i] {
			return malformed("chunk %d block %d has checksum %08x, its sender has %08x", c.Index, i, sum, c.Sums[i])
		}
		c.DataOf = append(c.DataOf, uint16(i))
	}
	return nil
}
