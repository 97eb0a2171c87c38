package wire

import (
	"fmt"
	"math"

	"github.com/cstor-go/cstor/internal/block"
	"github.com/cstor-go/cstor/internal/volume"
)

// OpHeadSize is the number of bytes of op's frame less its data, which is sent from where it is.
func OpHeadSize(op *volume.Op) int {
	if op.Kind == volume.OpWrite {
		return HeaderSize + int(op.Count)*SumSize
	}
	return HeaderSize
}

// PutOp encodes op's frame less its data into b, which has room for OpHeadSize bytes. The frame is the same for every
// replica. A write's Count is at most MaxBlocks, and its Data and Sums have Count blocks.
func PutOp(b []byte, op *volume.Op) {
	h := Header{N: op.Version.N, Epoch: op.Version.Epoch, Block: op.Block, Count: op.Count}
	if op.FUA {
		h.Flags = FlagFUA
	}
	switch op.Kind {
	case volume.OpWrite:
		h.Type = TypeWrite
		h.Length = op.Count * (SumSize + block.Size)
		putSums(b[HeaderSize:], op.Sums)
	case volume.OpDiscard:
		h.Type = TypeDiscard
	case volume.OpOpen:
		h.Type, h.Block, h.Count = TypeOpen, op.Open.Nonce, 0
		if op.Open.Lossy {
			h.Flags |= FlagLossy
		}
	default:
		panic(fmt.Sprintf("wire: operation of kind %d", op.Kind))
	}
	h.Put(b)
}

// IsOp reports whether a frame is an operation.
func (t Type) IsOp() bool { return t == TypeWrite || t == TypeDiscard || t == TypeOpen }

// Op decodes an operation into *op, whose other fields are reset. A write's Data is a part of the payload; its Sums are
// appended to sums, which is returned. Data is verified against the sums; errors wrap ErrFormat.
func (f *Frame) Op(op *volume.Op, sums []uint32) ([]uint32, error) {
	*op = volume.Op{FUA: f.Flags&FlagFUA != 0, Block: f.Block, Count: f.Count, Version: f.Version()}
	switch f.Type {
	case TypeWrite:
		op.Kind = volume.OpWrite
		if err := checkRange(f.Block, f.Count); err != nil {
			return sums, err
		}
		table, data, err := splitBlocks(f.Payload, f.Count)
		if err != nil {
			return sums, err
		}
		first := len(sums)
		sums = appendSums(sums, table)
		op.Sums, op.Data = sums[first:len(sums):len(sums)], data
		if err := Verify(op.Data, op.Sums); err != nil {
			return sums, fmt.Errorf("write %v of block %d: %w", op.Version, op.Block, err)
		}
	case TypeDiscard:
		op.Kind = volume.OpDiscard
		if f.Length != 0 {
			return sums, malformed("discard with a payload of %d bytes", f.Length)
		}
		if f.Count == 0 || f.Block > math.MaxInt64/block.Size-uint64(f.Count) {
			return sums, malformed("discard of %d blocks at %d", f.Count, f.Block)
		}
	case TypeOpen:
		op.Kind, op.Block, op.Count = volume.OpOpen, 0, 0
		op.Open = &volume.EpochStart{Epoch: f.Epoch, First: f.N, Lossy: f.Flags&FlagLossy != 0, Nonce: f.Block}
		if f.Length != 0 {
			return sums, malformed("open of epoch %d with a payload of %d bytes", f.Epoch, f.Length)
		}
	default:
		return sums, malformed("%v is no operation", f.Type)
	}
	if op.Version.N == 0 || op.Version.Epoch == 0 {
		return sums, malformed("operation without version")
	}
	return sums, nil
}

// checkRange bounds a range of blocks that is transferred in one frame.
func checkRange(first uint64, count uint32) error {
	if count == 0 || count > MaxBlocks || first > math.MaxInt64/block.Size-uint64(count) {
		return malformed("%d blocks at %d", count, first)
	}
	return nil
}

// splitBlocks cuts a payload into its sum table and its data.
func splitBlocks(payload []byte, count uint32) (table, data []byte, err error) {
	if count > MaxBlocks || len(payload) != int(count)*(SumSize+block.Size) {
		return nil, nil, malformed("%d bytes for %d blocks", len(payload), count)
	}
	return payload[:count*SumSize], payload[count*SumSize:], nil
}

func putSums(b []byte, sums []uint32) {
	for i, s := range sums {
		le.PutUint32(b[i*SumSize:], s)
	}
}

func appendSums(sums []uint32, table []byte) []uint32 {
	for ; len(table) >= SumSize; table = table[SumSize:] {
		sums = append(sums, le.Uint32(table))
	}
	return sums
}

// Verify checks whole blocks against their sums. The error wraps ErrFormat: with TCP and a peer of ours underneath, a
// difference is damage in some memory or link.
func Verify(data []byte, sums []uint32) error {
	for i, want := range sums {
		if got := block.Sum(data[i*block.Size : (i+1)*block.Size]); got != want {
			return malformed("block %d of %d has checksum %08x, its sender computed %08x", i, len(sums), got, want)
		}
	}
	return nil
}

// Sums appends the sums of the whole blocks of data to sums.
func Sums(sums []uint32, data []byte) []uint32 {
	for ; len(data) >= block.Size; data = data[block.Size:] {
		sums = append(sums, block.Sum(data[:block.Size]))
	}
	return sums
}
