package wire

import (
	"github.com/cstor-go/cstor/internal/block"
)

// Read returns a request for count blocks, at most MaxBlocks.
func Read(tag uint32, first uint64, count uint32) Header {
	return Header{Type: TypeRead, Tag: tag, Block: first, Count: count}
}

// Read returns the range that a TypeRead frame asks for. Errors wrap ErrFormat.
func (f *Frame) Read() (first uint64, count uint32, err error) {
	if f.Length != 0 {
		return 0, 0, malformed("read with a payload of %d bytes", f.Length)
	}
	return f.Block, f.Count, checkRange(f.Block, f.Count)
}

// ReadReplyHeadSize is the number of bytes of a read reply's frame less its data.
func ReadReplyHeadSize(count uint32) int { return HeaderSize + int(count)*SumSize }

// PutReadReply encodes the reply to a read less its data into b, which has room for ReadReplyHeadSize bytes.
func PutReadReply(b []byte, tag uint32, first uint64, sums []uint32) {
	h := Header{Type: TypeReadReply, Tag: tag, Block: first, Count: uint32(len(sums))}
	h.Length = h.Count * (SumSize + block.Size)
	putSums(b[HeaderSize:], sums)
	h.Put(b)
}

// AppendReadError appends the reply to a read that failed.
func AppendReadError(b []byte, tag uint32, first uint64, code Code, reason string) []byte {
	return appendPayload(b, Header{Type: TypeReadReply, Flags: code, Tag: tag, Block: first}, []byte(clip(reason)))
}

// ReadReply returns the data of a reply, a part of the payload, verified against the sums that the replica's pool
// verified when it read it. An error that wraps ErrFormat says that the data cannot be used; a RemoteError is the
// replica's.
func (f *Frame) ReadReply() ([]byte, error) {
	if f.Flags != OK {
		return nil, f.remoteError()
	}
	table, data, err := splitBlocks(f.Payload, f.Count)
	if err != nil {
		return nil, err
	}
	for i := range int(f.Count) {
		want := le.Uint32(table[i*SumSize:])
		if got := block.Sum(data[i*block.Size : (i+1)*block.Size]); got != want {
			return nil, malformed("block %d came with checksum %08x, has %08x", f.Block+uint64(i), want, got)
		}
	}
	return data, nil
}

// RemoteError is an error that the peer reported.
type RemoteError struct {
	Code Code
	Text string
}

func (e *RemoteError) Error() string { return e.Text }

// remoteError decodes the error that a reply with a Code carries.
func (f *Frame) remoteError() error {
	if err := f.checkTable(f.Payload); err != nil {
		return err
	}
	return &RemoteError{Code: f.Flags, Text: clip(string(f.Payload))}
}

// clip bounds the text of an error on the wire.
func clip(s string) string { return s[:min(len(s), 4096)] }
